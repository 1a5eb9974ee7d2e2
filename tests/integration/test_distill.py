"""A student is cut out of its teacher and taught by it, with the same bytes however often the run is cut short."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MixtralConfig, Phi3Config, PreTrainedConfig

from pipeline.catalog.names import Tier
from pipeline.catalog.tiers import Distill
from pipeline.errors import StageError
from pipeline.model.chat import Chat
from pipeline.ports.files import tree_digest
from pipeline.ports.hub import Hub
from pipeline.stages.answers import answers
from pipeline.stages.batches import Row, collate, encode
from pipeline.stages.checkpoint import Checkpoint
from pipeline.stages.distill import distill, learn, load
from pipeline.stages.learner import Learner
from pipeline.stages.portable import Portable
from pipeline.stages.project import Project
from pipeline.stages.prune import blank, prune
from pipeline.stages.ranks import Ranks, weights_digest
from tests.support import models
from tests.support.hub import REPO, REVISION, LocalHub, serving
from tests.support.projects import gguf_tier, project
from tests.support.ranks import on_ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
TIER = Tier.TINY_EDGE
EMBEDDED = {"embedded": {"path": "teacher", "digest": f"sha256:{'0' * 64}"}}
RECIPE = {"layers": [0, 2], "ffn": 64, "steps": 12, "batch": 8, "learning_rate": 0.01}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: models.llama(num_hidden_layers=3),
    "qwen2-biases": lambda: models.qwen2(num_hidden_layers=3),
    "qwen3-norms": lambda: models.qwen3(num_hidden_layers=3),
    "qwen3-tied": lambda: models.qwen3(num_hidden_layers=3, tie_word_embeddings=True),
    "output-biases": lambda: models.llama(num_hidden_layers=3, mlp_bias=True),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def work(root: Path, config: PreTrainedConfig | None = None, **changes: object) -> Project:
    """A project whose teacher is there already."""
    found = project(root, EMBEDDED, {TIER: gguf_tier(distill=RECIPE | changes)})
    models.save(found.teacher, config or ARCHITECTURES["llama"]())
    return found


def rows_of(folder: Project) -> tuple[Row, ...]:
    return encode(Chat(folder.teacher), folder.distillation(), 256)


def learner(folder: Project, kind: type[Learner] = Learner) -> Learner:
    recipe, teacher = folder.tier(TIER).distill, load(folder.teacher, CPU)
    assert recipe is not None
    return kind(prune(teacher, recipe, rows_of(folder)[:8]), teacher, recipe, ALONE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_has_the_recipes_shape(tmp_path: Path, name: str) -> None:
    """Layers and width are the recipe's, the tokenizer is the teacher's, and transformers loads the folder."""
    folder = work(tmp_path, ARCHITECTURES[name]())
    report = distill(folder, TIER, progress=False)
    student = AutoModelForCausalLM.from_pretrained(folder.model(TIER))
    assert report is not None
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (2, 64)
    assert report.parameters == sum(p.numel() for p in student.parameters()) < report.teacher_parameters
    assert report.weights == weights_digest(student)
    for file in ("tokenizer.json", "generation_config.json"):
        assert (folder.model(TIER) / file).read_bytes() == (folder.teacher / file).read_bytes()
    assert "_name_or_path" not in json.loads((folder.model(TIER) / "config.json").read_text())


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Model and report of two runs are equal, and nothing else is left in the build."""
    first, second = (work(tmp_path / name) for name in ("a", "b"))
    distill(first, TIER, progress=False)
    distill(second, TIER, progress=False)
    assert tree_digest(first.build) == tree_digest(second.build)
    assert not first.checkpoints(TIER).exists()


def test_a_student_learns_from_its_teacher(tmp_path: Path) -> None:
    """Distillation brings the student's answers nearer to the teacher's."""
    taught = learner(work(tmp_path, steps=40, kl_weight=1.0))
    batch = collate(rows_of(work(tmp_path))[:8], 0.2, 4)
    before = taught.step(batch, 0)
    losses = [taught.step(batch, step) for step in range(1, 40)]
    assert losses[-1] < before / 2


class Operators(TorchDispatchMode):
    """The names of the f32 operators that run while it is entered, those of the way back included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float32:
            self.seen.add(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


# What ATen gives MKL's vector math to compute, whose bits depend on the CPU's maker: IMPLEMENT_VML_MKL in ATen/cpu/vml.h.
VML = set(re.findall(r"\w+", "acos asin atan cos erf erfc erfinv exp log log10 log2 sin sqrt tan tanh trunc"))


def test_a_step_takes_nothing_whose_bits_depend_on_the_cpus_maker(tmp_path: Path) -> None:
    """Neither way of a step, nor the optimizer, runs an operator of MKL's vector math in f32."""
    taught, batch = learner(work(tmp_path)), collate(rows_of(work(tmp_path))[:8], 0.2, 4)
    with Portable(), Operators() as ran:
        taught.step(batch, 0)
    assert {"mm", "_log_softmax_backward_data"} <= ran.seen
    assert not ran.seen & VML
    with Operators() as ran:
        torch.ones(2).sqrt()
    assert ran.seen & VML, "or this test could not fail"


class Killed(Learner):
    """A learner whose process is killed in its eighth step."""

    def step(self, batch: Any, step: int) -> float:
        if step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(batch, step)


def test_a_killed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """After SIGKILL the next run starts at the checkpoint and ends with the same weights."""
    folder = work(tmp_path)
    rows, path = rows_of(folder), tmp_path / "checkpoint.pt"
    whole = learner(folder)
    learn(whole, rows, 4, Checkpoint(tmp_path / "other.pt", "inputs"), progress="")

    def be_killed() -> None:
        clock = count(step=11)
        learn(learner(folder, Killed), rows, 4, Checkpoint(path, "inputs", lambda: next(clock)), progress="")

    child = multiprocessing.get_context("fork").Process(target=be_killed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    resumed = learner(folder)
    assert 0 < Checkpoint(path, "inputs").restore(learner(folder))[0] <= 7
    learn(resumed, rows, 4, Checkpoint(path, "inputs"), progress="")
    assert weights_digest(resumed.student) == weights_digest(whole.student)


@pytest.mark.parametrize("content", ["other-inputs", "damaged"])
def test_a_checkpoint_that_does_not_belong_is_passed_over(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint of other inputs, or half of one, is named on standard error and not used."""
    path, taught = tmp_path / "checkpoint.pt", learner(work(tmp_path))
    clock = count(step=11)
    Checkpoint(path, "those", lambda: next(clock)).keep(taught, 5, 100)
    if content == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    assert Checkpoint(path, "those" if content == "damaged" else "these").restore(taught) == (0, 0)
    assert f"{path} is" in capsys.readouterr().err


def test_two_ranks_end_with_equal_weights(tmp_path: Path) -> None:
    """Ranks share the batches, end with the same weights, and learn what one process learns but for rounding."""
    pair, alone = work(tmp_path / "pair"), work(tmp_path / "alone")
    digests = on_ranks(2, lambda _: digest_of(pair))
    distill(alone, TIER, progress=False)
    theirs, ours = (AutoModelForCausalLM.from_pretrained(w.model(TIER)).state_dict() for w in (pair, alone))
    assert digests[0] == digests[1]
    assert json.loads(pair.distillation_report(TIER).read_text())["ranks"] == 2
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-3, rtol=0)


def digest_of(folder: Project) -> str:
    report = distill(folder, TIER, progress=False)
    assert report is not None
    return report.weights


def test_the_student_is_stored_in_the_teachers_type(tmp_path: Path) -> None:
    """A bfloat16 teacher has a bfloat16 student, and the report is about the weights as stored."""
    folder = work(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder.teacher, dtype=torch.bfloat16).save_pretrained(folder.teacher)
    report = distill(folder, TIER, progress=False)
    student = AutoModelForCausalLM.from_pretrained(folder.model(TIER))
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert report is not None
    assert report.weights == weights_digest(student.float())


def test_a_tier_with_its_own_repository_is_fetched(tmp_path: Path) -> None:
    """Where the tier names a repository nothing is distilled."""
    folder = project(tmp_path, EMBEDDED, {TIER: gguf_tier(hub={"repo": REPO, "revision": REVISION})})
    with serving(LocalHub.of(models.save(tmp_path / "model", models.llama()))) as hub:
        assert distill(folder, TIER, hub=Hub(hub.endpoint, None, tmp_path / "cache")) is None
    assert (folder.model(TIER) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (models.llama(), {}, "layer 2, the teacher has 0 to 1"),
        (models.llama(num_hidden_layers=3), {"ffn": 128}, "128, the teacher's feed-forward is 96 wide"),
        (Phi3Config(**models.SHAPE | {"num_hidden_layers": 3}), {}, "no linear layer mlp.gate_proj"),
        (MixtralConfig(**models.SHAPE | {"num_hidden_layers": 3, "num_local_experts": 2}), {}, "no linear layer mlp"),
        (models.llama(num_hidden_layers=3), {"max_length": 4}, "no example fits 4 tokens"),
    ],
    ids=["layer", "width", "fused", "experts", "length"],
)
def test_a_recipe_that_does_not_fit_the_teacher_is_refused(
    tmp_path: Path, config: PreTrainedConfig, changes: dict[str, object], message: str
) -> None:
    """The error names what does not fit, and no model appears."""
    folder = work(tmp_path, config, **changes)
    with pytest.raises(StageError, match=message):
        distill(folder, TIER, progress=False)
    assert not folder.model(TIER).exists()


def test_without_a_teacher_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Distilling before fetching names the command that is missing."""
    with pytest.raises(StageError, match="no teacher") as caught:
        distill(project(tmp_path, EMBEDDED, {TIER: gguf_tier(distill=RECIPE)}), TIER)
    assert "edge-release teacher" in caught.value.hint


def test_pruning_nothing_changes_nothing(tmp_path: Path) -> None:
    """With every layer and the whole width the student is the teacher."""
    folder = work(tmp_path, layers=[0, 1, 2], ffn=96)
    whole = learner(folder)
    ids = torch.tensor([rows_of(folder)[0].ids])
    teacher = load(folder.teacher, CPU)
    assert torch.equal(whole.student(ids).logits, teacher(ids).logits)


def test_pruning_keeps_the_channels_that_matter(tmp_path: Path) -> None:
    """Channels that send nothing on go first, so leaving them out changes no logit."""
    folder = work(tmp_path, layers=[0, 1, 2], ffn=64)
    recipe, teacher = folder.tier(TIER).distill, load(folder.teacher, CPU)
    assert recipe is not None
    silent = torch.arange(0, 96, 3)
    for layer in teacher.model.layers:
        layer.mlp.down_proj.weight[:, silent] = 0
    ids = torch.tensor([rows_of(folder)[0].ids])
    student = prune(teacher, recipe, rows_of(folder)[:4])
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_blank_student_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """The same seed gives the same weights, another seed others."""
    teacher = load(work(tmp_path).teacher, CPU)
    digests = [weights_digest(blank(teacher, Distill(**RECIPE, seed=seed))) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_answers_are_transformers_own(tmp_path: Path) -> None:
    """Decoding prompts of equal length together gives what `generate` gives for each alone."""
    folder = work(tmp_path)
    teacher, chat = load(folder.teacher, CPU), Chat(folder.teacher)
    for prompt, text in zip(folder.golden(), answers(teacher, chat, folder.golden()), strict=True):
        ids = chat.prompt(prompt.prompt)
        made = teacher.generate(torch.tensor([ids]), max_new_tokens=prompt.max_tokens, do_sample=False, pad_token_id=4)
        assert text == chat.text(made[0, len(ids) :].tolist())
