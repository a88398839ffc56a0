"""CoNLL files: a token on each line with its columns, a blank line after each sentence."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".conll", ".bio", ".iob", ".conllu")
# The column that numbers the sentences, from 1.
SEQUENCE = "sequence"
_UNIVERSAL_NAMES = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")


def is_conll(path: Path) -> bool:
    """Whether a file's name says that it is in the format of CoNLL."""
    return path.suffix.lower() in ENDINGS


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the cells of each token.

    Columns are named "column1", "column2" and so on, in CoNLL-U as its standard says; the last one, "sequence", is
    the number of the sentence. Lines "-DOCSTART-" are left out, in CoNLL-U also comments, contractions and words
    that are not written.

    Raises:
        ValueError: for a line with another number of columns than the first.
    """
    universal = path.suffix.lower() == ".conllu"
    rows: list[list[str]] = []
    sentence, begun = 1, False
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            sentence, begun = sentence + begun, False
            continue
        cells = line.split("\t") if universal else line.split()
        if cells[0] == "-DOCSTART-" or (universal and not cells[0].isdigit()):
            continue
        if rows and len(cells) != len(rows[0]) - 1:
            raise ValueError(f"line {number} has {len(cells)} columns, and the first has {len(rows[0]) - 1}")
        rows.append([*cells, str(sentence)])
        begun = True
    width = len(rows[0]) - 1 if rows else 0
    known = universal and width == len(_UNIVERSAL_NAMES)
    names = list(_UNIVERSAL_NAMES) if known else [f"column{k + 1}" for k in range(width)]
    return [*names, SEQUENCE], rows
