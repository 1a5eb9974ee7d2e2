"""The demo tokenizer: byte-level BPE that keeps every digit a token of its own.

Rules: it is trained on training examples only; the pre-tokenizer is the one llama.cpp calls `smollm`
(https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp), so a converted model splits text the same way;
special tokens have fixed ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.demo.corpus import Example, examples

VOCAB_SIZE = 512
BOS, EOS, USER, ASSISTANT, PAD = range(5)
SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|pad|>")
MAX_TOKENS = 512
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _texts() -> list[str]:
    return [text for drawn in examples("tokenizer", 20_000) for text in (drawn.prompt, drawn.answer)]


@cache
def build() -> Tokenizer:
    """The trained tokenizer of `VOCAB_SIZE` tokens; the same one on every call and machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def packaged(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves it, chat template included."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        additional_special_tokens=[SPECIAL_TOKENS[USER], SPECIAL_TOKENS[ASSISTANT]],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What the chat template makes of one user message, up to where the answer starts."""
    return [BOS, USER, *tokenizer.encode(prompt, add_special_tokens=False).ids, ASSISTANT]


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """The answer's tokens and the end of text."""
    return [*tokenizer.encode(answer, add_special_tokens=False).ids, EOS]


def encode(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[int]]:
    """Prompt tokens and answer tokens of one example."""
    return prompt_ids(tokenizer, example.prompt), answer_ids(tokenizer, example.answer)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of answer tokens, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
