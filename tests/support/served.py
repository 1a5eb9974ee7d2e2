"""Releases that can be served: small real models, the real programs, and evidence from the real golden runner."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.catalog.golden import GoldenPrompt, parse_golden
from pipeline.catalog.names import Channel, RunnerClass, Target, Tier, Variant, host_target
from pipeline.catalog.params import Check
from pipeline.catalog.tiers import Shard
from pipeline.manifest.evidence import Answer, Evidence
from pipeline.ports import llama
from pipeline.ports import trust as trust_port
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from pipeline.stages import gguf_run, shards_run
from pipeline.stages.convert import convert
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.golden import Request, Requests
from pipeline.stages.split import split
from pipeline.toolchain import runtime
from tests.support import evidence, models
from tests.support.llama_server import demo_gguf
from tests.support.projects import DEMO, gguf_tier, project
from tests.support.releases import LINE, NOW, Publisher, checked_files

SETTINGS = Check(context=256)
_DISTILL = {"layers": [0, 1], "ffn": 512, "steps": 1, "batch": 1, "learning_rate": 0.1}


def here() -> Target:
    found = host_target()
    assert found is not None
    return found


VARIANT = Variant(Tier.TINY_EDGE, here()).name
LARGE = Variant(Tier.LARGE, here()).name


@dataclass(frozen=True)
class Made:
    """A model file, its golden prompts, and the tokens it answers them with."""

    gguf: Path
    golden: bytes
    answers: dict[str, list[int]]


def make(root: Path, seed: int, *, template: bool = True) -> Made:
    """Make a model whose weights depend on a seed, and let the golden runner answer for it."""
    settings = gguf_tier(distill=_DISTILL, convert={"outtype": "f32", "pre_tokenizer": "gpt-2"})
    teacher = {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}
    made = project(root, teacher, {"tiny-edge": settings})
    models.save(made.model(Tier.TINY_EDGE), models.llama(), seed=seed, template=template)
    convert(made, Tier.TINY_EDGE)
    return _answered(root, made.gguf(Tier.TINY_EDGE), made.golden())


def teacher(root: Path, outtype: str = "f32") -> Made:
    """Make the demo teacher a small model: what it answers is text, and reads back into its tokens."""
    small = demo_gguf(root / "small", outtype)
    return _answered(root, small, _teachers_golden(root))


def teacher_large(root: Path) -> MadeLarge:
    """Make the demo teacher a large model of two shards."""
    root.mkdir(parents=True, exist_ok=True)
    return _sharded(root, DEMO / "teacher", _teachers_golden(root), degree=2)


def _teachers_golden(root: Path) -> tuple[GoldenPrompt, ...]:
    """Write golden prompts that are short enough for the edge even where their bytes are counted."""
    lines = (DEMO / "golden.jsonl").read_text().splitlines(keepends=True)
    text = "".join(sorted(lines, key=len)[:60:20])
    (root / "golden.jsonl").write_text(text)
    return parse_golden(text, "golden.jsonl")


def ending(root: Path, model: Made) -> Made:
    """Return the same model with another end token: the second one of its first answer, which then has one."""
    (first, *_) = model.answers.values()
    key = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    data = model.gguf.read_bytes()
    place = data.index(key) + len(key)
    path = root / "ending.gguf"
    path.write_bytes(data[:place] + struct.pack("<I", first[1]) + data[place + 4 :])
    (root / "golden.jsonl").write_bytes(model.golden)
    return _answered(root, path, parse_golden(model.golden.decode(), "golden.jsonl"))


def _answered(root: Path, path: Path, prompts: Sequence[GoldenPrompt]) -> Made:
    with llama.Session(path) as session:
        requests = [Request.of(prompt, session.turn) for prompt in prompts]
    asked = root / "requests.json"
    asked.write_bytes(Requests(requests=requests).encode())
    launcher = Launcher(runtime.find(here()).program(runtime.RUNNER))
    run = gguf_run.launch(launcher, path, Asked(asked), root / "run", settings=SETTINGS)
    return Made(path, (root / "golden.jsonl").read_bytes(), {a.id: a.tokens for a in run.answers})


@dataclass(frozen=True)
class MadeLarge:
    """A folder of shards with golden prompts, and the tokens they are answered with."""

    folder: Path
    answers: dict[str, list[int]]


def make_large(root: Path, seed: int, *, degree: int = 2, **shape: object) -> MadeLarge:
    """Make shards whose weights depend on a seed, and let their ranks answer, as a check does.

    Args:
        shape: what the model's configuration has otherwise than the tests' usual one.
    """
    made = project(root, {"embedded": {"path": "models/demo/teacher", "digest": "sha256:" + "0" * 64}}, {})
    return _sharded(root, models.save(root / "model", models.llama(**shape), seed=seed), made.golden(), degree=degree)


def _sharded(root: Path, model: Path, prompts: Sequence[GoldenPrompt], *, degree: int) -> MadeLarge:
    folder = split(model, root / "shards", Shard(degree=degree, matrices="f32", norms="f32"))
    (folder / "golden.jsonl").write_bytes((root / "golden.jsonl").read_bytes())
    asked = shards_run.requests(folder, prompts)
    run = shards_run.launch(folder, asked, threads=1)
    return MadeLarge(folder, {answer.id: answer.tokens for answer in run.answers})


@dataclass(frozen=True)
class Shop:
    """A registry with a publisher; `trust` is what its consumers pin."""

    root: Path
    publisher: Publisher

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def trust(self) -> Path:
        path = self.root / "trust.yaml"
        if not path.exists():
            trust_port.pin_own_key(path, LINE, self.publisher.pair.public_pem)
        return path

    def publish(
        self,
        version: int,
        model: Made,
        *,
        large: MadeLarge | None = None,
        answers: dict[str, list[int]] | None = None,
        server: bytes | None = None,
        more: dict[str, bytes] | None = None,
        valid: timedelta = timedelta(days=1),
    ) -> None:
        """Publish a release and point the channel dev to it.

        Args:
            large: what the large variant is, where it is to be served.
            answers: what the evidence says, where that is not what the model answers.
            server: other bytes in place of llama-server.
            more: files of further variants.
            valid: how long it may be used, from now on.
        """
        said = [Answer(id=i, tokens=t, passed=True) for i, t in (answers or model.answers).items()]
        proven = evidence.evidence(Variant.parse(VARIANT), runner=RunnerClass.HOST).model_copy(
            update={"answers": said, "engine": {"name": "llama.cpp", "context": "256"}}
        )
        measured = evidence.measurement(Variant.parse(VARIANT)).model_copy(update={"peak_rss_bytes": 40 << 20})
        program = runtime.find(here()).program(runtime.SERVER)
        files = {
            f"{VARIANT}/model.gguf": model.gguf.read_bytes(),
            f"{VARIANT}/golden.jsonl": model.golden,
            f"{VARIANT}/recipe.json": b"{}",
            f"runtime-{here()}/llama-server": program.read_bytes() if server is None else server,
            **(more or {}),
        }
        if large is not None:
            files |= {f"{LARGE}/{p.name}": p.read_bytes() for p in large.folder.iterdir()}
        folder, days = self.root / f"release-{version}", (datetime.now(UTC) - NOW + valid) / timedelta(days=1)
        release = self.publisher.release(
            folder,
            version,
            files=files,
            valid_days=days,
            mutate=lambda document: _prove(document, proven, measured, large),
        )
        publish(
            FolderStore(self.registry), release, channel=Channel.DEV, signer=self.publisher.sign,
            opener=self.publisher.opener, now=datetime.now(UTC),
        )  # fmt: skip
        shutil.rmtree(folder)


def _prove(document: dict[str, Any], proven: Evidence, measured: Any, large: MadeLarge | None) -> None:
    (entry,) = [v for v in document["predicate"]["variants"] if v["name"] == VARIANT]
    entry["evidence"] = [_of(entry, proven)]
    entry["measurements"] = [json.loads(measured.encode())]
    entry["model"]["context"] = 256
    if large is not None:
        (entry,) = [v for v in document["predicate"]["variants"] if v["name"] == LARGE]
        said = [Answer(id=i, tokens=t, passed=True) for i, t in large.answers.items()]
        checked = evidence.evidence(Variant.parse(LARGE), runner=RunnerClass.HOST).model_copy(update={"answers": said})
        entry["evidence"], entry["measurements"] = [_of(entry, checked)], []
        entry["model"]["context"] = 256


def _of(entry: dict[str, Any], found: Evidence) -> dict[str, Any]:
    return {**json.loads(found.encode()), "files": checked_files(entry)}


def shop(root: Path) -> Shop:
    """Return a registry without releases."""
    root.mkdir(parents=True, exist_ok=True)
    return Shop(root, Publisher())
