"""CMake and Ninja, with a progress bar.

Rules: both come from the environment's own packages, else from PATH; git is kept out of the build, so the result does
not depend on a repository around the cache folder; a failure ends with the compiler's last lines.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pipeline.ports import process

NINJA_STATUS = re.compile(r"\[(\d+)/(\d+)\] ")


def build_tool(name: str) -> str:
    """Return the path of `cmake` or `ninja`; raises ToolError where there is none."""
    own = shutil.which(name, path=str(Path(sys.executable).parent))
    return own or process.find(name, f"pip install {name}")


def compile_targets(
    tree: Path,
    build: Path,
    options: Mapping[str, str],
    targets: Sequence[str],
    *,
    title: str,
    jobs: int | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Configure `tree` into `build` and compile `targets`; what `build` holds already is kept.

    Args:
        env: variables added to this process's.

    Raises:
        ToolError: CMake or the compiler refuses.
    """
    hint = f"read the lines above; {build} keeps what is built"
    settings = [f"-D{key}={value}" for key, value in sorted(options.items())]
    environ = {"GIT_DIR": os.devnull, **(env or {})}
    configure = [build_tool("cmake"), "-G", "Ninja", "-S", str(tree), "-B", str(build)]
    process.run([*configure, *settings], hint=hint, env=environ)
    with tqdm(desc=title, unit="step", file=sys.stderr, mininterval=1) as bar:
        ninja = [build_tool("ninja"), "-C", str(build), *([f"-j{jobs}"] if jobs else []), *targets]
        process.watch(ninja, partial(_show, bar), hint=hint, env={**environ, "NINJA_STATUS": "[%f/%t] "})


def _show(bar: tqdm[NoReturn], line: str) -> bool:
    """Move the bar by one of Ninja's lines of progress; return whether it was one."""
    status = NINJA_STATUS.match(line)
    if status:
        bar.total = int(status[2])
        bar.update(int(status[1]) - bar.n)
    return status is not None
