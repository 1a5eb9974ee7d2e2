"""Small real releases: valid model files, signed with a key made for the test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from safetensors.numpy import save

from pipeline.catalog.names import Channel, Target, Variant
from pipeline.errors import TrustError
from pipeline.manifest import dsse, oms, provenance, statement
from pipeline.manifest.chunks import Index
from pipeline.manifest.dsse import Opener
from pipeline.manifest.encoding import canonical, sha256
from pipeline.manifest.evidence import File
from pipeline.manifest.rules import Bundles
from pipeline.manifest.statement import ModelConfig, Predicate, ReleaseName, RuntimeEntry, Source, VariantEntry, Verdict
from pipeline.ports.keys import KeyPair, Signer, signer
from pipeline.registry import indexes, record
from pipeline.registry.publish import SignedRelease

LINE = "demo"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=40)
EDGE = "tiny-edge-arm64"
SERVER = "large-x86_64"
ALL = (Channel.DEV, Channel.CANARY, Channel.STABLE)

Mutation = Callable[[dict[str, Any]], None]


def gguf_bytes(folder: Path, seed: int, rows: int = 8) -> bytes:
    """Return a valid GGUF file as llama.cpp's own writer makes it."""
    path = folder / f".{seed}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", seed)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.full((rows, 256), seed, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    path.unlink()
    return data


def hostile_gguf(size: int = 4096) -> bytes:
    """Return a GGUF file whose header claims more tensors than any machine has memory for."""
    return b"GGUF" + struct.pack("<IQQ", 3, 2**61, 2**61) + b"\0" * (size - 24)


def safetensors_bytes(seed: int) -> bytes:
    """Return a valid safetensors file."""
    data: bytes = save({"w": np.full((16, 16), seed, dtype=np.float32)})
    return data


@dataclass(frozen=True)
class Publisher:
    """Someone with a signing key."""

    pair: KeyPair = field(default_factory=lambda: new_pair())  # noqa: PLW0108 - it is defined below

    @property
    def sign(self) -> Signer:
        return signer(self.pair)

    @property
    def opener(self) -> Opener:
        pem = self.pair.public_pem
        return lambda bundle: dsse.open_with_keys(bundle, (pem,))

    def release(
        self,
        folder: Path,
        version: int = 1,
        *,
        seed: int | None = None,
        rows: int = 8,
        channels: tuple[Channel, ...] = ALL,
        passed: bool = True,
        valid_days: float = 30,
        files: dict[str, bytes] | None = None,
        mutate: Mutation | None = None,
    ) -> SignedRelease:
        """Write a release's files into `folder` and return it signed.

        Args:
            seed: what the weights depend on; the version where none is given.
            files: added to, or in place of, the usual ones, by subject name.
            mutate: changes the manifest before it is signed.
        """
        contents = {**usual_files(folder, version if seed is None else seed, rows), **(files or {})}
        paths = {name: folder / name for name in contents}
        for name, data in contents.items():
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_bytes(data)
        predicate = _predicate(contents, version, channels, passed=passed, expires=NOW + timedelta(days=valid_days))
        document = json.loads(statement.build(_indexed(predicate, folder)).encode())
        if mutate:
            mutate(document)
        return SignedRelease(self.bundles(document), paths)

    def bundles(self, document: dict[str, Any]) -> Bundles:
        """Return the signed statements around a manifest's document, whatever it says."""
        subjects = [statement.Subject.model_validate(s) for s in document["subject"]]
        variants = [*document["predicate"]["variants"], *document["predicate"].get("runtimes", [])]
        return Bundles(
            manifest=self.sign(canonical(document)),
            provenance=self.sign(provenance_payload(subjects)),
            variants={
                v["name"]: self.sign(oms.statement(v["name"], [File.model_validate(f) for f in v["files"]]))
                for v in variants
            },
        )


def new_pair() -> KeyPair:
    """Return a fresh signing key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return KeyPair(key, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def usual_files(folder: Path, seed: int, rows: int = 8) -> dict[str, bytes]:
    """Return the files of three variants by subject name; two of them share a file, one has a folder inside."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = gguf_bytes(folder, seed, rows)
    return {
        "tiny-edge-arm64/model.gguf": weights,
        "tiny-edge-x86_64/model.gguf": weights,
        "large-x86_64/rank-0/model.safetensors": safetensors_bytes(seed),
        "large-x86_64/config.json": b'{"hidden_size": 256}',
    }


def checked_files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a variant in a manifest's document that its evidence is of: all but the golden prompts."""
    return [file for file in entry["files"] if file["name"] != statement.GOLDEN]


def provenance_payload(subjects: list[statement.Subject]) -> bytes:
    """Return a provenance over any subjects."""
    document = {
        "_type": statement.STATEMENT_TYPE,
        "predicateType": provenance.PREDICATE_TYPE,
        "subject": [s.model_dump(mode="json") for s in subjects],
        "predicate": {"buildDefinition": {}, "runDetails": {"builder": {"id": "test"}}},
    }
    return canonical(document)


def save_release(release: SignedRelease, folder: Path) -> None:
    """Write a release's record beside its files, so that another process can publish it."""
    (folder / record.FILE).write_bytes(record.encode(release.bundles))


def load_release(folder: Path) -> SignedRelease:
    """Return what `save_release` wrote."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() and p.parent != folder}
    return SignedRelease(record.decode((folder / record.FILE).read_bytes()), files)


def tree(folder: Path) -> dict[str, bytes | str]:
    """Return everything below a folder: files by content, links by target, folders as ''."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
    return found


def replace_file(path: Path, data: bytes) -> None:
    """Put other bytes in a file's place, whatever its permissions."""
    path.unlink()
    path.write_bytes(data)


def flipped(data: bytes) -> bytes:
    """Return the same number of bytes with one bit changed at the end."""
    return data[:-1] + bytes([data[-1] ^ 1])


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def open_files() -> int:
    """Return how many files this process has open."""
    return len(listing(Path("/proc/self/fd")))


def _predicate(
    contents: dict[str, bytes], version: int, channels: tuple[Channel, ...], *, passed: bool, expires: datetime
) -> Predicate:
    by_variant: dict[str, list[File]] = {}
    for name, data in sorted(contents.items()):
        variant, _, inner = name.partition("/")
        by_variant.setdefault(variant, []).append(File(name=inner, size=len(data), sha256=sha256(data)))
    return Predicate(
        release=ReleaseName(line=LINE, version=version, tag=f"v{version}", expires=expires),
        source=Source(
            commit="0" * 40,
            modified=[],
            lock_sha256="0" * 64,
            teacher="demo",
            teacher_sha256="0" * 64,
            golden_sha256="0" * 64,
        ),
        toolchain={"llama.cpp": "test"},
        variants=[_entry(name, files) for name, files in by_variant.items() if not name.startswith("runtime-")],
        runtimes=[
            RuntimeEntry(name=name, target=Target(name.removeprefix("runtime-")), files=files)
            for name, files in by_variant.items()
            if name.startswith("runtime-")
        ],
        gate=Verdict(passed=passed, reasons=[], channels=list(channels)),
    )


def _indexed(predicate: Predicate, folder: Path) -> Predicate:
    """Return a predicate with the chunk indexes of its models, but for those that are none."""
    variants = [v.model_copy(update={"chunks": list(_indexes(v, folder))}) for v in predicate.variants]
    return predicate.model_copy(update={"variants": variants})


def _indexes(entry: VariantEntry, folder: Path) -> Iterator[Index]:
    for file in entry.files:
        with suppress(TrustError):
            yield from indexes.of([(file, folder / entry.name / file.name)])


def _entry(name: str, files: list[File]) -> VariantEntry:
    variant = Variant.parse(name)
    kind: Literal["gguf", "safetensors"] = "gguf" if any(f.name.endswith(".gguf") for f in files) else "safetensors"
    model = ModelConfig(architecture="llama", parameters=1, layers=1, hidden=256, vocabulary=3, context=64)
    return VariantEntry(
        name=name,
        tier=variant.tier,
        target=variant.target,
        family=variant.family or None,
        format=kind,
        files=files,
        recipe={},
        model=model,
        evidence=[],
        measurements=[],
    )
