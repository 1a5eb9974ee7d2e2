"""The one place that starts programs.

Rules: a list of arguments, never a shell; no inherited standard input; a failure names the program and ends with the
last lines it printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import ToolError


def find(program: str, hint: str) -> str:
    """Return the path of a program; raises ToolError with `hint` where it is missing."""
    found = shutil.which(program)
    if found is None:
        raise ToolError(f"{program} is not installed", hint=hint)
    return found


def run(
    argv: Sequence[str | Path],
    *,
    hint: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stream: bool = False,
) -> str:
    """Run a program to its end and return its standard output.

    Args:
        env: variables added to this process's.
        stream: let its messages through to this process's standard error.

    Raises:
        ToolError: it cannot be started or ends with another status than 0.
    """
    command = [str(a) for a in argv]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if stream else subprocess.PIPE,
            check=False,
        )
    except OSError as e:
        raise ToolError(f"{command[0]}: {e.strerror}", hint=hint) from e
    if done.returncode:
        said = (done.stderr or b"") + done.stdout
        tail = said.decode(errors="replace").strip().splitlines()[-5:]
        raise ToolError(f"{Path(command[0]).name} ended with status {done.returncode}: {' | '.join(tail)}", hint=hint)
    return done.stdout.decode(errors="replace")
