"""The code in the documentation runs, and every public name has a place in the reference."""

import re
from pathlib import Path

import pytest

import thalweg

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("tutorial.md", "researchers.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_from_top_to_bottom(page):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})  # the pages are ours


def test_every_module_is_in_the_reference():
    source = Path(thalweg.__file__).parent
    pages = "".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
    rooms = (
        "data",
        "energies",
        "estimators",
        "evaluation",
        "inference",
        "objectives",
        "runs",
        "sampling",
        "training",
    )
    for room in rooms:
        for path in (source / room).rglob("*.py"):
            if not path.name.startswith("_"):
                name = ".".join(path.relative_to(source.parent).with_suffix("").parts)
                assert f"::: {name}\n" in pages, name


@pytest.mark.parametrize("room", ["data", "energies", "estimators", "evaluation", "inference", "objectives",
                                  "sampling", "training"])  # fmt: skip
def test_a_room_shows_what_it_has_and_has_what_it_shows(room):
    package = getattr(thalweg, room)
    assert room in dir(thalweg)
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        found = getattr(package, name)
        if isinstance(found, type):
            assert found.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute"):
        package.nothing  # noqa: B018
