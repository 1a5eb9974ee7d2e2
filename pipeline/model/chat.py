"""Prompts and answers as tokens, the way the model's own chat template writes them.

Rules: a prompt is one user message up to where the answer starts; without a template it stands as it is. An answer is
its own tokens and the end token, so what is trained is what is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.model.hf import end_tokens


class Chat:
    """A model folder's tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer of `folder`; raises StageError where there is none, or no end token."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as e:
            raise StageError(f"{folder}: no usable tokenizer: {e}", hint="fetch the model again") from e
        self.ends = end_tokens(folder)
        if not self.ends:
            raise StageError(f"{folder}: no eos_token_id", hint="write it into generation_config.json")
        self.end = self._tokenizer.eos_token_id if self._tokenizer.eos_token_id in self.ends else min(self.ends)

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a user's message, up to where the answer starts."""
        return self.turn(text)

    def turn(self, prompt: str, answer: str | None = None) -> list[int]:
        """Return the tokens of a user's message, with its answer as the template ends it where there is one."""
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        if not self._tokenizer.chat_template:
            return list(self._tokenizer("".join(m["content"] for m in messages)).input_ids)
        rendered = self._tokenizer.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)
        return list(self._tokenizer(rendered, add_special_tokens=False).input_ids)

    def conversation(self, messages: Sequence[Mapping[str, Any]], *, unfinished: bool = False) -> list[int]:
        """Return the tokens of a conversation, up to where the next answer starts.

        Args:
            unfinished: the last message is the beginning of that answer: up to where it goes on.

        Raises:
            StageError: there is no template, or it refuses these messages.
        """
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            raise StageError("the model has no chat template", hint="ask for a completion instead")
        try:
            rendered = self._tokenizer.apply_chat_template(
                [_plain(message) for message in messages], add_generation_prompt=not unfinished,
                continue_final_message=unfinished, tokenize=False,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, KeyError) as e:
            raise StageError(f"the chat template refuses the messages: {e}", hint="see the model's card") from e
        return self.tokens(rendered, special=False)

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens, with the special ones a text begins with where `special` says so."""
        return list(self._tokenizer(text, add_special_tokens=special).input_ids)

    @property
    def vocabulary(self) -> Any:
        """The tokenizer itself (`tokenizers.Tokenizer`)."""
        return self._tokenizer.backend_tokenizer

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer and the end token."""
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, self.end]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text; OpenAI also allows a list of parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise StageError("the model takes text alone", hint="leave out images and audio")
    return {**message, "content": "".join(map(str, parts))}
