"""The program `vcgencmd`, as an executable that answers what a folder of files holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

MACHINES = Path(__file__).parents[1] / "data" / "machines"
PI5 = MACHINES / "pi5"
# What the program prints for a command the firmware lacks: https://github.com/raspberrypi/utils/issues/39.
UNKNOWN = """vc_gencmd_read_response returned -1
error=1 error_msg="Command not registered"
"""
_SCRIPT = """#!/bin/sh
cd '{answers}' || exit 255
echo "$1" >> asked
[ -e refuse ] && {{ echo 'Can not open device file: /dev/vcio' >&2; exit 255; }}
[ -e "$1" ] && exec cat "$1"
cat unknown
"""


@dataclass(frozen=True)
class Program:
    """The installed program; its answers may be changed while it is in use."""

    answers: Path

    def answer(self, command: str, text: str) -> None:
        new = self.answers / f".{command}"
        new.write_text(text)
        new.replace(self.answers / command)

    def wait(self, command: str, times: int) -> None:
        """Wait until a command was asked for so often."""
        asked, until = self.answers / "asked", time.monotonic() + 30
        while not asked.exists() or asked.read_text().split().count(command) < times:
            assert time.monotonic() < until, f"{command} is not asked for"
            time.sleep(0.01)

    def refuse(self) -> None:
        """Fail from now on, as for a user who may not use the firmware's device."""
        (self.answers / "refuse").touch()


def install(folder: Path, answers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put the program first on PATH."""
    program = Program(folder / "answers")
    program.answers.mkdir(parents=True)
    for command, text in {"unknown": UNKNOWN, **answers}.items():
        program.answer(command, text)
    executable = folder / "bin" / "vcgencmd"
    executable.parent.mkdir()
    executable.write_text(_SCRIPT.format(answers=program.answers))
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", f"{executable.parent}:/usr/bin:/bin")
    return program


def recorded() -> dict[str, str]:
    """Return the answers of a Raspberry Pi 5 under load."""
    return {path.name: path.read_text() for path in (PI5 / "vcgencmd").iterdir()}


def remove(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave PATH without the program, whatever machine the test runs on."""
    monkeypatch.setenv("PATH", str(folder))
