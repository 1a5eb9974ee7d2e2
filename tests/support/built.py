"""What the tests need built, and how to build it."""

from __future__ import annotations

from pipeline.catalog.names import Target
from pipeline.errors import PipelineError
from pipeline.toolchain import host, runtime


def missing() -> str:
    """Return what is not built and how to build it, nothing where all is there."""
    try:
        host.find()
        for target in Target:
            runtime.find(target)
    except PipelineError as e:
        return f"{e.message}: {e.hint}"
    return ""
