"""The large tier's model, and the shards of its variants.

Rules: the model is the tier's own hub repository, else the teacher; the shards of all targets are equal, so it is split
once.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.catalog.names import Target, Tier, Variant
from pipeline.ports import files
from pipeline.ports.hub import Hub
from pipeline.stages.project import Project
from pipeline.stages.split import split
from pipeline.stages.teacher import fetch_tier


def shard(project: Project, hub: Hub | None = None) -> list[Path]:
    """Make `project.model(Tier.LARGE)`, split it into each target's folder, and return those folders.

    Args:
        hub: where the tier's own repository comes from; by default what the environment says.

    Raises:
        StageError: as `split`, or there is no teacher.
        ToolError: the hub cannot be reached or refuses.
    """
    recipe = project.tier(Tier.LARGE).shard
    assert recipe is not None, "the catalog gives the large tier a shard"
    first, *others = (project.variant(Variant(Tier.LARGE, target)) for target in Target)
    split(fetch_tier(project, Tier.LARGE, hub), first, recipe)
    for other in others:
        with files.new_folder(other) as folder:
            for made in sorted(first.iterdir()):
                files.put(made, folder / made.name)
    return [first, *others]
