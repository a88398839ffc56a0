"""What the command writes: tables compressed as their names say, and text to a stdout of any encoding."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from command import call
from thalweg.cli import console
from thalweg.data.tables import check_writable, read_table, write_table

TABLE = pd.DataFrame({"x": [0.5, -1.25], "naïve": pd.Categorical(["≤ 3", "größer"])})
TEXT = TABLE.to_csv(index=False, lineterminator="\n")


# -- tables -----------------------------------------------------------------------------------------------


def unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == ["x.csv"]
        return file.read("x.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", Path.read_bytes),
        ("x.csv.gz", lambda path: gzip.decompress(path.read_bytes())),
        ("x.CSV.GZ", lambda path: gzip.decompress(path.read_bytes())),
        ("x.csv.bz2", lambda path: bz2.decompress(path.read_bytes())),
        ("x.csv.xz", lambda path: lzma.decompress(path.read_bytes())),
        ("x.csv.zip", unzipped),
    ],
)
def test_a_table_is_compressed_as_its_name_says(tmp_path, name, content):
    path = tmp_path / name
    write_table(TABLE, path)
    assert content(path).decode().splitlines() == TEXT.splitlines()
    pd.testing.assert_frame_equal(read_table(path), TABLE)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x.tsv.gz", "x.parquet", "x.pq", "x.of.2024.csv.zip"])
def test_tables_of_other_kinds_are_read_back(tmp_path, name):
    write_table(TABLE, tmp_path / name)
    pd.testing.assert_frame_equal(read_table(tmp_path / name), TABLE)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.csv.7z", r"x\.csv\.7z: name the file \.csv, or for a compressed one \.csv\.gz"),
        ("x.csv.tar.gz", r"name the file \.csv"),
        ("x.csv.old", r"name the file \.csv"),
        ("x.parquet.gz", r"compressed in itself: name it \.parquet"),
        ("x.txt", "read from and written to"),
        ("x.gz", "read from and written to"),
    ],
)
def test_an_ending_that_can_not_be_written_is_refused(tmp_path, name, words):
    for refuse in (
        lambda: check_writable(tmp_path / "new" / name),
        lambda: write_table(TABLE, tmp_path / "new" / name),
    ):
        with pytest.raises(ValueError, match=words):
            refuse()
    assert not list(tmp_path.iterdir())


def test_zstandard_is_written_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package zstandard: install it, or name the file \.csv\.gz"):
        write_table(TABLE, tmp_path / "x.csv.zst")
    monkeypatch.undo()
    pytest.importorskip("zstandard")
    write_table(TABLE, tmp_path / "x.csv.zst")
    pd.testing.assert_frame_equal(read_table(tmp_path / "x.csv.zst"), TABLE)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.csv.zip", "x.parquet"])
def test_a_file_whose_replacement_fails_stays_as_it_was(tmp_path, name):
    class Bad:
        def __str__(self) -> str:
            raise OSError("no space left")

    write_table(TABLE, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises((OSError, ValueError, TypeError)):
        write_table(pd.DataFrame({"a": [1, Bad()]}), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


# -- encodings of stdout ----------------------------------------------------------------------------------


def run(code: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python code in a process whose stdout and stderr have the encoding."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)


SHOW = """
from types import SimpleNamespace
from thalweg.cli import console
console.write_any_text()
rows = [["NLL ± s", "≤ 0.5"], ["ESS", "≥ 10"]]
console.show_table(SimpleNamespace(title="Größe", head=["figure", "target"], rows=rows, best=False))
console.say_error("no file é≤")
print("end ≤ α")
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "ascii:surrogateescape"])
def test_characters_that_stdout_lacks_are_written_in_ascii(encoding):
    done = run(SHOW, encoding)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding.partition(":")[0])
    latin = encoding == "cp1252"
    for words in ("Größe" if latin else r"Gr\xf6\xdfe", "NLL ± s" if latin else "NLL +- s", "<= 0.5", ">= 10"):
        assert words in shown
    assert shown.splitlines()[1].strip("+-") == ""  # the lines of the table
    assert shown.rstrip().endswith(r"end <= \u03b1")
    assert done.stderr.startswith(b"error: no file ")


def test_utf_8_is_written_as_it_is():
    done = run(SHOW, "utf-8")
    assert done.returncode == 0, done.stderr
    for words in ("Größe", "NLL ± s", "≤ 0.5", "┃", "end ≤ α"):
        assert words in done.stdout.decode()
    assert done.stderr.decode() == "error: no file é≤\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_command_lives_with_every_encoding(encoding):
    command = "import sys; sys.argv = ['thalweg', *{}]; from thalweg.cli import main; main()"
    assert run(command.format(["--help"]), encoding).returncode == 0
    done = run(command.format(["info", "näher/≤\udcff"]), encoding)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_a_table_on_stdout_has_the_bytes_of_its_file(tmp_path, encoding):
    code = f"""
import sys
import pandas as pd
from thalweg.cli import console
console.write_any_text()
console.write_result(pd.DataFrame({TABLE.to_dict("list")!r}), None, "rows")
"""
    write_table(TABLE, tmp_path / "x.csv")
    done = run(code, encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "x.csv").read_bytes()


def test_text_before_a_table_stays_before_it(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.write_any_text()
    print("before ≤")
    console.write_result(TABLE, None, "rows")
    print("after")
    stream.flush()
    written = stream.buffer.getvalue().decode().splitlines()
    assert written == ["before <=", *TEXT.splitlines(), "after"]


def test_streams_without_an_encoding_take_all_text(monkeypatch, capsys):
    console.write_any_text()
    console.write_result(TABLE, None, "rows")
    assert capsys.readouterr().out.splitlines() == TEXT.splitlines()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        console.write_any_text()
        console.write_result(TABLE, None, "rows")
        assert sys.stdout.getvalue().splitlines() == TEXT.splitlines()
        patch.setattr(sys, "stdout", None)
        console.write_any_text()
    done = call("info", "näher≤")
    assert (done.code, done.out) == (1, "")
    assert "näher≤" in done.err


def test_a_handler_that_the_user_chose_is_kept(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="xmlcharrefreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    console.write_any_text()
    assert stream.errors == "xmlcharrefreplace"
