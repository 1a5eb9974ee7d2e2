"""What a target's programs are made of, how the compiler is told, and how an emulator is found and started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.catalog.names import Target, host_target
from pipeline.errors import ToolError
from pipeline.ports import process, qemu
from pipeline.toolchain import counting, runtime


def test_the_cache_key_records_what_affects_the_bytes() -> None:
    """Source, native code, options, compiler, processor and programs are in it, and each target has its own place."""
    found = runtime.inputs(Target.RISCV64)
    assert set(found) == {"source", "native", "options", "compiler", "triple", "mcpu", "flags", "programs"}
    assert set(found["native"]) == {"CMakeLists.txt", "golden_runner.cpp"}  # type: ignore[call-overload]
    assert len({runtime.place(target, Path("/cache")) for target in Target}) == len(Target)
    assert runtime.place(Target.ARM64, Path("/cache")) == runtime.place(Target.ARM64, Path("/cache"))


def test_a_runtime_that_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    """The error's hint is the command for that target."""
    with pytest.raises(ToolError) as e:
        runtime.find(Target.ARM64, tmp_path)
    assert e.value.hint == "edge-release toolchain build --target arm64"


@pytest.mark.parametrize(("target", "machine"), [(Target.ARM64, 183), (Target.RISCV64, 243), (Target.X86_64, 62)])
def test_the_compiler_takes_what_cmake_says(tmp_path: Path, target: Target, machine: int) -> None:
    """Options that Zig reads otherwise are dropped, others pass with their spaces, and the object is the target's."""
    tools = runtime._wrappers(tmp_path / "tools", runtime.CPUS[target])
    (tmp_path / "a b.c").write_text("const char *name(void) { return NAME; }")
    argv = ["-march=armv8.2-a+dotprod", "-mabi=lp64d", '-DNAME="x y"', "-c", "a b.c", "-o", "a.o"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "zig")}
    subprocess.run([tools["CMAKE_C_COMPILER"], *argv], cwd=tmp_path, env=env, check=True)
    data = (tmp_path / "a.o").read_bytes()
    assert int.from_bytes(data[18:20], "little") == machine  # e_machine of the ELF header
    assert b"x y" in data


@pytest.mark.parametrize(("version", "number"), [("7.2.22", 1), ("8.2.2", 1), ("9.0.0", 3), ("10.1.0", 3)])
def test_the_plugin_speaks_the_emulators_interface(version: str, number: int) -> None:
    """QEMU 9.0 brought other counters than the versions before it have."""
    assert counting.interface(version) == number


def test_an_emulator_that_is_not_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program on PATH there is no emulator, and it is no error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert qemu.find(Target.ARM64) is None
    assert not qemu.installable()


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", ["exit 3", "echo hello"])
def test_a_broken_emulator_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program of that name that fails, or does not say its version, is named with what to do."""
    _program(tmp_path / "qemu-aarch64", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ToolError) as e:
        qemu.find(Target.ARM64)
    assert e.value.hint == "reinstall qemu-user"


def test_an_emulated_program_sees_the_environment_it_is_given(tmp_path: Path) -> None:
    """Nothing of this process's environment reaches it, and the emulated processor is the target's."""
    emulator = qemu.Emulator(Target.ARM64, str(tmp_path / "qemu"), "7.2.22")
    _program(tmp_path / "qemu", 'echo "$@"; /usr/bin/env')
    said = subprocess.run([*emulator.argv(env={"A": "1"}), "prog"], capture_output=True, text=True, check=True).stdout
    arguments, *environment = said.splitlines()
    assert arguments == "-cpu cortex-a76 -seed 1 -R 64G prog"
    assert {line for line in environment if not line.startswith(("PWD", "SHLVL", "_"))} == {"A=1"}


@pytest.mark.parametrize("target", Target)
def test_an_emulator_takes_the_arguments_it_is_given(target: Target) -> None:
    """The real emulator of each target has no complaint about them; of programs here are only this machine's own."""
    emulator = qemu.find(target)
    if emulator is None:
        pytest.skip(f"{qemu.PROGRAMS[target]} is not installed: {qemu.HINT}")
    own = target is host_target()
    program = "/bin/true" if own else "/nonexistent"
    done = subprocess.run([*emulator.argv(), program], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "warning" not in line]  # of features it does not have
    assert (done.returncode == 0, complaints) == (own, [])


def test_watched_lines_are_progress_or_the_errors_tail(tmp_path: Path) -> None:
    """What `see` takes for progress is left out of the message of a failure."""
    seen: list[str] = []

    def see(line: str) -> bool:
        seen.append(line.strip())
        return line.startswith("[")

    code = "print('[1/2] a'); print('oh no'); import sys; sys.exit(3)"
    with pytest.raises(ToolError, match=r"ended with status 3: oh no$"):
        process.watch([sys.executable, "-c", code], see, hint="")
    assert seen == ["[1/2] a", "oh no"]
    with pytest.raises(ToolError, match="No such file"):
        process.watch([tmp_path / "none"], see, hint="")
