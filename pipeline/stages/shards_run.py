"""Decode golden prompts with the large tier's shards: all ranks together, and one process as the reference.

Rules: the tokenizer is the one released beside the shards; the reference is the unsplit model in full precision,
through the very code the ranks run, as a single shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog.golden import GoldenPrompt
from pipeline.catalog.tiers import Shard
from pipeline.errors import StageError
from pipeline.model.chat import Chat
from pipeline.model.layout import rank_file
from pipeline.stages import tensor_parallel
from pipeline.stages.golden import GoldenAnswer, GoldenRun, Request, Requests
from pipeline.stages.split import split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = 1024  # positions compared at a time: bounds memory at large vocabularies


def requests(folder: Path, prompts: Sequence[GoldenPrompt]) -> Requests:
    """Return the golden prompts in tokens of the tokenizer that lies in `folder`."""
    chat = Chat(folder)
    return Requests(requests=[Request.of(prompt, chat.turn) for prompt in prompts])


def launch(
    folder: Path, asked: Requests, *, threads: int, logits: Path | None = None, times: int = 1, full: bool = False
) -> GoldenRun:
    """Decode with all ranks of the shards in `folder`, `times` over; every prompt starts from an empty cache.

    Args:
        logits: where the logits of the forced sequences go, as .npy.
        full: compute in f32 on GPUs too.

    Raises:
        StageError, ToolError: as `tensor_parallel.launch`.
    """
    chat, count = Chat(folder), len(asked.requests)
    first = [
        tensor_parallel.Request(ids=r.prompt, max_tokens=r.max_tokens, forced=r.forced if logits else [])
        for r in asked.requests
    ]
    again = [request.model_copy(update={"forced": []}) for request in first]
    found = tensor_parallel.launch(folder, [*first, *again * (times - 1)], logits=logits, threads=threads, full=full)
    passes = [found.answers[start : start + count] for start in range(0, len(found.answers), count)]
    answers = [
        GoldenAnswer(id=r.id, tokens=a.tokens, text=chat.text(a.tokens), ttft_ns=a.ttft_ns, step_ns=a.step_ns)
        for r, a in zip(asked.requests, passes[0], strict=True)
    ]
    engine = {
        "name": "transformers", "threads": str(threads), "ranks": str(len(found.peak_rss_bytes)),
        "device": found.device, "dtype": found.dtype, "backend": found.backend,
    }  # fmt: skip
    return GoldenRun(
        vocabulary=found.vocabulary,
        peak_rss_bytes=sum(found.peak_rss_bytes),
        answers=answers,
        repeats=[[a.tokens for a in others] for others in passes[1:]],
        engine=engine,
    )


def compared(run: GoldenRun, asked: Requests, logits: Path, reference: Path) -> GoldenRun:
    """Return a run with the divergence of its forced logits from a reference's, both .npy of the same positions.

    Raises:
        StageError: the two are not of one shape, so that they cannot be compared.
    """
    import numpy as np

    ours, theirs = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (logits, reference))
    if ours.shape != theirs.shape:
        raise StageError(
            "the variant's and the reference's logits differ in shape", hint="rebuild both from one teacher"
        )
    answers, start = [], 0
    for request, answer in zip(asked.requests, run.answers, strict=True):
        end = start + len(request.forced)
        answers.append(answer.model_copy(update=compare(ours[start:end], theirs[start:end], request.forced)))
        start = end
    return run.model_copy(update={"answers": answers})


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities of [positions, vocabulary] logits in double precision."""
    import numpy as np

    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def compare(ours: NDArray[np.float32], theirs: NDArray[np.float32], ids: Sequence[int]) -> dict[str, list[float]]:
    """Return one sequence's `kl`, `nll` and `reference_nll` (see `GoldenAnswer`); logits are [len(ids), vocabulary]."""
    import numpy as np

    found: dict[str, list[float]] = {"kl": [], "nll": [], "reference_nll": []}
    for start in range(0, len(ids), _ROWS):
        a, b = log_softmax(ours[start : start + _ROWS]), log_softmax(theirs[start : start + _ROWS])
        targets = np.asarray(ids[start + 1 : start + 1 + len(a)])
        rows = np.arange(len(targets))
        found["kl"] += (np.exp(b) * (b - a)).sum(axis=-1).tolist()
        found["nll"] += (-a[rows, targets]).tolist()
        found["reference_nll"] += (-b[rows, targets]).tolist()
    return found


def whole(model: Path, target: Path, *, matrices: str, norms: str) -> Path:
    """Write a model folder as a single shard, for one process, and return `target`."""
    return split(model, target, Shard.model_validate({"degree": 1, "matrices": matrices, "norms": norms}))


def same_values(one: Path, other: Path) -> bool:
    """Return whether two single shards hold the same numbers, whatever types they are stored in."""
    import torch
    from safetensors import safe_open

    name = rank_file(0, 1)
    with safe_open(one / name, framework="pt") as a, safe_open(other / name, framework="pt") as b:
        return all(torch.equal(a.get_tensor(key).float(), b.get_tensor(key).float()) for key in a.keys())  # noqa: SIM118
