"""Checkpoints: everything a killed distillation needs to go on as if it had never stopped.

Rules: a checkpoint is written beside its place and renamed, so there is never half of one; it belongs to its inputs and
is passed over, with a line that says so, for any others. The data need no position: a step's batch depends on the step.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.stages.learner import Learner

EVERY_S = 10


class Checkpoint:
    """The one checkpoint of a distillation.

    It is written at most every ten seconds, and so seldom that writing takes a twentieth of the time: when it is
    written changes no result.
    """

    def __init__(self, path: Path, inputs: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the place and the digest of all inputs; `clock` gives seconds."""
        self._path, self._inputs, self._clock = path, inputs, clock
        self._due = clock() + EVERY_S

    def keep(self, learner: Learner, steps: int, tokens: int) -> None:
        """Write the learner's state if it is time to."""
        start = self._clock()
        if start < self._due:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".partial")
        try:
            torch.save({"inputs": self._inputs, "steps": steps, "tokens": tokens, **learner.state()}, beside)
        except (OSError, RuntimeError) as e:  # torch's writer raises RuntimeError on a full disk
            beside.unlink(missing_ok=True)
            raise StageError(f"cannot write {self._path}: {e}", hint="free space and run it again") from e
        beside.replace(self._path)
        now = self._clock()
        self._due = now + max(EVERY_S, 20 * (now - start))

    def restore(self, learner: Learner) -> tuple[int, int]:
        """Bring the learner to where the checkpoint is; returns steps and tokens done, zeros without one."""
        if not self._path.exists():
            return 0, 0
        try:
            saved = torch.load(self._path, weights_only=True, map_location=learner.ranks.device)
            if saved["inputs"] == self._inputs:
                learner.load(saved)
                return int(saved["steps"]), int(saved["tokens"])
            reason = "of other inputs"
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as e:
            reason = f"not readable ({type(e).__name__})"
        tqdm.write(f"{self._path} is {reason}: starting anew", file=sys.stderr)
        return 0, 0

    def remove(self) -> None:
        """Remove the checkpoint and its folder."""
        shutil.rmtree(self._path.parent, ignore_errors=True)
