"""The corpus keeps its promises: checkable answers, a split by operands, the same files from the same seeds."""

import re
from itertools import islice
from pathlib import Path

import pytest

from pipeline.demo.corpus import FACT_WORDINGS, FAMILIES, Example, draw, drill, examples
from pipeline.demo.data import calibration, distillation, golden, write_data
from pipeline.demo.draw import Rng, is_held_out
from pipeline.demo.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    USER,
    VOCAB_SIZE,
    build,
    decode,
    encode,
    packaged,
    prompt_ids,
)
from pipeline.demo.world import FACTS, MACHINES

DEMO = Path(__file__).parents[2] / "models" / "demo"
FACT_PROMPTS = {wording.format(product) for wording in FACT_WORDINGS for product in FACTS}
PRICED = re.compile(r"\b([a-z]+) (\d\d)\b")


def priced(example: Example) -> list[tuple[str, int]]:
    return [(item, int(price)) for item, price in PRICED.findall(example.prompt)]


def asked(example: Example) -> tuple[str, int]:
    item = re.split(r"\. .* ", example.prompt.rstrip("?"))[-1]
    return item, dict(priced(example))[item]


def operands_held_out(example: Example) -> bool:
    """Decide from the text alone, not from how the example was drawn."""
    prompt = example.prompt
    match example.family:
        case "fact":
            return prompt not in FACT_PROMPTS
        case "total":
            return is_held_out("total", *sorted(price for _, price in priced(example)))
        case "diagnosis":
            machine = next(name for name in MACHINES if re.search(rf"\b{name}\b", prompt))
            return is_held_out("diagnosis", machine, *(value for _, value in priced(example)))
        case "summary":
            return is_held_out("summary", *re.split(r"[:.]", prompt)[1].strip().split("; "))
        case "lookup":
            return is_held_out("lookup", *asked(example))
    raise AssertionError(example)


def answer_from_text(example: Example) -> str:
    """Answer from the text alone."""
    match example.family:
        case "fact":
            return next(place for product, place in FACTS.items() if product in example.prompt)
        case "total":
            return str(sum(price for _, price in priced(example)))
        case "diagnosis":
            limits = next(limits for name, limits in MACHINES.items() if re.search(rf"\b{name}\b", example.prompt))
            high = [s for (s, value), limit in zip(priced(example), limits, strict=True) if value > limit]
            return f"alarm high {' and '.join(high)}" if high else "status ok"
        case "summary":
            log = re.split(r"[:.]", example.prompt)[1].strip().split("; ")
            faulty = [entry for entry in log if not entry.endswith(" ok")]
            return f"{len(faulty)} faulty: {', '.join(faulty)}" if faulty else "no faults"
        case "lookup":
            return str(asked(example)[1])
    raise AssertionError(example)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held-out"])
def test_answers_follow_from_the_prompt(family: str, held_out: bool) -> None:
    """Every answer is what its prompt alone leads to."""
    for example in examples("answers", 300, family, held_out):
        assert example.answer == answer_from_text(example), example


@pytest.mark.parametrize("family", FAMILIES)
def test_training_never_sees_held_out_operands(family: str) -> None:
    """Of 40,000 training examples a family, 200,000 in all, none has operands that are held out."""
    assert not any(map(operands_held_out, examples("proof", 40_000, family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_examples_have_held_out_operands(family: str) -> None:
    """Every held-out example has operands that training never sees."""
    assert all(map(operands_held_out, examples("proof", 2_000, family, held_out=True)))


def test_no_training_prompt_shows_a_held_out_price() -> None:
    """A held-out pair of item and price stands in no training prompt of any family, drills included."""
    rng = Rng.of("proof")
    drills = (turn for _ in range(2_000) for turn in drill(rng, 6))
    for example in (*drills, *examples("proof", 10_000, "total"), *examples("proof", 10_000, "lookup")):
        assert not any(is_held_out("lookup", *pair) for pair in priced(example)), example


def test_totals_are_held_out_in_both_orders() -> None:
    """If a pair of addends is held out, training has it in neither order."""
    held_out = {frozenset(p for _, p in priced(e)) for e in examples("both", 3_000, "total", held_out=True)}
    trained = {frozenset(p for _, p in priced(e)) for e in examples("both", 30_000, "total")}
    assert not held_out & trained


def test_the_same_seed_draws_the_same() -> None:
    """A seed fixes the examples, and another seed draws others."""
    assert list(examples("a", 50)) == list(examples("a", 50))
    assert list(examples("a", 50)) != list(examples("b", 50))


def test_draws_do_not_depend_on_the_machine() -> None:
    """The generator gives the published SplitMix64 sequence of seed 0."""
    rng = Rng(0)
    assert [rng.below(1 << 64) for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_an_unknown_family_is_refused() -> None:
    """Asking for a family that does not exist raises KeyError."""
    with pytest.raises(KeyError):
        draw(Rng.of("x"), "poem")


@pytest.mark.parametrize("field", ["family", "prompt", "answer"])
def test_a_blank_example_is_refused(field: str) -> None:
    """An example with a blank field cannot be made."""
    fields = {"family": "fact", "prompt": "find tea", "answer": "aisle 1"} | {field: ""}
    with pytest.raises(ValueError, match="needs"):
        Example(**fields)


def test_examples_are_short() -> None:
    """Prompts stay under 64 tokens and answers within the 24 that golden prompts allow."""
    for example in (*examples("short", 1_000), *examples("short", 1_000, held_out=True)):
        prompt, answer = encode(build(), example)
        assert len(prompt) < 64
        assert len(answer) <= 24


def test_the_tokenizer_keeps_what_it_is_given() -> None:
    """Text survives encoding and decoding, and each digit is a token of its own."""
    text = "price list: tea 42, rice 17. price of rice?"
    ids = build().encode(text, add_special_tokens=False).ids
    assert decode(build(), ids) == text
    assert {build().id_to_token(i) for i in ids} >= {"4", "2", "1", "7"}


def test_tokens_can_be_shared_out() -> None:
    """The vocabulary is full, divisible by 8, and special tokens have the ids that are promised."""
    assert build().get_vocab_size() == VOCAB_SIZE
    assert VOCAB_SIZE % 8 == 0
    assert [build().token_to_id(t) for t in SPECIAL_TOKENS] == [BOS, EOS, USER, ASSISTANT, PAD]


def test_the_chat_template_makes_the_prompt_that_was_trained() -> None:
    """Rendering one user message with the packaged template gives the training's prompt tokens."""
    message = [{"role": "user", "content": "bill: tea 42 and rice 17. total?"}]
    rendered = packaged(build()).apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert build().encode(rendered, add_special_tokens=False).ids == prompt_ids(
        build(), "bill: tea 42 and rice 17. total?"
    )


def test_golden_prompts_are_held_out() -> None:
    """There are 40 golden prompts a family, all different, all with held-out operands."""
    prompts = list(golden())
    assert len({example.prompt for _, example in prompts}) == len(prompts) == 40 * len(FAMILIES)
    assert all(operands_held_out(example) for _, example in prompts)


def test_calibration_and_distillation_are_training_examples() -> None:
    """Neither file holds a held-out operand or a golden prompt."""
    prompts = {example.prompt for _, example in golden()}
    for example in (*calibration(), *distillation()):
        assert not operands_held_out(example)
        assert example.prompt not in prompts


def test_calibration_prompts_differ() -> None:
    """There are 64 calibration prompts a family, all different."""
    assert len({example.prompt for example in islice(calibration(), 400)}) == 64 * len(FAMILIES)


@pytest.mark.parametrize("name", ["golden.jsonl", "calibration.jsonl", "distill.jsonl"])
def test_committed_files_are_current(tmp_path: Path, name: str) -> None:
    """The files in the repository are what `write_data` makes."""
    write_data(tmp_path)
    assert (DEMO / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (DEMO / name).stat().st_size < 2_000_000
