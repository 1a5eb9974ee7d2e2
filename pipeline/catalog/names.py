"""The words that name things; their values are what files, flags and JSON say."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from enum import StrEnum

FAMILY = r"[a-z0-9][a-z0-9_-]{0,40}"  # what a prompt family is called that a variant may be tuned to


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


def parted(name: str) -> tuple[str, str]:
    """Return a variant's name without the family it is tuned to, and that family, empty where there is none."""
    plain, _, family = name.partition("+")
    return plain, family


@dataclass(frozen=True, order=True)
class Variant:
    """One tier for one target, named `tiny-edge-arm64`; tuned to a prompt family it is `tiny-edge-arm64+lookup`."""

    tier: Tier
    target: Target
    family: str = ""

    def __post_init__(self) -> None:
        if self.family and not re.fullmatch(FAMILY, self.family):
            raise ValueError(f"no variant can be called after family {self.family!r}: {FAMILY}")

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Return the variant called `name`.

        Raises:
            ValueError: no variant can have that name; the message lists those that can.
        """
        plain, family = parted(name)
        for variant in VARIANTS:
            if variant.name == plain and (not family) == (plain == name):
                return cls(variant.tier, variant.target, family)
        names = ", ".join(v.name for v in VARIANTS)
        raise ValueError(f"no variant {name!r}; there are {names}, and VARIANT+FAMILY where one is tuned")

    @property
    def name(self) -> str:
        return f"{self.plain_name}+{self.family}" if self.family else self.plain_name

    @property
    def plain_name(self) -> str:
        """The name without the family: of the variant for all prompts, and of the folder its kin lie in."""
        return f"{self.tier}-{self.target}"

    @property
    def plain(self) -> Variant:
        """The variant of the same tier and target for all prompts."""
        return Variant(self.tier, self.target)

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
