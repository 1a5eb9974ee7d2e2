"""`edge-release lab` as a user runs it, briefly: every step, its files, and what it says to programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import built, nodes, served
from tests.support.served import Shop

pytestmark = [pytest.mark.skipif(bool(built.missing()), reason=built.missing()), pytest.mark.timeout(900)]
LOADS = ["all is well", "killed node", "frozen node", "killed core", "tuned"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A registry with one release."""
    folder = tmp_path_factory.mktemp("lab")
    shop = served.shop(folder / "shop")
    shop.publish(1, served.teacher(folder / "small"), large=served.teacher_large(folder / "large"))
    return shop


def _argv(shop: Shop, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "pipeline.cli", "lab", "--registry", str(shop.registry), "--trust", str(shop.trust),
        "--rate", "8", "--seconds", "15", "--out", str(out), "--json",
    ]  # fmt: skip


def test_it_measures_breaks_tunes_and_reports(shop: Shop, tmp_path: Path) -> None:
    """No request fails, the tuned policy is in force, the controller's log replays, the report is one page."""
    out, env = tmp_path / "out", {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(_argv(shop, out), cwd=nodes.ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert (found["failed"], [load["name"] for load in found["loads"]]) == (0, LOADS)
    assert [load["requests"] for load in found["loads"]] == [8 * 15] * len(LOADS)
    assert all(load["times_ms"]["all"]["answers"] == load["requests"] for load in found["loads"])
    assert len((out / "journal.jsonl").read_text().splitlines()) >= 8 * 15 * len(LOADS)
    assert found["loads"][3]["reasons"].get("edge: degraded", 0) > 0
    assert {step["name"] for step in found["steps"]} >= {"take inventory", "verify the release"}
    assert found["tuned"]["tried"] > 0
    page = (out / "lab.html").read_text()
    assert "No request failed" in page
    assert "<script" not in page
    assert (out / "policy.yaml").exists()
    replayed = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "controller", "replay", str(out / "controller/decisions.jsonl")],
        cwd=nodes.ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert replayed.returncode == 0, replayed.stdout
    assert not list(tmp_path.glob("edge-release-lab-*"))


def test_ctrl_c_leaves_nothing_running(shop: Shop, tmp_path: Path) -> None:
    """In the middle of a start: status 130, no traceback, no process, no folder."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        _argv(shop, tmp_path / "out"), cwd=nodes.ROOT, env=env, stderr=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stderr is not None
        said = [next(line for line in lab.stderr if "serves" in line)]
        started = psutil.Process(lab.pid).children(recursive=True)
        lab.send_signal(signal.SIGINT)
        said += lab.stderr
    assert lab.returncode == 130, said
    assert "Traceback" not in "".join(said)
    assert len(started) > 4
    assert not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.glob("edge-release-lab-*"))


@pytest.mark.parametrize("given", [["--seconds", "1"], ["--rate", "0"], ["--seconds", "20", "--rate", "4"]])
def test_too_little_to_measure_is_refused(tmp_path: Path, given: list[str]) -> None:
    """Nothing is started for it."""
    argv = [sys.executable, "-m", "pipeline.cli", "lab", *given, "--out", str(tmp_path / "out")]
    done = subprocess.run(argv, cwd=nodes.ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "too little to measure" in done.stderr
    assert not (tmp_path / "out").exists()
