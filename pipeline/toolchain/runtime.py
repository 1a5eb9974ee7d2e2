"""A target's runtime: llama.cpp's programs and the golden runner, cross-compiled into static binaries.

Rules: one compiler for all targets, Zig from its pinned package, so no root and no sysroot; the cache key records all
that affects the bytes; objects hold no path of the build, so equal inputs give equal binaries in any folder; a result
appears under its name when it is whole, a killed build goes on where it stopped.

The processor of each target is the least its variants are released for: Cortex-A76 (Raspberry Pi 5), RVA22 with the
vector extension 1.0, x86-64-v3.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pipeline.catalog.names import Target, host_target
from pipeline.errors import ToolError
from pipeline.ports import files
from pipeline.toolchain import source
from pipeline.toolchain.cache import folder
from pipeline.toolchain.compiling import build_tool, compile_targets

NATIVE = Path(__file__).with_name("native")
RUNNER = "golden-runner"
SERVER = "llama-server"
IMATRIX = "llama-imatrix"
PROGRAMS = (RUNNER, "llama-bench", IMATRIX, SERVER)  # what is released
QUANTIZE = "llama-quantize"  # what ours is compared with
BUILT = (*PROGRAMS, QUANTIZE)
ZIG = "ziglang"
# Given at every call, CMake's looks at the compiler included: Zig makes a C library for each set of these it meets.
FLAGS = ("-O3", "-static", "-s", source.FLAGS)
OPTIONS = {
    **source.OPTIONS,
    "BUILD_SHARED_LIBS": "OFF",
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",  # a link would make Zig build the C++ library for each check
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
}


@dataclass(frozen=True)
class Cpu:
    """What a target is compiled for: Zig's triple and processor, CMake's processor, and llama.cpp's options."""

    triple: str
    mcpu: str
    processor: str
    options: tuple[tuple[str, str], ...] = ()


CPUS = {
    Target.ARM64: Cpu(
        "aarch64-linux-musl", "cortex_a76", "aarch64", (("GGML_CPU_ARM_ARCH", "armv8.2-a+dotprod+fp16"),)
    ),
    # Without vendor and recent extensions, which boards of today lack.
    Target.RISCV64: Cpu(
        "riscv64-linux-musl",
        "generic_rv64+m+a+f+d+c+v",
        "riscv64",
        (
            ("GGML_RVV", "ON"),
            ("GGML_RV_ZFH", "OFF"),
            ("GGML_RV_ZICBOP", "OFF"),
            ("GGML_RV_ZIHINTPAUSE", "OFF"),
            ("GGML_RV_ZVFH", "OFF"),
        ),
    ),
    Target.X86_64: Cpu("x86_64-linux-musl", "x86_64_v3", "x86_64"),
}


@dataclass(frozen=True)
class Runtime:
    """A target's built programs."""

    target: Target
    folder: Path

    def program(self, name: str) -> Path:
        """Return the path of one of `BUILT`."""
        return self.folder / name

    @cached_property
    def digests(self) -> dict[str, str]:
        """The hex SHA-256 of every program, as taken when it was built."""
        found: dict[str, str] = json.loads((self.folder / "build.json").read_bytes())["programs"]
        return found


def inputs(target: Target) -> dict[str, object]:
    """Return all that affects the bytes of a target's programs; raises ToolError as `compiler`."""
    cpu = CPUS[target]
    return {
        "source": f"sha256:{source.SHA256}",
        "native": {p.name: files.sha256_file(p) for p in sorted(NATIVE.iterdir()) if p.suffix in {".cpp", ".txt"}},
        "options": {**OPTIONS, **dict(cpu.options)},
        "compiler": compiler(),
        "triple": cpu.triple,
        "mcpu": cpu.mcpu,
        "flags": FLAGS,
        "programs": BUILT,
    }


def place(target: Target, cache: Path | None = None) -> Path:
    """Return where `build` puts a target's programs."""
    digest = hashlib.sha256(json.dumps(inputs(target), sort_keys=True).encode()).hexdigest()
    return (cache or folder()) / "llama.cpp" / f"{target}-{digest[:16]}"


def find(target: Target, cache: Path | None = None) -> Runtime:
    """Return the runtime that `build` left in the cache folder, by default the user's; raises ToolError without one."""
    found = Runtime(target, place(target, cache))
    if not found.folder.exists():
        raise ToolError(
            f"the runtime for {target} is not built", hint=f"edge-release toolchain build --target {target}"
        )
    return found


def build(target: Target, cache: Path | None = None, *, jobs: int | None = None) -> Runtime:
    """Return a target's runtime, built where the cache folder lacks it; shows its progress on standard error.

    Raises:
        ToolError: no compiler, no source, or the compile fails.
    """
    cache = cache or folder()
    runtime = Runtime(target, place(target, cache))
    with files.locked(runtime.folder.with_suffix(".lock")):
        if not runtime.folder.exists():
            _build(runtime, source.fetch(cache), jobs)
    return runtime


def native() -> Target:
    """Return the target this machine is; raises ToolError where it is none."""
    here = host_target()
    if here is None:
        raise ToolError("this machine is none of the targets", hint=f"build on {', '.join(Target)}")
    return here


def build_all(targets: Sequence[Target], cache: Path | None = None) -> list[Runtime]:
    """Return several targets' runtimes, built side by side: Zig makes each target's C library on one core.

    Raises:
        ToolError: as `build`.
    """
    with ThreadPoolExecutor(max_workers=len(targets)) as pool:
        return list(pool.map(partial(build, cache=cache), targets))


def _build(runtime: Runtime, tree: Path, jobs: int | None) -> None:
    work, target = runtime.folder.with_suffix(".partial"), runtime.target
    work.mkdir(parents=True, exist_ok=True)
    llama_cpp, cpu = source.llama_cpp(tree), CPUS[target]
    tools = _wrappers(work / "tools", cpu)
    flags = source.prefix_maps({NATIVE: "runtime", llama_cpp: "llama.cpp", work: "build", zig().parent: "zig"})
    options = {
        **OPTIONS,
        **dict(cpu.options),
        **tools,
        "CMAKE_C_FLAGS": flags,
        "CMAKE_CXX_FLAGS": flags,
        "CMAKE_MAKE_PROGRAM": build_tool("ninja"),
        "CMAKE_SYSTEM_PROCESSOR": cpu.processor,
        "LLAMA_CPP": str(llama_cpp),
    }
    compile_targets(
        NATIVE, work / "cmake", options, BUILT, title=f"llama.cpp for {target}", jobs=jobs,
        env={"ZIG_GLOBAL_CACHE_DIR": str(runtime.folder.parents[1] / "zig"), "ZIG_LOCAL_CACHE_DIR": str(work / "zig")},
    )  # fmt: skip
    with files.new_folder(runtime.folder) as out:
        for name in BUILT:
            found = next(p for p in (work / "cmake").rglob(name) if p.is_file())
            shutil.copy(found, out / name)
        digests = {name: files.sha256_file(out / name) for name in BUILT}
        record = {"inputs": inputs(target), "programs": digests}
        (out / "build.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(work)


def compiler() -> str:
    """Return the compiler's name and version; raises ToolError where it is not installed."""
    try:
        return f"{ZIG} {version(ZIG)}"
    except PackageNotFoundError as e:
        raise ToolError("the compiler Zig is not installed", hint="pip install 'edge-release[build]'") from e


def zig() -> Path:
    """Return the compiler's program; raises ToolError where it is not installed."""
    compiler()
    spec = find_spec(ZIG)
    assert spec is not None, "the package is there"
    assert spec.origin is not None, "it is no namespace"
    return Path(spec.origin).with_name("zig")


def _wrappers(out: Path, cpu: Cpu) -> dict[str, str]:
    """Write Zig as CMake wants its tools, and return CMake's settings that name them.

    Zig reads `-march=` as a processor's name and knows no `-mabi=`: what CMake says of those is dropped.
    """
    out.mkdir(exist_ok=True)
    compiler, flags = shlex.quote(str(zig())), " ".join(FLAGS)
    select = 'for a do shift; case $a in -march=*|-mabi=*) ;; *) set -- "$@" "$a";; esac; done'
    found = {}
    for setting, command in (
        ("CMAKE_C_COMPILER", f'{select}\nexec {compiler} cc -target {cpu.triple} -mcpu={cpu.mcpu} {flags} "$@"'),
        ("CMAKE_CXX_COMPILER", f'{select}\nexec {compiler} c++ -target {cpu.triple} -mcpu={cpu.mcpu} {flags} "$@"'),
        ("CMAKE_AR", f'exec {compiler} ar "$@"'),
        ("CMAKE_RANLIB", f'exec {compiler} ranlib "$@"'),
    ):
        path = out / setting.removeprefix("CMAKE_").lower()
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
        found[setting] = str(path)
    return found
