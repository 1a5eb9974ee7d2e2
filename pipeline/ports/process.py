"""The one place that starts programs, and asks the system for what concerns this process as a whole.

Rules: a list of arguments, never a shell; no inherited standard input; a failure names the program and ends with the
last lines it printed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import ToolError


def find(program: str, hint: str) -> str:
    """Return the path of a program; raises ToolError with `hint` where it is missing."""
    found = shutil.which(program)
    if found is None:
        raise ToolError(f"{program} is not installed", hint=hint)
    return found


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies, however it dies (prctl(2))."""
    pr_set_pdeathsig = 1  # <linux/prctl.h>
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def give_back_buffers() -> None:
    """Let freed buffers of 128 KiB or more go back to the system at once, for as long as this process lives.

    glibc stops doing so for sizes it has seen freed (mallopt(3), M_MMAP_THRESHOLD), and a server's memory then grows
    with each wave of TLS connections: uvloop has a buffer of 256 KiB for each.
    """
    m_mmap_threshold = -3  # <malloc.h>
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl's malloc has none, and no such memory
        libc.mallopt(m_mmap_threshold, 128 << 10)


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
        raise _failed(command, done.returncode, tail, hint)
    return done.stdout.decode(errors="replace")


def watch(
    argv: Sequence[str | Path], see: Callable[[str], bool], *, hint: str, env: Mapping[str, str] | None = None
) -> None:
    """Run a program to its end and show every line it prints to `see`, which says whether it was progress.

    Raises:
        ToolError: as `run`; the message ends with the last lines that were not progress.
    """
    command = [str(a) for a in argv]
    tail: deque[str] = deque(maxlen=8)
    try:
        with subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as program:
            assert program.stdout is not None
            tail.extend(line.strip() for line in program.stdout if not see(line) and line.strip())
    except OSError as e:
        raise ToolError(f"{command[0]}: {e.strerror}", hint=hint) from e
    if program.returncode:
        raise _failed(command, program.returncode, list(tail), hint)


def _failed(command: Sequence[str], status: int, tail: Sequence[str], hint: str) -> ToolError:
    return ToolError(f"{Path(command[0]).name} ended with status {status}: {' | '.join(tail)}", hint=hint)
