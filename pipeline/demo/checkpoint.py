"""Checkpoints: everything a killed training needs to go on as if it had never stopped.

Rules: a checkpoint is written beside its name and renamed, so there is never half of one; it belongs to one
recipe and is refused for any other. The data need no position: a step's batch depends on the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch

from pipeline.demo.learner import Learner
from pipeline.demo.recipe import Recipe
from pipeline.errors import StageError

FILE_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoints:
    """The one checkpoint of one recipe in a folder, which is made when first needed."""

    folder: Path
    recipe: Recipe

    @property
    def path(self) -> Path:
        """Where the checkpoint is, once there is one."""
        return self.folder / FILE_NAME

    def save(self, learner: Learner, steps_done: int) -> None:
        """Replace the checkpoint by the learner's present state."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".partial")
        torch.save({"recipe": repr(self.recipe), "steps_done": steps_done, "state": learner.state()}, beside)
        beside.replace(self.path)

    def restore(self, learner: Learner) -> int:
        """Bring the learner to where the checkpoint is, and return the steps done; 0 without a checkpoint.

        Raises:
            StageError: the checkpoint cannot be read, or is another recipe's.
        """
        if not self.path.exists():
            return 0
        hint = f"remove {self.path} and start again"
        if not is_zipfile(self.path):
            raise StageError(f"{self.path}: not a whole checkpoint", hint=hint)
        try:
            saved = torch.load(self.path, weights_only=True)
        except (OSError, RuntimeError, UnpicklingError) as e:
            raise StageError(f"{self.path}: not a whole checkpoint: {e}", hint=hint) from e
        if saved["recipe"] != repr(self.recipe):
            raise StageError(f"{self.path}: made by another recipe", hint=hint)
        learner.load(saved["state"])
        return int(saved["steps_done"])
