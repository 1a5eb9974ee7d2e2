"""JSON Schemas of the documents this project reads and writes, made from the code that reads them.

`python -m pipeline.cli.schema FOLDER FILE` (or `make schema`) writes them, and every key of the settings to a file;
tests keep both current.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from pipeline.catalog.params import Params
from pipeline.catalog.tiers import TierFile
from pipeline.cli.reference import SETTINGS, reference
from pipeline.manifest.evidence import Evidence, Measurement
from pipeline.manifest.pointer import Pointer
from pipeline.manifest.statement import Manifest
from pipeline.ports import files

MODELS: dict[str, type[BaseModel]] = {
    "evidence-v1": Evidence,
    "manifest-v1": Manifest,
    "measurement-v1": Measurement,
    "params": Params,
    "channel-v1": Pointer,
    "tier": TierFile,
    **{part.name.removesuffix(".yaml"): part.model for part in SETTINGS},
}


def schemas() -> dict[str, bytes]:
    """Return every schema file's bytes by its name (JSON Schema 2020-12)."""
    return {
        f"{name}.json": (
            json.dumps(
                {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}, indent=2
            )
            + "\n"
        ).encode()
        for name, model in sorted(MODELS.items())
    }


if __name__ == "__main__":
    for file, data in schemas().items():
        files.write(Path(sys.argv[1]) / file, data)
    files.write(Path(sys.argv[2]), reference().encode())
