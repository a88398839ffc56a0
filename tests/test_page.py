"""The page by itself: its checks, its data, its size."""

import gzip
import json
import re
from importlib.resources import files

import numpy as np
import plotly.graph_objects as go
import pytest

from pages import figures, section, table
from thalweg.report.compact import TRACES, compact_figure
from thalweg.report.page import Card, Tile, render_page

CHECKS = [
    {"name": "the scale", "state": "passed", "text": "is right."},
    {"name": "the <tails>", "state": "doubtful", "text": "are long."},
    {"name": "log Z", "state": "failed", "text": "was not found."},
    {"name": "the rows", "state": "passed", "text": "suffice."},
]


def page(cards: list[Card], **rest) -> str:
    return render_page("title", "subtitle", [Tile("rows", "3")], cards, "footer", **rest)


def test_checks_are_listed_the_failed_ones_first_and_the_passed_ones_folded() -> None:
    shown = section(page([], checks=CHECKS), "Checks")
    places = [shown.index(word) for word in ("log Z", "the &lt;tails&gt;", "the scale")]
    assert places == sorted(places)
    assert "passed: the scale, the rows" in shown
    assert shown.index("<details") > shown.index("the &lt;tails&gt;")
    for state, count in (("failed", 1), ("doubtful", 1), ("passed", 2)):
        assert len(re.findall(rf'class="state">. {state}<', shown)) == count
    whole = page([Card("A card", "")], checks=CHECKS)
    assert whole.index('class="tiles"') < whole.index("<h2>Checks") < whole.index("<h2>A card")


def test_without_checks_there_is_no_section() -> None:
    assert "<h2>Checks" not in page([Card("A card", "")])


def test_numbers_of_figures_come_back_from_the_page() -> None:
    rng = np.random.default_rng(0)
    years = 2000 + rng.random(50) * 1e-4
    maps = rng.random((30, 40))
    figure = go.Figure(
        [go.Scatter(x=years, y=np.arange(50)), go.Heatmap(z=maps), go.Bar(x=["</script>"], y=[0.1])]
    )
    html = page([Card("A", "", [figure])])
    scatter, heat, bar = figures(html)[0]["data"]
    np.testing.assert_array_equal(scatter["x"], years)  # single precision would leave one value of them
    np.testing.assert_array_equal(scatter["y"], np.arange(50))
    np.testing.assert_allclose(heat["z"], maps, atol=1e-6)
    assert heat["z"].dtype == np.float32
    assert (bar["x"], bar["y"]) == (["</script>"], [0.1])
    assert "</script>" not in html.split('id="figure-data">')[1].split("</script>")[0]


def test_gaps_in_a_line_stay_gaps() -> None:
    rows = np.arange(1800.0).reshape(30, 60)
    as_lists, as_array = (
        compact_figure(go.Figure(go.Heatmap(z=z)))["data"][0]["z"] for z in (rows.tolist(), rows)
    )
    assert as_lists == as_array
    assert as_lists["shape"] == "30, 60"
    line = compact_figure(go.Figure(go.Scatter(y=[1.0, float("nan"), 2.0])))["data"][0]
    assert line["y"] == [1.0, None, 2.0]


def test_a_wall_of_pixels_is_a_picture() -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    compact = json.dumps(compact_figure(go.Figure(go.Image(z=pixels))))
    assert "data:image/png" in compact
    assert len(compact) < 5000


def test_a_trace_that_cannot_be_drawn_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scatter3d"):
        page([Card("A", "", [go.Figure(go.Scatter3d(x=[1], y=[1], z=[1]))])])


def test_the_library_in_the_package_draws_what_it_says_and_keeps_pages_small() -> None:
    packed = files("thalweg.report").joinpath("plotly/plotly-cartesian.min.js.gz").read_bytes()
    script = gzip.decompress(packed).decode()
    assert "Licensed under the MIT license" in script[:200]
    for kind in TRACES:
        assert f'name:"{kind}"' in script or f'name: "{kind}"' in script, kind
    assert len(page([])) < 0.8e6


def test_a_reader_chooses_one_of_several_figures() -> None:
    some = [go.Figure(go.Scatter(y=[k])) for k in range(3)]
    shown = section(page([Card("A", "", some, choices=["a", "<b>", "c"], choice="input")]), "A")
    assert re.findall(r"<option>(.*?)</option>", shown) == ["a", "&lt;b&gt;", "c"]
    assert shown.count('class="drawing" hidden') == 2


def test_cells_of_a_table() -> None:
    card = Card("A", "", head=["model", "NLL"], rows=[["a", "1"], ["b", "2"]], best={(0, 1)})
    assert table(page([card]), "A") == [["model", "NLL"], ["a", "1**"], ["b", "2"]]
