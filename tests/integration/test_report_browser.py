"""The report's page in a real browser: it stands alone, fits its window, follows the colour scheme, and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report import page
from pipeline.report.model import Report, make
from tests.support import chromium, reports
from tests.support.chromium import Browser, Page
from tests.support.reports import HOSTILE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.PROGRAM.exists(), reason=f"there is no {chromium.PROGRAM}; {chromium.ENABLE}"),
]

# Where pictures are kept for people to look at; else they vanish with the test.
PICTURES = os.environ.get("EDGE_RELEASE_SCREENSHOTS")

# Chromium's own word for what a scheme gives: light paper, dark paper.
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests, with a profile that was never used."""
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def _open(browser: Browser, folder: Path, report: Report, *, width: int = 1280, scheme: str = "light") -> Page:
    path = folder / "report.html"
    path.write_text(page.html(report), encoding="utf-8")
    tab = browser.page()
    tab.window(width, 900, scheme)
    tab.open(path.as_uri())
    assert tab.requests == [path.as_uri()]
    assert tab.complaints == []
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_whole_and_asks_for_nothing(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    """No complaint, no request, nothing wider than the window, colours of the scheme that can be read, and a picture."""
    tab = _open(browser, tmp_path, make(reports.material()), width=width, scheme=scheme)
    assert tab.run("document.title") == "edge-demo 2 (v0.2.0): release report"
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run("document.querySelectorAll('svg').length") == 11
    assert tab.run("getComputedStyle(document.body).backgroundColor") == PAPER[scheme]
    contrasts = tab.run(chromium.CONTRAST)
    assert len(contrasts) > 4
    assert {colour: value for colour, value in contrasts.items() if value < 4.5} == {}
    folder = Path(PICTURES) if PICTURES else tmp_path
    picture = tab.picture(folder / f"report-{width}-{scheme}.png")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 100_000


def test_print_is_black_on_white(browser: Browser, tmp_path: Path) -> None:
    """Whatever scheme the reader's screen has, paper is white, and nothing is cut off by a scroll region."""
    tab = _open(browser, tmp_path, make(reports.material()), scheme="dark")
    tab.window(1280, 900, "dark", media="print")
    assert tab.run("getComputedStyle(document.body).backgroundColor") == PAPER["light"]
    assert tab.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.run("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"


def test_charts_are_drawn_within_their_frames(browser: Browser, tmp_path: Path) -> None:
    """In the page's own font no label is cut off: every text of a chart lies inside it."""
    tab = _open(browser, tmp_path, make(reports.material()))
    outside = tab.run("""[...document.querySelectorAll('svg text')].filter(t => {
        const box = t.getBoundingClientRect(), frame = t.closest('svg').getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
    }).map(t => t.textContent)""")
    assert outside == []


def test_a_reader_of_the_screen_is_told_what_is_shown(browser: Browser, tmp_path: Path) -> None:
    """In the accessibility tree every chart, table and scroll region has a name."""
    tab = _open(browser, tmp_path, make(reports.material()))
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role, count in (("image", 11), ("table", 22), ("region", 33)):
        assert len(named[role]) == count, role
        assert all(named[role]), role
    assert named["heading"][0] == "edge-demo 2 (v0.2.0)"


def test_hostile_words_run_nothing(browser: Browser, tmp_path: Path) -> None:
    """A manifest that says all of them everywhere neither loads nor runs nor hides anything."""
    tab = _open(browser, tmp_path, make(reports.hostile(" ".join(HOSTILE.values()))))
    assert tab.run("document.querySelectorAll('script, img, iframe, form, b, i').length") == 0
    assert tab.run("getComputedStyle(document.body).display") == "block"
    assert tab.run("document.querySelectorAll('td').length") > 100


def test_the_policy_and_this_test_would_notice(browser: Browser, tmp_path: Path) -> None:
    """With a script and a picture put into it, the page runs neither, and both attempts are seen here."""
    path = tmp_path / "worse.html"
    worse = '<script>document.title = "ran"</script><img alt="" src="http://127.0.0.1:9/x.png"></main>'
    path.write_text(page.html(make(reports.material())).replace("</main>", worse), encoding="utf-8")
    tab = browser.page()
    tab.open(path.as_uri())
    assert tab.run("document.title") != "ran"
    assert len([c for c in tab.complaints if "Content Security Policy" in c]) == 2
    path.write_text("<img alt='' src='http://127.0.0.1:9/x.png'>", encoding="utf-8")
    tab.open(path.as_uri())
    assert "http://127.0.0.1:9/x.png" in tab.requests
