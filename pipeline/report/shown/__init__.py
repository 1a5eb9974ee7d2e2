"""The page's sections, one module each: a report in, a `layout.Section` out.

Rules: a section without content is left out; every figure comes with its unit, every estimate with the word.
"""

from __future__ import annotations

from pipeline.report.layout import Section
from pipeline.report.model import Report
from pipeline.report.shown import (
    bound,
    contents,
    cost,
    determinism,
    differences,
    instructions,
    latency,
    quality,
    recipes,
    variants,
    verdict,
)

_MODULES = (
    verdict,
    variants,
    differences,
    quality,
    recipes,
    latency,
    instructions,
    bound,
    cost,
    determinism,
    contents,
)


def sections(report: Report) -> tuple[Section, ...]:
    """Return the sections that have something to show, in the page's order."""
    found = (module.section(report) for module in _MODULES)
    return tuple(s for s in found if s.says or s.items or s.tables)
