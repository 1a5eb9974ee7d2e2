"""What the manifest stage and the rebuild compare are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.errors import StageError
from pipeline.manifest import statement
from pipeline.stages.manifest import TOOLS, lock_digest, tools
from pipeline.stages.rebuild import digests
from tests.support import releases
from tests.support.projects import REPOSITORY, project

LOCK = {
    "schema": "2.0",
    "stages": {
        "quantize@tiny-edge-arm64": {"cmd": "edge-release quantize", "outs": [{"path": "a", "md5": "1"}]},
        "check@tiny-edge-arm64": {"cmd": "edge-release check", "outs": [{"path": "b", "md5": "2"}]},
    },
}


def _changed(stage: str) -> str:
    stages = {**LOCK["stages"], stage: {"cmd": "x", "outs": []}}  # type: ignore[dict-item]
    return yaml.safe_dump({**LOCK, "stages": stages})


def test_the_lock_digest_is_over_what_decides_bytes() -> None:
    """A changed build stage changes the digest; a check, which carries clock figures, does not; nor does the order."""
    digest = lock_digest(yaml.safe_dump(LOCK))
    assert lock_digest(_changed("quantize@tiny-edge-arm64")) != digest
    assert lock_digest(_changed("check@tiny-edge-arm64")) == digest
    assert lock_digest(yaml.safe_dump(LOCK, sort_keys=False)) == digest


def test_the_manifest_names_the_tools_that_stages_depend_on(tmp_path: Path) -> None:
    """The compiler is among them, and another version than the one pinned is refused."""
    work = project(tmp_path, {"embedded": {"path": "x", "digest": f"sha256:{'0' * 64}"}})
    pins = tmp_path / TOOLS
    pins.parent.mkdir()
    shutil.copy(REPOSITORY / TOOLS, pins)
    assert tools(work)["ziglang"] in yaml.safe_load(pins.read_text())["ziglang"]
    pins.write_text('ziglang: ["0.1"]\n')
    with pytest.raises(StageError, match=r"ziglang .* is installed, requirements/tools.yaml has 0\.1"):
        tools(work)


def test_rebuild_compares_every_digest_of_a_manifest(tmp_path: Path) -> None:
    """Each subject's and file's digest, and each of the sources, is found by its path in the document."""
    publisher = releases.Publisher()
    manifest = statement.parse(publisher.opener(publisher.release(tmp_path).bundles.manifest).payload)
    found = digests(manifest)
    text = manifest.encode().decode()
    assert len(found) == text.count('sha256":"')
    assert set(found.values()) >= {s.digest.sha256 for s in manifest.subject}
    assert statement.parse(manifest.encode()) == manifest
