"""QEMU's user mode: programs of other instruction sets, started as this machine's own.

Rules: the emulated processor is the one a target's variants are released for; what is missing is said with the command
that brings it; nothing is installed but by `install`, for root alone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.catalog.names import Target
from pipeline.errors import ToolError
from pipeline.ports import process

PACKAGE = "qemu-user"
HINT = f"apt-get install {PACKAGE} (Debian, Ubuntu), then run this again"
PROGRAMS = {Target.ARM64: "qemu-aarch64", Target.RISCV64: "qemu-riscv64", Target.X86_64: "qemu-x86_64"}
CPUS = {
    Target.ARM64: "cortex-a76",
    Target.RISCV64: "rv64,v=true,vext_spec=v1.0,vlen=256",
    Target.X86_64: "Haswell",
}
# Address space set aside for the guest (`-R`). Without it the guest's memory lies where the emulator's own threads left
# room, which varies from run to run. QEMU refuses it for x86_64, whose vsyscall page lies at a fixed high address.
RESERVED = {Target.ARM64: "64G", Target.RISCV64: "64G"}


@dataclass(frozen=True)
class Emulator:
    """An emulator of one target's processor."""

    target: Target
    program: str
    version: str

    @property
    def cpu(self) -> str:
        return CPUS[self.target]

    @property
    def name(self) -> str:
        """What evidence calls it."""
        return f"{PROGRAMS[self.target]} {self.version}"

    def argv(self, plugin: Path | None = None, env: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Return what stands before a program of the target.

        Addresses decide which way some copies go, so whatever moves them is fixed: no address-space randomization, an
        address space of the guest's own, the seed it finds on its stack, and its environment, which is `env` alone.
        """
        given = tuple(f"{key}={value}" for key, value in sorted((env or {}).items()))
        reserved = ("-R", RESERVED[self.target]) if self.target in RESERVED else ()
        counted = ("-plugin", str(plugin)) if plugin else ()
        fixed = ("-cpu", self.cpu, "-seed", "1", *reserved)
        return ("env", "-i", *given, "setarch", "-R", self.program, *fixed, *counted)


def find(target: Target) -> Emulator | None:
    """Return the emulator of a target, None where it is not installed; raises ToolError where it does not start."""
    program = shutil.which(PROGRAMS[target])
    if program is None:
        return None
    said = process.run([program, "--version"], hint=f"reinstall {PACKAGE}")
    found = re.search(r"version (\d+(?:\.\d+)+)", said)
    if found is None:
        raise ToolError(f"{program} does not say its version", hint=f"reinstall {PACKAGE}")
    return Emulator(target, program, found[1])


def installable() -> bool:
    """Return whether `install` can be tried: this is root, and there is apt."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install() -> None:
    """Install the emulators from the distribution's packages; raises ToolError where that fails."""
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    process.run(["apt-get", "update", "--quiet"], hint=HINT, env=env)
    process.run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", PACKAGE], hint=HINT, env=env)
