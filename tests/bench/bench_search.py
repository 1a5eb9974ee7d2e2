"""Recipes that were searched for beside llama.cpp's own, on golden prompts that no search saw.

    python -m tests.bench.bench_search --model build/models/tiny-edge --name "demo tiny-edge" --out build/bench/search

Each model is converted, calibrated and surveyed as a tier is; for each budget the search finds a recipe for arm64, and
it is measured on the golden prompts beside the best preset of no more bytes (with the same importance matrix and
without), and, searched for without a limit on instructions, beside rules of thumb. Who is best among the peers is decided on the calibration examples, as the search
decides. Intervals are of the ratio, over prompts drawn anew. Instructions are counted under qemu-aarch64.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.catalog.recipe import Budget, Recipe
from pipeline.manifest.evidence import quantile
from pipeline.manifest.search import Found
from pipeline.ports import llama, qemu
from pipeline.ports.torch_env import pin_cpu_kernels
from pipeline.stages import calibrate, convert, gguf_run, golden, reference, sensitivity
from pipeline.stages import runtime as runtime_stage
from pipeline.stages.check_gguf import instructions
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.mix import BASES
from pipeline.stages.project import Project
from pipeline.stages.quality import bootstrap
from pipeline.stages.quantize import used
from pipeline.stages.searcher import Searcher
from pipeline.stages.survey import EMBEDDING
from pipeline.stages.trials import Trial, Trials
from pipeline.toolchain import counting, kernels, runtime

ROOT = Path(__file__).parents[2]
TIER, TARGET = Tier.TINY_EDGE, Target.ARM64
VARIANT = Variant(TIER, TARGET)
BUDGETS = ("Q4_K_M", "Q3_K_M", "Q2_K")
BOUNDS = {"Q4_K_M": 0.8, "Q3_K_M": 0.5, "Q2_K": 0.25}
STEP_UP = {"Q2_K": "Q3_K", "Q3_K": "Q4_K", "Q4_K": "Q5_K", "Q5_K": "Q6_K", "Q4_0": "Q5_0", "IQ4_NL": "Q5_K"}
RESAMPLES = 2000
FREE = 100.0  # times a preset's instructions: no limit, as rules of thumb know none


@dataclass(frozen=True)
class Measured:
    """One file on the golden prompts: KL sums and positions by prompt, of answers alone too, and what was right."""

    kl: list[float]
    positions: list[int]
    answer_kl: list[float]
    answer_positions: list[int]
    right: list[bool]
    p99: float
    instructions: float

    @property
    def mean_kl(self) -> float:
        return sum(self.kl) / sum(self.positions)

    @property
    def answer(self) -> float:
        return sum(self.answer_kl) / sum(self.answer_positions)

    @property
    def exact(self) -> float:
        return sum(self.right) / len(self.right)


class Study:
    """One model in a project folder of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        """Make the folder: the catalog's files, the prompts, and the model in a tier's place."""
        (folder / "models").mkdir(parents=True, exist_ok=True)
        for name in ("params.yaml", "models/tiny-edge.yaml", "models/mid-tier.yaml", "models/large.yaml"):
            shutil.copy(ROOT / name, folder / name)
        if not (folder / "models/demo").exists():
            (folder / "models/demo").symlink_to(ROOT / "models/demo")
        tier = yaml.safe_load((folder / "models/tiny-edge.yaml").read_text())
        tier["recipes"] = {str(t): {"search": {"preset": "Q4_K_M"}} for t in Target}
        (folder / "models/tiny-edge.yaml").write_text(yaml.safe_dump(tier))
        self.project = Project.load(folder)
        place = self.project.model(TIER)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(model.resolve())
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Convert, calibrate and survey, as far as that is not done."""
        if not self.project.gguf(TIER).exists():
            convert.convert(self.project, TIER)
        if not self.project.imatrix(TIER).exists():
            calibrate.calibrate(self.project, TIER)
        started = time.monotonic()
        sensitivity.sensitivity(self.project, TIER)
        self.seconds["survey"] = time.monotonic() - started
        self.trials = Trials(self.project, TIER)
        self._reference()

    def _reference(self) -> None:
        self.golden, self.folder = self.project.golden(), self.project.reference(TIER)
        runtime_stage.runtime(self.project, runtime.native())
        reference.reference(self.project, TIER)
        self.requests = golden.read_requests(self.folder / golden.REQUESTS_FILE)
        self.runner = Launcher(self.project.runtime(runtime.native()) / runtime.RUNNER)

    def search(self, preset: str, ratio: float) -> tuple[Recipe, Found]:
        """Search within a preset's bytes, and its instructions times `ratio`."""
        started = time.monotonic()
        found = Searcher(self.project, VARIANT, Budget(preset=preset, instructions_ratio_max=ratio)).search()
        self.seconds[f"{preset} {ratio}"] = time.monotonic() - started
        return found

    def measure(self, recipe: Recipe) -> Measured:
        """Measure a recipe on the golden prompts, and count its instructions."""
        settings = self.project.params.check
        with TemporaryDirectory() as scratch:
            model = Path(scratch) / "model.gguf"
            llama.quantize(self.project.gguf(TIER), model, recipe, used(self.trials.imatrix, recipe), 2)
            asked = Asked(self.folder / golden.REQUESTS_FILE, self.folder / golden.LOGITS_FILE)
            run = gguf_run.launch(self.runner, model, asked, Path(scratch) / "out", settings=settings)
            per_token = self._count(model, Path(scratch))
        pairs = zip(self.requests.requests, run.answers, strict=True)
        answers = [a.kl[r.answer_start :] or a.kl for r, a in pairs]
        return Measured(
            kl=[sum(a.kl) for a in run.answers],
            positions=[len(a.kl) for a in run.answers],
            answer_kl=[sum(part) for part in answers],
            answer_positions=[len(part) for part in answers],
            right=[p.accepts(a.text) for p, a in zip(self.golden, run.answers, strict=True)],
            p99=quantile([kl for a in run.answers for kl in a.kl], 0.99),
            instructions=per_token,
        )

    def _count(self, model: Path, scratch: Path) -> float:
        emulator = qemu.find(TARGET)
        assert emulator is not None, qemu.HINT
        places = golden.some_of_each(self.golden, 1)
        few = scratch / "few.json"
        asked = self.requests.at(places)
        few.write_bytes(asked.encode())
        out = scratch / "counted"
        before = emulator.argv(counting.plugin(emulator.version), {counting.OUT_VARIABLE: "out/counts"})
        program = runtime.find(TARGET).program(runtime.RUNNER)
        run = gguf_run.launch(
            Launcher(program, before), model, Asked(few, times=2), out, settings=self.project.params.check
        )
        found = instructions((out / "counts").read_text(), asked, run, emulator).per_token
        assert found is not None
        return found


def thumb(tensors: Sequence[str]) -> dict[str, Recipe]:
    """Recipes by rules of thumb: --pure, --output-tensor-type, and one step up for attn_v and ffn_down."""
    has_output = "output.weight" in tensors
    head = ["output", "token_embd"] if has_output else ["token_embd"]
    found = {}
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q4_0", "IQ4_NL", "IQ4_XS", "Q6_K"):
        base = BASES.get(kind, kind)
        for imatrix in (True, False):
            plus = "+imatrix" if imatrix else ""
            found[f"--pure {kind}{plus}"] = Recipe(base=base, imatrix=imatrix, tensors=[f".*={kind}"])
            for wide in ("Q8_0", "Q6_K", "Q5_K", "Q4_K"):
                tops = [rf"^{name}\.weight$={wide}" for name in head]
                found[f"--output-tensor-type {wide} {kind}{plus}"] = Recipe(
                    base=base, imatrix=imatrix, tensors=[*tops, f".*={kind}"]
                )
                if kind in STEP_UP:
                    up = rf"(attn_v|ffn_down)\.weight$={STEP_UP[kind]}"
                    found[f"step up, {wide} {kind}{plus}"] = Recipe(
                        base=base, imatrix=imatrix, tensors=[*tops, up, f".*={kind}"]
                    )
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of two sums over the same prompts, and its 95 % interval (paired bootstrap)."""

    def divided(pairs: Sequence[tuple[float, float]]) -> float:
        return sum(a for a, _ in pairs) / max(1e-12, sum(b for _, b in pairs))

    pairs = list(zip(ours, theirs, strict=True))
    return divided(pairs), *bootstrap([pairs], divided, RESAMPLES)


def cost(trial: Trial, survey: sensitivity.Survey) -> float:
    """Return the instructions of a token by the committed counts of a weight of each type."""
    per = kernels.per_weight(TARGET)
    multiplied = [m for m in survey.matrices if survey.tied or m.name != EMBEDDING]
    return sum(m.rows * m.columns * per[trial.types[m.name]] for m in multiplied)


def mean_kl(trial: Trial) -> float:
    return sum(trial.prompt) + sum(trial.answer)


def best(named: Iterable[tuple[str, Recipe, Trial]], size: int) -> tuple[str, Recipe]:
    """Return the best on the calibration examples of no more than `size` bytes."""
    within = [(mean_kl(trial), name, recipe) for name, recipe, trial in named if trial.size <= size]
    _, name, recipe = min(within, key=lambda entry: entry[0])
    return name, recipe


def compare(study: Study, *, presets_only: bool) -> list[dict[str, object]]:
    """Return a row for each budget and peer."""
    survey = sensitivity.Survey.read(study.project.sensitivity(TIER))
    presets = [(p.label, Recipe(base=p.name, imatrix=p.imatrix), p.trial) for p in survey.presets]
    rules = {} if presets_only else thumb([m.name for m in survey.matrices])
    tried = study.trials.measure(list(rules.values()), shown="rules of thumb")
    ruled = [(name, recipe, trial) for (name, recipe), trial in zip(rules.items(), tried, strict=True)]
    rows = []
    for budget in BUDGETS:
        size = next(t.size for name, _, t in presets if name.partition("+")[0] == budget)
        limit = 1.05 * next(cost(t, survey) for name, _, t in presets if name.partition("+")[0] == budget)
        quick = [(name, recipe, trial) for name, recipe, trial in presets if cost(trial, survey) <= limit]
        kinds = (("presets", 1.05, presets), ("presets as fast", 1.05, quick), ("rules of thumb", FREE, ruled))
        for limited, ratio_max, peers in kinds:
            if not peers or (limited == "presets as fast" and best(peers, size) == best(presets, size)):
                continue
            recipe, found = study.search(budget, ratio_max)
            ours = study.measure(recipe)
            name, other = best(peers, size)
            theirs = study.measure(other)
            rows.append(
                {
                    "budget": budget, "peers": limited, "peer": name, "bound": BOUNDS[budget],
                    "mean_kl": [ours.mean_kl, theirs.mean_kl], "mean_kl_ratio": ratio(ours.kl, theirs.kl),
                    "answer_kl": [ours.answer, theirs.answer],
                    "answer_kl_ratio": ratio(ours.answer_kl, theirs.answer_kl),
                    "p99": [ours.p99, theirs.p99], "exact_match": [ours.exact, theirs.exact],
                    "instructions": [ours.instructions, theirs.instructions],
                    "predicted": [found.solved.predicted_kl, found.chosen.predicted_kl],
                    "calibration": [found.solved.measured.mean_kl, found.chosen.measured.mean_kl],
                    "recipe": recipe.tensors, "no_imatrix": recipe.no_imatrix,
                }
            )  # fmt: skip
            show(rows[-1])
    return rows


def show(row: dict[str, object]) -> None:
    """Print a row for people."""
    r, a = row["mean_kl_ratio"], row["answer_kl_ratio"]
    i, p, e = row["instructions"], row["p99"], row["exact_match"]
    print(
        f"{row['budget']:7} vs {row['peer']:38} KL x{r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}] answers x{a[0]:.3f} "
        f"[{a[1]:.3f}, {a[2]:.3f}] p99 x{p[0] / p[1]:.3f} exact {e[0]:.3f}/{e[1]:.3f} instructions x{i[0] / i[1]:.3f} "
        f"predicted/measured {row['predicted'][0] / row['calibration'][0]:.2f} -> {row['predicted'][1] / row['calibration'][1]:.2f}",
        flush=True,
    )


def main() -> None:
    """Study one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, default=Path("build/bench/search"))
    parser.add_argument("--presets-only", action="store_true", help="beside presets alone, not rules of thumb")
    args = parser.parse_args()
    pin_cpu_kernels()
    study = Study(args.model, args.out / re.sub(r"\W+", "-", args.name))
    study.prepare()
    rows = compare(study, presets_only=args.presets_only)
    parameters = sum(m.rows * m.columns for m in sensitivity.Survey.read(study.project.sensitivity(TIER)).matrices)
    result = {"name": args.name, "parameters": parameters, "seconds": study.seconds, "rows": rows}
    (args.out / f"{re.sub(r'[^A-Za-z0-9]+', '-', args.name)}.json").write_text(json.dumps(result, indent=1) + "\n")
    print({name: round(value, 1) for name, value in study.seconds.items()}, f"{parameters / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
