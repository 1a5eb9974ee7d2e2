"""A tier's model as one unquantized GGUF file, made by llama.cpp's own converter.

Rules: equal models give equal bytes in any folder, so nothing the converter could guess from a path is left to guess:
the model is shown to it in a folder of fixed name, with a card that holds the licence and nothing else; offline; the
file appears whole, with the metadata a release needs, or not at all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from pipeline.catalog.names import Tier
from pipeline.catalog.params import Teacher
from pipeline.catalog.tiers import Convert, HubSource, TierFile
from pipeline.errors import StageError, ToolError
from pipeline.model import hf
from pipeline.ports import files, llama, process
from pipeline.stages.project import Project
from pipeline.toolchain import host

_ENTRY = Path(__file__).with_name("convert_entry.py")
_CARD = "README.md"
_REQUIRED = (
    "general.architecture", "general.name", "general.basename", "general.size_label", "general.license",
    "general.quantized_by", "general.base_model.count", "general.base_model.0.name", "general.file_type",
    "tokenizer.ggml.model", "tokenizer.ggml.tokens",
)  # fmt: skip
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def convert(project: Project, tier: Tier) -> None:
    """Write `project.gguf(tier)` from `project.model(tier)`.

    Raises:
        StageError: the model is not there, its tokenizer is unknown, or the result lacks what a release needs.
        ToolError: the converter refuses the model; its last lines are in the message.
    """
    source, settings = project.tier(tier), project.tier(tier).convert
    assert settings is not None, "a GGUF tier's file has 'convert'"
    model, out = project.model(tier), project.gguf(tier)
    hf.check(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        shown = _show(model, Path(scratch) / tier, source.license)
        notes = Path(scratch) / "metadata.json"
        notes.write_text(json.dumps(metadata(source, project.params.teacher)))
        made = Path(scratch) / out.name
        _run_converter(shown, made, notes, settings, tier)
        _check(made)
        files.move(made, out)


def metadata(source: TierFile, teacher: Teacher) -> dict[str, object]:
    """Return what the file says of its origin, by the converter's keys; None keeps it from guessing."""
    base = _origin(source.hub or teacher.hub, teacher)
    name = base["name"] if source.hub else f"{base['name']}-{source.tier}"
    return {
        "general.name": name,
        "general.basename": base["name"],
        "general.author": None,
        "general.description": None,
        "general.finetune": None if source.hub else str(source.tier),
        "general.organization": base.get("organization"),
        "general.quantized_by": "edge-release",
        "general.size_label": None,  # the converter counts the parameters
        "general.version": None,
        "general.source.url": base.get("repo_url"),
        "general.source.repo_url": base.get("repo_url"),
        "general.base_models": [base],
    }


def _origin(hub: HubSource | None, teacher: Teacher) -> dict[str, str]:
    if hub is not None:
        organization, _, name = hub.repo.rpartition("/")
        url = f"https://huggingface.co/{hub.repo}"
        known = {"name": name, "version": hub.revision, "repo_url": url}
        return known | ({"organization": organization} if organization else {})
    assert teacher.embedded is not None, "params.yaml names exactly one source"
    return {"name": "-".join(Path(teacher.embedded.path).parts[-2:]), "version": teacher.embedded.digest}


def _show(model: Path, shown: Path, license_: str) -> Path:
    shown.mkdir()
    for path in model.iterdir():
        if path.name != _CARD:
            (shown / path.name).symlink_to(path.resolve())
    (shown / _CARD).write_text(f"---\nlicense: {json.dumps(license_)}\n---\n")
    return shown


def _run_converter(shown: Path, made: Path, notes: Path, settings: Convert, tier: Tier) -> None:
    toolchain = host.find()
    try:
        process.run(
            [
                sys.executable, "-P", _ENTRY, toolchain.converter.parent, settings.pre_tokenizer or "",
                shown, "--outfile", made, "--outtype", settings.outtype, "--metadata", notes,
            ],
            hint="choose a model that llama.cpp's convert_hf_to_gguf.py supports",
            env=_OFFLINE,
        )  # fmt: skip
    except ToolError as e:
        if "pre-tokenizer was not recognized" not in e.message:
            raise
        raise StageError(
            f"{tier}: llama.cpp does not know how this tokenizer splits text",
            hint=f"name the like one of llama.cpp in models/{tier}.yaml: convert.pre_tokenizer, e.g. smollm or gpt-2",
        ) from e


def _check(made: Path) -> None:
    found = llama.header(made).metadata
    lacking = [key for key in _REQUIRED if found.get(key) in (None, "")]
    if lacking:
        raise StageError(f"the converted file lacks {', '.join(lacking)}", hint="complete the model's config.json")
