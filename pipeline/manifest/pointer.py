"""A channel's pointer: a signed statement that the channel now means this release.

Rules: a channel is an append-only row of pointers with ascending serials; the highest serial counts. A pointer may
name an older release only by saying so (`rollback`), so that replaying an old pointer is told from rolling back.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from pipeline.catalog.names import Channel
from pipeline.manifest.encoding import Record, Sha256, decode
from pipeline.manifest.statement import STATEMENT_TYPE, Digest, Subject

POINTER_TYPE: Final = "https://edge-release.dev/channel/v1"


class PointerPredicate(Record):
    """Where the channel points; `serial` rises by one with every move, `previous` is the release it pointed to.

    `tag` is the release's, for readers; whoever signs the move may run for another one.
    """

    line: str
    channel: Channel
    serial: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=1)]
    tag: str
    manifest_sha256: Sha256
    previous: int | None = None
    rollback: bool = False


class Pointer(Record):
    """The in-toto statement around it; its subject is the release's manifest."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    predicate_type: Annotated[Literal["https://edge-release.dev/channel/v1"], Field(alias="predicateType")]
    subject: list[Subject]
    predicate: PointerPredicate


def build(predicate: PointerPredicate) -> Pointer:
    """Return the statement of one move of a channel."""
    subject = Subject(name=f"{predicate.line}/{predicate.version}", digest=Digest(sha256=predicate.manifest_sha256))
    return Pointer(type_=STATEMENT_TYPE, predicate_type=POINTER_TYPE, subject=[subject], predicate=predicate)


def parse(payload: bytes) -> PointerPredicate:
    """Return the pointer in a verified payload; raises TrustError MALFORMED."""
    return decode(payload, Pointer, "channel pointer").predicate
