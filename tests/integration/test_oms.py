"""The statement in `model.sig` against OpenSSF's own signer and verifier, the command `model_signing`.

The keyless cases start a private Sigstore instance on loopback.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import dsse, oms
from pipeline.manifest.evidence import File
from pipeline.ports import keys, sigstore
from pipeline.ports.keys import PRIVATE_FILE, PUBLIC_FILE
from tests.support.sigstore.oidc import GITHUB
from tests.support.sigstore_instance import SigstoreInstance

VARIANT = "tiny-edge-arm64"
NAMES = ["a-b/x.json", "a/y.json", "a.json", "model.gguf", "a/b/c.json", "A/z.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A variant's folder whose names sort otherwise by their parts than by their letters."""
    place = tmp_path / VARIANT
    for name in NAMES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"contents of {name}")
    return place


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    keys.load_or_create(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigstoreInstance]:
    with SigstoreInstance(tmp_path_factory.mktemp("sigstore")) as running:
        yield running


def listed(folder: Path) -> list[File]:
    return [
        File(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name in NAMES
        if (data := (folder / name).read_bytes())
    ]


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def verify_with_key(folder: Path, key_folder: Path) -> subprocess.CompletedProcess[str]:
    signature = folder / oms.SIGNATURE_FILE
    return model_signing("verify", "key", "--public_key", key_folder / PUBLIC_FILE, "--signature", signature, folder)


def statement_in(folder: Path) -> Any:
    return json.loads(dsse.unverified_payload((folder / oms.SIGNATURE_FILE).read_bytes()))


def sign_with_key(folder: Path, key_folder: Path) -> None:
    sign = keys.signer(keys.load_or_create(key_folder))
    (folder / oms.SIGNATURE_FILE).write_bytes(sign(oms.statement(VARIANT, listed(folder))))


def stock_sign(folder: Path, key_folder: Path) -> None:
    signature, ours = folder / oms.SIGNATURE_FILE, folder / "release.json"
    how = ["--private_key", key_folder / PRIVATE_FILE, "--ignore-paths", ours, "--signature", signature]
    done = model_signing("sign", "key", *how, folder)
    assert done.returncode == 0, done.stderr


def test_statement_is_the_one_the_stock_signer_makes(folder: Path, key_folder: Path) -> None:
    """The statement equals what `model_signing sign` makes of the same folder, resources in the same order."""
    stock_sign(folder, key_folder)
    theirs, ours = statement_in(folder), json.loads(oms.statement(VARIANT, listed(folder)))
    for statement in (theirs, ours):
        statement["predicate"]["serialization"]["ignore_paths"].sort()
    assert ours == theirs


def test_stock_signature_opens_here(folder: Path, key_folder: Path) -> None:
    """A signature by `model_signing sign key` opens with the same pinned key and covers the same files."""
    stock_sign(folder, key_folder)
    signature = (folder / oms.SIGNATURE_FILE).read_bytes()
    opened = dsse.open_with_keys(signature, ((key_folder / PUBLIC_FILE).read_bytes(),))
    oms.check_covers(opened.payload, VARIANT, listed(folder))


def test_stock_verifier_accepts_a_key(folder: Path, key_folder: Path) -> None:
    """`model_signing verify key` accepts a folder signed with the user's key, given `signing.pub`."""
    sign_with_key(folder, key_folder)
    done = verify_with_key(folder, key_folder)
    assert done.returncode == 0, done.stderr


def test_stock_verifier_passes_over_the_record(folder: Path, key_folder: Path) -> None:
    """`model_signing verify key` accepts the folder with the release's record beside the signature."""
    sign_with_key(folder, key_folder)
    (folder / "release.json").write_text("{}")
    done = verify_with_key(folder, key_folder)
    assert done.returncode == 0, done.stderr


def changed_file(folder: Path) -> None:
    (folder / "model.gguf").write_text("other contents")


def missing_file(folder: Path) -> None:
    (folder / "model.gguf").unlink()


def extra_file(folder: Path) -> None:
    (folder / "extra.py").touch()


def exchanged_files(folder: Path) -> None:
    first, second = folder / "a-b/x.json", folder / "a/y.json"
    texts = first.read_text(), second.read_text()
    second.write_text(texts[0])
    first.write_text(texts[1])


def changed_statement(folder: Path) -> None:
    path = folder / oms.SIGNATURE_FILE
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(VARIANT.encode(), b"tiny-edge-x86_6")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(bundle))


DAMAGES = [changed_file, missing_file, extra_file, exchanged_files, changed_statement]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_stock_verifier_refuses_a_damaged_folder(folder: Path, key_folder: Path, damage: Any) -> None:
    """`model_signing verify key` refuses the folder after any change to it."""
    sign_with_key(folder, key_folder)
    damage(folder)
    assert verify_with_key(folder, key_folder).returncode != 0


def test_stock_verifier_refuses_another_key(folder: Path, key_folder: Path, tmp_path: Path) -> None:
    """`model_signing verify key` refuses the folder under another user's key."""
    sign_with_key(folder, key_folder)
    keys.load_or_create(tmp_path / "other")
    assert verify_with_key(folder, tmp_path / "other").returncode != 0


def test_stock_verifier_and_a_run(
    folder: Path, instance: SigstoreInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`model_signing verify sigstore` accepts a folder a release run signed, and refuses it after a change."""
    for name, value in instance.actions_environment().items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "client_trust_config.json"
    config.write_text(json.dumps(instance.client_config()))
    signature = folder / oms.SIGNATURE_FILE
    signature.write_bytes(sigstore.signer(config)(oms.statement(VARIANT, listed(folder))))
    identity = f"https://github.com/{instance.claims['job_workflow_ref']}"

    def verify(name: str) -> subprocess.CompletedProcess[str]:
        who = ["--identity", name, "--identity_provider", GITHUB]
        return model_signing("verify", "sigstore", "--trust_config", config, *who, "--signature", signature, folder)

    done = verify(identity)
    assert done.returncode == 0, done.stderr
    assert verify(identity.replace("acme", "mallory")).returncode != 0
    changed_file(folder)
    assert verify(identity).returncode != 0
