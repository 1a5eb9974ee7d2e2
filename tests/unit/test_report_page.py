"""The report as HTML and Markdown: whole, the same every time, and safe whatever stands in the manifest."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pipeline.report import drawing, markdown, page
from pipeline.report.layout import Bar, Box, Chart, Dot, Line, Span, Tick
from pipeline.report.model import Report, make
from pipeline.report.shown import sections
from tests.support import reports
from tests.support.reports import HOSTILE

_ALLOWED = {
    "html", "head", "meta", "link", "title", "style", "body", "header", "p", "h1", "h2", "bdi", "dl", "dt", "dd", "code",
    "nav", "ul", "li", "a", "main", "section", "div", "figure", "figcaption", "strong", "table", "caption", "thead",
    "tbody", "tr", "th", "td", "span", "small", "footer", "svg", "defs", "clippath", "g", "path", "use", "text", "rect",
}  # fmt: skip


class _Page(HTMLParser):
    """What a parser sees: tags with their attributes, ids, and the text outside styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data

    def values(self, name: str) -> list[str]:
        return [v for _, attrs in self.tags if (v := attrs.get(name)) is not None]


@pytest.fixture(scope="module")
def full() -> Report:
    """The report of a second release that has everything."""
    return make(reports.material())


@pytest.fixture(scope="module")
def html(full: Report) -> str:
    return page.html(full)


def test_the_same_release_gives_the_same_bytes(full: Report, html: str) -> None:
    """Written again, from a manifest made again, page and Markdown are equal to the byte."""
    again = make(reports.material())
    assert page.html(again) == html
    assert markdown.markdown(again) == markdown.markdown(full)


def test_another_process_gives_the_same_bytes(html: str, tmp_path: Path) -> None:
    """Neither hash seeds, time zones, the user's settings nor the clock reach the page."""
    code = (
        "import sys; from tests.support import reports; from pipeline.report import model, page;"
        "sys.stdout.buffer.write(page.html(model.make(reports.material())).encode())"
    )
    root = Path(__file__).parents[2]
    (tmp_path / "matplotlibrc").write_text("xtick.major.size: 20\naxes.labelpad: 30\n")
    env = {
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONHASHSEED": "77",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "1",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, check=True)
    assert done.stdout.decode() == html


def test_the_page_is_accessible(html: str) -> None:
    """It has a language, a title, one main heading, scoped table heads, captions, named charts and scroll regions."""
    found = _Page(html)
    tags = [tag for tag, _ in found.tags]
    assert found.tags[0] == ("html", {"lang": "en"})
    assert tags.count("title") == tags.count("h1") == tags.count("main") == 1
    assert all(attrs.get("scope") in {"row", "col"} for tag, attrs in found.tags if tag == "th")
    assert tags.count("caption") == tags.count("table") > 10
    charts = [attrs for tag, attrs in found.tags if tag == "svg"]
    assert len(charts) == tags.count("figcaption") == 11
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 20 for attrs in charts)
    regions = [attrs for _, attrs in found.tags if attrs.get("role") == "region"]
    assert all(attrs["tabindex"] == "0" for attrs in regions)
    assert set(found.values("aria-labelledby")) <= set(found.values("id"))


def test_the_page_stands_alone(html: str) -> None:
    """No script, no form, nothing from outside, and a policy that would forbid it."""
    found = _Page(html)
    assert {tag for tag, _ in found.tags} <= _ALLOWED
    links = [*found.values("href"), *found.values("xlink:href"), *found.values("src")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    policy = dict(found.tags)["meta"] and next(a["content"] for _, a in found.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_lead_somewhere(html: str) -> None:
    """Charts on one page share no id, and every reference has its target."""
    found = _Page(html)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    referred = {link[1:] for link in [*found.values("href"), *found.values("xlink:href")] if link.startswith("#")}
    referred |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert referred <= set(ids)


def test_colours_are_the_pages_variables(html: str) -> None:
    """No chart has a colour of its own: light, dark and print set them all, and none is left undefined."""
    charts = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", charts)
    assert "DejaVu" not in charts
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    schemes = [set(re.findall(r"(--[\w]+):", part)) for part in re.split(r"@media (?=\(prefers|print)", style[1])[:3]]
    assert set(re.findall(r"var\((--\w+)\)", html)) <= schemes[0]
    assert schemes[0] == schemes[1] == schemes[2]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_words_come_out_as_text_on_the_page(value: str) -> None:
    """Whatever a manifest says, it adds no tag and no attribute, and stands there to be read."""
    found = _Page(page.html(make(reports.hostile(value))))
    assert {tag for tag, _ in found.tags} <= _ALLOWED
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert found.values("href").count("data:,") == len([h for h in found.values("href") if not h.startswith("#")]) == 1
    shown = " ".join(found.text.split())
    assert " ".join(re.sub(r"[\u202e\u2066\x1b\x00]", "\ufffd", value).split()) in shown
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", found.text)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_words_come_out_as_text_in_markdown(value: str) -> None:
    """Rendered, the comment has no link, image, code, emphasis or heading but its own, and every table keeps its shape."""
    plain, hostile = (_rendered(markdown.markdown(make(reports.hostile(v)))) for v in ("word", value))
    assert hostile.count("<h") == plain.count("<h")
    for tag in ("<table", "<tr", "<td", "<li", "<code", "<em", "<strong", "<blockquote", "<p>", "<details"):
        assert hostile.count(tag) == plain.count(tag), tag
    assert not re.search(r"<(a|img|script|b|style|pre|hr)\b", hostile)
    assert not re.search(r"[@#](?=\w)|https?://|www\.", re.sub(r"&#\w+;", "", hostile))


def _rendered(text: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(text))


def test_markdown_shows_what_was_said() -> None:
    """Escapes vanish when rendered: the words stand there as they were."""
    assert "a | b_c &lt;d&gt; *e* &amp; f" in _rendered(markdown.escape("a | b_c <d> *e* & f"))


def test_a_long_report_fits_a_comment() -> None:
    """Thousands of reasons are cut short and counted, and a section that does not fit is named."""
    found = reports.manifest(2)
    gate = found.predicate.gate.model_copy(update={"passed": False, "reasons": ["why " * 300] * 5000})
    written = markdown.markdown(make(reports.material(reports.changed(found, gate=gate))))
    assert len(written) <= markdown.LIMIT
    assert "Refused: 5,000 reasons" in written
    assert "And 4960 more." in written


def test_a_comment_is_found_again(full: Report) -> None:
    """It begins with a line by which a job finds the comment it wrote before."""
    assert markdown.markdown(full).startswith(markdown.MARKER + "\n")


def test_every_chart_can_be_drawn_at_its_extremes() -> None:
    """Zero on a logarithmic axis, a single line, and values far apart are drawn."""
    everything = (Bar(1.0), Bar(2.0, bound=True), Dot(0.0), Dot(1e-9, hollow=True), Tick(1e9), Span(0.0, 5.0))
    for log in (False, True):
        lines = (Line("a", (*everything, Box(0.0, 1.0, 2.0, 3.0, 4.0)), reports.HOST), Line("b & <c>", (Dot(0.0),)))
        drawn = drawing.svg(Chart("k", "t", "x", "l", 'says "so" & <more>', lines, log=log))
        assert "b &amp; &lt;c&gt;" in drawn
        assert 'says "so" &amp; &lt;more&gt;' in drawn


def test_an_empty_release_can_be_reported() -> None:
    """A manifest without evidence, rows or certificates gives a short page."""
    found = reports.manifest(1)
    bare = [
        v.model_copy(update={"evidence": [], "measurements": [], "certificate": None, "search": None})
        for v in found.predicate.variants
    ]
    gate = found.predicate.gate.model_copy(update={"rows": []})
    report = make(reports.material(reports.changed(found, variants=bare, gate=gate, runtimes=[], toolchain={})))
    assert [s.key for s in sections(report)] == ["gate", "variants", "changes", "determinism", "contents"]
    assert "Release report" in page.html(report)
    assert markdown.markdown(report)
