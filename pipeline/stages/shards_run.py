"""Decode golden prompts with the large tier's shards: all ranks together, and one process as the reference.

Rules: the tokenizer is the one released beside the shards; the reference is the unsplit model in full precision,
through the very code the ranks run, as a single shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.catalog.golden import GoldenPrompt, Match
from pipeline.catalog.tiers import Shard
from pipeline.stages import golden, shard, tensor_parallel
from pipeline.stages.golden import Decoded, GoldenAnswer, GoldenRun
from pipeline.stages.gguf_run import common_prefix
from pipeline.stages.tensor_parallel import Request


def launch(
    folder: Path,
    prompts: Sequence[GoldenPrompt],
    out: Path,
    *,
    threads: int,
    logits: bool = False,
    answers: bool = True,
) -> Decoded:
    """Decode with all ranks of the shards in `folder` and return the run; `out` is a folder for its files.

    Raises:
        StageError, ToolError: as `tensor_parallel.launch`.
    """
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    asked = [_request(tokenizer, prompt, answers=answers) for prompt in prompts]
    path = out / golden.LOGITS_FILE if logits else None
    found = tensor_parallel.launch(folder, asked, logits=path, threads=threads)
    run = GoldenRun(
        engine={
            "name": "transformers", "threads": str(threads), "ranks": str(len(found.peak_rss_bytes)),
            "device": found.device, "dtype": found.dtype,
        },
        peak_rss_bytes=sum(found.peak_rss_bytes),
        answers=[
            GoldenAnswer(
                id=prompt.id,
                tokens=answer.tokens,
                text=tokenizer.decode(answer.tokens, skip_special_tokens=True),
                ttft_ns=answer.ttft_ns,
                step_ns=answer.step_ns,
                forced=request.forced,
                prompt_length=common_prefix(request.ids, request.forced),
            )
            for prompt, request, answer in zip(prompts, asked, found.answers, strict=True)
        ],
    )  # fmt: skip
    (out / golden.RUN_FILE).write_bytes(run.encode())
    return golden.read(out)


def whole(model: Path, target: Path, *, matrices: str, norms: str) -> Path:
    """Write a model folder as a single shard, for one process, and return `target`."""
    return shard.split(model, target, Shard.model_validate({"degree": 1, "matrices": matrices, "norms": norms}))


def _request(tokenizer: Any, prompt: GoldenPrompt, *, answers: bool) -> Request:
    ids = _tokenize(tokenizer, prompt.prompt)
    forced = ids if prompt.match is Match.REGEX else _tokenize(tokenizer, prompt.prompt, prompt.expected)
    return Request(ids=ids, max_tokens=prompt.max_tokens if answers else 1, forced=forced)


def _tokenize(tokenizer: Any, prompt: str, answer: str | None = None) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(prompt + (answer or ""))["input_ids"])
    turns = [{"role": "user", "content": prompt}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
