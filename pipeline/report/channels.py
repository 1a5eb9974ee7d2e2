"""Which channels a release may enter, and what keeps it out of the others.

Rules: the verdict decides; what is lacking follows from the policy and from what the gate itself calls proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.catalog.names import Channel, RunnerClass
from pipeline.catalog.params import ChannelPolicy
from pipeline.manifest.gate import proven
from pipeline.report.subject import Part, Subject


@dataclass(frozen=True)
class Lack:
    """Variants that none of `classes` has proven."""

    classes: tuple[RunnerClass, ...]
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """One channel: open to this release, or what it lacks."""

    channel: Channel
    open: bool
    lacks: tuple[Lack, ...] = ()


def standings(subject: Subject, policies: Mapping[Channel, ChannelPolicy]) -> tuple[Standing, ...]:
    """Return how the release stands with each channel that has a policy or is open to it."""
    opened = subject.verdict.channels
    return tuple(
        Standing(channel, open=channel in opened, lacks=_lacks(subject.parts, policies.get(channel), channel in opened))
        for channel in Channel
        if channel in policies or channel in opened
    )


def _lacks(parts: Sequence[Part], policy: ChannelPolicy | None, opened: bool) -> tuple[Lack, ...]:
    if opened or policy is None:
        return ()
    has = proven(check for part in parts for check in part.checks)
    lacking: dict[tuple[RunnerClass, ...], list[str]] = {}
    for part in parts:
        wanted = policy.accepted(part.variant)
        if not wanted & has.get(part.variant.name, set()):
            lacking.setdefault(tuple(sorted(wanted)), []).append(part.variant.name)
    return tuple(Lack(classes, tuple(names)) for classes, names in lacking.items())
