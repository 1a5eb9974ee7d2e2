"""Golden prompts: prompts with a checkable answer, one JSON object a line.

Rules: ids are unique, a line carries exactly the keys of `GoldenPrompt`, and matching is decided here alone.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.catalog.document import MAX_BYTES, Document, check
from pipeline.errors import CatalogError


class Match(StrEnum):
    """How an answer is compared with what was expected; both are stripped first."""

    EXACT = "exact"
    PREFIX = "prefix"
    CONTAINS = "contains"
    REGEX = "regex"


class GoldenPrompt(Document):
    """One prompt; `prompt` is the user's text, the model's chat template is applied to it where it has one."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]
    family: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    prompt: Annotated[str, Field(min_length=1, max_length=32768)]
    expected: str
    match: Match = Match.EXACT
    max_tokens: Annotated[int, Field(ge=1, le=4096)]

    @model_validator(mode="after")
    def _regex_compiles(self) -> GoldenPrompt:
        if self.match is Match.REGEX:
            try:
                re.compile(self.expected)
            except re.error as e:
                raise ValueError(f"expected is not a regular expression: {e}") from e
        return self

    def accepts(self, answer: str) -> bool:
        """Return whether `answer` is what was expected."""
        found, wanted = answer.strip(), self.expected.strip()
        match self.match:
            case Match.EXACT:
                return found == wanted
            case Match.PREFIX:
                return found.startswith(wanted)
            case Match.CONTAINS:
                return wanted in found
            case Match.REGEX:
                return re.fullmatch(self.expected, found) is not None


class Example(Document):
    """A prompt with its answer, for calibration and distillation."""

    family: str = ""
    prompt: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]


def parse_golden(text: str, file: str) -> tuple[GoldenPrompt, ...]:
    """Return the golden prompts in `text`.

    Raises:
        CatalogError: a line is not a golden prompt, an id stands twice, or there is none; names file and line.
    """
    prompts = tuple(check(data, GoldenPrompt, where) for where, data in _lines(text, file))
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise CatalogError(f"{file}: id {prompt.id!r} stands twice", hint="give every golden prompt its own id")
        seen.add(prompt.id)
    return prompts


def parse_examples(text: str, file: str) -> tuple[Example, ...]:
    """Return the examples in `text`; raises CatalogError as `parse_golden` does."""
    return tuple(check(data, Example, where) for where, data in _lines(text, file))


def _lines(text: str, file: str) -> list[tuple[str, object]]:
    if len(text) > MAX_BYTES:
        raise CatalogError(f"{file}: more than {MAX_BYTES >> 20} MiB of prompts", hint="split the file")
    found: list[tuple[str, object]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append((f"{file}:{number}", json.loads(line)))
        except (ValueError, RecursionError) as e:
            raise CatalogError(f"{file}:{number}: not JSON: {e}", hint="write one JSON object on each line") from e
    if not found:
        raise CatalogError(f"{file}: no line in it", hint="write one JSON object on each line")
    return found
