"""What the gateway promises, and how fast it uses up what it may miss.

Rules: an answer's time is that until it begins: the first token of a streamed one, the whole of another. A share of the
answers may take longer: the budget. Burning at rate 1 uses it up exactly; the rate cannot exceed 1 / budget.
Source: B. Beyer et al. 2018, The Site Reliability Workbook, chapter 5, Alerting on SLOs.
manifests/telemetry/rules/slo.yml states the same for Prometheus; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.peers.status import Pool

# Codes of errors that are not the client's doing: what it asked for was right, and there was no answer.
FAULTS = frozenset(
    {
        "core_down",
        "internal",
        "no_edge",
        "no_endpoint",
        "no_variant",
        "overloaded",
        "stream_broken",
        "timeout",
        "upstream_failed",
    }
)


@dataclass(frozen=True, slots=True)
class Objective:
    """A promise: `share` of the answers begin within `within_ms`, those of a pool, or of all where it is None.

    Without `within_ms` it is the share of requests that are answered at all.
    """

    name: str
    share: float
    within_ms: float | None = None
    pool: Pool | None = None

    @property
    def budget(self) -> float:
        """The share that may miss it."""
        return 1 - self.share

    def burn(self, missed: int, asked: int) -> float | None:
        """Return the rate at which the budget is used up; None where nothing was asked."""
        return missed / asked / self.budget if asked else None


OBJECTIVES = (
    Objective("edge_p50", share=0.50, within_ms=80, pool=Pool.EDGE),
    Objective("edge_p95", share=0.95, within_ms=300, pool=Pool.EDGE),
    Objective("global_p95", share=0.95, within_ms=150),
    Objective("availability", share=0.999),
)
