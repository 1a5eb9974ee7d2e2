"""A program that runs beside this one, for as long as it is wanted.

Rules: a list of arguments, never a shell; no inherited standard input; when this process dies, however it dies, the
program is killed by the kernel (PR_SET_PDEATHSIG, prctl(2)), so none is left behind that nobody watches. It has a
session of its own: an interrupt at the terminal reaches this process alone, which decides when the program is to end.
What it prints goes to a file of its own, or to this process's standard error until it is asked to end; the last lines
are kept for messages.

Between the fork and the program stands a moment of Python in a process of its own, which asks the kernel for that
signal: to ask in the forked process itself is not safe where there are threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import ToolError

_LINES = 8
_LONGEST_LINE = 64 << 10  # bytes
_PR_SET_PDEATHSIG = 1
# Exits where the parent died before the kernel was asked.
_TIED = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})
os.getppid() == int(sys.argv[1]) or os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """A started program."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, reason: str | None, log: Path | None) -> None:
        """Follow a process that was started with its messages in a pipe; use `start`."""
        self._process = process
        self._name, self._reason, self._log = name, reason, log
        self._said: str | None = None
        self._quiet = False
        self._tail: deque[str] = deque(maxlen=_LINES)
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> str:
        """Wait for the program's end and say in a line how it ended."""
        status = await self._process.wait()
        with contextlib.suppress(asyncio.TimeoutError):  # a child of its own may hold the pipe open
            await asyncio.wait_for(asyncio.shield(self._reading), 1.0)
        if self._quiet and status >= 0:
            return f"{self._name} ended"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        why = self._said or (self._tail[-1] if self._tail else None)
        return f"{self._name} {how}" + (f": {why}" if why and status else "")

    def ask_to_end(self) -> None:
        """Send SIGTERM; nothing where it is gone."""
        self._quiet = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL; nothing where it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None, "its messages are in a pipe"
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than a line may be; what is left of it follows
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()
            if text:
                self._tail.append(text[:300])
                if self._reason is not None and text.startswith(self._reason):
                    self._said = text.removeprefix(self._reason)[:300]
                self._show(text)

    def _show(self, text: str) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
        elif not self._quiet:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - its log is this one's


async def start(
    argv: Sequence[str | Path],
    *,
    hint: str,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
    reason: str | None = None,
    log: Path | None = None,
) -> Program:
    """Start a program and return without waiting for its end.

    It must be called from the main thread, because the kernel ties the program to the thread that starts it.

    Args:
        env: variables added to this process's.
        name: what it is called in messages, by default the program's name.
        reason: how a line begins that says why it ends, where its last line does not.
        log: the file that its messages are added to, where they do not belong among this process's.

    Raises:
        ToolError: there is no such program, or it may not be run.
    """
    command = [str(a) for a in argv]
    if not os.access(command[0], os.X_OK):
        raise ToolError(f"{command[0]} cannot be run", hint=hint)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command,
            env={**os.environ, **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        raise ToolError(f"{command[0]}: {e.strerror}", hint=hint) from e
    return Program(process, name or Path(command[0]).name, reason, log)
