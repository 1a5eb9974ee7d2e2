"""Stage `runtime`: a target's programs, put where they are checked with and released from."""

from __future__ import annotations

from pipeline.catalog.names import Target
from pipeline.ports import files
from pipeline.stages.project import Project
from pipeline.toolchain import runtime as toolchain


def runtime(project: Project, target: Target) -> None:
    """Write `project.runtime(target)`, compiling what the cache lacks; raises ToolError where that fails."""
    built = toolchain.build(target)
    with files.new_folder(project.runtime(target)) as folder:
        for name in toolchain.PROGRAMS:
            files.put(built.program(name), folder / name)
