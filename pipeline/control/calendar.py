"""Known windows in which traffic is not what it was at that time of other days.

Rules: a window is a stretch of time with a factor, once or every week at the same time; where windows overlap the first
that is named counts. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AwareDatetime, Field, model_validator

from pipeline.catalog.document import Document

_WEEK_S = timedelta(weeks=1).total_seconds()


class Window(Document):
    """A maintenance, a holiday, a sale: `factor` times the usual traffic, none at 0."""

    name: Annotated[str, Field(description="as reasons call it")]
    start: Annotated[AwareDatetime, Field(description="with its offset from UTC")]
    end: Annotated[AwareDatetime, Field(description="after the start")]
    factor: Annotated[float, Field(ge=0, le=100, description="times the usual traffic; a maintenance has 0")] = 0.0
    weekly: Annotated[bool, Field(description="whether it comes again each week")] = False

    @model_validator(mode="after")
    def _forward(self) -> Window:
        if self.end <= self.start:
            raise ValueError("a window ends after it starts")
        if self.weekly and (self.end - self.start).total_seconds() >= _WEEK_S:
            raise ValueError("a weekly window is shorter than a week")
        return self

    def holds(self, at: float) -> bool:
        """Return whether a time (seconds since 1970) lies within."""
        into = at - _seconds(self.start)
        if self.weekly and into >= 0:
            into %= _WEEK_S
        return 0 <= into < _seconds(self.end) - _seconds(self.start)


def factor(windows: Sequence[Window], at: float) -> float | None:
    """Return by what traffic is multiplied at a time; None where no window holds."""
    return next((w.factor for w in windows if w.holds(at)), None)


def _seconds(at: datetime) -> float:
    return at.timestamp()
