"""Decoding with the large tier's shards: as many processes as there are shards, started by torchrun if several.

    python -m pipeline.stages.tensor_parallel FOLDER REQUESTS.json OUT.json      (under torchrun; rank 0 writes)

Rules: greedy, one prompt at a time; rank 0 writes and the others only compute; each rank ends itself when its time is
up or its starter is gone, so nothing is left running; a rank that fails says why in a file beside OUT.json.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.errors import ToolError, in_a_line
from pipeline.manifest.encoding import Count, Record, canonical
from pipeline.model import torchrun
from pipeline.model.hf import end_tokens
from pipeline.model.layout import Layout
from pipeline.ports import process
from pipeline.ports.torch_env import pin_cpu_kernels

HINT = "look at the ranks' messages above; give them more time or memory, or mend the shards"


class Request(Record):
    """One prompt: its token ids, how many to generate (or none), and the sequence whose logits are wanted (or none)."""

    ids: list[Count]
    max_tokens: Count
    forced: list[Count] = Field(default_factory=list)


class Job(Record):
    """What the ranks are to do; `timeout_s` is when each of them ends itself, `full` computes in f32 on GPUs too."""

    requests: list[Request]
    timeout_s: Count
    threads: Count
    logits: str | None = None
    full: bool = False


class Answer(Record):
    """Generated ids without the end token; wall-clock nanoseconds to the first token and for each later one."""

    tokens: list[Count]
    ttft_ns: Count
    step_ns: list[Count]


class Output(Record):
    """What rank 0 writes: an answer a request, and every rank's peak resident bytes."""

    answers: list[Answer]
    peak_rss_bytes: list[Count]
    vocabulary: Count
    device: str
    dtype: str
    backend: str


@dataclass(frozen=True)
class Decoding:
    """What a run of the shards gave.

    `logits` is a .npy file, float32 [positions, vocabulary], the requests' forced sequences one after the other.
    """

    answers: tuple[Answer, ...]
    peak_rss_bytes: tuple[int, ...]
    vocabulary: int
    device: str
    dtype: str
    backend: str
    logits: Path | None


def launch(
    folder: Path,
    requests: Sequence[Request],
    *,
    logits: Path | None = None,
    threads: int = 1,
    timeout_s: int = 600,
    full: bool = False,
) -> Decoding:
    """Decode with all ranks of the shards in `folder`, on this machine.

    Args:
        logits: where the logits of the forced sequences go.
        threads: of each rank; fixed, because the order of additions affects bytes.
        timeout_s: every rank ends itself after this many seconds.
        full: compute in f32 on GPUs too, where bfloat16 is usual.

    Raises:
        StageError: `folder` holds no shards.
        ToolError: a rank failed, died or ran out of time; no rank is left running.
    """
    degree = Layout.read(folder).degree
    job = Job(
        requests=list(requests), timeout_s=timeout_s, threads=threads, logits=str(logits) if logits else None, full=full
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        wanted, out = Path(scratch) / "requests.json", Path(scratch) / "out.json"
        wanted.write_bytes(job.encode())
        places = [str(path) for path in (folder.resolve(), wanted, out)]
        argv, env = torchrun.command(__name__, places, degree=degree, threads=threads)
        try:
            process.run(argv, hint=HINT, env=env)
        except ToolError as e:
            raise _explain(e, out, degree, timeout_s) from e
        found = Output.model_validate_json(out.read_bytes())
    return Decoding(
        answers=tuple(found.answers),
        peak_rss_bytes=tuple(found.peak_rss_bytes),
        vocabulary=found.vocabulary,
        device=found.device,
        dtype=found.dtype,
        backend=found.backend,
        logits=logits,
    )


def _explain(error: ToolError, out: Path, degree: int, timeout_s: int) -> ToolError:
    """Name the rank that failed first, and why."""
    first = re.search(r"\brank\s*:\s*(\d+)" if degree > 1 else "()", error.message)
    status = re.search(r"\bexitcode\s*:\s*(-?\d+)" if degree > 1 else r"\bstatus (-?\d+)", error.message)
    if first is None or status is None:
        return error
    rank, code = int(first[1] or 0), int(status[1])
    said = _complaint(out, rank)
    if said.exists():
        why = said.read_text(encoding="utf-8")
    elif code == -signal.SIGALRM:
        why = f"not done after {timeout_s} s"
    else:
        why = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
    return ToolError(f"rank {rank} of {degree}: {why}", hint=HINT)


def _complaint(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}.rank-{rank}")


def main(arguments: Sequence[str]) -> int:
    """Be one rank; the exit status says whether it went well."""
    folder, wanted, out = map(Path, arguments)
    job = Job.model_validate_json(wanted.read_bytes())
    _end_with(job.timeout_s)
    pin_cpu_kernels()
    try:
        _decode(folder, job, out)
    except Exception as e:  # the outermost loop of a rank: whatever it is, the launcher must hear of it
        _complaint(out, int(os.environ["RANK"])).write_text(in_a_line(e), encoding="utf-8")
        if isinstance(e, RuntimeError):
            time.sleep(1)  # most likely another rank is gone: let torchrun see that one first, it has the cause
        return 1
    return 0


def _end_with(seconds: int) -> None:
    """End this process when its time is up (SIGALRM's default) or when the one that started it is gone."""
    signal.alarm(seconds)
    process.die_with_parent()


def _decode(folder: Path, job: Job, out: Path) -> None:
    import torch
    import torch.distributed as dist

    from pipeline.model import parallel

    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    place = parallel.enter(timedelta(seconds=job.timeout_s), full=job.full)
    try:
        model, ends = parallel.load(folder, place), end_tokens(folder)
        answers = [parallel.greedy(model, r.ids, r.max_tokens, ends, place) for r in job.requests]
        if job.logits is not None:
            _write_logits(Path(job.logits), model, job, place)
        peaks: list[Any] = [None] * place.degree
        dist.all_gather_object(peaks, _peak_rss())
        if place.rank == 0:
            found = {"answers": [asdict(a) for a in answers], "peak_rss_bytes": peaks}
            where = {"device": place.device.type, "dtype": str(place.dtype), "backend": dist.get_backend()}
            out.write_bytes(canonical({**found, **where, "vocabulary": model.config.vocab_size}))
    finally:
        dist.destroy_process_group()


def _write_logits(path: Path, model: Any, job: Job, place: Any) -> None:
    """Write the forced sequences' logits as one array, a sequence at a time."""
    import numpy as np

    from pipeline.model import parallel

    forced = [r.forced for r in job.requests if r.forced]
    shape = (sum(map(len, forced)), model.config.vocab_size)
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape) if place.rank == 0 else None
    start = 0
    for ids in forced:
        logits = parallel.forced_logits(model, ids, place)
        if array is not None:
            array[start : start + len(ids)] = logits.numpy()
        start += len(ids)


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
