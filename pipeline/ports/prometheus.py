"""Figures from Prometheus, by PromQL.

Rules: what has no sample is an empty answer, which is not the same as zero; NaN and infinities are no figures.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from pipeline.errors import ToolError
from pipeline.ports import http


@dataclass(frozen=True)
class Sample:
    """A value, and the labels it has."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prometheus:
    """A server's address."""

    url: str
    context: ssl.SSLContext | None = None
    timeout_s: float = 10.0

    def query(self, expression: str) -> list[Sample]:
        """Return what an expression gives now; raises ToolError where the server refuses it or is gone."""
        url = f"{self.url.rstrip('/')}/api/v1/query?{urlencode({'query': expression})}"
        answer = http.ask(url, context=self.context, timeout_s=self.timeout_s)
        try:
            return samples(answer.json(), answer.status)
        except ValueError as e:
            raise ToolError(f"{self.url}: {e}", hint=f"try the expression there: {expression}") from e


def samples(document: Any, status: int = 200) -> list[Sample]:
    """Return what an answer of Prometheus' API holds; raises ValueError, which says why it holds none."""
    try:
        if status != 200 or document["status"] != "success":
            raise ValueError(document["error"])
        data = document["data"]
        kind, result = data["resultType"], data["result"]
        if kind == "scalar":
            result = [{"metric": {}, "value": result}]
        elif kind != "vector":
            raise ValueError(f"a {kind}, where one value a series is asked for")
        found = [Sample(float(series["value"][1]), dict(series["metric"])) for series in result]
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"no answer of Prometheus, status {status}") from None
    return [sample for sample in found if math.isfinite(sample.value)]
