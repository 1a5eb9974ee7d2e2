"""The environment that makes torch compute the same bits on CPUs of different make.

Rules: called before torch is imported, because torch and MKL choose their kernels once; a choice the user made stays;
nothing is pinned where the CPU lacks AVX2. Threads are fixed by the stages themselves.

ATEN_CPU_CAPABILITY  vectorised kernels of ATen: softmax, activations, norms, sums
MKL_CBWR             MKL's conditional numerical reproducibility: matrix products, attention. On CPUs that are not
                     Intel's, MKL takes every branch but COMPATIBLE for AUTO (oneMKL Developer Guide, "Specifying Code
                     Branches")
ONEDNN_MAX_CPU_ISA   oneDNN's kernels: bfloat16 products
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path

PINS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def pin_cpu_kernels(env: MutableMapping[str, str] = os.environ) -> bool:
    """Let torch use kernels of every x86-64-v3 CPU and no others; returns False where that is too late or cannot be.

    This trades speed, in matrix products 2.6 times the time of AVX2, for bytes that any x86-64-v3 CPU gives too.
    """
    if "torch" in sys.modules or not _has_avx2():
        return False
    for name, value in PINS.items():
        env.setdefault(name, value)
    return True


def _has_avx2() -> bool:
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").replace("\n", " ")
    except OSError:
        return False
