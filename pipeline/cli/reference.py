"""Every key of the settings files as tables in Markdown, made from the code that reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.catalog.document import models
from pipeline.control.settings import Settings as Controller
from pipeline.deploy.settings import Settings as Deploy
from pipeline.lab.simulation.scenario import Scenario
from pipeline.manifest.trust import Trust
from pipeline.peers.policy import Policy
from pipeline.serving.gateway.callers import KeyFile
from pipeline.serving.gateway.settings import Settings as Gateway


@dataclass(frozen=True)
class Part:
    """A file, or what several files share, with who reads it."""

    name: str
    readers: str
    model: type[BaseModel]

    @property
    def title(self) -> str:
        return f"`{self.name}`" if self.name.endswith(".yaml") else self.name.capitalize()

    @property
    def link(self) -> str:
        return f"[{self.name}](#{self.name.replace('.', '')})"


SETTINGS = (
    Part(
        "policy",
        "What a gateway routes by: `policy` of the files below, what admins push, and a file of its own for "
        "`edge-release simulate --policy` and `tune`.",
        Policy,
    ),
    Part("gateway.yaml", "`edge-release gateway --config FILE` ([the gateway](gateway.md)).", Gateway),
    Part("keys.yaml", "`edge-release gateway --keys FILE` ([clients](gateway.md#let-clients-in)).", KeyFile),
    Part("controller.yaml", "`edge-release controller --config FILE` ([the controller](controller.md)).", Controller),
    Part("deploy.yaml", "`edge-release deploy --config FILE` ([deploy](deploy.md)).", Deploy),
    Part("scenario", "`edge-release simulate --scenario FILE` ([simulated fleets](simulation.md)).", Scenario),
    Part("trust.yaml", "`--trust FILE` of all that reads releases ([threat model](threat-model.md)).", Trust),
)
_ABOUT = """# Settings: every key

Written by `make schema` from the code that reads them. The files are YAML, validated when loaded: an unknown key, a
value of another type or a key given twice is refused with the file, the key and what is allowed (exit code 2). JSON
Schemas for editors lie in [`manifests/schema`](../manifests/schema). What a release is made from: [the
catalog](catalog.md).
"""
_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_WORDS = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}


def reference() -> str:
    """Return a page with a table for each file."""
    parts = [_ABOUT]
    for part in SETTINGS:
        rows = "\n".join(_rows(part.model, ""))
        table = f"| key | value | default | meaning |\n|---|---|---|---|\n{rows}"
        parts.append(f"## {part.title}\n\n{part.readers}\n\n{table}\n")
    return "\n".join(parts)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        if name == "schema_version":
            continue
        prop, held = schema["properties"][name], models(field.annotation)
        meaning = field.description or " ".join((held[0].__doc__ or "").split("\n\n")[0].split())
        value = _Value(schema.get("$defs", {}), held).told(prop)
        cells = (f"`{prefix}{name}`", value, _default(field), meaning)
        yield f"| {' | '.join(cells)} |"
        for inner in held:
            if _part(inner) is None:
                yield from _rows(inner, prefix + name + _way(prop))


def _part(model: type[BaseModel]) -> Part | None:
    return next((part for part in SETTINGS if part.model is model), None)


def _way(prop: dict[str, Any]) -> str:
    """What stands between a key and those of what it holds."""
    kinds = prop.get("anyOf", [prop])
    if any(kind.get("type") == "array" for kind in kinds):
        return "[]."
    return ".NAME." if any("additionalProperties" in kind for kind in kinds) else "."


@dataclass(frozen=True)
class _Value:
    """What a property may be, told from its JSON Schema, the definitions beside it and the models it holds."""

    defs: dict[str, Any]
    held: list[type[BaseModel]]

    def told(self, prop: dict[str, Any]) -> str:
        if "anyOf" in prop:
            return " or ".join(map(self.told, prop["anyOf"]))
        if "$ref" in prop:
            return self._named(prop["$ref"].rpartition("/")[2])
        if "enum" in prop:
            return ", ".join(f"`{value}`" for value in prop["enum"])
        return self._plain(prop)

    def _named(self, name: str) -> str:
        if "enum" in self.defs[name]:
            return self.told(self.defs[name])
        parts = [_part(model) for model in self.held if model.__name__ == name]
        return next((part.link for part in parts if part), "keys below")

    def _plain(self, prop: dict[str, Any]) -> str:
        kind, each = prop.get("type", "any"), prop.get("items") or prop.get("additionalProperties")
        if kind in {"array", "object"}:
            inner = self.told(each) if isinstance(each, dict) else "any"
            return f"list: {inner}" if kind == "array" else f"by name: {inner}"
        bounds = [f"{sign} {prop[bound]:.10g}" for bound, sign in _SIGNS.items() if bound in prop]
        return ", ".join([_WORDS.get(kind, kind), *bounds])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (isinstance(value, list) and value and isinstance(value[0], BaseModel)):
        return ""
    return f"`{json.dumps(value)}`"
