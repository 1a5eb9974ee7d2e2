"""The node image: what its Dockerfile copies is all that is in it, and that runs as nobody on every architecture.

Nothing here needs a container service. Where buildah is installed the image is built by that; everywhere its root folder
is laid out by following the Dockerfile.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.catalog.names import Target, host_target
from pipeline.errors import PipelineError
from pipeline.ports import qemu
from pipeline.serving.node import llama
from pipeline.serving.node.sizing import Sizing
from pipeline.toolchain import runtime

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "manifests/images/node/Dockerfile"
ARCHITECTURES = {Target.ARM64: "arm64", Target.RISCV64: "riscv64", Target.X86_64: "amd64"}
NOBODY = 65532


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    pairs = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in pairs]


def instruction(name: str) -> str:
    (found,) = [rest for kind, rest in instructions() if kind == name]
    return found


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Path:
    """The built llama-server of a target."""
    try:
        return runtime.find(request.param).program(runtime.SERVER)
    except PipelineError as e:
        pytest.skip(f"{e.message}: {e.hint}")


def lay_out(context: Path, root: Path, architecture: str) -> None:
    """Follow the Dockerfile's COPY lines into an empty folder."""
    for _, rest in [found for found in instructions() if found[0] == "COPY"]:
        *options, source, target = rest.split()
        assert options == ["--chown=0:0", "--chmod=0555"]
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context / source.replace("${TARGETARCH}", architecture), place)
        place.chmod(0o555)


def test_the_image_starts_from_nothing_as_nobody() -> None:
    """No base image, one file, a user by number without rights to it, health left to who runs it."""
    assert [name for name, _ in instructions()].count("FROM") == 1
    assert instruction("FROM") == "scratch"
    assert instruction("USER") == f"{NOBODY}:{NOBODY}"
    assert instruction("HEALTHCHECK") == "NONE"
    assert not {"RUN", "ADD"} & {name for name, _ in instructions()}
    assert json.loads(instruction("ENTRYPOINT"))[0] == "/llama-server"
    node = llama.arguments(Path("/llama-server"), Path("/m"), "m", Sizing(1, 256, 1, 0, beside=True), 8080)
    for flag in ("--cache-type-k", "--cache-type-v", "--flash-attn"):  # it decodes as a node does
        entry = json.loads(instruction("ENTRYPOINT"))
        assert entry[entry.index(flag) + 1] == node[node.index(flag) + 1]
    assert "org.opencontainers.image.title" in instruction("LABEL")


def test_make_lays_out_what_the_dockerfile_copies() -> None:
    """`make image-files` fetches a target's programs for each architecture that the workflow builds."""
    recipe = (ROOT / "Makefile").read_text().partition("\nimage-files:")[2]
    pairs = dict(pair.split(":") for pair in recipe.split("for pair in ")[1].split(";")[0].split())
    assert pairs == {architecture: target for target, architecture in ARCHITECTURES.items()}
    built = re.search(r"platforms: (.+)", (ROOT / ".github/workflows/service.yml").read_text())
    assert built is not None
    assert set(built[1].split(",")) == {f"linux/{architecture}" for architecture in pairs}


@pytest.mark.parametrize("server", list(Target), ids=list(Target), indirect=True)
def test_the_server_runs_with_nothing_around_it(server: Path, tmp_path: Path) -> None:
    """With the image's root as its whole world, or under an emulator, llama-server starts as nobody."""
    target = Target(server.parent.name.rsplit("-", 1)[0])
    (tmp_path / "context" / ARCHITECTURES[target]).mkdir(parents=True)
    shutil.copyfile(server, tmp_path / "context" / ARCHITECTURES[target] / "llama-server")
    root = tmp_path / "root"
    lay_out(tmp_path / "context", root, ARCHITECTURES[target])
    assert [path.name for path in root.rglob("*")] == ["llama-server"]
    if target is host_target():
        if os.geteuid() or not shutil.which("chroot"):
            pytest.skip("chroot is for root")
        argv = ["chroot", f"--userspec={NOBODY}:{NOBODY}", str(root), "/llama-server"]
    else:
        emulator = qemu.find(target)
        if emulator is None:
            pytest.skip(qemu.HINT)
        argv = [*emulator.argv(), str(root / "llama-server")]
    done = subprocess.run([*argv, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "version" in done.stdout + done.stderr


@pytest.mark.skipif(
    not shutil.which("buildah") or bool(os.geteuid()), reason="needs root and buildah: apt-get install buildah"
)
@pytest.mark.parametrize("server", [Target.ARM64, Target.X86_64], ids=["arm64", "x86_64"], indirect=True)
def test_buildah_builds_it_for_an_architecture(server: Path, tmp_path: Path) -> None:
    """A builder makes the image of the context, for a foreign architecture too, with the declared user and labels."""
    architecture = ARCHITECTURES[Target(server.parent.name.rsplit("-", 1)[0])]
    (tmp_path / "context" / architecture).mkdir(parents=True)
    shutil.copyfile(server, tmp_path / "context" / architecture / "llama-server")
    store = ["--root", str(tmp_path / "store"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    build = ["build", "--isolation", "chroot", "--format", "docker", "--platform", f"linux/{architecture}"]
    subprocess.run(
        ["buildah", *store, *build, "--tag", "node", "--file", str(DOCKERFILE), str(tmp_path / "context")],
        check=True,
        capture_output=True,
    )
    inspect = ["buildah", *store, "inspect", "--type", "image", "node"]
    found = json.loads(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)
    assert found["OCIv1"]["architecture"] == architecture
    config = found["Docker"]["config"]
    assert (config["User"], config["Entrypoint"][0]) == (f"{NOBODY}:{NOBODY}", "/llama-server")
    assert config["Labels"]["org.opencontainers.image.title"] == "edge-release node"
