"""llama.cpp for this machine: the libraries that the Python wheel of llama-cpp-python holds.

Rules: the cache key records everything that affects the bytes; objects do not contain the folder they were built in;
a result appears under its name when it is whole, a killed build goes on where it stopped. Instruction sets beyond the
common level of the architecture are left out (x86-64-v3 on x86_64), so a cache may be shared between machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.ports import files, process
from pipeline.toolchain import source, wheel
from pipeline.toolchain.cache import folder
from pipeline.toolchain.compiling import build_tool, compile_targets

LIBRARY = "llama"
OPTIONS = {
    **source.OPTIONS,
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",  # a wheel cannot hold the symbolic links that versions need
    "CMAKE_SHARED_LINKER_FLAGS": "-s",
    "BUILD_SHARED_LIBS": "ON",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
}
HINT = "make setup builds it once (some minutes of CPU time)"
NO_COMPILER = "install a C and C++ compiler (Debian, Ubuntu: apt-get install g++) or name them in CC and CXX"


@dataclass(frozen=True)
class HostToolchain:
    """The built libraries, and the source they were built from."""

    folder: Path
    source: Path
    digest: str

    @property
    def wheel(self) -> Path:
        """The wheel of llama-cpp-python with the same libraries in it."""
        return next((self.folder / "wheel").glob("*.whl"))

    @property
    def converter(self) -> Path:
        """llama.cpp's `convert_hf_to_gguf.py`; `gguf-py` and `conversion` stand beside it."""
        return source.llama_cpp(self.source) / "convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Inputs:
    """All that affects the bytes of a build."""

    cc: str
    cxx: str

    @cached_property
    def record(self) -> dict[str, object]:
        versions = {c: process.run([c, "--version"], hint=NO_COMPILER).splitlines()[0] for c in (self.cc, self.cxx)}
        return {
            "source": f"sha256:{source.SHA256}",
            "options": OPTIONS,
            "fixed_flags": source.FLAGS,
            "compilers": list(versions.values()),
            "flags": [os.environ.get(name, "") for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS")],
            "machine": platform.machine(),
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()


def find(cache: Path | None = None) -> HostToolchain:
    """Return the toolchain that `build` left in the cache folder, by default the user's.

    Raises:
        ToolError: it is not built, or this machine has no compiler to tell which one it would be.
    """
    found = _toolchain(cache or folder(), _inputs())
    if not found.folder.exists():
        raise ToolError("llama.cpp is not built for this machine", hint=HINT)
    return found


def build(cache: Path | None = None) -> HostToolchain:
    """Return the toolchain, built where the cache folder lacks it; shows its progress on standard error.

    Raises:
        ToolError: no compiler, no source, or the compile fails.
    """
    inputs, cache = _inputs(), cache or folder()
    toolchain = _toolchain(cache, inputs)
    with files.locked(toolchain.folder.with_suffix(".lock")):
        if not toolchain.folder.exists():
            source.fetch(cache)
            _build(toolchain, inputs)
    return toolchain


def _inputs() -> Inputs:
    return Inputs(
        cc=process.find(os.environ.get("CC", "cc"), NO_COMPILER),
        cxx=process.find(os.environ.get("CXX", "c++"), NO_COMPILER),
    )


def _toolchain(cache: Path, inputs: Inputs) -> HostToolchain:
    place = cache / "llama.cpp" / f"host-{inputs.digest[:16]}"
    return HostToolchain(folder=place, source=source.unpacked(cache), digest=inputs.digest)


def _build(toolchain: HostToolchain, inputs: Inputs) -> None:
    work = toolchain.folder.with_suffix(".partial")
    work.mkdir(parents=True, exist_ok=True)
    tree = source.llama_cpp(toolchain.source)
    fixed = f"{source.FLAGS} {source.prefix_maps({tree: 'llama.cpp', work: 'build'})}"
    options = OPTIONS | {
        "CMAKE_C_COMPILER": inputs.cc,
        "CMAKE_CXX_COMPILER": inputs.cxx,
        "CMAKE_MAKE_PROGRAM": build_tool("ninja"),
        "CMAKE_C_FLAGS": f"{os.environ.get('CFLAGS', '')} {fixed}".strip(),
        "CMAKE_CXX_FLAGS": f"{os.environ.get('CXXFLAGS', '')} {fixed}".strip(),
    }
    compile_targets(tree, work, options, (LIBRARY,), title="llama.cpp for this machine")
    with files.new_folder(toolchain.folder) as out:
        (out / "wheel").mkdir()
        wheel.pack(toolchain.source, sorted((work / "bin").glob("lib*.so")), out / "wheel")
        (out / "build.json").write_text(json.dumps(inputs.record, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(work)
