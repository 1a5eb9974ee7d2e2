"""The manifest: an in-toto Statement v1 with every file as subject and the release as predicate.

Sources: in-toto Attestation Framework v1 (https://github.com/in-toto/attestation/tree/main/spec/v1).

Rules: subjects and the variants' file lists say the same; evidence is of exactly the files and the golden prompts that
are released; names are safe and unique without regard to case; sizes are bounded before anything is parsed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, Field

from pipeline.catalog.names import FAMILY, Channel, RunnerClass, Target, Tier, Variant
from pipeline.errors import Refusal, TrustError
from pipeline.manifest import oms
from pipeline.manifest.chunks import Index
from pipeline.manifest.encoding import Record, Sha256, decode, sha256
from pipeline.manifest.evidence import Certificate, Evidence, File, Measurement, Missing
from pipeline.manifest.names import safe_name
from pipeline.manifest.search import Found

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MANIFEST_TYPE: Final = "https://edge-release.dev/manifest/v1"
MAX_BYTES = 8 << 20
MAX_FILES = 10_000
SHARDS = "shards.json"  # how the large tier's files are shared out
GOLDEN = "golden.jsonl"  # the golden prompts, beside every variant's own files


class Digest(Record):
    """A digest set with the one algorithm used here."""

    sha256: Sha256


class Subject(Record):
    """One file of the release; `name` is `<variant>/<file>`."""

    name: str
    digest: Digest


class ReleaseName(Record):
    """What this release is called and until when it may be used (UTC)."""

    line: str
    version: Annotated[int, Field(ge=1)]
    tag: str
    expires: AwareDatetime


class Source(Record):
    """What the release was built from; `modified` lists files that differed from `commit`."""

    commit: str
    modified: list[str]
    lock_sha256: Sha256
    teacher: str
    teacher_sha256: Sha256
    golden_sha256: Sha256


class ModelConfig(Record):
    """What a consumer must know to place and run the variant."""

    architecture: str
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    context: int
    tensor_parallel: int = 1


class Attestation(Record):
    """A check's in-toto test-result, signed by the machine or job that made it; `bundle` is the Sigstore bundle."""

    runner: RunnerClass
    bundle: dict[str, Any]


class RuntimeEntry(Record):
    """The programs that run a target's variants, named `runtime-<target>`."""

    name: str
    target: Target
    files: Annotated[list[File], Field(min_length=1)]


class VariantEntry(Record):
    """One variant: its files, how it was made, and the proof; `missing` are the checks that could not be made,
    `search` how its recipe was found where it was not written out, `chunks` what an update compares its model files by.
    One that is tuned to a prompt `family` stands beside the variant for all prompts, and is called after both.
    """

    name: str
    tier: Tier
    target: Target
    family: Annotated[str | None, Field(pattern=f"^{FAMILY}$")] = None
    format: Literal["gguf", "safetensors"]
    files: Annotated[list[File], Field(min_length=1)]
    recipe: dict[str, Any]
    model: ModelConfig
    evidence: list[Evidence]
    measurements: list[Measurement]
    missing: list[Missing] = Field(default_factory=list)
    attestations: list[Attestation] = Field(default_factory=list)
    certificate: Certificate | None = None
    search: Found | None = None
    chunks: list[Index] = Field(default_factory=list)

    @property
    def variant(self) -> Variant:
        return Variant(self.tier, self.target, self.family or "")

    @property
    def model_file(self) -> File | None:
        """The one file by whose digest a server says what it has loaded: the GGUF, or the shards' layout."""
        found = [f for f in self.files if (f.name.endswith(".gguf") if self.format == "gguf" else f.name == SHARDS)]
        return found[0] if len(found) == 1 else None


class Row(Record):
    """What the gate compared of one variant on one runner class; the next release is compared with it.

    Wall-clock figures and cost are there where the class is measured, `instructions_per_token` where they were counted;
    `format` is the recipe's base, across which instructions are not compared. The quality of a variant that is tuned to
    a family is that on the family's prompts.
    """

    variant: str
    runner: RunnerClass
    machine: str
    exact_match: float
    mean_kl: float
    p99_kl: float
    perplexity_ratio: float
    bytes: int
    ttft_p95_ms: float | None = None
    per_token_p50_ms: float | None = None
    per_token_p95_ms: float | None = None
    cost_per_1k_usd: float | None = None
    format: str | None = None
    bytes_per_token: int | None = None
    instructions_per_token: float | None = None
    stand_in: str | None = None


class Verdict(Record):
    """The gate's decision; `channels` are those the evidence allows."""

    passed: bool
    reasons: list[str]
    channels: list[Channel]
    previous_version: int | None = None
    rows: list[Row] = Field(default_factory=list)


class Predicate(Record):
    """The release itself."""

    release: ReleaseName
    source: Source
    toolchain: dict[str, str]
    variants: Annotated[list[VariantEntry], Field(min_length=1)]
    runtimes: list[RuntimeEntry] = Field(default_factory=list)
    gate: Verdict


class Manifest(Record):
    """The statement as a whole."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    predicate_type: Annotated[Literal["https://edge-release.dev/manifest/v1"], Field(alias="predicateType")]
    subject: Annotated[list[Subject], Field(min_length=1, max_length=MAX_FILES)]
    predicate: Predicate

    @property
    def release(self) -> ReleaseName:
        return self.predicate.release

    @property
    def expires(self) -> datetime:
        return self.predicate.release.expires

    @property
    def entries(self) -> list[VariantEntry | RuntimeEntry]:
        """Everything that is released in a folder of its own: the variants, then the runtimes."""
        return [*self.predicate.variants, *self.predicate.runtimes]

    def entry(self, name: str) -> VariantEntry | RuntimeEntry:
        """Return the entry of a variant or runtime; raises KeyError when this release has none of that name."""
        return {e.name: e for e in self.entries}[name]

    def files(self) -> dict[str, File]:
        """Return every file by its subject name, `<folder>/<file>`."""
        return {f"{e.name}/{f.name}": f for e in self.entries for f in e.files}

    def indexes(self) -> dict[str, tuple[File, Index]]:
        """Return every file that has a chunk index by its subject name, and the index."""
        named = {f"{v.name}/{index.file}": index for v in self.predicate.variants for index in v.chunks}
        files = self.files()
        return {name: (files[name], index) for name, index in named.items()}

    def variant(self, name: str) -> VariantEntry:
        """Return the entry of a variant; raises KeyError when this release has none of that name."""
        return {v.name: v for v in self.predicate.variants}[name]


def runtime_name(target: Target) -> str:
    """Return the name of a target's runtime."""
    return f"runtime-{target}"


def build(predicate: Predicate) -> Manifest:
    """Return the manifest over the predicate's own files, subjects sorted by name."""
    folders: list[VariantEntry | RuntimeEntry] = [*predicate.variants, *predicate.runtimes]
    files = sorted((f"{e.name}/{f.name}", f.sha256) for e in folders for f in e.files)
    manifest = Manifest(
        type_=STATEMENT_TYPE,
        predicate_type=MANIFEST_TYPE,
        subject=[Subject(name=name, digest=Digest(sha256=digest)) for name, digest in files],
        predicate=predicate,
    )
    _consistent(manifest)
    return manifest


def parse(payload: bytes) -> Manifest:
    """Return the manifest in a payload whose signature has already been verified.

    Raises:
        TrustError: OVERSIZED, MALFORMED, UNSAFE_NAME or MIXED.
    """
    if len(payload) > MAX_BYTES:
        raise TrustError(Refusal.OVERSIZED, f"the manifest has {len(payload)} bytes, at most {MAX_BYTES} are read")
    manifest = decode(payload, Manifest, "manifest")
    _consistent(manifest)
    return manifest


def digest(payload: bytes) -> str:
    """Return the digest by which a release is pinned: sha256 of the signed payload."""
    return sha256(payload)


def _consistent(manifest: Manifest) -> None:
    subjects = {safe_name(s.name): s.digest.sha256 for s in manifest.subject}
    files = manifest.files()
    if len({name.casefold() for name in subjects}) != len(manifest.subject):
        raise TrustError(Refusal.MALFORMED, "two subjects have the same name")
    if subjects != {name: f.sha256 for name, f in files.items()} or len(files) != _listed(manifest):
        raise TrustError(Refusal.MALFORMED, "the subjects and the variants' files differ")
    names = [e.name for e in manifest.entries]
    wanted = [v.variant.name for v in manifest.predicate.variants]
    wanted += [runtime_name(r.target) for r in manifest.predicate.runtimes]
    if len(set(names)) != len(names) or names != wanted:
        raise TrustError(Refusal.MALFORMED, "a variant's name is not its tier, target and family, or stands twice")
    _creatable({name.casefold() for name in subjects})
    _indexed(manifest)
    _checked(manifest)


def _creatable(names: set[str]) -> None:
    """Refuse a file that is also a folder, and one in the place of what stands unsigned beside a variant's files."""
    folders = {name[:at] for name in names for at, letter in enumerate(name) if letter == "/"}
    beside = {name for name in names if name.split("/")[1] in oms.IGNORED}
    if wrong := sorted(folders & names | beside):
        raise TrustError(Refusal.UNSAFE_NAME, f"{wrong[0]!r} is a folder's name too, or one kept for signatures")


def _indexed(manifest: Manifest) -> None:
    for entry in manifest.predicate.variants:
        indexed = [index.file for index in entry.chunks]
        if len(set(indexed)) != len(indexed) or not set(indexed) <= {f.name for f in entry.files}:
            raise TrustError(Refusal.MALFORMED, f"{entry.name}: a chunk index is of no file of it, or stands twice")


def _checked(manifest: Manifest) -> None:
    golden_sha256 = manifest.predicate.source.golden_sha256
    for entry in manifest.predicate.variants:
        own = [f for f in entry.files if f.name != GOLDEN]
        for evidence in entry.evidence:
            strays = evidence.strays(own, golden_sha256) if evidence.variant == entry.name else "other files"
            if strays:
                raise TrustError(Refusal.MIXED, f"{entry.name}: its evidence on {evidence.runner} is of {strays}")


def _listed(manifest: Manifest) -> int:
    return sum(len(e.files) for e in manifest.entries)
