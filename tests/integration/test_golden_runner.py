"""The golden runner itself: what transformers computes, the same tokens every time, and one clear error otherwise."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.catalog.names import Tier, host_target
from pipeline.catalog.params import Check
from pipeline.errors import PipelineError, ToolError
from pipeline.ports import llama
from pipeline.stages import gguf_run, golden
from pipeline.stages.convert import convert
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.golden import GoldenRun, Request, Requests
from pipeline.stages.project import Project
from pipeline.stages.shards_run import compare
from pipeline.toolchain import host, runtime
from tests.support import models
from tests.support.projects import gguf_tier, project

PROMPTS = ("where is the black tea?", "total of rice 17 and soap 42?")
DISTILL = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}
SETTINGS = Check(context=128)


@dataclass(frozen=True)
class Bench:
    """A converted model with its folder, and the runner to decode with."""

    project: Project
    launcher: Launcher
    scratch: Path

    @property
    def model(self) -> Path:
        return self.project.gguf(Tier.TINY_EDGE)

    def requests(self, **update: Any) -> list[Request]:
        """Requests whose forced sequence is the prompt with some more tokens of the vocabulary."""
        with llama.Session(self.model) as session:
            found = [session.tokenize(session.chat(prompt)) for prompt in PROMPTS]
        return [
            Request(id=f"r{i}", prompt=ids, forced=[*ids, 7, 8, 9], prompt_length=len(ids), max_tokens=12).model_copy(
                update=update
            )
            for i, ids in enumerate(found)
        ]

    def run(
        self, requests: list[Request], *, model: Path | None = None, settings: Check = SETTINGS, **asked: Any
    ) -> GoldenRun:
        """Decode, with logits; the run's folder is `scratch/out`."""
        path = self.scratch / "requests.json"
        path.write_bytes(Requests(requests=requests).encode())
        return gguf_run.launch(
            self.launcher,
            model or self.model,
            Asked(path, **asked),
            self.scratch / "out",
            settings=settings,
            logits=True,
        )

    def logits(self, name: str) -> NDArray[np.float32]:
        return np.fromfile(self.scratch / "out" / name, np.float32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    here = host_target()
    try:
        host.find()
        assert here is not None
        program = runtime.find(here).program(runtime.RUNNER)
    except PipelineError as e:
        pytest.skip(f"{e.message}: {e.hint}")
    root = tmp_path_factory.mktemp("runner")
    settings = gguf_tier(distill=DISTILL, convert={"outtype": "f32", "pre_tokenizer": "gpt-2"})
    teacher = {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}
    made = project(root, teacher, {"tiny-edge": settings})
    models.save(made.model(Tier.TINY_EDGE), models.llama())
    convert(made, Tier.TINY_EDGE)
    return Bench(made, Launcher(program), tmp_path_factory.mktemp("scratch"))


def _transformers(bench: Bench, ids: list[int]) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bench.project.model(Tier.TINY_EDGE), dtype=torch.float32).eval()
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found


def test_logits_are_those_of_transformers(bench: Bench) -> None:
    """Teacher-forced logits of an f32 model differ from transformers' by less than 1e-3 at every position."""
    requests = bench.requests()
    run = bench.run(requests)
    wanted = np.concatenate([_transformers(bench, r.forced) for r in requests])
    found = bench.logits(golden.LOGITS_FILE).reshape(-1, run.vocabulary)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-3


def test_greedy_takes_the_most_likely_token(bench: Bench) -> None:
    """Each generated token is the maximum of transformers' logits before it, and its margin is their gap."""
    (request, _) = bench.requests()
    answer = bench.run([request]).answers[0]
    rows = _transformers(bench, [*request.prompt, *answer.tokens])[len(request.prompt) - 1 :]
    assert answer.tokens == rows[: len(answer.tokens)].argmax(-1).tolist()
    best = np.sort(rows[: len(answer.margins)], -1)
    assert answer.margins == pytest.approx((best[:, -1] - best[:, -2]).tolist(), abs=2e-3)


def test_passes_repeat_and_generated_logits_are_kept(bench: Bench) -> None:
    """Further passes in fresh contexts give the same tokens; the logits file has a row a decision."""
    run = bench.run(bench.requests(), times=3)
    assert len(run.repeats) == 2
    assert run.repeatable
    rows = bench.logits("generated.f32").reshape(-1, run.vocabulary)
    assert len(rows) == sum(len(a.margins) for a in run.answers)
    assert rows[0].argmax() == run.answers[0].tokens[0]


def test_every_later_token_has_a_duration(bench: Bench) -> None:
    """There is one time to the first token and one duration for each later one, all positive."""
    for answer in bench.run(bench.requests()).answers:
        assert len(answer.step_ns) == len(answer.tokens) - 1
        assert min(answer.ttft_ns, *answer.step_ns) > 0


def test_an_end_token_ends_the_answer(bench: Bench, tmp_path: Path) -> None:
    """Decoding stops at the first end token, which is not part of the answer but has a margin."""
    requests = bench.requests()
    tokens = bench.run(requests).answers[0].tokens
    at = next(i for i, token in enumerate(tokens) if i and token not in tokens[:i])
    key = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    data = bench.model.read_bytes()
    place = data.index(key) + len(key)
    (tmp_path / "ends.gguf").write_bytes(data[:place] + struct.pack("<I", tokens[at]) + data[place + 4 :])
    answer = bench.run(requests, model=tmp_path / "ends.gguf").answers[0]
    assert answer.tokens == tokens[:at]
    assert len(answer.margins) == at + 1


def test_divergence_is_that_of_the_definition(bench: Bench, tmp_path: Path) -> None:
    """KL and likelihoods against another run's logits are what NumPy computes from both."""
    requests = bench.requests()
    run = bench.run(requests)
    ours = bench.logits(golden.LOGITS_FILE).reshape(-1, run.vocabulary)
    theirs = (ours + np.random.default_rng(0).normal(size=ours.shape)).astype(np.float32)
    theirs.tofile(tmp_path / "reference.f32")
    start = 0
    for request, answer in zip(
        requests, bench.run(requests, reference=tmp_path / "reference.f32").answers, strict=True
    ):
        end = start + len(request.forced)
        wanted = compare(ours[start:end], theirs[start:end], request.forced)
        assert answer.kl == pytest.approx(wanted["kl"], rel=1e-6)
        assert answer.nll == pytest.approx(wanted["nll"], rel=1e-6)
        assert answer.reference_nll == pytest.approx(wanted["reference_nll"], rel=1e-6)
        start = end


def test_chosen_requests_take_their_rows_along(bench: Bench, tmp_path: Path) -> None:
    """A selection's logits are the rows of its own requests, and nothing diverges from itself."""
    requests = bench.requests()
    bench.run(requests)
    logits = bench.scratch / "out" / golden.LOGITS_FILE
    kept = tmp_path / "all.f32"
    kept.write_bytes(logits.read_bytes())
    few, rows = golden.select(Requests(requests=requests), kept, [1], tmp_path / "few")
    (chosen,) = golden.read_requests(few).requests
    (answer,) = bench.run([chosen], reference=rows).answers
    assert (chosen.id, max(answer.kl)) == ("r1", 0.0)


def test_a_full_context_can_be_used(bench: Bench) -> None:
    """Prompt and answer may fill the context to its last token."""
    (request, _) = bench.requests()
    room = request.model_copy(update={"max_tokens": SETTINGS.context - len(request.prompt), "forced": []})
    assert bench.run([room]).answers[0].tokens


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        pytest.param({"prompt": []}, "r0: there are no tokens to decode", id="empty"),
        pytest.param({"max_tokens": 999}, "do not fit a context of 128", id="too many to generate"),
        pytest.param({"prompt": [5] * 200}, "do not fit a context of 128", id="too long a prompt"),
        pytest.param({"forced": [5] * 200}, "do not fit a context of 128", id="too long an answer"),
        pytest.param({"prompt": [99999]}, "token 99999 is not in the vocabulary", id="foreign id"),
        pytest.param({"forced": [3, 99999]}, "token 99999 is not in the vocabulary", id="foreign forced id"),
    ],
)
def test_what_cannot_be_decoded_is_one_clear_error(bench: Bench, update: dict[str, Any], reason: str) -> None:
    """A request that does not fit the model or the context ends the run before anything is written."""
    (bench.scratch / "out" / golden.RUN_FILE).unlink(missing_ok=True)
    with pytest.raises(ToolError, match=reason):
        bench.run(bench.requests(**update))
    assert not (bench.scratch / "out" / golden.RUN_FILE).exists()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        pytest.param("model.gguf", b"GGUF\x03\0\0\0", "model.gguf: cannot be loaded", id="truncated model"),
        pytest.param("reference.f32", b"\0" * 12, "is not of these requests", id="foreign reference"),
        pytest.param("requests.json", b"{", "parse error", id="damaged requests"),
        pytest.param("requests.json", b'{"requests": [{"id": 1}]}', "type must be|key 'prompt'", id="other requests"),
    ],
)
def test_damaged_input_is_one_clear_error(bench: Bench, tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    """What is not what it should be is named, and the runner neither crashes nor goes on."""
    asked = {"model.gguf": bench.model, "requests.json": tmp_path / "right.json"}
    asked["requests.json"].write_bytes(Requests(requests=bench.requests()).encode())
    (tmp_path / name).write_bytes(data)
    asked[name] = tmp_path / name
    what = Asked(asked["requests.json"], reference=asked.get("reference.f32"))
    with pytest.raises(ToolError, match=reason):
        gguf_run.launch(bench.launcher, asked["model.gguf"], what, tmp_path / "out", settings=SETTINGS)


def test_a_full_disk_leaves_no_result(bench: Bench, tmp_path: Path) -> None:
    """Where the results do not fit there are none, and the error names the file."""
    path, out = tmp_path / "requests.json", tmp_path / "out"
    path.write_bytes(Requests(requests=bench.requests()).encode())
    out.mkdir()
    (out / "run.json.partial").symlink_to("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(ToolError, match=r"out/run\.json: cannot be written"):
        gguf_run.launch(bench.launcher, bench.model, Asked(path), out, settings=SETTINGS)
    assert not (out / golden.RUN_FILE).exists()


def test_the_result_is_plain_json_whatever_the_text(bench: Bench) -> None:
    """Bytes that are no text do not spoil the result: every run reads back as JSON."""
    run = bench.run(bench.requests(max_tokens=90))
    document = json.loads((bench.scratch / "out" / golden.RUN_FILE).read_text(encoding="utf-8"))
    assert [a["tokens"] for a in document["answers"]] == run.tokens
