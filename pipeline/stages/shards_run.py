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
from pipeline.stages.gguf_run import common_prefix
from pipeline.stages.golden import Decoded, GoldenAnswer, GoldenRun
from pipeline.stages.tensor_parallel import Answer, Request


def launch(
    folder: Path, prompts: Sequence[GoldenPrompt], out: Path, *, threads: int, logits: bool = False, times: int = 1
) -> list[Decoded]:
    """Decode with all ranks of the shards in `folder`, `times` over, and return the runs; `out` is a folder for files.

    Every prompt of every run starts from an empty cache; only the first run has logits.

    Raises:
        StageError, ToolError: as `tensor_parallel.launch`.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    asked = [_request(tokenizer, prompt) for prompt in prompts]
    again = [request.model_copy(update={"forced": []}) for request in asked]
    out.mkdir(parents=True, exist_ok=True)
    path = out / golden.LOGITS_FILE if logits else None
    found = tensor_parallel.launch(folder, [*asked, *again * (times - 1)], logits=path, threads=threads)
    engine = {
        "name": "transformers",
        "threads": str(threads),
        "ranks": str(len(found.peak_rss_bytes)),
        "device": found.device,
        "dtype": found.dtype,
    }
    runs = []
    for start in range(0, len(found.answers), len(prompts)):
        answers = [
            _answer(tokenizer, *part)
            for part in zip(prompts, asked, found.answers[start : start + len(prompts)], strict=True)
        ]
        run = GoldenRun(engine=engine, peak_rss_bytes=sum(found.peak_rss_bytes), answers=answers)
        runs.append(Decoded(run, golden.map_logits(path) if path and not start else None))
    return runs


def whole(model: Path, target: Path, *, matrices: str, norms: str) -> Path:
    """Write a model folder as a single shard, for one process, and return `target`."""
    return shard.split(model, target, Shard.model_validate({"degree": 1, "matrices": matrices, "norms": norms}))


def same_values(one: Path, other: Path) -> bool:
    """Return whether two single shards hold the same numbers, whatever types they are stored in."""
    import torch
    from safetensors import safe_open

    name = shard.rank_file(0, 1)
    with safe_open(one / name, framework="pt") as a, safe_open(other / name, framework="pt") as b:
        return all(torch.equal(a.get_tensor(key).float(), b.get_tensor(key).float()) for key in a.keys())  # noqa: SIM118


def _request(tokenizer: Any, prompt: GoldenPrompt) -> Request:
    ids = _tokenize(tokenizer, prompt.prompt)
    forced = ids if prompt.match is Match.REGEX else _tokenize(tokenizer, prompt.prompt, prompt.expected)
    return Request(ids=ids, max_tokens=prompt.max_tokens, forced=forced)


def _answer(tokenizer: Any, prompt: GoldenPrompt, request: Request, answer: Answer) -> GoldenAnswer:
    return GoldenAnswer(
        id=prompt.id,
        tokens=answer.tokens,
        text=tokenizer.decode(answer.tokens, skip_special_tokens=True),
        ttft_ns=answer.ttft_ns,
        step_ns=answer.step_ns,
        forced=request.forced,
        prompt_length=common_prefix(request.ids, request.forced),
    )


def _tokenize(tokenizer: Any, prompt: str, answer: str | None = None) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(prompt + (answer or ""))["input_ids"])
    turns = [{"role": "user", "content": prompt}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
