"""The words that name things; their values are what files, flags and JSON say."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """A size class of model."""

    TINY_EDGE = "tiny-edge"
    MID_TIER = "mid-tier"
    LARGE = "large"


class Target(StrEnum):
    """An instruction set a variant is proven on."""

    ARM64 = "arm64"
    RISCV64 = "riscv64"
    X86_64 = "x86_64"


class RunnerClass(StrEnum):
    """Where a check ran."""

    HOST = "host"
    EMULATED = "emulated"
    PI5 = "pi5"
    NVLINK = "nvlink"
    RISCV = "riscv"


class Channel(StrEnum):
    """A movable name for a release."""

    DEV = "dev"
    CANARY = "canary"
    STABLE = "stable"


@dataclass(frozen=True, order=True)
class Variant:
    """One tier for one target, named `tiny-edge-arm64`."""

    tier: Tier
    target: Target

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Return the variant called `name`.

        Raises:
            ValueError: no variant has that name; the message lists those that exist.
        """
        for variant in VARIANTS:
            if variant.name == name:
                return variant
        raise ValueError(f"no variant {name!r}; there are {', '.join(v.name for v in VARIANTS)}")

    @property
    def name(self) -> str:
        return f"{self.tier}-{self.target}"

    def __str__(self) -> str:
        return self.name


# Classes that name a machine; the others are whatever machine builds the release.
BOARDS = frozenset({RunnerClass.PI5, RunnerClass.NVLINK, RunnerClass.RISCV})
GGUF_TIERS = (Tier.TINY_EDGE, Tier.MID_TIER)
VARIANTS = tuple(Variant(tier, target) for tier in Tier for target in Target)

_MACHINES = {
    "aarch64": Target.ARM64,
    "arm64": Target.ARM64,
    "riscv64": Target.RISCV64,
    "x86_64": Target.X86_64,
    "amd64": Target.X86_64,
}


def host_target() -> Target | None:
    """Return the target this machine is, or None where it is none of them."""
    return _MACHINES.get(platform.machine().lower())
