"""Programs beside this one: how they end, what they said, and that none outlives the process that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.ports import beside
from tests.support import nodes

ROOT = Path(__file__).parents[2]


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_programs_end_is_told_with_its_last_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it printed goes to standard error; how it ended is one line."""

    async def go(text: str) -> str:
        program = await beside.start([script(tmp_path, text), "a b"], hint="x", env={"KEY": "secret"})
        return await program.wait()

    assert asyncio.run(go('echo "$1 $KEY"; exit 3')) == "program ended with status 3: a b secret"
    assert asyncio.run(go("kill -9 $$")) == "program was killed by signal 9"
    assert asyncio.run(go("echo done")) == "program ended with status 0"
    assert "program: a b secret" in capfd.readouterr().err


def test_it_is_asked_to_end_or_killed(tmp_path: Path) -> None:
    """A program that does not listen is killed; one that is gone already is no error."""

    async def go() -> None:
        deaf = await beside.start([script(tmp_path, "trap '' TERM; echo up; while :; do sleep 0.1; done")], hint="x")
        while not deaf._tail:
            await asyncio.sleep(0.01)
        deaf.ask_to_end()
        assert deaf.running
        deaf.kill()
        assert "signal 9" in await deaf.wait()
        deaf.ask_to_end()
        deaf.kill()

    asyncio.run(go())


def test_why_it_ended_may_stand_further_up(tmp_path: Path) -> None:
    """A program that prints more behind its reason marks it; one that was asked to end gives none."""

    async def go(text: str, *, ask: bool = False) -> str:
        program = await beside.start([script(tmp_path, text)], hint="x", name="engine", reason="failed: ")
        while not program._tail:
            await asyncio.sleep(0.01)
        if ask:
            program.ask_to_end()
        return await program.wait()

    assert asyncio.run(go("echo failed: no memory; echo a trace; exit 1")) == "engine ended with status 1: no memory"
    assert asyncio.run(go("trap 'echo trace; exit 1' TERM; echo up; sleep 9 & wait", ask=True)) == "engine ended"


def test_an_interrupt_at_the_terminal_is_not_the_programs(tmp_path: Path) -> None:
    """It has a session of its own, so that whoever started it decides when it ends."""

    async def go() -> bool:
        program = await beside.start([script(tmp_path, "echo up; sleep 9")], hint="x")
        apart = os.getsid(program.pid) != os.getsid(0)
        program.kill()
        await program.wait()
        return apart

    assert asyncio.run(go())


def test_what_is_no_program_is_one_clear_error(tmp_path: Path) -> None:
    """A missing file, or one that may not be run, is told of with the hint."""
    plain = tmp_path / "plain"
    plain.write_text("x")
    for path in (tmp_path / "missing", plain):
        with pytest.raises(ToolError, match="cannot be run"):
            asyncio.run(beside.start([path], hint="x"))  # type: ignore[arg-type]


def test_lines_without_end_do_not_fill_the_memory(tmp_path: Path) -> None:
    """A megabyte without a line's end is read and dropped."""
    program = script(tmp_path, "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1")

    async def go() -> str:
        return await (await beside.start([program], hint="x")).wait()

    assert asyncio.run(go()) == "program ended with status 1: end"


def test_none_outlives_its_parent(tmp_path: Path) -> None:
    """When this process is killed, the kernel kills the program."""
    sleeping = script(tmp_path, f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600")
    code = (
        "import asyncio, sys; from pipeline.ports import beside\n"
        "async def go(): await (await beside.start([sys.argv[1]], hint='x')).wait()\n"
        "asyncio.run(go())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(sleeping)], cwd=ROOT)
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None
    pid = int((tmp_path / "pid").read_text())
    assert nodes.alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    nodes.gone(pid)
