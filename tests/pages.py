"""What a page of the report holds: its figures with their numbers, its tables, its sections."""

from __future__ import annotations

import base64
import html
import json
import re
from typing import Any

import numpy as np


def figures(page: str) -> list[dict[str, Any]]:
    """Data and layout of every figure of a page; arrays are unpacked."""
    found = re.search(r'<script type="application/json" id="figure-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return _unpacked(json.loads(found[1])["figures"])


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        return array.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else array
    if isinstance(value, dict):
        return {key: _unpacked(part) for key, part in value.items()}
    return [_unpacked(part) for part in value] if isinstance(value, list) else value


def section(page: str, heading: str) -> str:
    """The HTML of the section under a heading."""
    return page.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


def figures_of(page: str, heading: str) -> list[dict[str, Any]]:
    """The figures of the section under a heading."""
    return [figures(page)[int(k)] for k in re.findall(r'data-figure="(\d+)"', section(page, heading))]


def table(page: str, heading: str) -> list[list[str]]:
    """The table of a section, row by row, the head first; cells in bold are marked with two stars."""
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", section(page, heading), re.DOTALL):
        cells = re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row, re.DOTALL)
        rows.append([html.unescape(text) + ("**" if "best" in kind else "") for kind, text in cells])
    return rows
