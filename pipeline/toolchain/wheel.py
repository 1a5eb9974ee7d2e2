"""The wheel of llama-cpp-python around libraries that are built already.

Rules: the package's own files and metadata, unedited; entries sorted and without times, so that equal libraries give
equal wheels. The format is https://packaging.python.org/specifications/binary-distribution-format/.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.toolchain.source import FOLDER

EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(source: Path, libraries: Iterable[Path], out: Path) -> Path:
    """Write the wheel of `source` with `libraries` into the folder `out` and return its path."""
    tag = f"py3-none-linux_{platform.machine()}"
    info = f"{FOLDER}.dist-info"
    entries = _package(source) | {f"llama_cpp/lib/{lib.name}": lib.read_bytes() for lib in libraries}
    entries[f"{info}/METADATA"] = (source / "PKG-INFO").read_bytes()
    entries[f"{info}/licenses/LICENSE.md"] = (source / "LICENSE.md").read_bytes()
    entries[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: edge-release\nRoot-Is-Purelib: false\nTag: {tag}\n"
    ).encode()
    wheel = out / f"{FOLDER}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in sorted(entries.items()):
            _add(archive, name, data)
        _add(archive, f"{info}/RECORD", _record(entries, f"{info}/RECORD"))
    return wheel


def _package(source: Path) -> dict[str, bytes]:
    own = (p for p in (source / "llama_cpp").rglob("*") if p.is_file() and p.suffix in {".py", ".typed", ".txt"})
    return {p.relative_to(source).as_posix(): p.read_bytes() for p in own}


def _record(entries: dict[str, bytes], itself: str) -> bytes:
    lines = [f"{name},sha256={_hash(data)},{len(data)}" for name, data in sorted(entries.items())]
    return "\n".join([*lines, f"{itself},,", ""]).encode()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    archive.writestr(entry, data)
