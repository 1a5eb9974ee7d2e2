"""The released programs are the same bytes whoever builds them, wherever."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from pipeline.catalog.names import Target, host_target
from pipeline.errors import ToolError
from pipeline.ports import qemu
from pipeline.toolchain import runtime
from pipeline.toolchain.runtime import Runtime

VARIABLE = "EDGE_RELEASE_REBUILD_RUNTIMES"
ASKED = os.environ.get(VARIABLE, "").split()


def _built(target: Target) -> Runtime:
    try:
        return runtime.find(target)
    except ToolError as e:
        pytest.skip(f"{e.message}: {e.hint}")


@pytest.mark.toolchain
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", Target)
def test_two_builds_in_different_folders_are_equal(target: Target, tmp_path: Path) -> None:
    """Built anew with empty caches under another path, every program has the digest it has in the cache."""
    if target not in ASKED:
        pytest.skip(f"compiles for minutes: {VARIABLE}='{target}' python -m pytest -m toolchain")
    again = runtime.build(target, tmp_path / "another place")
    assert again.digests == _built(target).digests


@pytest.mark.parametrize("target", Target)
def test_programs_are_static_and_of_their_target(target: Target) -> None:
    """Every program is an ELF executable of the target without an interpreter, symbols or a path of the build."""
    built = _built(target)
    machine = {Target.ARM64: 183, Target.RISCV64: 243, Target.X86_64: 62}[target]
    for name in runtime.PROGRAMS:
        data = built.program(name).read_bytes()
        assert (data[:4], data[18] + 256 * data[19]) == (b"\x7fELF", machine)
        assert b"/ld-" not in data
        assert str(Path.home()).encode() not in data
        assert not re.search(rb"/\S{1,80}/llama_cpp_python-", data)


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("program", ["llama-server", "llama-bench", "llama-imatrix"])
def test_programs_run_on_their_target(target: Target, program: str) -> None:
    """Natively or emulated, each of llama.cpp's programs starts and prints its help."""
    before: tuple[str, ...] = ()
    if target is not host_target():
        emulator = qemu.find(target)
        if emulator is None:
            pytest.skip(f"no emulator for {target}: {qemu.HINT}")
        before = emulator.argv()
    done = subprocess.run([*before, _built(target).program(program), "--help"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"--model" in done.stdout + done.stderr
