"""What a reader of the repository meets: whole texts, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
MARKER = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_whole(page: Path) -> None:
    """No line is left of a merge, and every file a page links to is there."""
    text = page.read_text(encoding="utf-8")
    assert not MARKER.search(text)
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
