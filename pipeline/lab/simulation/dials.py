"""What a search may turn: thresholds of the routing policy and of the controller, each within bounds.

Rules: a dial's value is a share of its way from low to high, logarithmic where that is how it acts; what the settings
refuse is no candidate; what no request of a scenario can feel is no dial.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.control.settings import Settings
from pipeline.lab.simulation.scenario import Scenario
from pipeline.peers.policy import Policy


@dataclass(frozen=True, slots=True)
class Dial:
    """One number: its place (`policy`, or a part of the controller's settings), name and bounds."""

    part: str
    name: str
    low: float
    high: float
    whole: bool = False
    log: bool = True

    @property
    def label(self) -> str:
        """Its name in full."""
        return f"{self.part}.{self.name}"

    def value(self, share: float) -> float:
        """Return the number at a share of the way."""
        way = self.high / self.low
        found = self.low * way**share if self.log else self.low + (self.high - self.low) * share
        return round(found) if self.whole else round(found, 3)


POLICY = (
    Dial("policy", "tiny_prompt_tokens", 16, 256, whole=True),
    Dial("policy", "long_generation_tokens", 32, 512, whole=True),
    Dial("policy", "queue_wait_ms", 5, 1000),
    Dial("policy", "cpu", 0.3, 1.0, log=False),
    Dial("policy", "affinity_load", 1.0, 4.0),
)
CONTROLLER = (
    Dial("scaling", "target", 0.4, 0.9, log=False),
    Dial("scaling", "down_s", 120, 1200),
    Dial("routing", "burn", 2, 30),
)
_BOUNDED = "policy.long_generation_tokens"  # compares what requests say of max_tokens


def dials(scenario: Scenario, fixed: Collection[str] = ()) -> list[Dial]:
    """Return what can be turned in a scenario; dials whose labels are `fixed` stay as they are."""
    found = POLICY + CONTROLLER if scenario.controller else POLICY
    if all(kind.max_tokens is None for kind in scenario.traffic.kinds.values()):
        fixed = {*fixed, _BOUNDED}
    return [dial for dial in found if dial.label not in fixed]


def turned(scenario: Scenario, found: Sequence[Dial], shares: Sequence[float]) -> Scenario | None:
    """Return a scenario with its dials at some shares of their ways; None where the settings refuse that."""
    values: dict[str, dict[str, Any]] = {}
    for dial, share in zip(found, shares, strict=True):
        values.setdefault(dial.part, {})[dial.name] = dial.value(share)
    base = scenario.first_policy
    try:
        changed = {**base.model_dump(), **values.pop("policy", {}), "version": base.version + 1}
        policy = Policy.model_validate(changed)
        if scenario.controller is None:
            return scenario.changed(policy=policy)
        parts = {
            part: type(before).model_validate({**before.model_dump(), **given})
            for part, given in values.items()
            for before in (getattr(scenario.controller, part),)
        }
        settings = Settings.model_validate({**dict(scenario.controller), **parts, "policy": policy})
    except ValidationError:
        return None
    return scenario.changed(policy=policy, controller=settings)
