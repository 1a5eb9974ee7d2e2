"""Decode golden prompts with a GGUF file in a process of its own, so that its peak memory is the model's.

    python -m pipeline.stages.gguf_run MODEL GOLDEN.jsonl OUT --context N --threads N [--logits] [--no-answers]

Rules: one fresh context a prompt; OUT is a folder as `pipeline.stages.golden` describes.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.catalog.golden import GoldenPrompt, Match, parse_golden
from pipeline.errors import PipelineError, StageError
from pipeline.ports import files, process
from pipeline.ports.llama import Session
from pipeline.stages import golden
from pipeline.stages.golden import GoldenAnswer, GoldenRun

HINT = "see the message; if it is memory, lower check.context in params.yaml"


def launch(
    model: Path, prompts: Path, out: Path, *, context: int, threads: int, logits: bool = False, answers: bool = True
) -> golden.Decoded:
    """Run this module in a process of its own and return what it wrote.

    Args:
        context: tokens a prompt and its answer may have.
        answers: decode; without it only the logits of the expected answers are computed.

    Raises:
        ToolError: the process failed, or was killed; its last lines are in the message.
    """
    flags = ["--logits"] * logits + ["--no-answers"] * (not answers)
    limits = ["--context", str(context), "--threads", str(threads)]
    process.run([sys.executable, "-m", "pipeline.stages.gguf_run", model, prompts, out, *limits, *flags], hint=HINT)
    return golden.read(out)


def main(argv: Sequence[str]) -> int:
    """Decode; errors end in one line on standard error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--logits", action="store_true")
    parser.add_argument("--no-answers", action="store_true")
    args = parser.parse_args(argv)
    try:
        prompts = files.load(args.prompts, parse_golden)
        with Session(args.model, context=args.context, threads=args.threads) as session:
            _run(session, prompts, args)
    except PipelineError as e:
        print(e.message, file=sys.stderr)  # noqa: T201 - the starter quotes it
        return e.exit_code
    return 0


def _run(session: Session, prompts: Sequence[GoldenPrompt], args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    found = [_answer(session, prompt, decode=not args.no_answers) for prompt in prompts]
    engine = {
        "name": "llama.cpp", "threads": str(args.threads), "context": str(args.context), "kv_cache": "f32",
        "flash_attention": "off",
    }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before the logits, which only checks need
    if args.logits:
        _write_logits(session, found, args.out / golden.LOGITS_FILE)
    run = GoldenRun(engine=engine, peak_rss_bytes=peak, answers=found)
    files.write(args.out / golden.RUN_FILE, run.encode())


def _answer(session: Session, prompt: GoldenPrompt, *, decode: bool) -> GoldenAnswer:
    ids = session.tokenize(session.chat(prompt.prompt))
    # A pattern is no answer to be forced; of such a prompt only its own positions are compared.
    forced = ids if prompt.match is Match.REGEX else session.tokenize(session.chat(prompt.prompt, prompt.expected))
    try:
        answer = session.greedy(ids, prompt.max_tokens) if decode else None
    except StageError as e:
        raise StageError(f"{prompt.id}: {e.message}", hint=e.hint) from e
    return GoldenAnswer(
        id=prompt.id,
        tokens=list(answer.tokens) if answer else [],
        text=session.text(answer.tokens) if answer else "",
        ttft_ns=answer.ttft_ns if answer else 0,
        step_ns=list(answer.step_ns) if answer else [],
        forced=forced,
        prompt_length=common_prefix(ids, forced),
    )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading ids two sequences share: the prompt's length within prompt and answer."""
    pairs: Iterator[tuple[int, int]] = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _write_logits(session: Session, answers: Sequence[GoldenAnswer], path: Path) -> None:
    rows = sum(len(a.forced) for a in answers)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, session.vocabulary))
    start = 0
    for answer in answers:
        out[start : start + len(answer.forced)] = session.logits(answer.forced)
        start += len(answer.forced)
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
