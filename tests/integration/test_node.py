"""A node as a user runs it: real releases, the real llama-server, and everything that can go wrong with either."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.serving.status import State
from tests.support import built, nodes, served
from tests.support.nodes import NodeProcess
from tests.support.served import Made, Shop

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return served.make(tmp_path_factory.mktemp("one"), 0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return served.make(tmp_path_factory.mktemp("two"), 1, template=False)


@pytest.fixture
def shop(one: Made, tmp_path: Path) -> Shop:
    """A registry whose channel points to release 1."""
    made = served.shop(tmp_path / "shop")
    made.publish(1, one)
    return made


@pytest.fixture
def node(shop: Shop, tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(shop, tmp_path / "node")
    yield made
    if made.process is not None:
        made.stop()


def test_a_node_pulls_proves_and_serves(node: NodeProcess) -> None:
    """From an empty disk to answers: status, health, readiness, metrics and the model's paths."""
    node.start()
    status = node.until_serving(1)
    assert status.served is not None
    assert (status.name, status.slots, status.context, status.reason) == ("pi-1", 2, 256, None)
    assert len(node.complete()) == 8
    assert node.ask("GET", "/readyz") == (200, b"ready\n")
    assert node.metric("edge_node_release_version") == 1
    assert node.metric('edge_node_state{state="ready"}') == 1
    assert node.ask("GET", "/slots")[0] == 404
    assert node.stop() == 0
