"""One's own key is made once, kept private and pinned by others; nothing of it needs Sigstore."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.errors import CatalogError, Refusal, StageError, ToolError, TrustError
from pipeline.manifest.trust import Trust
from pipeline.ports import keys
from pipeline.ports.keys import PRIVATE_FILE, PUBLIC_FILE, load_or_create
from pipeline.ports.trust import load_trust, opener, pin_own_key

ROOT = Path(__file__).parents[2]
RACE = """
import sys
from pathlib import Path
from pipeline.ports.keys import load_or_create
sys.stdin.readline()
print(load_or_create(Path(sys.argv[1])).public_pem.hex())
"""
ROUND = """
import sys
from pathlib import Path
from pipeline.ports import keys, trust
folder = Path(sys.argv[1])
pair = keys.load_or_create(folder)
trust.pin_own_key(folder / "trust.yaml", "edge", pair.public_pem)
verify = trust.opener(trust.load_trust(folder / "trust.yaml"), folder)
assert verify(keys.signer(pair)(b"{}")).payload == b"{}"
assert not [name for name in sys.modules if name == "sigstore" or name.startswith("sigstore.")]
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def public_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def place(folder: Path, data: bytes, permissions: int = 0o600) -> None:
    (folder / PRIVATE_FILE).write_bytes(data)
    (folder / PRIVATE_FILE).chmod(permissions)


def test_first_use_makes_a_private_key(tmp_path: Path) -> None:
    """The first use makes a key only its owner can read, in a folder only its owner can enter."""
    folder = tmp_path / "a" / "edge-release"
    pair = load_or_create(folder)
    assert (mode(folder), mode(folder / PRIVATE_FILE)) == (0o700, 0o600)
    assert (folder / PUBLIC_FILE).read_bytes() == pair.public_pem
    assert sorted(p.name for p in folder.iterdir()) == [PRIVATE_FILE, PUBLIC_FILE]


def test_first_use_ignores_a_loose_umask(tmp_path: Path) -> None:
    """A umask that hides nothing does not open the key."""
    before = os.umask(0)
    try:
        load_or_create(tmp_path / "keys")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "keys"), mode(tmp_path / "keys" / PRIVATE_FILE)) == (0o700, 0o600)


def test_later_uses_find_the_same_key(tmp_path: Path) -> None:
    """Later uses sign with the key the first one made, and restore a lost public half."""
    first = load_or_create(tmp_path)
    (tmp_path / PUBLIC_FILE).unlink()
    assert load_or_create(tmp_path).public_pem == first.public_pem
    assert (tmp_path / PUBLIC_FILE).read_bytes() == first.public_pem


def test_processes_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    """Processes that all find no key end with the same one."""
    command = [sys.executable, "-c", RACE, str(tmp_path / "keys")]
    racers = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    with ThreadPoolExecutor(len(racers)) as threads:
        found = set(threads.map(lambda racer: racer.communicate("go\n")[0], racers))
    assert found == {load_or_create(tmp_path / "keys").public_pem.hex() + "\n"}


def test_threads_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    """The same holds within one process, and nothing is left behind."""
    with ThreadPoolExecutor(8) as threads:
        found = {pair.public_pem for pair in threads.map(load_or_create, [tmp_path / "keys"] * 16)}
    assert len(found) == 1
    assert sorted(p.name for p in (tmp_path / "keys").iterdir()) == [PRIVATE_FILE, PUBLIC_FILE]


@pytest.mark.parametrize("base", ["xdg", "home", "relative"])
def test_key_is_in_the_config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    """Without a folder the key is in the user's own config folder; a relative XDG path does not count."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", {"xdg": str(tmp_path / "xdg"), "home": "", "relative": "x"}[base])
    load_or_create()
    assert (tmp_path / ("xdg" if base == "xdg" else ".config") / "edge-release" / PRIVATE_FILE).is_file()


BAD_KEYS = {
    "empty": b"",
    "garbage": b"\x00\xff" * 100,
    "cut off": private_pem(ec.generate_private_key(ec.SECP256R1()))[:80],
    "public half": public_pem(ec.generate_private_key(ec.SECP256R1())).encode(),
    "P-384": private_pem(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": private_pem(ec.generate_private_key(ec.SECP256K1())),
    "Ed25519": private_pem(ed25519.Ed25519PrivateKey.generate()),
    "encrypted": private_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"),
    "huge": b"x" * (keys.MAX_BYTES + 1),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_other_key_is_refused(tmp_path: Path, case: str) -> None:
    """Anything but an unencrypted P-256 key is refused with a hint, and left where it is."""
    place(tmp_path, BAD_KEYS[case])
    with pytest.raises(ToolError, match=PRIVATE_FILE) as caught:
        load_or_create(tmp_path)
    assert "move it away" in caught.value.hint
    assert (tmp_path / PRIVATE_FILE).read_bytes() == BAD_KEYS[case]


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_key_open_to_others_is_refused(tmp_path: Path, permissions: int) -> None:
    """A key that others can read, write or run is refused, and the hint says how to close it."""
    load_or_create(tmp_path)
    (tmp_path / PRIVATE_FILE).chmod(permissions)
    with pytest.raises(ToolError) as caught:
        load_or_create(tmp_path)
    assert "chmod 600" in caught.value.hint


def test_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    """A folder in which others could exchange the key is refused."""
    load_or_create(tmp_path)
    tmp_path.chmod(0o770)
    with pytest.raises(ToolError) as caught:
        load_or_create(tmp_path)
    assert "chmod 700" in caught.value.hint


@pytest.mark.parametrize("target", ["key", "nothing"])
def test_symbolic_link_is_refused(tmp_path: Path, target: str) -> None:
    """A symbolic link in the key's place is refused, wherever it leads."""
    load_or_create(tmp_path / "real")
    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "keys" / PRIVATE_FILE).symlink_to(tmp_path / "real" / (PRIVATE_FILE if target == "key" else target))
    with pytest.raises(ToolError, match="is a symbolic link"):
        load_or_create(tmp_path / "keys")


def test_special_file_is_refused(tmp_path: Path) -> None:
    """A pipe in the key's place is refused at once instead of waited for."""
    os.mkfifo(tmp_path / PRIVATE_FILE, 0o600)
    with pytest.raises(ToolError, match="regular file"):
        load_or_create(tmp_path)


def test_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """A folder that cannot be made is an error of ours that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match="file/keys"):
        load_or_create(tmp_path / "file" / "keys")


def test_key_pair_does_not_show_or_change(tmp_path: Path) -> None:
    """A key pair is frozen, and its printed form leaves the private half out."""
    pair = load_or_create(tmp_path)
    assert "private" not in repr(pair)
    with pytest.raises(FrozenInstanceError):
        pair.public_pem = b""  # type: ignore[misc]


def test_own_key_is_pinned_once(tmp_path: Path) -> None:
    """A trust file made for one's own key opens what the key signs, and is never overwritten."""
    pair, path = load_or_create(tmp_path), tmp_path / "manifests" / "trust.yaml"
    pin_own_key(path, "edge: # demo", pair.public_pem)
    trust = load_trust(path)
    assert trust == Trust(line="edge: # demo", public_keys=[pair.public_pem.decode()])
    assert opener(trust, tmp_path)(keys.signer(pair)(b"payload")).payload == b"payload"
    before = path.read_bytes()
    with pytest.raises(StageError, match="left as it is"):
        pin_own_key(path, "edge", pair.public_pem)
    assert path.read_bytes() == before


def test_pinning_where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    """A trust file that cannot be written is an error of ours."""
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="cannot write"):
        pin_own_key(tmp_path / "file" / "trust.yaml", "edge", b"")


SPELLINGS = {
    "as written": lambda pem: pem,
    "without the last line break": lambda pem: pem.rstrip("\n"),
    "with DOS line breaks": lambda pem: pem.replace("\n", "\r\n"),
    "with text around it": lambda pem: f"key of the release run\n{pem}\n",
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_pinned_key_may_be_spelled_otherwise(tmp_path: Path, case: str) -> None:
    """A pinned key counts by what it is, not by the bytes of its PEM."""
    pair = load_or_create(tmp_path)
    trust = Trust(line="edge", public_keys=[SPELLINGS[case](pair.public_pem.decode())])
    assert opener(trust, tmp_path)(keys.signer(pair)(b"payload")).payload == b"payload"


def test_any_of_several_pinned_keys_may_sign(tmp_path: Path) -> None:
    """Each pinned key opens its own bundles, and a key that is not pinned none."""
    first, second, third = (load_or_create(tmp_path / name) for name in "abc")
    verify = opener(Trust(line="edge", public_keys=[p.public_pem.decode() for p in (first, second)]), tmp_path)
    assert [verify(keys.signer(p)(b"x")).payload for p in (first, second)] == [b"x", b"x"]
    with pytest.raises(TrustError) as caught:
        verify(keys.signer(third)(b"x"))
    assert caught.value.refusal is Refusal.WRONG_SIGNER


BAD_PINS = {
    "garbage": "no key",
    "P-384": public_pem(ec.generate_private_key(ec.SECP384R1())),
    "Ed25519": public_pem(ed25519.Ed25519PrivateKey.generate()),
    "private half": private_pem(ec.generate_private_key(ec.SECP256R1())).decode(),
}


@pytest.mark.parametrize("case", BAD_PINS)
def test_other_pinned_key_is_refused(tmp_path: Path, case: str) -> None:
    """A trust file that pins anything but P-256 public keys is refused before any bundle is looked at."""
    with pytest.raises(CatalogError, match="public_keys"):
        opener(Trust(line="edge", public_keys=[BAD_PINS[case]]), tmp_path)


def test_missing_trust_file_is_an_error(tmp_path: Path) -> None:
    """A trust file that is not there is an error that names it."""
    with pytest.raises(CatalogError, match=r"trust\.yaml"):
        load_trust(tmp_path / "trust.yaml")


def test_keys_need_no_sigstore(tmp_path: Path) -> None:
    """Making a key, pinning it, signing and verifying with it never load Sigstore's library."""
    subprocess.run([sys.executable, "-c", ROUND, str(tmp_path / "keys")], cwd=ROOT, check=True)
