"""Prompts and answers as tokens, the way the model's own chat template writes them.

Rules: a prompt is one user message up to where the answer starts; without a template it stands as it is. An answer is
its own tokens and the end token, so what is trained is what is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import StageError
from pipeline.stages.model_folder import end_tokens


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

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer and the end token."""
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, self.end]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
