"""The gateway before a node, both as users start them, over mutual TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.peers.role import Role
from tests.support import built, nodes, pki, served
from tests.support.controllers import ControllerProcess
from tests.support.llama_server import await_http, free_port
from tests.support.nodes import NodeProcess
from tests.support.served import Shop

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]


@contextmanager
def gateway(shop: Shop, root: Path, *flags: str) -> Iterator[int]:
    port = free_port()
    argv = [
        sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "gateway", "--quiet",
        "--registry", str(shop.registry), "--trust", str(shop.trust), "--state", str(root / "gateway.json"),
        "--port", str(port), *flags,
    ]  # fmt: skip
    process = subprocess.Popen(argv, cwd=root, env={**os.environ, "PYTHONPATH": str(nodes.ROOT)})
    try:
        await_http(f"http://127.0.0.1:{port}/healthz", process)
        yield port
    finally:
        process.kill()
        process.wait()


def test_a_prompt_goes_through_both_over_mutual_tls(tmp_path: Path) -> None:
    """The node takes the gateway's certificate, the gateway the node's, and the answer says where it came from."""
    shop = served.shop(tmp_path / "shop")
    shop.publish(1, served.make(tmp_path / "one", 0))
    authority = pki.authority()
    own, theirs = (pki.folder(tmp_path / role, authority, role) for role in (Role.GATEWAY, Role.NODE))
    node = NodeProcess(shop, tmp_path / "node")
    try:
        node.start("--tls", str(theirs), "--host", "127.0.0.1")
        with gateway(shop, tmp_path, "--edge", f"https://localhost:{node.port}", "--tls", str(own)) as port:
            await_http(f"http://127.0.0.1:{port}/readyz", node.process, 120)
            body = json.dumps({"prompt": "where is the black tea?", "max_tokens": 4}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body)
            with urllib.request.urlopen(request) as answer:
                assert answer.headers["x-edge-pool"] == "edge"
                assert json.load(answer)["text"]
    finally:
        node.stop()


def test_the_controller_sees_the_node_and_steers_the_gateway(tmp_path: Path) -> None:
    """Over mutual TLS from the controller to the gateway to the node: its processors are known, the policy is pushed."""
    shop = served.shop(tmp_path / "shop")
    shop.publish(1, served.make(tmp_path / "one", 0))
    authority = pki.authority()
    own, theirs, ours = (
        pki.folder(tmp_path / role, authority, role) for role in (Role.GATEWAY, Role.NODE, Role.CONTROLLER)
    )
    node, controller, admin = NodeProcess(shop, tmp_path / "node"), ControllerProcess(tmp_path), free_port()
    try:
        node.start("--tls", str(theirs), "--host", "127.0.0.1")
        flags = ("--edge", f"https://localhost:{node.port}", "--tls", str(own), "--admin", f"127.0.0.1:{admin}")
        with gateway(shop, tmp_path, *flags) as port:
            await_http(f"http://127.0.0.1:{port}/readyz", node.process, 120)
            said = controller.once(
                "--no-kubernetes", "--tls", str(ours), "--json",
                gateways=[{"name": "gw", "url": f"https://localhost:{admin}"}], policy={"version": 1, "cpu": 0.5},
            )  # fmt: skip
            found = json.loads(said.stdout)
            (seen,) = found["state"]["nodes"]
            assert seen["ready"] is True
            assert 0 <= seen["cpu"] <= 1
            assert [(a["kind"], a["reason"]) for a in found["actions"]] == [("set_policy", "first")]
            assert found["did"] == [{"outcome": "done", "detail": ""}]
    finally:
        node.stop()
