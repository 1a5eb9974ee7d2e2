"""The QEMU plugin that counts instructions, compiled for this machine and the QEMU it has.

Rules: compiled at first use with the compiler that builds the runtimes, cached under a hash of source and interface.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.ports import files, process
from pipeline.toolchain.cache import folder
from pipeline.toolchain.runtime import NATIVE, compiler, zig

SOURCE = NATIVE / "count_insns.c"
OUT_VARIABLE = "COUNT_INSNS_OUT"


def interface(qemu_version: str) -> int:
    """Return the plugin interface of a QEMU: inline counters became per-processor in 9.0 (its changelog)."""
    return 1 if int(qemu_version.partition(".")[0]) < 9 else 3


def plugin(qemu_version: str, cache: Path | None = None) -> Path:
    """Return the plugin for a QEMU of this version, compiled where the cache lacks it; raises ToolError."""
    number = interface(qemu_version)
    key = hashlib.sha256(f"{files.sha256_file(SOURCE)} {number} {compiler()}".encode()).hexdigest()[:16]
    place = (cache or folder()) / "qemu" / f"count-insns-{key}"
    with files.locked(place.with_suffix(".lock")):
        if not place.exists():
            with files.new_folder(place) as out:
                process.run(
                    [
                        zig(), "cc", "-shared", "-fPIC", "-O2", f"-DINTERFACE={number}", "-o", out / "count_insns.so",
                        SOURCE,
                    ],
                    hint="pip install 'edge-release[build]'",
                    env={"ZIG_GLOBAL_CACHE_DIR": str(place.parents[1] / "zig"), "ZIG_LOCAL_CACHE_DIR": str(out)},
                )  # fmt: skip
    return place / "count_insns.so"
