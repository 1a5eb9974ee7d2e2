"""Catalog files become frozen models here; what a schema does not know is refused with file, key and what is allowed.

Rules: no key is ignored, no value is coerced, the first screen of an error is enough to mend the file.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import CatalogError

MAX_BYTES = 8 << 20


class Document(BaseModel):
    """A frozen, closed model: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


D = TypeVar("D", bound=Document)


def parse_yaml(text: str, model: type[D], file: str) -> D:
    """Return `text` as a `model`.

    Raises:
        CatalogError: not YAML, or not what the schema allows; names `file`, key and what is allowed.
    """
    if len(text) > MAX_BYTES:
        raise CatalogError(f"{file}: {len(text)} bytes are more than a catalog file may have", hint="split the file")
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader that also refuses a key given twice
    except (yaml.YAMLError, RecursionError) as e:
        raise CatalogError(f"{file}: not YAML: {' '.join(str(e).split())}", hint="mend the syntax") from e
    return check(data, model, file)


def check(data: object, model: type[D], where: str) -> D:
    """Return parsed `data` as a `model`; raises CatalogError as `parse_yaml` does."""
    try:
        return model.model_validate_json(_json(data))
    except ValidationError as e:
        problems = [_explain(err, model) for err in e.errors()]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CatalogError(
            f"{where}: {'; '.join(problems[:3])}{more}",
            hint=f"mend {where}; docs/catalog.md and docs/settings.md list every key",
        ) from e


def models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in get_args(annotation) for m in models(arg)]


def _json(data: object) -> bytes:
    # JSON mode keeps strictness about numbers and strings while enums and tuples may be written as YAML has them.
    import json

    return json.dumps(data, default=str).encode()


def _explain(err: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in err["loc"]) or "the whole file"
    if err["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, err["loc"][:-1])
        return f"unknown key {key!r}" + (f", allowed here: {', '.join(allowed)}" if allowed else "")
    if err["type"] == "missing":
        return f"key {key!r} is missing"
    return f"{key}: {err['msg']}, found {_short(err['input'])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            found = models(model.model_fields[part].annotation)
        else:
            continue  # an index, a mapping's key, or a union's tag
        if len(found) != 1:
            return sorted({name for m in found for name in m.model_fields})
        model = found[0]
    return sorted(model.model_fields)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe subset, and a mapping may name a key only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} is given twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)
