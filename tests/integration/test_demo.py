"""`edge-release demo` as a user runs it: what it shows, how it ends, and that nothing is left of it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import built, nodes, served
from tests.support.served import Made, MadeLarge, Shop

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]
ROUTED = {
    "a short prompt": ("edge", "affinity"),
    "the same, streamed": ("edge", "affinity"),
    "another session": ("edge", "affinity"),
    "sensitive": ("edge", "sensitive"),
    "model: mid": ("nvlink", "not_loaded"),
    "model: large": ("nvlink", "hint"),
    "priority: batch": ("nvlink", "batch"),
    "a long prompt": ("nvlink", "long_prompt"),
    "deadline_ms: 1": ("-", "deadline"),
}


Models = tuple[Made, MadeLarge]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("teacher")
    return served.teacher(root / "small"), served.teacher_large(root / "large")


@pytest.fixture(scope="module")
def shop(teacher: Models, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made, (small, large) = served.shop(tmp_path_factory.mktemp("shop")), teacher
    made.publish(1, small, large=large)
    return made


class Demo:
    """A demo for a registry, with folders of its own for what is temporary and for what is a user's."""

    def __init__(self, shop: Shop, root: Path) -> None:
        self.temporary, self.home = root / "tmp", root / "home"
        self.out, self.err = root / "out", root / "err"
        for folder in (self.temporary, self.home):
            folder.mkdir()
        self.argv = [
            sys.executable, "-m", "pipeline.cli", "demo", "--registry", str(shop.registry), "--trust", str(shop.trust),
        ]  # fmt: skip

    def start(self, *flags: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        env = {**os.environ, "TMPDIR": str(self.temporary), "HOME": str(self.home)}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            return subprocess.Popen([*self.argv, *flags], cwd=nodes.ROOT, env=env, stdin=stdin, stdout=out, stderr=err)

    @property
    def said(self) -> str:
        return self.out.read_text()

    def until_said(self, process: subprocess.Popen[bytes], text: str) -> None:
        end = time.monotonic() + nodes.PATIENCE
        while text not in self.said:
            assert process.poll() is None, self.err.read_text()
            assert time.monotonic() < end, self.said + self.err.read_text()
            time.sleep(0.1)

    @property
    def left(self) -> list[Path]:
        """What it wrote and did not take away, but for what Python and torch cache for every program."""
        return [*self.temporary.glob("edge-release*"), *self.home.rglob("*edge-release*")]


@pytest.fixture
def demo(shop: Shop, tmp_path: Path) -> Demo:
    return Demo(shop, tmp_path)


def test_it_shows_where_requests_go_and_survives_two_kills(demo: Demo) -> None:
    """Each rule's request goes where the rule says, the broken stream is whole, the large tier is stood in for."""
    process = demo.start()
    assert process.wait(nodes.PATIENCE * 2) == 0, demo.err.read_text()
    rows = [re.split(r"  +", line) for line in demo.said.splitlines()]
    for shown, (pool, reason) in ROUTED.items():
        (row,) = [r for r in rows if r[0] == shown]
        assert (row[1], row[4]) == (pool, reason), row
    assert re.search(
        r"pi-\d was killed \(kill -9\) in the middle of a stream: pi-\d went on after \d+ pieces", demo.said
    )
    assert re.search(r"one stream of 1\d\d tokens, with the (text|answer) of", demo.said)
    assert "says that it is degraded" in demo.said
    assert demo.left == []


def test_it_stays_up_before_a_terminal_until_ctrl_c(demo: Demo) -> None:
    """The status page is there until Ctrl-C; then every process ends, and it was no failure."""
    ours, terminal = pty.openpty()
    process = demo.start(stdin=terminal)
    try:
        demo.until_said(process, "Ctrl-C ends everything")
        begun = nodes.descendants(process.pid)
        assert {"llama-server"} <= {nodes.name(pid) for pid in begun}
        process.send_signal(signal.SIGINT)
        assert process.wait(nodes.PATIENCE) == 0
        for pid in begun:
            nodes.gone(pid)
    finally:
        process.kill()
        os.close(ours)
        os.close(terminal)
    assert demo.left == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_it(demo: Demo, how: signal.Signals) -> None:
    """However it is interrupted while it starts, its processes end; unless it was killed, its folders are gone too."""
    process = demo.start()
    end = time.monotonic() + nodes.PATIENCE
    while len(begun := nodes.descendants(process.pid)) < 6:
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(how)
    assert process.wait(nodes.PATIENCE) == (-9 if how is signal.SIGKILL else 130)
    for pid in begun:
        nodes.gone(pid)
    assert how is signal.SIGKILL or demo.left == []


def test_without_a_release_it_says_how_to_make_one(tmp_path: Path, shop: Shop) -> None:
    """Nothing is started where the registry is empty."""
    empty = Shop(tmp_path / "empty", shop.publisher)
    empty.registry.mkdir(parents=True)
    demo = Demo(empty, tmp_path)
    assert demo.start().wait(nodes.PATIENCE) == 6
    assert "make release" in demo.err.read_text()
    assert demo.left == []


def test_what_fails_is_named_with_its_messages(tmp_path: Path, teacher: Models) -> None:
    """A node that refuses its release ends the demo with the reason, and the messages stay."""
    bad, (small, large) = served.shop(tmp_path / "bad"), teacher
    prompt, *_ = small.answers
    bad.publish(1, small, answers={**small.answers, prompt: [5, 6, 7]}, large=large)
    demo = Demo(bad, tmp_path)
    assert demo.start().wait(nodes.PATIENCE) == 4
    (logs,) = demo.left
    assert prompt in demo.err.read_text()
    assert str(logs) in demo.err.read_text()
    assert {"pi-1.log", "pi-2.log", "gpu-1.log", "gateway.log"} == {log.name for log in logs.iterdir()}
