"""The teacher comes whole, as pinned, and without fetching a byte twice; a hub on loopback is started by each test."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.catalog.names import RunnerClass, Target, Tier, Variant
from pipeline.catalog.tiers import Shard
from pipeline.errors import PipelineError, StageError, ToolError
from pipeline.ports.files import tree_digest
from pipeline.ports.hub import Hub, RemoteFile
from pipeline.stages import check_shards
from pipeline.stages.checked import Checked
from pipeline.stages.project import Project
from pipeline.stages.shard import shard
from pipeline.stages.split import split
from pipeline.stages.teacher import fetch, fetch_tier
from tests.support import models
from tests.support.hub import REPO, REVISION, LocalHub, serving
from tests.support.projects import gguf_tier, project
from tests.support.ranks import on_ranks

WEIGHTS = "model.safetensors"
SOURCE = {"repo": REPO, "revision": REVISION}

pytestmark = [
    # The server's half of a connection that a test cuts is collected late.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(tmp_path_factory.mktemp("qwen3"), models.qwen3())


@pytest.fixture
def hub(model: Path) -> Iterator[LocalHub]:
    with serving(LocalHub.of(model)) as served:
        yield served


@pytest.fixture
def work(tmp_path: Path) -> Project:
    return project(tmp_path / "project", {"hub": SOURCE}, {"tiny-edge": gguf_tier(hub=SOURCE)})


def client(hub: LocalHub, tmp_path: Path, token: str | None = None) -> Hub:
    return Hub(hub.endpoint, token, tmp_path / "cache")


def test_a_repository_becomes_the_teacher(hub: LocalHub, work: Project, model: Path, tmp_path: Path) -> None:
    """What lies in the build is the model at the pinned commit, and transformers decodes with it."""
    hub.files["pytorch_model.bin"] = b"a pickle"
    hub.files["modeling_acme.py"] = b"raise SystemExit"
    folder = fetch(work, client(hub, tmp_path))
    record = json.loads(work.teacher_record.read_text())
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, model))
    ids = AutoTokenizer.from_pretrained(folder)("where is the tea?", return_tensors="pt").input_ids
    assert record == {"hub": SOURCE, "digest": tree_digest(folder)}
    assert not {"pytorch_model.bin", "modeling_acme.py"} & {path.name for path in folder.iterdir()}
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_a_tier_may_have_its_own_repository(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """A tier's repository is fetched into the tier's place, with its record."""
    folder = fetch_tier(work, Tier.TINY_EDGE, client(hub, tmp_path))
    assert folder == work.model(Tier.TINY_EDGE)
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert json.loads(work.distillation_report(Tier.TINY_EDGE).read_text())["hub"] == SOURCE


def test_the_large_tier_may_have_its_own_repository(hub: LocalHub, model: Path, tmp_path: Path) -> None:
    """Its repository, not the teacher, is what is split and what the shards are checked against."""
    large = {"hub": SOURCE, "shard": {"degree": 2}}
    work = project(tmp_path / "project", {"hub": SOURCE | {"repo": "acme/other"}}, {"large": large})
    shards, *_ = shard(work, client(hub, tmp_path))
    assert json.loads(work.distillation_report(Tier.LARGE).read_text())["hub"] == SOURCE
    assert tree_digest(shards) == tree_digest(split(model, tmp_path / "split", Shard(degree=2)))
    found = check_shards.run(work, Variant(Tier.LARGE, Target.X86_64), RunnerClass.HOST, tmp_path)
    assert isinstance(found, Checked)
    assert found.quality.mean_kl < 0.01


def test_a_second_fetch_takes_nothing_from_the_hub(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """What the cache holds is not fetched again, and the folder is the same."""
    first = tree_digest(fetch(work, client(hub, tmp_path)))
    hub.served.clear()
    assert tree_digest(fetch(work, client(hub, tmp_path))) == first
    assert not hub.served


@pytest.mark.parametrize("after", [1, 40_000, 100_001], ids=["first-byte", "middle", "odd-place"])
def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: LocalHub, work: Project, tmp_path: Path, after: int
) -> None:
    """After a cut the next run asks for the rest alone: no byte of the weights is sent twice."""
    hub.cut(after)
    with pytest.raises(ToolError, match=r"model\.safetensors") as caught:
        fetch(work, client(hub, tmp_path))
    assert caught.value.hint
    assert not work.teacher.exists()
    hub.mend()
    hub.ranges.clear()
    fetch(work, client(hub, tmp_path))
    assert hub.ranges == [f"bytes={after}-"]
    assert hub.served[WEIGHTS] == len(hub.files[WEIGHTS])
    assert (work.teacher / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_short_break_is_mended_within_the_run(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """A connection that breaks once is taken up again where it broke."""
    hub.cut(40_000, stay_up=True)
    fetch(work, client(hub, tmp_path))
    assert hub.served[WEIGHTS] == len(hub.files[WEIGHTS])


def test_a_hub_without_ranges_still_works(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """A server that ignores `Range` sends the file anew, and it is right."""
    hub.cut(40_000)
    hub.whole_only = True
    with pytest.raises(ToolError):
        fetch(work, client(hub, tmp_path))
    hub.mend()
    fetch(work, client(hub, tmp_path))
    assert (work.teacher / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_tampered_file_is_refused_and_forgotten(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """Bytes other than the commit names are an error, and are not what the next run goes on with."""
    hub.tampered = frozenset({WEIGHTS})
    with pytest.raises(ToolError, match="other bytes than commit"):
        fetch(work, client(hub, tmp_path))
    hub.tampered = frozenset()
    fetch(work, client(hub, tmp_path))
    assert (work.teacher / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_spoilt_cache_is_not_used(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """A cached file that lost its bytes is fetched anew."""
    fetch(work, client(hub, tmp_path))
    blob = next(p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.read_bytes() == hub.files[WEIGHTS])
    blob.unlink()
    blob.write_bytes(b"\0" * len(hub.files[WEIGHTS]))
    fetch(work, client(hub, tmp_path))
    assert (work.teacher / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_two_processes_share_what_one_fetches(hub: LocalHub, tmp_path: Path) -> None:
    """Of two processes that want the same files at once one fetches them, and both have them whole."""
    hub.pause_s = 1
    works = [project(tmp_path / str(rank), {"hub": SOURCE}, {"tiny-edge": gguf_tier(hub=SOURCE)}) for rank in range(2)]
    teachers = on_ranks(2, lambda rank: fetch(works[rank], client(hub, tmp_path)))
    assert [(teacher / WEIGHTS).read_bytes() == hub.files[WEIGHTS] for teacher in teachers] == [True, True]
    assert hub.served == {name: len(data) for name, data in hub.files.items() if name in hub.served}


def test_the_token_goes_to_the_hub_only_when_given(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """Without a token nothing is sent; with one the private repository opens."""
    fetch(work, client(hub, tmp_path))
    assert hub.tokens == {None}
    hub.token = "hf_secret"
    assert fetch(work, client(hub, tmp_path, "hf_secret")) == work.teacher
    assert "hf_secret" in hub.tokens


def test_the_environment_names_hub_token_and_cache() -> None:
    """HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HOME are read, and no token file."""
    full = Hub.of({"HF_ENDPOINT": "http://mirror/", "HF_TOKEN": "t", "HF_HUB_CACHE": "/c", "HF_HOME": "/h"})
    assert full == Hub("http://mirror", "t", Path("/c"))
    assert Hub.of({"HF_HOME": "/h"}) == Hub("https://huggingface.co", None, Path("/h/hub"))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"token": "t", "gated": True}, ToolError, "gated"),
        ({"token": "t"}, StageError, "no such repository, or it is private"),
        ({"down": True}, ToolError, "status 503"),
        ({"sha": "f" * 40}, ToolError, "asked for"),
    ],
    ids=["gated", "no-token", "down", "other-commit"],
)
def test_a_hub_that_refuses_is_named(
    hub: LocalHub, work: Project, tmp_path: Path, change: dict[str, object], kind: type[PipelineError], message: str
) -> None:
    """Each refusal is one line that says what it is, with a hint."""
    vars(hub).update(change)
    with pytest.raises(kind, match=message) as caught:
        fetch(work, client(hub, tmp_path))
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"repo": REPO, "revision": "f" * 40}, "no such revision"),
        ({"repo": "acme/other", "revision": REVISION}, "no such repository"),
    ],
    ids=["revision", "repository"],
)
def test_what_the_hub_lacks_is_an_error(hub: LocalHub, tmp_path: Path, source: dict[str, str], message: str) -> None:
    """A commit or repository that does not exist is named."""
    with pytest.raises(StageError, match=message):
        fetch(project(tmp_path / "project", {"hub": source}), client(hub, tmp_path))


def test_an_endpoint_nobody_serves_is_an_error(work: Project, tmp_path: Path) -> None:
    """A hub that cannot be reached ends in one line."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ToolError, match="refused") as caught:
        fetch(work, Hub(f"http://127.0.0.1:{port}", None, tmp_path / "cache"))
    assert "\n" not in caught.value.message
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("config.json", b'{"auto_map": {"AutoModel": "m.M"}}', "auto_map"),
        ("config.json", b"not json", "not readable as JSON"),
        (WEIGHTS, b"\x10\0\0\0\0\0\0\0{}", "not a whole safetensors file"),
    ],
    ids=["remote-code", "broken-config", "broken-weights"],
)
def test_a_model_that_cannot_be_used_never_becomes_the_teacher(
    hub: LocalHub, work: Project, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    """A config that asks for code and files that do not parse are refused, and no folder appears."""
    hub.files[name] = data
    with pytest.raises(StageError, match=message):
        fetch(work, client(hub, tmp_path))
    assert not work.teacher.exists()


def test_code_is_refused_before_the_weights_are_fetched(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """A repository that asks for code costs no weights."""
    hub.files["config.json"] = b'{"auto_map": {}}'
    with pytest.raises(StageError):
        fetch(work, client(hub, tmp_path))
    assert hub.served[WEIGHTS] == 0


def test_a_repository_without_safetensors_is_an_error(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """Pickles are no weights."""
    hub.files["pytorch_model.bin"] = hub.files.pop(WEIGHTS)
    with pytest.raises(StageError, match="no weights"):
        fetch(work, client(hub, tmp_path))


def test_a_full_disk_ends_in_one_line_and_keeps_what_came(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """When a file cannot grow the error says where, and with space again the rest alone is fetched."""

    def fetch_little(_: int) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(StageError) as caught:
            fetch(work, client(hub, tmp_path))
        return caught.value.message

    assert "model.safetensors: cannot write into" in on_ranks(1, fetch_little)[0]
    hub.ranges.clear()
    fetch(work, client(hub, tmp_path))
    assert hub.ranges == ["bytes=100000-"]
    assert (work.teacher / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_an_index_that_names_missing_weights_is_an_error(hub: LocalHub, work: Project, tmp_path: Path) -> None:
    """A sharded model with a weight short is refused."""
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"lost.weight": WEIGHTS}}).encode()
    with pytest.raises(StageError, match=r"lost\.weight is not in model\.safetensors"):
        fetch(work, client(hub, tmp_path))


def test_the_embedded_teacher_is_copied(model: Path, tmp_path: Path) -> None:
    """A folder of the right digest becomes the teacher, and the build shares no inode with it."""
    work = project(tmp_path, {"embedded": {"path": str(model), "digest": tree_digest(model)}})
    assert tree_digest(fetch(work)) == tree_digest(model)
    assert not (work.teacher / WEIGHTS).samefile(model / WEIGHTS)
    assert json.loads(work.teacher_record.read_text()) == {"embedded": str(model), "digest": tree_digest(model)}


def test_an_embedded_folder_of_another_digest_is_refused(model: Path, tmp_path: Path) -> None:
    """The error prints the digest found, ready to be pinned."""
    work = project(tmp_path, {"embedded": {"path": str(model), "digest": f"sha256:{'0' * 64}"}})
    with pytest.raises(StageError, match=tree_digest(model)) as caught:
        fetch(work)
    assert "params.yaml" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["../escape", "/etc/passwd", "", "a/../../b"], ids=["parent", "absolute", "empty", "up"]
)
def test_a_file_name_that_leaves_the_folder_is_refused(name: str) -> None:
    """A hub cannot name a path."""
    with pytest.raises(ValueError, match="unsafe"):
        RemoteFile(name, 1, "0" * 40)
