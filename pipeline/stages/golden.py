"""What decoding the golden prompts once gives, whoever decodes: the common result of all engines.

Rules: one folder a run, written by the process that decoded and read by the check; logits stay on disk and are mapped,
so that a check's memory does not grow with vocabulary and prompts.

A run's folder holds `run.json` (a `GoldenRun`) and, where asked for, `logits.npy`: float32 [positions, vocabulary], the
teacher-forced logits of every prompt followed by its expected answer, one prompt after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.encoding import Count, Record

RUN_FILE = "run.json"
LOGITS_FILE = "logits.npy"


class GoldenAnswer(Record):
    """One prompt's answer.

    `tokens` are the generated ids without the end token; `ttft_ns` and `step_ns` are wall-clock nanoseconds to the
    first token and for each later one. `forced` are the ids of the prompt and the expected answer together, of which
    the first `prompt_length` are the prompt.
    """

    id: str
    tokens: list[Count]
    text: str
    ttft_ns: Count
    step_ns: list[Count]
    forced: list[Count]
    prompt_length: Count


class GoldenRun(Record):
    """All answers of one run, the engine's settings and the peak resident bytes of the processes that decoded."""

    engine: dict[str, str]
    peak_rss_bytes: Count
    answers: list[GoldenAnswer]


@dataclass(frozen=True)
class Decoded:
    """A run read back; `logits` is float32 [positions, vocabulary], None where none were asked for."""

    run: GoldenRun
    logits: NDArray[np.float32] | None


def read(folder: Path) -> Decoded:
    """Return what a decoding process wrote into `folder`."""
    run = GoldenRun.model_validate_json((folder / RUN_FILE).read_bytes())
    logits = folder / LOGITS_FILE
    return Decoded(run, map_logits(logits) if logits.exists() else None)


def map_logits(path: Path) -> NDArray[np.float32]:
    """Return the logits in a file, read as they are used."""
    found: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found
