"""The environments that a job's set-up stands for, linked from the one the tests run in: nothing is installed."""

from __future__ import annotations

import os
import re
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LIBRARIES = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def stamped(venv: Path, *, base: bool) -> None:
    """Make `venv` look as after `make setup`, or `make setup-base`, to make: nothing is left to do for it."""
    if base:
        _base(venv)
    else:
        _all(venv)
    for stamp in [".base"] if base else [".ready", ".dev"]:
        (venv / stamp).touch()
        os.utime(venv / stamp, times=(time.time() + 86_400,) * 2)


def without_our_commands(path: str) -> str:
    """Return a PATH without the commands of the environment that the tests run in: a job has those that it set up."""
    own = {str(Path(sys.executable).parent), str(Path(sys.prefix) / "bin")}
    kept = [part for part in path.split(os.pathsep) if part not in own and not (Path(part) / "edge-release").exists()]
    return os.pathsep.join(kept)


def _all(venv: Path) -> None:
    venv.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix) / name)


def _base(venv: Path) -> None:
    """Link what requirements/base.txt names and this project, and nothing else."""
    (venv / "bin").mkdir(parents=True)
    libraries = venv / _LIBRARIES
    libraries.mkdir(parents=True)
    python = Path(sys.executable).resolve()
    (venv / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    for name in ("python", "python3"):
        (venv / "bin" / name).symlink_to(python)
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/base.txt").read_text(), re.MULTILINE)
    for name in [*pinned, "edge-release"]:
        if name == "colorama":  # for Windows
            continue
        found = distribution(name)
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in {"..", "__pycache__"}}
        for top in tops:
            source = Path(str(found.locate_file(top)))
            if not (libraries / top).exists():
                (libraries / top).symlink_to(source)
    command = venv / "bin" / "edge-release"
    command.write_text(f"#!{venv}/bin/python\nimport sys\nfrom pipeline.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
