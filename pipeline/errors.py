"""The errors a user can meet, each with a hint that says what to do next.

PipelineError                 exit 1
├── CatalogError              exit 2   params.yaml, models/*.yaml or a prompt file says something it may not
├── GateError                 exit 3   the evidence does not meet the thresholds
├── ToolError                 exit 4   a program, library or service is missing or failed
├── StageError                exit 5   a stage's input or outcome is not what it must be
├── RegistryError             exit 6   the registry is unreachable, refuses, or lacks what was asked for
│   └── ConflictError         exit 7   another publisher was first
└── TrustError                exit 20… one code for each `Refusal`

Rules: ports translate foreign errors and chain them; the CLI holds the only `except PipelineError`.
"""

from __future__ import annotations

from enum import IntEnum


class PipelineError(Exception):
    """Base of all errors shown to users.

    `message` says what is wrong, `hint` says what to do next; both are one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CatalogError(PipelineError):
    """A catalog file is not as its schema demands; the message names file, key and what is allowed."""

    exit_code = 2


class GateError(PipelineError):
    """The gate's verdict is no; the reasons were printed."""

    exit_code = 3


class ToolError(PipelineError):
    """A program, library or service is missing or failed."""

    exit_code = 4


class StageError(PipelineError):
    """A stage's input or outcome is not what it must be."""

    exit_code = 5


class RegistryError(PipelineError):
    """The registry is unreachable, refuses, or lacks what was asked for."""

    exit_code = 6


class ConflictError(RegistryError):
    """Another publisher was first; nothing was overwritten."""

    exit_code = 7


class Refusal(IntEnum):
    """Why a release is not trusted; the value is the process's exit code."""

    UNSIGNED = 20
    WRONG_SIGNER = 21
    TAMPERED = 22
    SWAPPED = 23
    ROLLBACK = 24
    EQUIVOCATION = 25
    EXPIRED = 26
    MIXED = 27
    UNSAFE_NAME = 28
    SYMLINK = 29
    MISSING_FILE = 30
    EXTRA_FILE = 31
    OVERSIZED = 32
    HOSTILE_MODEL = 33
    MALFORMED = 34
    UNPROVEN = 35


class TrustError(PipelineError):
    """A release is refused; `refusal` names the kind and gives the exit code."""

    def __init__(
        self,
        refusal: Refusal,
        message: str,
        *,
        hint: str = "do not use these files; ask the release's publisher",
    ) -> None:
        super().__init__(message, hint=hint)
        self.refusal = refusal
        self.exit_code = refusal.value


def in_a_line(error: Exception) -> str:
    """Return what an error says, in one line; with its kind where it is none of ours."""
    said = error.message if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())
