"""Stage `reference`: what a tier's variants are compared with, wherever they are checked.

Rules: the golden prompts are tokenized once, by the tier's own tokenizer and chat template, and every machine decodes
these ids; the unquantized tier's logits over the expected answers are computed once, so that a board needs neither the
unquantized model nor a tokenizer.
"""

from __future__ import annotations

from pipeline.catalog.names import Tier
from pipeline.ports import files
from pipeline.ports.llama import Session
from pipeline.stages import gguf_run
from pipeline.stages.gguf_run import Launcher
from pipeline.stages.golden import Request, Requests
from pipeline.stages.project import Project
from pipeline.toolchain.runtime import RUNNER, native


def reference(project: Project, tier: Tier) -> None:
    """Write `project.reference(tier)`: requests and logits.

    Raises:
        StageError: the unquantized model is missing, or its chat template refuses a prompt.
        ToolError: the golden runner failed, or there is none for this machine.
    """
    model, runner = project.gguf(tier), Launcher(project.runtime(native()) / RUNNER)
    with Session(model) as session:
        requests = Requests(requests=[Request.of(prompt, session.turn) for prompt in project.golden()])
    with files.new_folder(project.reference(tier)) as folder:
        gguf_run.refer(runner, model, requests, folder, settings=project.params.check)
