"""Batches depend on seed and step alone, and prompts look as the chat template writes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.catalog.golden import Example
from pipeline.errors import StageError
from pipeline.model.chat import Chat
from pipeline.stages.batches import Row, Schedule, collate, encode
from tests.support import models

LENGTHS = [5 + n % 17 for n in range(100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(tmp_path_factory.mktemp("model"), models.llama())


def test_an_epoch_shows_every_row_once() -> None:
    """Each epoch has whole batches of different rows."""
    schedule = Schedule(LENGTHS, 10, 0)
    for epoch in range(3):
        seen = Counter(row for step in range(10) for row in schedule.step(epoch * 10 + step))
        assert seen == Counter(range(100))


def test_a_step_does_not_depend_on_those_before() -> None:
    """A schedule asked for one step gives what a schedule that came there gives."""
    walked = [Schedule(LENGTHS, 10, 0).step(step) for step in range(25)]
    assert Schedule(LENGTHS, 10, 0).step(24) == walked[24]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    """Another seed and another epoch give other batches."""
    first = Schedule(LENGTHS, 10, 0)
    assert first.step(0) != first.step(10)
    assert first.step(0) != Schedule(LENGTHS, 10, 1).step(0)


def test_batches_hold_rows_of_like_length() -> None:
    """Little of a batch is padding."""
    schedule = Schedule(LENGTHS, 10, 0)
    padding = [sum(max(LENGTHS[r] for r in rows) - LENGTHS[r] for r in rows) for rows in map(schedule.step, range(10))]
    assert sum(padding) < 0.2 * sum(LENGTHS)


def test_few_rows_make_small_batches() -> None:
    """Fewer rows than a batch are one batch an epoch."""
    assert sorted(Schedule([3, 4, 5], 8, 0).step(7)) == [0, 1, 2]


def test_prompt_tokens_weigh_less_and_padding_nothing() -> None:
    """The first token, which nothing predicts, and padding weigh 0, prompt tokens their share, answer tokens 1."""
    batch = collate([Row((7, 8, 9, 1), 2), Row((7, 1), 1)], 0.5, 4)
    assert batch.ids.tolist() == [[7, 8, 9, 1], [7, 1, 4, 4]]
    assert torch.equal(batch.weights, torch.tensor([[0, 0.5, 1, 1], [0, 1, 0, 0]]))


def test_the_template_writes_the_prompt(folder: Path) -> None:
    """A prompt is one user message up to the answer, and an answer ends with the end token."""
    chat = Chat(folder)
    assert chat.prompt("tea")[:2] == [0, 2]
    assert chat.prompt("tea")[-1] == 3
    assert chat.answer("tea")[-1] == 1
    assert chat.text(chat.answer("aisle 12")) == "aisle 12"


def test_a_conversation_ends_where_the_answer_begins_or_goes_on(folder: Path) -> None:
    """What was begun stands behind the answer's head, without the end that a finished answer has."""
    chat, asked = Chat(folder), {"role": "user", "content": "tea"}
    begun = chat.conversation([asked, {"role": "assistant", "content": "aisle 1"}], unfinished=True)
    assert begun == chat.conversation([asked]) + chat.tokens("aisle 1", special=False)


def test_without_a_template_prompt_and_answer_are_put_together(tmp_path: Path) -> None:
    """A tokenizer without a template gives the text's own tokens."""
    chat = Chat(models.save(tmp_path, models.llama(), template=False))
    (row,) = encode(chat, [Example(prompt="tea", answer="12")], 64)
    assert chat.text(row.ids) == "tea12"
    assert row.prompt_length == len(chat.prompt("tea"))


def test_examples_that_are_too_long_are_left_out(folder: Path) -> None:
    """Only what fits is learned from, and nothing that fits is an error."""
    chat, examples = Chat(folder), [Example(prompt="tea", answer="12"), Example(prompt="tea " * 50, answer="12")]
    assert len(encode(chat, examples, 16)) == 1
    with pytest.raises(StageError, match="no example fits"):
        encode(chat, examples, 2)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(StageError, match="no usable tokenizer"):
        Chat(tmp_path)
