"""The expressions of GitHub Actions that our workflows use; anything else is an error, not a guess.

Source: https://docs.github.com/en/actions/reference/workflows-and-actions/expressions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<string>'(?:[^']|'')*')|(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_][\w-]*)|(?P<mark>&&|\|\||==|!=|[!().,\[\]*]))"
)
_WHOLE = re.compile(r"\$\{\{((?:[^}']|'[^']*')*)\}\}")
STATUS = {"success", "failure", "cancelled", "always"}


class Unknown(Exception):
    """Something that this evaluator does not know, or a value that nothing set."""


@dataclass(frozen=True)
class Open:
    """A context in which what is not set is empty, as GitHub has it of variables, secrets and the event."""

    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scope:
    """What an expression sees: contexts by name, and how the jobs or steps before it ended."""

    contexts: Mapping[str, Any]
    succeeded: bool = True

    def evaluate(self, text: str) -> Any:
        """Return the value of an expression, without its braces."""
        return _Parser(_tokens(text), self).whole()

    def fill(self, value: Any) -> Any:
        """Return a value with every `${{ }}` in it evaluated; a string that is one expression becomes its value."""
        if isinstance(value, Mapping):
            return {key: self.fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.fill(inner) for inner in value]
        if not isinstance(value, str):
            return value
        if (found := _WHOLE.fullmatch(value)) is not None:
            return self.evaluate(found[1])
        filled = _WHOLE.sub(lambda m: as_text(self.evaluate(m[1])), value)
        if "${{" in filled:
            raise Unknown(value)
        return filled

    def holds(self, condition: str | None) -> bool:
        """Return whether an `if` holds; one that asks for no status asks for success."""
        text = (condition or "success()").strip()
        if (found := _WHOLE.fullmatch(text)) is not None:
            text = found[1]
        words = {value for kind, value in _tokens(text) if kind == "name"}
        return truthy(self.evaluate(text)) and (self.succeeded or bool(words & STATUS))


def truthy(value: Any) -> bool:
    return value not in (None, False, 0, "")


def as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        raise Unknown(f"{value!r} in a string")
    return str(value)


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unknown(f"{text[at:]!r} in {text!r}")
        kind = match.lastgroup
        assert kind is not None
        found.append((kind, match[kind]))
        at = match.end()
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.lower() == other.lower()
    if type(one) is not type(other) and {type(one), type(other)} != {str, type(None)}:
        raise Unknown(f"comparing {one!r} with {other!r}")
    return (one or "") == (other or "")


def _contains(where: Any, what: str) -> bool:
    return any(_equal(item, what) for item in where) if isinstance(where, list) else what.lower() in where.lower()


def _format(text: str, *values: Any) -> str:
    return re.sub(r"\{(\d+)\}", lambda m: as_text(values[int(m[1])]), text)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "contains": _contains,
    "startsWith": lambda text, start: as_text(text).lower().startswith(start.lower()),
    "format": _format,
    "fromJSON": json.loads,
}


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[tuple[str, str]], scope: Scope) -> None:
        self._tokens, self._at, self._scope = tokens, 0, scope

    def whole(self) -> Any:
        value = self._either()
        if self._at != len(self._tokens):
            raise Unknown(f"{self._tokens[self._at :]} after an expression")
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _take(self, mark: str | None = None) -> tuple[str, str]:
        if self._at == len(self._tokens) or (mark and self._peek() != mark):
            raise Unknown(f"expected {mark}, found {self._peek()}")
        self._at += 1
        return self._tokens[self._at - 1]

    def _either(self) -> Any:
        value = self._both()
        while self._peek() == "||":
            self._take()
            other = self._both()
            value = value if truthy(value) else other
        return value

    def _both(self) -> Any:
        value = self._compared()
        while self._peek() == "&&":
            self._take()
            other = self._compared()
            value = other if truthy(value) else value
        return value

    def _compared(self) -> Any:
        value = self._negated()
        if self._peek() in {"==", "!="}:
            same = self._take()[1] == "=="
            return _equal(value, self._negated()) is same
        return value

    def _negated(self) -> Any:
        if self._peek() == "!":
            self._take()
            return not truthy(self._negated())
        return self._primary()

    def _primary(self) -> Any:
        kind, text = self._take()
        if text == "(":
            value = self._either()
            self._take(")")
            return value
        if kind == "string":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return float(text) if "." in text else int(text)
        if kind != "name":
            raise Unknown(text)
        if text in {"true", "false", "null"}:
            return {"true": True, "false": False, "null": None}[text]
        return self._call(text) if self._peek() == "(" else self._context(text)

    def _call(self, name: str) -> Any:
        self._take("(")
        arguments = []
        while self._peek() != ")":
            arguments.append(self._either())
            if self._peek() == ",":
                self._take()
        self._take(")")
        if name in STATUS:
            return {"success": self._scope.succeeded, "failure": not self._scope.succeeded, "always": True}.get(
                name, False
            )
        if name not in FUNCTIONS:
            raise Unknown(f"function {name}")
        return FUNCTIONS[name](*arguments)

    def _context(self, name: str) -> Any:
        if name not in self._scope.contexts:
            raise Unknown(f"context {name}")
        value = self._scope.contexts[name]
        while self._peek() == ".":
            self._take()
            _, key = self._take()
            value = self._property(value, key)
        return (value.values or None) if isinstance(value, Open) else value

    @staticmethod
    def _property(value: Any, key: str) -> Any:
        if isinstance(value, Open):
            inner = value.values.get(key)
            return Open(inner) if isinstance(inner, Mapping) else Open() if inner is None else inner
        if isinstance(value, list):  # after a `*`
            return [inner[key] for inner in value]
        if key == "*":
            return list(value.values())
        if not isinstance(value, Mapping) or key not in value:
            raise Unknown(f"nothing set {key}")
        return value[key]


def expressions(value: Any) -> Iterator[str]:
    """Yield every expression in a value, without its braces."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str):
        yield from (match[1] for match in _WHOLE.finditer(value))
