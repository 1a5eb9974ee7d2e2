"""`edge-release trust`: the trust file for releases that a workflow signs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.catalog.document import parse_yaml
from pipeline.errors import CatalogError
from pipeline.manifest.trust import Trust
from pipeline.ports import trust

WHO = ["--line", "edge", "--repository", "acme-corp/edge.models", "--repository-id", "1001"]


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("GITHUB_REPOSITORY", "GITHUB_REPOSITORY_ID", "EDGE_RELEASE_SIGSTORE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> Trust:
    assert cli.main(["trust", *argv]) == 0
    return parse_yaml(capsys.readouterr().out, Trust, "trust.yaml")


@pytest.mark.parametrize(
    ("uri", "tag"),
    [
        ("https://github.com/acme-corp/edge.models/.github/workflows/model.yml@refs/tags/v1.2.3", "v1.2.3"),
        ("https://github.com/acme-corp/edge.models/.github/workflows/model.yml@refs/heads/main", None),
        ("https://github.com/acme-corp/edge.models/.github/workflows/other.yml@refs/tags/v1.2.3", None),
        ("https://github.com/acme-corp/edgexmodels/.github/workflows/model.yml@refs/tags/v1.2.3", None),
        ("https://github.com/mallory/edge.models/.github/workflows/model.yml@refs/tags/v1.2.3", None),
    ],
)
def test_the_identity_is_one_workflow_at_any_tag(capsys: pytest.CaptureFixture[str], uri: str, tag: str | None) -> None:
    """Only runs of the very workflow for a tag are trusted, and the tag is known."""
    found = printed(capsys, *WHO)
    assert found.sigstore is not None
    match = re.fullmatch(found.sigstore.identity, uri)
    assert (match and match["tag"]) == tag
    assert (found.sigstore.repository_id, found.sigstore.trusted_root) == ("1001", "production")
    assert found.sigstore.issuer == "https://token.actions.githubusercontent.com"


def test_in_a_run_nothing_needs_to_be_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The repository is the run's own; --pin writes the file where it is looked for, and again is harmless."""
    monkeypatch.setenv("GITHUB_REPOSITORY", "acme/edge")
    monkeypatch.setenv("GITHUB_REPOSITORY_ID", "1001")
    for _ in range(2):
        printed(capsys, "--line", "edge", "--pin")
    assert trust.load_trust(tmp_path / "edge-release/trust/edge.yaml").line == "edge"


def test_another_pin_is_left_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A trust file that pins others is never written over."""
    place = tmp_path / "edge-release/trust/edge.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    assert cli.main(["trust", *WHO, "--pin"]) == 5
    assert place.read_text() == "mine"


def test_whose_workflow_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a run the repository and its number must be given."""
    assert cli.main(["trust", "--line", "edge"]) == 2
    assert "--repository-id" in capsys.readouterr().err


def test_a_number_that_is_none_is_refused() -> None:
    """What is printed is a trust file that will be accepted, or an error."""
    with pytest.raises(CatalogError, match="repository_id"):
        trust.keyless_text("edge", "acme/edge", "not-a-number", "model.yml", "production")
