"""Stage `emulators`: which emulators this machine has, so that a check under one runs anew when that changes.

Rules: what is missing is installed where this is root and there is apt, else said with the command that brings it; the
release goes on without, and its evidence says what is missing.
"""

from __future__ import annotations

from pipeline.catalog.names import Target, host_target
from pipeline.manifest.encoding import canonical
from pipeline.ports import files, qemu
from pipeline.stages.project import Project


def emulators(project: Project) -> dict[str, str | None]:
    """Write and return the emulator's name by foreign target, None where there is none; raises ToolError."""
    foreign = [target for target in Target if target is not host_target()]
    if any(qemu.find(target) is None for target in foreign) and qemu.installable():
        qemu.install()
    found = {str(target): emulator.name if (emulator := qemu.find(target)) else None for target in foreign}
    files.write(project.emulators, canonical(found) + b"\n")
    return found
