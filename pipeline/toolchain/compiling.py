"""CMake and Ninja, with a progress bar.

Rules: both come from the environment's own packages, else from PATH; git is kept out of the build, so the result does
not depend on a repository around the cache folder; a failure ends with the compiler's last lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import ToolError
from pipeline.ports import process

NINJA_STATUS = re.compile(r"\[(\d+)/(\d+)\] ")


def build_tool(name: str) -> str:
    """Return the path of `cmake` or `ninja`; raises ToolError where there is none."""
    own = shutil.which(name, path=str(Path(sys.executable).parent))
    return own or process.find(name, f"pip install {name}")


def compile_targets(
    tree: Path, build: Path, options: Mapping[str, str], targets: Sequence[str], *, title: str, jobs: int | None = None
) -> None:
    """Configure `tree` into `build` and compile `targets`; what `build` holds already is kept.

    Raises:
        ToolError: CMake or the compiler refuses.
    """
    hint = f"read the lines above; {build} keeps what is built"
    settings = [f"-D{key}={value}" for key, value in sorted(options.items())]
    environ = {"GIT_DIR": os.devnull}
    configure = [build_tool("cmake"), "-G", "Ninja", "-S", str(tree), "-B", str(build)]
    process.run([*configure, *settings], hint=hint, env=environ)
    # Ninja's own lines drive the bar, so this is the one program not started through ports/process.
    command = [build_tool("ninja"), "-C", str(build), *([f"-j{jobs}"] if jobs else []), *targets]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environ, "NINJA_STATUS": "[%f/%t] "},
        text=True,
        errors="replace",
    ) as ninja:
        assert ninja.stdout is not None
        tail = _show(ninja.stdout, title)
    if ninja.returncode:
        raise ToolError(f"{title}: {' | '.join(tail)}", hint=hint)


def _show(lines: Iterable[str], title: str) -> list[str]:
    """Show Ninja's progress and return the last lines that are not progress."""
    tail: deque[str] = deque(maxlen=8)
    with tqdm(desc=title, unit="step", file=sys.stderr, mininterval=1) as bar:
        for line in lines:
            if status := NINJA_STATUS.match(line):
                bar.total = int(status[2])
                bar.update(int(status[1]) - bar.n)
            elif text := line.strip():
                tail.append(text)
    return list(tail)
