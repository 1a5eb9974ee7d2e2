"""From tokens to text as they come: whole characters only, and nothing of a text that ends the answer.

Rules: what might yet become a stop text is held back until it is decided; special tokens give no text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Text:
    """One answer's text so far."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        """Begin behind a prompt, whose last tokens decide whether the answer begins with a space."""
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._held = ""
        self.stopped = False

    def add(self, tokens: Sequence[int]) -> str:
        """Return the text that more tokens bring; nothing once a stop text came."""
        for token in tokens:
            if self.stopped:
                break
            self._held += self._stream.step(self._tokenizer, token) or ""
            self._find_stop()
        return self._release()

    def end(self) -> str:
        """Return what was held back, at the end of the answer."""
        rest, self._held = self._held, ""
        return rest

    def _find_stop(self) -> None:
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self._held, self.stopped = self._held[: min(places)], True

    def _release(self) -> str:
        keep = 0 if self.stopped else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out


def _overlap(text: str, stop: str) -> int:
    """Return how many of a text's last characters could begin a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
