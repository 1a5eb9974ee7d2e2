"""The user's own signing key: EC P-256, in a folder only the user can read.

Rules: made at first use, then never overwritten, so two processes that start at once end with one key; a key that
others can read, a symbolic link or anything but P-256 is refused. `signing.pub` beside it is what others pin.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from pipeline.errors import ToolError
from pipeline.manifest import dsse
from pipeline.ports import files

PRIVATE_FILE = "signing.key"
PUBLIC_FILE = "signing.pub"
MAX_BYTES = 64 << 10
_REPLACE = "move it away and a new key is made at the next use; whoever pinned the old one must pin the new one"

# Takes a payload, gives the bundle that signs it.
Signer = Callable[[bytes], bytes]


@dataclass(frozen=True)
class KeyPair:
    """A signing key; `public_pem` is what verifiers pin."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)
    public_pem: bytes


def config_folder() -> Path:
    """Return where this user's key lives: `$XDG_CONFIG_HOME/edge-release`, else `~/.config/edge-release`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "edge-release"


def load_or_create(folder: Path | None = None) -> KeyPair:
    """Return the signing key in `folder` (default `config_folder()`), making one at first use.

    Raises:
        ToolError: the folder cannot be used, or its key is not one to sign with.
    """
    place = folder or config_folder()
    path = place / PRIVATE_FILE
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(place)
        if not os.path.lexists(path):
            files.create(path, _private_pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
        pair = _parse(_read(path), path)
        public = place / PUBLIC_FILE
        if not public.is_file() or public.read_bytes() != pair.public_pem:
            files.write(public, pair.public_pem)
    except OSError as e:
        raise ToolError(
            f"cannot use the signing key in {place}: {e.strerror}", hint="mend that folder or name another one"
        ) from e
    return pair


def signer(pair: KeyPair) -> Signer:
    """Return the function that signs payloads with this key."""

    def sign(payload: bytes) -> bytes:
        signature = pair.private.sign(dsse.pae(payload), ec.ECDSA(hashes.SHA256()))
        return dsse.key_bundle(payload, signature, pair.public_pem)

    return sign


def _check_folder(folder: Path) -> None:
    if folder.stat().st_mode & 0o022:
        raise ToolError(f"others may write in {folder}, which holds the signing key", hint=f"chmod 700 {folder}")


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read(path: Path) -> bytes:
    if path.is_symlink():
        raise ToolError(f"{path} is a symbolic link", hint="put the key file itself there")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as f:
        found = os.fstat(f.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ToolError(f"{path} is not a regular file", hint=_REPLACE)
        if found.st_mode & 0o077:
            raise ToolError(
                f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):o})",
                hint=f"chmod 600 {path}; if others may have read it, {_REPLACE}",
            )
        return f.read(MAX_BYTES)


def _parse(pem: bytes, path: Path) -> KeyPair:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ToolError(f"{path} is not an unencrypted private key in PEM", hint=_REPLACE) from e
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ToolError(f"{path} is not an EC P-256 key", hint=_REPLACE)
    return KeyPair(key, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
