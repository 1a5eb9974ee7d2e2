"""One JSON encoding for everything that is digested or signed.

Rules: keys sorted, no spaces, UTF-8, no NaN; records are frozen, keep fields they do not know, and round-trip.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import Refusal, TrustError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """A frozen piece of signed JSON; a newer writer's extra fields survive a round trip."""

    model_config = ConfigDict(
        extra="allow", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )

    def encode(self) -> bytes:
        """Return the canonical bytes of this record."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))


R = TypeVar("R", bound=Record)


def canonical(value: Any) -> bytes:
    """Return the one encoding of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """Return the hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, model: type[R], what: str) -> R:
    """Return signed bytes as a record.

    Raises:
        TrustError: MALFORMED, when the bytes are not such a record; names the first key at fault.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise TrustError(Refusal.MALFORMED, f"{what}: {where}: {first['msg']}") from e
