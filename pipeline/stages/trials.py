"""Recipes tried as whole models: how far each parts from the unquantized tier on the calibration examples.

Rules: what chooses a recipe sees the calibration examples and what is made of them (`crossed`), never a golden prompt;
every trial is quantized as a release is and decoded by the released golden runner; a finished trial is kept under a
digest of all it depends on, so a search that was killed goes on, and targets share what they try.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from tqdm import tqdm

from pipeline.catalog.names import Tier
from pipeline.catalog.recipe import Recipe
from pipeline.manifest.encoding import Count, Record, Sha256, canonical, sha256
from pipeline.manifest.evidence import quantile
from pipeline.ports import files, llama, process
from pipeline.stages import gguf_run, golden
from pipeline.stages.calibrate import in_turn
from pipeline.stages.crossed import crossed
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.golden import GoldenAnswer, Request, Requests
from pipeline.stages.project import Project
from pipeline.stages.quality import rounded
from pipeline.stages.quantize import load_imatrix, matrices, used
from pipeline.toolchain import runtime

KEPT_FILE = "trials.jsonl"
LAYOUT = 5  # counts up when a trial comes to hold something else, or an example to belong to another fold
FOLDS = 2


class Example(Record):
    """Of one calibration example: its family, positions of prompt and of answer, and the fold it belongs to."""

    family: str
    prompt: Count
    answer: Count
    fold: Count


class Trial(Record):
    """A recipe as a whole model: bytes of its file, types by tensor, and KL(unquantized || quantized) in nats, summed
    over each example's positions that predict its prompt and its answer; `p99` is over all positions, `family_p99` over
    those of each family."""

    recipe: Sha256
    size: Count
    types: dict[str, str]
    prompt: list[float]
    answer: list[float]
    p99: float
    family_p99: dict[str, float]


class Trials:
    """A tier's unquantized model, its calibration examples in tokens, and what has been tried."""

    def __init__(self, project: Project, tier: Tier) -> None:
        """Tokenize the examples and decode the unquantized model over them, where that is not kept from before.

        Raises:
            StageError: the unquantized model or the importance matrix is missing.
            ToolError: the golden runner failed.
        """
        settings = project.tier(tier).sensitivity
        self.source, matrix = project.gguf(tier), project.imatrix(tier)
        self.header = llama.header(self.source)
        self.imatrix = load_imatrix(matrix)
        self._check = project.params.check
        self._runner = Launcher(runtime.build(runtime.native()).program(runtime.RUNNER))
        ordered = in_turn(project.calibration())
        examples = [ordered[place] for place in golden.some_of_each(ordered, settings.per_family)]
        families = [example.family for example in examples]
        folds = folded(families)
        with llama.Session(self.source) as session:
            turns = [(session.turn(e.prompt), session.turn(e.prompt, e.answer)) for e in examples]
            turns += [(ids, ids) for ids in map(session.turn, crossed(examples, folds, settings.seed))]
        self.requests = Requests(
            requests=[Request.between(f"{n}", prompt, forced) for n, (prompt, forced) in enumerate(turns)]
        )
        self.examples = _described(families * 2, folds * 2, self.requests)
        inputs = {
            "source": files.sha256_file(self.source),
            "imatrix": files.sha256_file(matrix),
            "library": llama.build_digest(),
            "runner": files.sha256_file(self._runner.program),
            "requests": sha256(self.requests.encode()),
            "check": self._check.model_dump(mode="json"),
            "layout": LAYOUT,
        }
        self.folder = project.trials(tier) / sha256(canonical(inputs))[:16]
        self._reference = self.folder / golden.LOGITS_FILE
        if not self._reference.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            gguf_run.refer(self._runner, self.source, self.requests, self.folder, settings=self._check)
        self._kept = Journal(self.folder / KEPT_FILE)
        self._known = {trial.recipe: trial for trial in map(Trial.model_validate_json, self._kept.lines())}
        self._quantizing = Lock()

    def measure(self, recipes: Sequence[Recipe], *, shown: str = "") -> list[Trial]:
        """Return each recipe's trial, in their order; `shown` names a progress bar.

        Raises:
            ToolError: llama.cpp refuses a recipe, or the golden runner fails.
        """
        new = list({r.digest: r for r in recipes if r.digest not in self._known}.values())
        with (
            TemporaryDirectory(dir=self.folder, prefix=".try.") as scratch,
            ThreadPoolExecutor(process.processors()) as pool,
            tqdm(
                total=len(new), desc=shown, unit="recipe", file=sys.stderr, disable=None if shown and new else True
            ) as bar,
        ):
            for trial in pool.map(partial(self._try, Path(scratch)), new):
                self._kept.add(trial)
                self._known[trial.recipe] = trial
                bar.update()
        return [self._known[recipe.digest] for recipe in recipes]

    def _try(self, scratch: Path, recipe: Recipe) -> Trial:
        model, out = scratch / f"{recipe.digest}.gguf", scratch / recipe.digest
        with self._quantizing:  # what llama.cpp says is kept for one call at a time
            llama.quantize(self.source, model, recipe, used(self.imatrix, recipe), 1)
        asked = Asked(self.folder / golden.REQUESTS_FILE, self._reference, answers=False)
        run = gguf_run.launch(self._runner, model, asked, out, settings=self._check)
        pairs = list(zip(self.examples, run.answers, strict=True))
        found = Trial(
            recipe=recipe.digest,
            size=model.stat().st_size,
            types={t.name: t.type for t in matrices(llama.header(model))},
            prompt=[rounded(max(0.0, sum(answer.kl[: example.prompt]))) for example, answer in pairs],
            answer=[rounded(max(0.0, sum(answer.kl[example.prompt :]))) for example, answer in pairs],
            p99=_p99(answer for _, answer in pairs),
            family_p99={
                family: _p99(answer for example, answer in pairs if example.family == family)
                for family in sorted({example.family for example in self.examples})
            },
        )
        model.unlink()
        return found


class Journal:
    """Finished work, a line of JSON each; a line that a kill cut short is as if it had not been begun."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[bytes]:
        """Return the whole lines, oldest first, and drop what is left of one that is not."""
        with files.locked(self._path.with_suffix(".lock")), self._path.open("a+b") as f:
            f.seek(0)
            *whole, rest = f.read().split(b"\n")
            if rest:
                f.truncate(f.tell() - len(rest))
            return whole

    def add(self, record: Record) -> None:
        """Append a record; it is on disk when this returns."""
        with files.locked(self._path.with_suffix(".lock")), self._path.open("ab") as f:
            f.write(record.encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())


def _p99(answers: Iterable[GoldenAnswer]) -> float:
    return rounded(max(0.0, quantile([kl for answer in answers for kl in answer.kl], 0.99)))


def folded(families: Sequence[str]) -> list[int]:
    """Return the fold of each example by its family: every other one of a family is in the same."""
    seen: Counter[str] = Counter()
    found = []
    for family in families:
        found.append(seen[family] % FOLDS)
        seen[family] += 1
    return found


def _described(families: Sequence[str], folds: Sequence[int], requests: Requests) -> list[Example]:
    return [
        Example(family=family, prompt=start, answer=len(request.forced) - start, fold=fold)
        for family, fold, request in zip(families, folds, requests.requests, strict=True)
        for start in [request.answer_start]
    ]
