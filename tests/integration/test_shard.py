"""Shards hold the model, and ranks decode with them what one process decodes; ranks are started by torchrun here."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.catalog.tiers import Shard
from pipeline.errors import StageError, ToolError
from pipeline.manifest.statement import SHARDS
from pipeline.model.layout import Layout, rank_file
from pipeline.model.tensor_file import Spec, TensorFile
from pipeline.ports.files import tree_digest
from pipeline.stages.shard import shard
from pipeline.stages.split import split
from pipeline.stages.tensor_parallel import Answer, Job, Output, Request, launch, main
from tests.support import models
from tests.support.projects import DEMO, project
from tests.support.ranks import on_ranks

MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": models.llama,
    "qwen2-biases": models.qwen2,
    "qwen3-norms": models.qwen3,
    "qwen3-tied": lambda: models.qwen3(tie_word_embeddings=True),
    "odd-vocabulary": lambda: models.llama(vocab_size=301),
    "output-biases": lambda: models.llama(attention_bias=True, mlp_bias=True),
}
PROMPTS = ("where is the black tea?", "total of rice 17 and soap 42?", "the pump reads temp 71")


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(tmp_path_factory.mktemp(request.param), MODELS[request.param]())


def whole(folder: Path, held: Path) -> dict[str, torch.Tensor]:
    """The tensors that the ranks' files make together."""
    layout = Layout.read(folder)
    ranks = [load_file(held / rank_file(rank, layout.degree)) for rank in range(layout.degree)]
    return {
        name: ranks[0][name] if cut is None else torch.cat([rank[name] for rank in ranks], cut)
        for name, cut in layout.splits.items()
    }


def rounded(folder: Path) -> Any:
    """The unsplit model as transformers loads it, its matrices rounded as the shards' are."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16())
    return model


def requests(folder: Path) -> list[Request]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    return [Request(ids=row, max_tokens=12, forced=[*row, 7, 9]) for row in ids]


def assert_like_one_process(folder: Path, asked: list[Request], answers: Sequence[Answer], file: Path) -> None:
    model, logits = rounded(folder), np.load(file)
    start = 0
    with torch.inference_mode():
        for request, answer in zip(asked, answers, strict=True):
            expected = model.generate(torch.tensor([request.ids]), max_new_tokens=12, do_sample=False)
            tokens = expected[0, len(request.ids) :].tolist()
            assert answer.tokens == (tokens[:-1] if tokens[-1] == model.config.eos_token_id else tokens)
            reference = model(torch.tensor([request.forced])).logits[0].numpy()
            rows = logits[start : start + len(request.forced)]
            np.testing.assert_allclose(rows, reference, atol=2e-4)
            start += len(request.forced)
    assert start == len(logits)


def test_ranks_hold_the_model_together(model: Path, tmp_path: Path) -> None:
    """Put together, the ranks' files are the model, matrices in bf16 and vectors in f32."""
    folder = split(model, tmp_path / "shards", Shard(degree=2))
    given = load_file(model / "model.safetensors")
    found = whole(folder, folder)
    assert set(found) == set(given)
    for name, tensor in found.items():
        assert tensor.dtype == (torch.bfloat16 if tensor.ndim > 1 else torch.float32), name
        assert torch.equal(tensor, given[name].to(tensor.dtype)), name


def test_two_ranks_decode_what_one_process_decodes(model: Path, tmp_path: Path) -> None:
    """Tokens are equal and logits agree for every kind of layer that a plan splits."""
    folder = split(model, tmp_path / "shards", Shard(degree=2))
    asked, out, wanted = requests(model), tmp_path / "out.json", tmp_path / "requests.json"
    logits = tmp_path / "logits.npy"
    wanted.write_bytes(Job(requests=asked, timeout_s=120, threads=1, logits=str(logits)).encode())
    assert on_ranks(2, lambda _: main([str(folder), str(wanted), str(out)])) == [0, 0]
    assert_like_one_process(model, asked, Output.model_validate_json(out.read_bytes()).answers, logits)


def test_one_rank_is_the_whole_model(tmp_path: Path) -> None:
    """With degree 1 nothing is split, and a request for no tokens has an answer all the same."""
    model = models.save(tmp_path / "model", models.qwen3(tie_word_embeddings=True))
    folder = split(model, tmp_path / "shards", Shard(degree=1))
    asked, out, wanted = requests(model), tmp_path / "out.json", tmp_path / "requests.json"
    job = Job(
        requests=[*asked, Request(ids=[1], max_tokens=0)], timeout_s=120, threads=1, logits=str(tmp_path / "l.npy")
    )
    wanted.write_bytes(job.encode())
    assert on_ranks(1, lambda _: main([str(folder), str(wanted), str(out)])) == [0]
    *answers, none = Output.model_validate_json(out.read_bytes()).answers
    assert_like_one_process(model, asked, answers, tmp_path / "l.npy")
    assert none == Answer(tokens=[], ttft_ns=0, step_ns=[])


def test_torchrun_starts_the_ranks(tmp_path: Path) -> None:
    """The launcher gives each prompt's answer, its timings, and every rank's memory."""
    model = models.save(tmp_path / "model", models.qwen3(tie_word_embeddings=True))
    asked = requests(model)
    found = launch(split(model, tmp_path / "shards", Shard(degree=2)), asked, logits=tmp_path / "l.npy", timeout_s=300)
    assert_like_one_process(model, asked, found.answers, tmp_path / "l.npy")
    assert len(found.peak_rss_bytes) == 2
    assert all(answer.ttft_ns > 0 and len(answer.step_ns) >= len(answer.tokens) - 1 for answer in found.answers)


@pytest.mark.skipif(not (DEMO / "teacher").exists(), reason="the demo teacher is not here")
def test_two_ranks_decode_what_the_demo_teacher_decodes(tmp_path: Path) -> None:
    """The large tier of the demo answers as its teacher does."""
    teacher = DEMO / "teacher"
    folder = split(teacher, tmp_path / "shards", Shard(degree=2))
    asked = requests(teacher)
    found = launch(folder, asked, logits=tmp_path / "logits.npy", timeout_s=300)
    assert_like_one_process(teacher, asked, found.answers, tmp_path / "logits.npy")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    """Splitting twice gives one digest, also where a tensor is written in many pieces."""
    model = models.save(tmp_path / "model", models.qwen3())
    digests = {tree_digest(split(model, tmp_path / name, Shard(degree=2))) for name in ("a", "b")}
    assert len(digests) == 1


def test_the_variants_are_the_tiers_model_split_once(tmp_path: Path) -> None:
    """Without a source of its own the large tier is the teacher; the tokenizer's files come along."""
    work = project(
        tmp_path, {"embedded": {"path": "x", "digest": f"sha256:{'0' * 64}"}}, {"large": {"shard": {"degree": 2}}}
    )
    models.save(work.teacher, models.llama())
    made = shard(work)
    assert tree_digest(work.model(Tier.LARGE)) == tree_digest(work.teacher)
    assert made == [work.variant(Variant(Tier.LARGE, target)) for target in Target]
    assert len({tree_digest(folder) for folder in made}) == 1
    folder = made[-1]
    names = {path.name for path in folder.iterdir()}
    assert names >= {SHARDS, "config.json", "tokenizer.json", rank_file(0, 2), rank_file(1, 2)}
    assert "model.safetensors" not in names
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("config", "degree", "hint"),
    [
        (models.llama(), 4, "1, 2"),
        (models.llama(num_attention_heads=8, num_key_value_heads=4, intermediate_size=96), 8, "1, 2, 4"),
        (models.llama(num_key_value_heads=4, intermediate_size=98), 4, "1, 2"),
    ],
    ids=["key-value-heads", "more-heads", "feed-forward"],
)
def test_a_degree_that_does_not_fit_is_refused(
    tmp_path: Path, config: PreTrainedConfig, degree: int, hint: str
) -> None:
    """The error says which degrees fit."""
    model = models.save(tmp_path / "model", config)
    with pytest.raises(StageError, match="do not divide") as caught:
        split(model, tmp_path / "shards", Shard(degree=degree))
    assert caught.value.hint == f"set shard.degree to {hint}"
    assert not (tmp_path / "shards").exists()


def test_a_model_with_a_weight_short_is_refused(tmp_path: Path) -> None:
    """A weight the architecture needs and no file holds is named."""
    model = models.save(tmp_path / "model", models.llama())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(StageError, match=r"no weight model\.layers\.2\."):
        split(model, tmp_path / "shards", Shard(degree=2))


def test_a_style_that_is_not_known_is_refused(tmp_path: Path) -> None:
    """An architecture whose plan packs tensors is named with the style."""
    from transformers import MixtralConfig

    model = models.save(tmp_path / "model", MixtralConfig(**models.SHAPE, num_local_experts=2))
    with pytest.raises(StageError, match="which is not supported"):
        split(model, tmp_path / "shards", Shard(degree=2))


def test_a_full_disk_leaves_no_shards(tmp_path: Path) -> None:
    """Where the shards cannot be written the error is one line and nothing is left."""
    model = models.save(tmp_path / "model", models.llama())

    def split_into_little(_: int) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(StageError) as caught:
            split(model, tmp_path / "out" / "shards", Shard(degree=2))
        return caught.value.message

    assert "cannot write" in on_ranks(1, split_into_little)[0]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_with_bytes_missing_is_not_closed_quietly(tmp_path: Path) -> None:
    """A header's promise that no tensor kept is an error."""
    with (
        pytest.raises(AssertionError, match="12 bytes are missing"),
        TensorFile(tmp_path / "t", {"a": Spec("F32", (3,))}),
    ):
        pass


@pytest.mark.parametrize("degree", [1, 2])
def test_shards_for_another_number_of_ranks_are_refused(tmp_path: Path, degree: int) -> None:
    """A rank that finds no shard of its own says so, and the launcher repeats it."""
    folder = split(models.save(tmp_path / "model", models.llama()), tmp_path / "shards", Shard(degree=degree))
    (folder / rank_file(degree - 1, degree)).unlink()
    with pytest.raises(ToolError, match=rf"rank {degree - 1} of {degree}: .*No such file"):
        launch(folder, [Request(ids=[1, 2], max_tokens=2)], timeout_s=300)


@pytest.mark.parametrize("degree", [1, 2])
def test_ranks_that_run_out_of_time_end(tmp_path: Path, degree: int) -> None:
    """A timeout is one line, and no rank is left."""
    folder = split(models.save(tmp_path / "model", models.llama()), tmp_path / "shards", Shard(degree=degree))
    with pytest.raises(ToolError, match="not done after 1 s"):
        launch(folder, [Request(ids=[1, 2], max_tokens=2)], timeout_s=1)
    assert not ranks_of(folder)


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    """When one rank is killed the launcher names it, and no other rank is left waiting."""
    folder = split(models.save(tmp_path / "model", models.llama()), tmp_path / "shards", Shard(degree=2))
    killer = threading.Thread(target=kill_one, args=(folder,))
    killer.start()
    with pytest.raises(ToolError, match=r"rank \d of 2: killed by signal 9"):
        launch(folder, [Request(ids=[1, 2], max_tokens=200)] * 500, timeout_s=300)
    killer.join()
    assert not ranks_of(folder)


def ranks_of(folder: Path) -> list[int]:
    """The processes that decode with these shards; torchrun, which started them, is not one of them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in command and b"torch.distributed.run" not in command:
            found.append(int(entry.name))
    return found


def kill_one(folder: Path) -> None:
    """Kill a rank soon after it began to read its shard."""
    while not (found := [pid for pid in ranks_of(folder) if "_safetensors" in maps(pid)]):
        time.sleep(0.05)
    time.sleep(2)
    os.kill(found[0], signal.SIGKILL)


def maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""
