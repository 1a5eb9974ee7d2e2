"""Decode golden prompts with a GGUF file in the golden runner: here, on a board, or under an emulator.

Rules: the program is the target's released one; nothing but it is needed where it runs; how it is started (`Launcher`)
is all that differs between machines. It runs in a folder of its own with fixed names, so no path of the machine reaches
it: under an emulator the length of a path would show in the instructions it counts.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.catalog.params import Check
from pipeline.errors import StageError
from pipeline.ports import files, process
from pipeline.stages import golden
from pipeline.stages.golden import GoldenRun, Requests
from pipeline.toolchain.runtime import RUNNER

HINT = "see the message; if it is memory, lower check.context in params.yaml"


@dataclass(frozen=True)
class Launcher:
    """A golden runner and what stands before it on the command line: an emulator with its options, or nothing."""

    program: Path
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What to decode: requests, and a reference run's logits over their forced sequences where there is one."""

    requests: Path
    reference: Path | None = None
    answers: bool = True
    times: int = 1


def refer(launcher: Launcher, model: Path, requests: Requests, folder: Path, *, settings: Check) -> None:
    """Write requests, and a model's logits over their forced sequences, into an existing folder; raises as `launch`."""
    asked = folder / golden.REQUESTS_FILE
    files.write(asked, requests.encode())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".run.") as out:
        launch(launcher, model, Asked(asked, answers=False), Path(out), settings=settings, logits=True)
        files.move(Path(out) / golden.LOGITS_FILE, folder / golden.LOGITS_FILE)


def launch(
    launcher: Launcher, model: Path, asked: Asked, out: Path, *, settings: Check, logits: bool = False
) -> GoldenRun:
    """Run the golden runner into the folder `out` and return what it found.

    Args:
        logits: keep the logits in `out`, as `golden.LOGITS_FILE`.

    Raises:
        StageError: the program or the model is missing.
        ToolError: it failed or was killed; its last lines are in the message.
    """
    flags = ["--logits"] * logits + ["--no-answers"] * (not asked.answers)
    if asked.reference:
        flags += ["--reference", "reference.f32"]
    for needed in (launcher.program, model):
        if not needed.exists():
            raise StageError(f"{needed} is missing", hint="dvc repro, or fetch the build again")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # Copied, because files that travelled as artifacts of a workflow have lost their modes.
        shutil.copy(launcher.program, scratch / RUNNER)
        (scratch / RUNNER).chmod(0o755)
        linked = {"model.gguf": model, "requests.json": asked.requests, "reference.f32": asked.reference, "out": out}
        for name, path in linked.items():
            if path is not None:
                (scratch / name).symlink_to(path.resolve())
        process.run(
            [
                *launcher.before, f"./{RUNNER}", "--model", "model.gguf", "--requests", "requests.json", "--out", "out",
                "--context", str(settings.context), "--threads", str(settings.threads), "--times", str(asked.times),
                *flags,
            ],
            cwd=scratch,
            hint=HINT,
        )  # fmt: skip
    engine = {
        "name": "llama.cpp", "threads": str(settings.threads), "context": str(settings.context), "kv_cache": "f32",
        "flash_attention": "off",
    }  # fmt: skip
    return golden.read_run(out).model_copy(update={"engine": engine})
