"""A folder against its list of files: each difference has its refusal, and no link is followed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import Refusal, TrustError
from pipeline.manifest.encoding import sha256
from pipeline.manifest.evidence import File
from pipeline.registry import beneath, streams, tree
from tests.support.releases import flipped, gguf_bytes, hostile_gguf, open_files, safetensors_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    contents = {
        "config.json": b"{}",
        "empty": b"",
        "ranks/0/model.safetensors": safetensors_bytes(1),
        "weights.gguf": gguf_bytes(tmp_path, 1),
    }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "model.sig").write_bytes(b"beside")
    return folder


@pytest.fixture
def files(folder: Path) -> list[File]:
    names = ["config.json", "empty", "ranks/0/model.safetensors", "weights.gguf"]
    return [_file(name, (folder / name).read_bytes()) for name in names]


def _file(name: str, data: bytes) -> File:
    return File(name=name, size=len(data), sha256=sha256(data))


def _check(folder: Path, files: list[File], **options: object) -> None:
    tree.check(folder, files, beside={"model.sig"}, **options)  # type: ignore[arg-type]


def test_the_very_files_pass(folder: Path, files: list[File]) -> None:
    """A folder with exactly its files passes, progress ends at their sum, and no file stays open."""
    seen: list[tuple[int, int]] = []
    before = open_files()
    _check(folder, files, progress=lambda done, total, _: seen.append((done, total)))
    total = sum(f.size for f in files)
    assert seen[-1] == (total, total)
    assert open_files() == before


def test_the_folder_itself_may_be_a_link(folder: Path, files: list[File], tmp_path: Path) -> None:
    """`current` is a link, and what it leads to is checked."""
    (tmp_path / "current").symlink_to(folder)
    _check(tmp_path / "current", files)


def _link(path: Path) -> None:
    outside = next(p for p in path.parents if p.name == "model").parent / "elsewhere"
    path.rename(outside)
    path.symlink_to(outside)


def _swap_for(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


DAMAGE: dict[str, tuple[Refusal, Callable[[Path], object]]] = {
    "a bit changed": (Refusal.TAMPERED, lambda f: (f / "config.json").write_bytes(b"[]")),
    "a byte short": (Refusal.TAMPERED, lambda f: (f / "config.json").write_bytes(b"{")),
    "a byte long": (Refusal.TAMPERED, lambda f: (f / "config.json").write_bytes(b"{}\n")),
    "an empty file filled": (Refusal.TAMPERED, lambda f: (f / "empty").write_bytes(b"x")),
    "a file missing": (Refusal.MISSING_FILE, lambda f: (f / "config.json").unlink()),
    "a file below missing": (Refusal.MISSING_FILE, lambda f: (f / "ranks/0/model.safetensors").unlink()),
    "a folder missing": (Refusal.MISSING_FILE, lambda f: (f / "ranks").rename(f.parent / "gone")),
    "a file extra": (Refusal.EXTRA_FILE, lambda f: (f / "tokenizer.json").touch()),
    "a file extra below": (Refusal.EXTRA_FILE, lambda f: (f / "ranks/0/evil.py").touch()),
    "a hidden file extra": (Refusal.EXTRA_FILE, lambda f: (f / ".hidden").touch()),
    "a name no manifest could have": (Refusal.EXTRA_FILE, lambda f: (f / "a b\n").touch()),
    "an empty folder extra": (Refusal.EXTRA_FILE, lambda f: (f / "ranks/1").mkdir()),
    "a pipe extra": (Refusal.EXTRA_FILE, lambda f: os.mkfifo(f / "pipe")),
    "a signature in the wrong place": (Refusal.EXTRA_FILE, lambda f: (f / "ranks/model.sig").touch()),
    "a file is a link to its content": (Refusal.SYMLINK, lambda f: _link(f / "config.json")),
    "a file is a dangling link": (
        Refusal.SYMLINK,
        lambda f: _swap_for(f / "config.json", lambda p: p.symlink_to("no")),
    ),
    "a folder is a link to its content": (Refusal.SYMLINK, lambda f: _link(f / "ranks")),
    "an inner folder is a link": (Refusal.SYMLINK, lambda f: _link(f / "ranks/0")),
    "a link extra": (Refusal.SYMLINK, lambda f: (f / "extra").symlink_to("/etc/passwd")),
    "what stands beside is a link": (Refusal.SYMLINK, lambda f: _link(f / "model.sig")),
    "a file is a pipe": (Refusal.TAMPERED, lambda f: _swap_for(f / "config.json", os.mkfifo)),
    "a file is a folder": (Refusal.TAMPERED, lambda f: _swap_for(f / "config.json", Path.mkdir)),
    "a folder is a file": (Refusal.EXTRA_FILE, lambda f: ((f / "ranks").rename(f.parent / "g"), (f / "ranks").touch())),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_each_difference_has_its_refusal(case: str, folder: Path, files: list[File]) -> None:
    """A folder that differs in one thing is refused for that thing, and no file stays open."""
    refusal, damage = DAMAGE[case]
    damage(folder)
    before = open_files()
    with pytest.raises(TrustError) as caught:
        _check(folder, files)
    assert caught.value.refusal is refusal
    assert open_files() == before


@pytest.mark.parametrize("name", ["config.json", "ranks/0/model.safetensors"])
def test_no_link_is_opened_even_after_the_look(name: str, folder: Path, files: list[File]) -> None:
    """A file or folder exchanged for a link between looking and opening is still not followed."""
    wanted = next(f for f in files if f.name == name)
    with beneath.root(folder) as root:
        tree.check_shape(root, files, beside={"model.sig"})
        _link(folder / name.partition("/")[0])
        with pytest.raises(TrustError) as caught:
            tree.check_file(root, wanted, streams.Meter(lambda *_: None, 0))
    assert caught.value.refusal is Refusal.SYMLINK


def test_a_device_is_not_read(folder: Path) -> None:
    """A name that leads to a device in place of a file is refused before a byte is read."""
    _swap_for(folder / "config.json", lambda p: p.symlink_to("/dev/zero"))
    with pytest.raises(TrustError) as caught:
        _check(folder, [_file("config.json", b"{}")])
    assert caught.value.refusal in {Refusal.SYMLINK, Refusal.EXTRA_FILE}


HOSTILE = {
    "gguf": ("weights.gguf", hostile_gguf()),
    "gguf that is none": ("weights.gguf", b"MZ" + b"\0" * 100),
    "safetensors": ("ranks/0/model.safetensors", b"\xff" * 8 + b"{}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_signed_but_hostile_header_is_refused(case: str, folder: Path, files: list[File]) -> None:
    """A model file that is exactly what was signed still has to have a sane header; the file is named."""
    name, data = HOSTILE[case]
    (folder / name).write_bytes(data)
    with pytest.raises(TrustError) as caught:
        _check(folder, [f for f in files if f.name != name] + [_file(name, data)])
    assert caught.value.refusal is Refusal.HOSTILE_MODEL
    assert name in caught.value.message


def test_digests_come_before_headers(folder: Path, files: list[File]) -> None:
    """A header is parsed only in files that are what was signed."""
    wanted = next(f for f in files if f.name == "weights.gguf")
    (folder / "weights.gguf").write_bytes(hostile_gguf(wanted.size))
    with pytest.raises(TrustError) as caught:
        _check(folder, files)
    assert caught.value.refusal is Refusal.TAMPERED


@pytest.mark.parametrize("off", [-1, 1])
def test_the_size_counts_for_itself(off: int, folder: Path, files: list[File]) -> None:
    """A size other than the manifest's is refused before a byte is read, though the digest may be right."""
    wrong = files[0].model_copy(update={"size": files[0].size + off})
    read: list[int] = []
    with pytest.raises(TrustError) as caught:
        _check(folder, [wrong, *files[1:]], progress=lambda done, *_: read.append(done))
    assert caught.value.refusal is Refusal.TAMPERED
    with beneath.root(folder) as root, pytest.raises(TrustError) as caught:
        tree.check_file(root, wrong, streams.Meter(lambda done, *_: read.append(done), 0))
    assert caught.value.refusal is Refusal.TAMPERED
    assert read == []


def test_all_sizes_come_before_any_digest(folder: Path, files: list[File]) -> None:
    """A last file of another size is refused without hashing the ones before it."""
    wrong = files[-1].model_copy(update={"size": files[-1].size + 1})
    read: list[int] = []
    with pytest.raises(TrustError) as caught:
        _check(folder, [*files[:-1], wrong], progress=lambda done, *_: read.append(done))
    assert caught.value.refusal is Refusal.TAMPERED
    assert read == []


def test_large_files_are_streamed(tmp_path: Path) -> None:
    """A file of 512 MiB is checked in a process that may use 100 MiB of memory."""
    path = tmp_path / "model" / "weights.bin"
    path.parent.mkdir()
    with path.open("wb") as f:
        f.truncate(512 << 20)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.manifest.evidence import File\n"
        "from pipeline.registry import tree\n"
        "tree.check(Path(sys.argv[1]), [File(name='weights.bin', size=512 << 20, sha256=sys.argv[2])])\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    with path.open("rb", buffering=0) as f:
        digest = streams.digest(f)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path.parent), digest], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100 << 10


def test_what_holds_is_told(folder: Path, files: list[File]) -> None:
    """`holds` answers for one file without raising."""
    first = files[0]
    with beneath.root(folder) as root:
        assert tree.holds(root, first)
        assert not tree.holds(root, first.model_copy(update={"sha256": sha256(b"")}))
        assert not tree.holds(root, first.model_copy(update={"name": "nothing"}))
        assert not tree.holds(root, first.model_copy(update={"name": "config.json/x"}))
    (folder / "config.json").write_bytes(flipped(b"{}"))
    with beneath.root(folder) as root:
        assert not tree.holds(root, first)


def test_folders_above_names() -> None:
    """Every folder that lies above a name is known."""
    assert tree.parents(["a/b/c", "a/d", "e"]) == {"a", "a/b"}
