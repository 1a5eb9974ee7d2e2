"""A tier's importance matrix: how strongly each input of each tensor is excited by the calibration examples.

Rules: the examples go through the model's own chat template, families in turn, so that a limit on chunks drops from
each alike; the program is the released one; one thread and one sequence, because the order of additions affects the
bytes; what the file says of its text is a fixed name, never a path.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.catalog.golden import Example
from pipeline.catalog.names import Tier
from pipeline.errors import StageError
from pipeline.ports import files, llama, process
from pipeline.stages.project import Project
from pipeline.toolchain import runtime

_TEXT = "calibration.txt"
_CONTEXTS_MIN = 2  # llama-imatrix refuses a text of fewer


def calibrate(project: Project, tier: Tier) -> None:
    """Write `project.imatrix(tier)` from `project.gguf(tier)` and the calibration examples.

    Raises:
        StageError: the examples are too short for the tier's context.
        ToolError: llama-imatrix cannot be built or fails; its last lines are in the message.
    """
    settings = project.tier(tier).calibrate
    assert settings is not None, "a GGUF tier's file has 'calibrate'"
    model, out = project.gguf(tier), project.imatrix(tier)
    text = _text(model, project.calibration(), settings.context)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        (Path(scratch) / _TEXT).write_text(text, encoding="utf-8")
        made = Path(scratch) / "imatrix.gguf"
        process.run(
            [
                runtime.build(runtime.native()).program(runtime.IMATRIX), "--model", model.resolve(),
                "--file", _TEXT, "--output-file", made.name,
                "--ctx-size", str(settings.context), "--batch-size", str(settings.context),
                "--ubatch-size", str(settings.context), "--chunks", str(settings.chunks),
                "--threads", "1", "--parse-special", "--no-escape", "--no-ppl",
            ],
            cwd=Path(scratch),
            hint="check models/*.yaml: calibrate, and that the model decodes (edge-release check)",
        )  # fmt: skip
        llama.header(made)
        files.move(made, out)


def _text(model: Path, examples: Sequence[Example], context: int) -> str:
    with llama.Session(model) as session:
        turns = [session.chat(e.prompt, e.answer) for e in in_turn(examples)]
        # Each turn begins as a conversation does: what is decoded later begins so too.
        text = (session.begin or "\n" * (not session.has_template)).join(turns)
        tokens = len(session.tokenize(text))
    if tokens < (needed := _CONTEXTS_MIN * context):
        raise StageError(
            f"the calibration examples have {tokens} tokens, {needed} are needed for a context of {context}",
            hint="add examples, or lower calibrate.context in models/*.yaml",
        )
    return text


def in_turn(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with one of each family, then the next of each, in the order families first appear."""
    families: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        families[example.family].append(example)
    rounds = range(max(map(len, families.values()), default=0))
    return [family[i] for i in rounds for family in families.values() if i < len(family)]
