"""`/proc/cpuinfo`, which every architecture writes in its own way.

Rules: pure, and any text is read: what is not understood is left out. Serial numbers are not looked at.

Sources: x86 and RISC-V name the processor (`model name`, `uarch`, `isa`:
https://docs.kernel.org/arch/riscv/uabi.html); 64-bit Arm gives numbers only, the fields of MIDR_EL1, whose values stand
in the Technical Reference Manual of each core (Cortex-A76: implementer 0x41, part 0xd0b,
https://developer.arm.com/documentation/100798) and, collected, in Linux's arch/arm64/include/asm/cputype.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ARM = 0x41
ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD0E: "Cortex-A76AE",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD84: "Neoverse-V3",
}
_HEX = re.compile(r"0x([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class CpuInfo:
    """The processor's name, RISC-V's ISA string, and how many logical processors there are (0: unknown)."""

    name: str | None
    isa: str | None
    cores: int


def parse(text: str) -> CpuInfo:
    """Return what a `/proc/cpuinfo` says; cores of several kinds are named together, sorted."""
    fields = list(_fields(text))
    return CpuInfo(
        name=_first(fields, "model name") or " + ".join(sorted(set(_arm_cores(fields)))) or _first(fields, "uarch"),
        isa=_first(fields, "isa"),
        cores=sum(key == "processor" and value.isdecimal() for key, value in fields),
    )


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _first(fields: list[tuple[str, str]], key: str) -> str | None:
    return next((value for name, value in fields if name == key and value), None)


def _arm_cores(fields: list[tuple[str, str]]) -> Iterator[str]:
    implementer = None
    for key, value in fields:
        if (number := _HEX.fullmatch(value)) is None:
            continue
        if key == "CPU implementer":
            implementer = int(number[1], 16)
        elif key == "CPU part" and implementer is not None:
            yield _arm_core(implementer, int(number[1], 16))


def _arm_core(implementer: int, part: int) -> str:
    known = ARM_PARTS.get(part) if implementer == ARM else None
    return known or f"implementer 0x{implementer:x} part 0x{part:x}"
