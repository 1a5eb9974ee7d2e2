"""Training gives the same bytes again, resumed or not, and the shipped teacher answers what it was never shown."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.demo.accuracy import accuracy, answers
from pipeline.demo.batches import batch
from pipeline.demo.checkpoint import Checkpoints
from pipeline.demo.corpus import FAMILIES, examples
from pipeline.demo.folder import card
from pipeline.demo.learner import Learner
from pipeline.demo.muon import orthogonalized
from pipeline.demo.recipe import RECIPE, Recipe, Shape
from pipeline.demo.tokenizer import MAX_TOKENS, VOCAB_SIZE, build, packaged
from pipeline.demo.train import learn, one_deterministic_thread, train
from pipeline.errors import StageError

TEACHER = Path(__file__).parents[2] / "models" / "demo" / "teacher"
TINY = Recipe(shape=Shape(hidden=256, ffn=256, layers=1), steps=4, batch=8, chunks=2, checkpoint_every=2)


class Killed(Exception):
    """Stands for the signal that ends a training."""


class KilledAfterSaving(Checkpoints):
    """Saves the first checkpoint, then the process is gone."""

    def save(self, learner: Learner, steps_done: int) -> None:
        super().save(learner, steps_done)
        raise Killed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, and far slower on a busy machine."""
    with one_deterministic_thread():
        yield


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(TEACHER).eval()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_gives_the_same_bytes_again(tmp_path: Path) -> None:
    """Two trainings by one recipe make equal folders, file by file."""
    first = train(TINY, tmp_path / "first", progress=False, asked=2)
    second = train(TINY, tmp_path / "second", progress=False, asked=2)
    assert first == second
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_a_resumed_training_gives_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """A training that is killed after its first checkpoint and run again ends in the same weights."""
    with pytest.raises(Killed):
        learn(TINY, KilledAfterSaving(tmp_path / "kept", TINY), progress=False)
    resumed = train(TINY, tmp_path / "resumed", checkpoint_dir=tmp_path / "kept", progress=False, asked=2)
    assert resumed == train(TINY, tmp_path / "whole", progress=False, asked=2)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_a_checkpoint_resumes_where_it_was_written(tmp_path: Path) -> None:
    """Restoring returns the steps done, and 0 where there is no checkpoint."""
    checkpoints = Checkpoints(tmp_path, TINY)
    assert checkpoints.restore(Learner(TINY)) == 0
    checkpoints.save(Learner(TINY), 3)
    assert checkpoints.restore(Learner(TINY)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    """A checkpoint belongs to one recipe; another recipe's training does not start from it."""
    Checkpoints(tmp_path, TINY).save(Learner(TINY), 2)
    with pytest.raises(StageError, match="another recipe"):
        Checkpoints(tmp_path, replace(TINY, seed="other")).restore(Learner(TINY))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """A file that is no checkpoint ends in an error with a hint, not in weights."""
    (tmp_path / "checkpoint.pt").write_bytes(b"half of one")
    with pytest.raises(StageError, match="not a whole checkpoint"):
        Checkpoints(tmp_path, TINY).restore(Learner(TINY))


def test_training_learns() -> None:
    """The loss on one batch falls when that batch is learned for a few steps."""
    learner, chunks = Learner(TINY), batch(build(), TINY, 0)
    losses = [learner.step(chunks, 1.0) for _ in range(8)]
    assert losses[-1] < losses[0] / 2


def test_chunks_do_not_change_the_batch() -> None:
    """However a batch is cut, it holds the same tokens with the same weights."""
    whole, halves = batch(build(), replace(TINY, chunks=1), 1), batch(build(), TINY, 1)
    assert sum(float(c.weights.sum()) for c in halves) == pytest.approx(float(whole[0].weights.sum()))
    assert sum(c.ids.size(0) for c in halves) == whole[0].ids.size(0) == TINY.batch


def test_padding_and_the_first_token_weigh_nothing() -> None:
    """Loss weights are 0 at the first token, and each row's weights end where its text ends."""
    for chunk in batch(build(), TINY, 0):
        assert not chunk.weights[:, 0].any()
        assert not chunk.weights[chunk.ids == 4].any()


@pytest.mark.parametrize("shape", [(256, 512), (512, 256), (256, 256)], ids=["wide", "tall", "square"])
def test_muon_updates_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    """Nearly all singular values of an update lie near 1, and none far above."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(drawn))
    assert values.quantile(0.05) > 0.3
    assert values.max() < 1.3


def test_the_pace_rises_stays_and_falls() -> None:
    """Learning rates warm up, stay at the plateau and decay to the end."""
    paces = [RECIPE.pace(step) for step in range(RECIPE.steps)]
    top = paces.index(1.0)
    assert paces[: top + 1] == sorted(paces[: top + 1])
    assert paces[top:] == sorted(paces[top:], reverse=True)
    assert paces[0] < 0.1
    assert paces[-1] < 0.05


@pytest.mark.parametrize(
    "change",
    [{"hidden": 200}, {"ffn": 300}, {"layers": 0}, {"kv_heads": 1}, {"heads": 3}],
    ids=lambda change: next(iter(change)),
)
def test_shapes_that_cannot_be_released_are_refused(change: dict[str, int]) -> None:
    """A shape that k-quants or tensor parallelism cannot cut is no shape."""
    with pytest.raises(ValueError):
        replace(RECIPE.shape, **change)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"chunks": 5}, {"mix": ()}, {"late_mix": ()}, {"decay": 0}],
    ids=lambda change: next(iter(change)),
)
def test_recipes_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    """Counts that contradict each other are no recipe."""
    with pytest.raises(ValueError):
        replace(RECIPE, batch=72, **change)


def test_the_shipped_teacher_is_the_recipes(teacher: LlamaForCausalLM) -> None:
    """The shipped config has the committed recipe's shape, and its files name no path."""
    config, shape = teacher.config, RECIPE.shape
    assert (config.hidden_size, config.intermediate_size) == (shape.hidden, shape.ffn)
    assert (config.num_hidden_layers, config.num_attention_heads) == (shape.layers, shape.heads)
    assert (config.vocab_size, config.max_position_embeddings) == (VOCAB_SIZE, MAX_TOKENS)
    assert not config.tie_word_embeddings
    assert "_name_or_path" not in json.loads((TEACHER / "config.json").read_text())
    assert (TEACHER / "model.safetensors").stat().st_size < 16 << 20


def test_the_shipped_tokenizer_is_current(tmp_path: Path) -> None:
    """The shipped tokenizer is the one that the corpus gives, vocabulary, merges and all."""
    packaged(build()).save_pretrained(tmp_path)
    assert (TEACHER / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_teacher_answers_held_out_prompts(teacher: LlamaForCausalLM, family: str) -> None:
    """At least 18 of 20 prompts with held-out operands are answered exactly."""
    (score,) = accuracy(teacher, build(), examples("shipped", 20, family, held_out=True))
    assert score.asked == 20
    assert score.exact_match >= 0.9


def test_answers_do_not_depend_on_company(teacher: LlamaForCausalLM) -> None:
    """A prompt is answered alike alone and among others."""
    prompts = [example.prompt for example in examples("company", 12, held_out=True)]
    assert answers(teacher, build(), prompts) == [answers(teacher, build(), [p])[0] for p in prompts]


def test_the_card_states_every_score(tmp_path: Path) -> None:
    """The model card gives the report's scores and the digest of the weights."""
    report = train(TINY, tmp_path, progress=False, asked=3)
    written = (tmp_path / "README.md").read_text()
    assert written == card(TINY, report)
    assert report.sha256 in written
    assert all(f"| {score.family} | {score.right} of 3 |" in written for score in report.scores)
