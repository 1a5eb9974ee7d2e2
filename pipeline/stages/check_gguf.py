"""Check a GGUF variant with the golden runner: on this host, on a board, or under an emulator.

Rules: a board is checked with the base install alone; answers are decoded under the meter by themselves, then the
forced positions, so that what is measured is decoding; an emulator, being slow, is asked some prompts of each family.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from pipeline.catalog.names import RunnerClass, Target, Variant, host_target
from pipeline.errors import StageError, ToolError
from pipeline.manifest.evidence import Instructions, Missing
from pipeline.ports import machine, qemu
from pipeline.ports.energy import Meter
from pipeline.stages import gguf_run, golden
from pipeline.stages.checked import PASSES, Checked
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.golden import GoldenRun, Requests
from pipeline.stages.project import MODEL, Project
from pipeline.stages.quality import quality
from pipeline.toolchain.runtime import RUNNER


def run(project: Project, variant: Variant, runner: RunnerClass, scratch: Path) -> Checked | Missing:
    """Return what the variant answered; raises StageError, ToolError as `check.check` does."""
    if runner is RunnerClass.EMULATED:
        return _emulated(project, variant, scratch)
    model, folder, settings = project.variant(variant) / MODEL, project.reference(variant.tier), project.params.check
    launcher = Launcher(project.runtime(_native(variant, runner)) / RUNNER)
    requests = golden.read_requests(folder / golden.REQUESTS_FILE)
    with Meter() as meter:
        asked = Asked(folder / golden.REQUESTS_FILE, times=PASSES)
        answered = gguf_run.launch(launcher, model, asked, scratch / "answers", settings=settings)
    asked = Asked(folder / golden.REQUESTS_FILE, folder / golden.LOGITS_FILE, answers=False)
    forced = gguf_run.launch(launcher, model, asked, scratch / "forced", settings=settings)
    merged = _merged(answered, forced)
    prompts = project.golden()
    return Checked(prompts, merged, quality(prompts, requests.requests, merged), meter.result)


def _native(variant: Variant, runner: RunnerClass) -> Target:
    """Return the target this machine is; raises StageError where it is not of the runner class."""
    here, facts = host_target(), machine.facts()
    if here is None:
        raise StageError(
            f"this machine ({facts['machine']}) is none of the targets", hint=f"there are {', '.join(Target)}"
        )
    board = {RunnerClass.PI5: machine.is_pi5, RunnerClass.RISCV: machine.is_riscv64}.get(runner)
    if board is not None and not board(facts):
        told = facts.get("board", f"{facts['cpu']}, {facts['machine']}")
        raise StageError(f"this machine is not of runner class {runner}: {told}", hint="run it on the board itself")
    if board is not None and variant.target is not here:
        raise StageError(f"{variant} is not for {here}", hint=f"check a variant for {here} here")
    return here


def _merged(answered: GoldenRun, forced: GoldenRun) -> GoldenRun:
    answers = [
        a.model_copy(update={"kl": f.kl, "nll": f.nll, "reference_nll": f.reference_nll})
        for a, f in zip(answered.answers, forced.answers, strict=True)
    ]
    return answered.model_copy(update={"answers": answers})


def _emulated(project: Project, variant: Variant, scratch: Path) -> Checked | Missing:
    emulator = qemu.find(variant.target)
    if emulator is None:
        return Missing(
            variant=variant.name, runner=RunnerClass.EMULATED,
            missing=f"{qemu.PROGRAMS[variant.target]} is not installed: {qemu.HINT}",
        )  # fmt: skip
    from pipeline.toolchain import counting

    folder, settings, everything = project.reference(variant.tier), project.params.check, project.golden()
    places = golden.some_of_each(everything, settings.emulated_per_family)
    requests = golden.read_requests(folder / golden.REQUESTS_FILE)
    few, logits = golden.select(requests, folder / golden.LOGITS_FILE, places, scratch / "asked")
    out = scratch / "run"
    before = emulator.argv(counting.plugin(emulator.version), {counting.OUT_VARIABLE: "out/counts"})
    found = gguf_run.launch(
        Launcher(project.runtime(variant.target) / RUNNER, before), project.variant(variant) / MODEL,
        Asked(few, logits, times=PASSES), out, settings=settings,
    )  # fmt: skip
    chosen = golden.read_requests(few)
    prompts = [everything[place] for place in places]
    return Checked(
        prompts,
        found.model_copy(update={"engine": {**found.engine, "emulator": emulator.name, "cpu": emulator.cpu}}),
        quality(prompts, chosen.requests, found),
        instructions=instructions((out / "counts").read_text(), chosen, found, emulator),
    )


def instructions(counts: str, asked: Requests, found: GoldenRun, emulator: qemu.Emulator) -> Instructions:
    """Return the instructions of the first pass.

    Args:
        counts: a line for each decode, in their order: a prompt, then one for every token generated after its first.

    Raises:
        ToolError: there are not as many as were decoded.
    """
    lines = [int(line) for line in counts.split()]
    decodes = [len(answer.margins) for answer in found.answers]
    if len(lines) != PASSES * sum(decodes):
        raise ToolError(
            f"{emulator.name} counted {len(lines)} decodes of {PASSES * sum(decodes)}", hint="run the check again"
        )
    firsts = [end - count for end, count in zip(accumulate(decodes), decodes, strict=True)]
    prompt = sum(lines[first] for first in firsts)
    return Instructions(
        emulator=emulator.name,
        cpu=emulator.cpu,
        prompt=prompt,
        prompt_tokens=sum(len(request.prompt) for request in asked.requests),
        generated=sum(lines[: sum(decodes)]) - prompt,
        steps=sum(decodes) - len(decodes),
    )
