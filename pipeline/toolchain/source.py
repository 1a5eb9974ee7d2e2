"""The pinned llama.cpp: the source distribution of llama-cpp-python holds it whole, tools and converter included.

Rules: pip fetches it, so mirrors and proxies set up for pip serve here too; its digest is checked before anything in
it runs; it is unpacked beside its place and renamed, and never written to afterwards.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.ports import files, process

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_COMMIT = "0c1e57098bba"
# What every build of it has in common: nothing of the machine, and nothing that is not used.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_CCACHE": "OFF",
    "GGML_NATIVE": "OFF",
    "GGML_OPENMP": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_COMMIT": LLAMA_COMMIT,
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_NUMBER": "0",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
# Where a product and a sum become one rounding is the compiler's choice otherwise, and quantized bytes depend on it.
FLAGS = "-ffp-contract=off"


def prefix_maps(named: Mapping[Path, str]) -> str:
    """Return compiler flags by which objects hold names in the place of folders."""
    return " ".join(shlex.quote(f"-ffile-prefix-map={folder}={name}") for folder, name in named.items())


FOLDER = f"llama_cpp_python-{VERSION}"


def unpacked(cache: Path) -> Path:
    """Return where `fetch` puts the source tree."""
    return cache / "llama.cpp" / f"source-{SHA256[:16]}"


def llama_cpp(source: Path) -> Path:
    """Return llama.cpp's own tree within the unpacked source."""
    return source / "vendor" / "llama.cpp"


def fetch(cache: Path) -> Path:
    """Return the unpacked source tree, fetched where the cache lacks it.

    Raises:
        ToolError: the package index is unreachable or serves other bytes than those pinned.
    """
    tree = unpacked(cache)
    with files.locked(tree.with_suffix(".lock")):
        if not tree.exists():
            with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".fetch.") as scratch:
                unpack(_download(Path(scratch)), Path(scratch)).replace(tree)
    return tree


def _download(scratch: Path) -> Path:
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    process.run(
        [*pip, "--require-hashes", "--requirement", wanted, "--dest", scratch],
        hint=f"make {PACKAGE}=={VERSION} (source distribution) reachable for pip: network, proxy or mirror",
        env={"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    return scratch / f"{FOLDER}.tar.gz"


def unpack(archive: Path, scratch: Path) -> Path:
    """Return the tree of a source archive, unpacked into `scratch`; raises ToolError where it is not the pinned one."""
    # pip has checked the digest; an archive put in its place by other means is still refused here.
    if files.sha256_file(archive) != SHA256:
        raise ToolError(f"{archive.name} is not the pinned one", hint="remove pip's cache and check the package index")
    try:
        with tarfile.open(archive) as tar:
            # An attribute, which Python before 3.11.4 (Debian 12) lets pass; `filter=` it refuses.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(scratch)  # noqa: S202 - the digest is the pinned one
    except (tarfile.TarError, OSError) as e:
        shutil.rmtree(scratch / FOLDER, ignore_errors=True)
        raise ToolError(f"cannot unpack {archive.name}: {e}", hint="free 400 MB in the cache folder") from e
    return scratch / FOLDER
