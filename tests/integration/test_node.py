"""A node as a user runs it: real releases, the real llama-server, and everything that can go wrong with either."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.catalog.names import Channel
from pipeline.catalog.recipe import Recipe
from pipeline.peers import tls
from pipeline.peers.role import Role
from pipeline.peers.status import State
from pipeline.ports import llama
from pipeline.registry.channels import rollback
from pipeline.registry.folder import FolderStore
from tests.support import built, nodes, pki, served
from tests.support.nodes import NodeProcess
from tests.support.releases import LINE, flipped, replace_file
from tests.support.served import Made, Shop

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return served.make(tmp_path_factory.mktemp("one"), 0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Another model, without a chat template."""
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
        for pid in made.servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        made.stop()


def take_away(shop: Shop) -> Path:
    return shop.registry.rename(shop.root / "gone")


def current(node: NodeProcess, what: str = "model") -> str | None:
    link = node.root / "home" / what / "current"
    return link.readlink().name if link.is_symlink() else None


def stored(node: NodeProcess, version: int) -> None:
    """Wait until the disk leads to a release: that comes after it is served."""
    node.until_serving(version)
    node.until(lambda _: current(node) == current(node, "runtime") == str(version))


class Stream:
    """A long streaming answer, read as far as the test wants.

    With so many probabilities it is longer than what the sockets to the client hold: it is not at its end before it is read.
    """

    def __init__(self, node: NodeProcess) -> None:
        self._connection = node.connect()
        body = {
            "prompt": "<|user|>where?<|assistant|>", "n_predict": 200, "ignore_eos": True, "stream": True, "n_probs": 500,
        }  # fmt: skip
        self._connection.request("POST", "/completion", json.dumps(body), {"content-type": "application/json"})
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self.first = self._answer.readline()

    def rest(self) -> str:
        try:
            return self._answer.read().decode()
        finally:
            self._answer.close()
            self._connection.close()

    def hang_up(self) -> None:
        sock = self._connection.sock
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        self._answer.close()
        self._connection.close()


def test_a_node_pulls_proves_and_serves(node: NodeProcess) -> None:
    """From an empty disk to answers: status, health, readiness, metrics and the model's paths, and nothing else's."""
    node.start()
    status = node.until_serving(1)
    assert status.served is not None
    assert (status.name, status.slots, status.context, status.reason) == ("pi-1", 2, 256, None)
    assert len(node.complete()) == 8
    assert node.ask("GET", "/readyz") == (200, b"ready\n")
    assert node.ask("GET", "/healthz") == (200, b"ok\n")
    assert node.metric("edge_node_release_version") == 1
    assert node.metric('edge_node_state{state="ready"}') == 1
    chat = {"messages": [{"role": "user", "content": "where?"}], "max_tokens": 3}
    code, body = node.ask("POST", "/v1/chat/completions", chat)
    assert (code, json.loads(body)["model"]) == (200, served.VARIANT)
    for method, path in (("GET", "/slots"), ("POST", "/slots/0"), ("GET", "/props"), ("GET", "/v1/../slots")):
        assert node.ask(method, path)[0] == 404
    assert node.ask("POST", "/status")[0] == 405
    assert node.stop() == 0


def test_an_answer_that_ends_early_is_the_evidence_too(node: NodeProcess, one: Made, tmp_path: Path) -> None:
    """The end token is no part of an answer, in the evidence as in what the server says."""
    (tmp_path / "ending").mkdir()
    ending = served.ending(tmp_path / "ending", one)
    assert any(len(tokens) == 1 for tokens in ending.answers.values())
    node.shop = served.shop(tmp_path / "another")
    node.shop.publish(1, ending)
    node.start().until(lambda s: s.state in {State.READY, State.FAILED})
    assert node.status().state is State.READY, node.status().reason


def test_nobody_goes_around_the_node(node: NodeProcess) -> None:
    """llama-server answers no one on this machine but the node."""
    node.start().until_serving(1)
    (pid,) = node.servers
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    port = int(command[command.index("--port") + 1])
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/completion", b'{"prompt": "a", "n_predict": 1}')
    assert connection.getresponse().status == 401
    connection.close()


def test_a_new_release_takes_over_without_a_gap(node: NodeProcess, shop: Shop, two: Made) -> None:
    """The new one is proven beside the old one, takes the next request, and the old one finishes what it began."""
    node.start().until_serving(1)
    before = node.complete()
    (old,) = node.servers
    stream = Stream(node)
    os.kill(old, signal.SIGSTOP)  # in the middle of its answer
    shop.publish(2, two)
    status = node.until_serving(2)
    assert status.reason is None
    assert node.complete() != before
    assert nodes.alive(old)
    os.kill(old, signal.SIGCONT)
    assert '"stop":true' in stream.rest()
    nodes.gone(old)
    stored(node, 2)


def test_an_update_fetches_what_changed(node: NodeProcess, shop: Shop, one: Made, tmp_path: Path) -> None:
    """A release whose model says another thing of itself, and has the same weights, costs its header and an index."""
    node.start().until_serving(1)
    whole, before = node.metric("edge_node_fetched_bytes_total"), node.complete()
    renamed = tmp_path / "renamed.gguf"
    llama.quantize(one.gguf, renamed, Recipe(base="F32", imatrix=False), None, 1, metadata={"general.version": "2"})
    shop.publish(2, replace(one, gguf=renamed))
    node.until_serving(2)
    assert node.complete() == before
    assert node.metric("edge_node_release_version") == 2
    fetched, reused = (node.metric(f"edge_node_{kind}_bytes_total") for kind in ("fetched", "reused"))
    assert whole is not None
    assert fetched is not None
    assert reused is not None
    assert whole > one.gguf.stat().st_size
    assert fetched - whole < 0.1 * one.gguf.stat().st_size
    assert reused > 0.9 * one.gguf.stat().st_size
    assert f"brought {served.VARIANT} of release 2: " in node.log


def test_a_server_that_dies_is_started_again(node: NodeProcess) -> None:
    """After kill -9 of llama-server the node says so, starts another one, and answers as before."""
    node.start().until_serving(1)
    before, kills = node.complete(), 1
    while not _killed_in_an_answer(node):  # the server may be done with it, and the rest be on its way to the node
        kills += 1
        assert kills < 10, "half an answer is taken for a whole one"
    assert node.complete() == before
    assert node.metric("edge_node_restarts_total") == kills


def _killed_in_an_answer(node: NodeProcess) -> bool:
    """Kill the server while it answers, wait for the next one, and return whether the answer was broken off."""
    (old,) = node.servers
    stream = Stream(node)
    os.kill(old, signal.SIGKILL)
    try:
        stream.rest()
        broken = False
    except http.client.HTTPException:
        broken = True
    node.until_replaced(old)
    return broken


def test_a_server_that_is_frozen_is_replaced(node: NodeProcess) -> None:
    """A server that keeps silent is ended and another one started."""
    node.start().until_serving(1)
    (old,) = node.servers
    os.kill(old, signal.SIGSTOP)
    node.until_replaced(old)
    assert not nodes.alive(old)
    assert node.complete()


def test_a_killed_node_leaves_nothing_and_runs_from_its_disk(node: NodeProcess, shop: Shop) -> None:
    """After kill -9 of the node no llama-server is left; without a registry it serves what is on its disk, verified."""
    stored(node.start(), 1)
    before = node.complete()
    (old,) = node.servers
    node.kill()
    nodes.gone(old)
    take_away(shop)
    node.start()
    status = node.until(lambda s: s.state is State.READY and s.reason is not None)
    assert "no channel" in str(status.reason)
    assert node.complete() == before


def test_power_loss_in_the_middle_of_an_update(node: NodeProcess, shop: Shop, two: Made) -> None:
    """A node killed while the new release is being proven comes back with the old one, and updates then."""
    stored(node.start(), 1)
    (old,) = node.servers
    shop.publish(2, two)
    node.until(lambda _: [pid for pid in node.servers if pid != old] != [])
    node.kill()
    assert current(node) in {"1", "2"}
    saved = take_away(shop)
    node.start().until(lambda s: s.state is State.READY)
    saved.rename(shop.registry)
    node.until_serving(2)


def test_a_release_that_answers_otherwise_is_refused(node: NodeProcess, shop: Shop, one: Made, two: Made) -> None:
    """The node stays on the old release, says why, keeps it over a restart without a registry, and takes the next."""
    node.start().until_serving(1)
    shop.publish(2, two, answers=one.answers)
    status = node.until(lambda s: "release 2 is refused" in str(s.reason))
    assert (status.state, status.served and status.served.release_version) == (State.READY, 1)
    assert "evidence says" in str(status.reason)
    assert node.metric("edge_node_refused_releases_total") == 1
    assert node.metric("edge_node_behind") == 1
    stored(node, 1)
    node.kill()
    saved = take_away(shop)
    node.start().until_serving(1)
    saved.rename(shop.registry)
    shop.publish(3, two)
    assert node.until_serving(3).reason is None


def test_a_first_release_that_answers_otherwise_is_never_served(
    node: NodeProcess, tmp_path: Path, one: Made, two: Made
) -> None:
    """Without an older release there is no traffic: the node has failed, and says why."""
    node.shop = served.shop(tmp_path / "bad")
    node.shop.publish(1, two, answers=one.answers)
    node.start()
    status = node.until(lambda s: s.state is State.FAILED)
    assert "evidence says" in str(status.reason)
    assert status.served is None
    assert node.ask("GET", "/readyz")[0] == 503
    assert node.ask("POST", "/completion", {"prompt": "a"})[0] == 503
    assert not (node.root / "home/model/current").exists()


def test_a_release_that_does_not_start_is_refused(node: NodeProcess, shop: Shop, two: Made) -> None:
    """Programs that end at once are tried a few times, then the release is refused."""
    node.start().until_serving(1)
    shop.publish(2, two, server=b"#!/bin/sh\necho no such luck\nexit 3\n")
    status = node.until(lambda s: "it does not start" in str(s.reason))
    assert "ended with status 3: no such luck" in str(status.reason)
    assert status.served is not None
    assert status.served.release_version == 1


def test_a_release_that_was_tampered_with_is_refused(node: NodeProcess, shop: Shop, two: Made) -> None:
    """Bytes in the registry that were not signed are never started."""
    node.start().until_serving(1)
    blobs = {path: path.read_bytes() for path in (shop.registry / "blobs/sha256").iterdir()}
    shop.publish(2, two)
    for path in set((shop.registry / "blobs/sha256").iterdir()) - set(blobs):
        replace_file(path, flipped(path.read_bytes()))
    status = node.until(lambda s: s.reason is not None)
    assert (status.state, status.served and status.served.release_version) == (State.READY, 1)
    assert node.complete()


def test_a_disk_copy_that_was_changed_is_mended_or_not_served(node: NodeProcess, shop: Shop) -> None:
    """With a registry the changed file is fetched again; without one the node serves nothing, and says why."""
    stored(node.start(), 1)
    node.stop()
    weights = node.root / "home/model/current/model.gguf"
    replace_file(weights, flipped(weights.read_bytes()))
    saved = take_away(shop)
    node.start()
    status = node.until(lambda s: s.state is State.FAILED)
    assert "not the file that was signed" in str(status.reason)
    assert node.servers == []
    saved.rename(shop.registry)
    node.until(lambda s: s.state is State.READY and s.reason is None)


def test_a_channel_that_goes_back_is_followed(node: NodeProcess, shop: Shop, one: Made, two: Made) -> None:
    """A signed rollback is followed, and the older release is then what the disk leads to."""
    shop.publish(2, two)
    node.start().until_serving(2)
    rollback(
        FolderStore(shop.registry), line=LINE, channel=Channel.DEV, signer=shop.publisher.sign,
        opener=shop.publisher.opener, now=pki.now(),
    )  # fmt: skip
    stored(node, 1)
    node.kill()
    take_away(shop)
    node.start().until_serving(1)


def test_a_client_that_hangs_up_frees_its_slot(node: NodeProcess) -> None:
    """An answer that nobody reads any more is not decoded to its end."""
    node.start().until_serving(1)
    (server,) = node.servers
    stream = Stream(node)
    os.kill(server, signal.SIGSTOP)
    assert node.status().busy == 1
    stream.hang_up()
    node.until(lambda s: s.busy == 0)
    os.kill(server, signal.SIGCONT)
    node.until(lambda _: node.metric("edge_node_engine_processing") == 0)


def test_only_gateways_and_controllers_may_call(node: NodeProcess, tmp_path: Path) -> None:
    """With --tls a node speaks mutual TLS, checks roles, and takes a new certificate without a restart."""
    authority = pki.authority()
    own = pki.folder(tmp_path / "own", authority, Role.NODE)
    context = tls.client_context(pki.folder(tmp_path / "gateway", authority, Role.GATEWAY), [Role.NODE])
    node.context = context
    node.start("--tls", str(own), "--host", "127.0.0.1").until_serving(1)
    assert node.complete()
    before = serial(node, context)
    node.context = tls.client_context(pki.folder(tmp_path / "client", authority, Role.CLIENT), [Role.NODE])
    with pytest.raises((OSError, http.client.HTTPException)):
        node.ask("GET", "/status")
    node.context = None
    with pytest.raises((OSError, http.client.HTTPException)):
        node.ask("GET", "/status")
    node.context = context
    (own / tls.CERT_FILE).write_bytes(b"garbage")
    node.until(lambda _: "new certificate refused" in node.log)
    assert serial(node, context) == before
    pki.folder(own, authority, Role.NODE)
    node.until(lambda _: serial(node, context) != before)
    assert node.complete()


def serial(node: NodeProcess, context: ssl.SSLContext) -> object:
    with (
        socket.create_connection(("127.0.0.1", node.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return (connection.getpeercert() or {})["serialNumber"]


def test_a_release_past_its_time_is_served_no_longer(node: NodeProcess, tmp_path: Path, one: Made, two: Made) -> None:
    """When the release expires the node gives it no further requests; a newer one is taken."""
    node.shop = served.shop(tmp_path / "short")
    node.shop.publish(1, one, valid=timedelta(seconds=15))
    node.start()
    status = node.until(lambda s: s.state is State.FAILED)
    assert "expired" in str(status.reason)
    assert node.ask("POST", "/completion", {"prompt": "a"})[0] == 503
    node.shop.publish(2, two)
    assert node.until_serving(2).reason is None


def test_a_port_that_is_taken_is_told_of(node: NodeProcess) -> None:
    """Another program on the port ends the node before it starts anything."""
    with socket.create_server(("127.0.0.1", node.port)):
        process = node.start().process
        assert process is not None
        assert process.wait(nodes.PATIENCE) == 4
    assert f"cannot listen on 127.0.0.1:{node.port}: Address already in use" in node.log


def test_a_node_does_not_open_itself_by_accident(node: NodeProcess) -> None:
    """Without certificates it listens on loopback, unless --insecure says otherwise."""
    process = node.start("--host", "0.0.0.0").process
    assert process is not None
    assert process.wait(nodes.PATIENCE) == 2
    assert "--insecure" in node.log


def test_a_disk_that_is_full_changes_nothing(node: NodeProcess, shop: Shop, two: Made) -> None:
    """What cannot be written is told of; the old release goes on."""
    node.start().until_serving(1)
    versions = node.root / "home/model/versions"
    shutil.rmtree(node.root / "home/model/.partial", ignore_errors=True)
    (node.root / "home/model/.partial").write_text("in the way")
    shop.publish(2, two)
    status = node.until(lambda s: s.reason is not None)
    assert status.state is State.READY
    assert [path.name for path in versions.iterdir() if not path.name.startswith(".")] == ["1"]
    (node.root / "home/model/.partial").unlink()
    assert node.until_serving(2).reason is None
