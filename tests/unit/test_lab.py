"""What a lab reads off a gateway's journal, and the site it makes of it."""

from __future__ import annotations

import json
import random

import pytest

from pipeline.catalog.golden import GoldenPrompt
from pipeline.errors import StageError
from pipeline.lab import journal, measured
from pipeline.lab.driver import questions
from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool
from pipeline.serving.gateway.journal import Line

SLOTS = {Pool.EDGE: 2, Pool.NVLINK: 4}


def line(at: float, pool: Pool = Pool.EDGE, *, tokens: int = 5, ms: float = 50.0, stream: bool = False) -> str:
    """A gateway's own line."""
    reason = "tiny_edge" if pool is Pool.EDGE else "long_prompt"
    made = Line(
        "r", "chat", at=at, pool=pool, endpoint="pi-1", reason=reason, outcome="answered", status=200, stream=stream,
        prompt_tokens=9, generated=tokens, first_ms=ms / 2 if stream else None, total_ms=ms,
    )  # fmt: skip
    return made.encode().decode()


def test_a_gateways_own_lines_are_read_and_others_passed_over() -> None:
    """Requests of the time asked for; warnings and what operators did are none."""
    lines = [line(1.0), "WARNING: something", '{"admin":"commonName=ops","method":"PUT"}', line(5.0), line(9.0)]
    assert [r.at for r in journal.read(lines, 2.0, 9.0)] == [5.0]


def test_streamed_answers_count_from_their_first_token() -> None:
    """As the objectives do."""
    found = journal.read([line(1.0, stream=True, ms=90.0), line(2.0, ms=60.0)], 0, 9)
    times = journal.times(found, Pool.EDGE)
    assert times is not None
    assert (times.answers, times.p50) == (2, 52.5)
    assert {o.name: share for o, share in journal.objectives(found)}["edge_p50"] == 1.0
    assert journal.times(found, Pool.NVLINK) is None


def test_a_site_is_as_fast_as_it_was_measured() -> None:
    """Start and slope of the times are found again, although every tenth request waited for others."""
    draw = random.Random(1)
    lines = []
    for n in range(400):
        pool, (start, slope) = (Pool.NVLINK, (80, 2)) if n % 8 == 0 else (Pool.EDGE, (20, 7))
        tokens = draw.randint(2, 30)
        late = draw.expovariate(1 / 300) if n % 10 == 0 else 0.0
        ms = (start + slope * tokens) * draw.lognormvariate(0, 0.05) + late
        lines.append(line(n * 0.1, pool, tokens=tokens, ms=ms, stream=n % 2 == 0))
    found = measured.scenario(journal.read(lines, 0, 1e9), nodes=4, slots=SLOTS, policy=Policy())
    edge, core = found.speeds("edge"), found.speeds("core")
    assert edge.token_ms == pytest.approx(7, rel=0.1)
    assert edge.prompt_ms == pytest.approx(20, rel=0.25)
    assert core.token_ms == pytest.approx(2, rel=0.5)
    assert (edge.slots, core.slots, found.edge.nodes) == (2, 4, 4)
    assert found.traffic.rate == pytest.approx(10, rel=0.01)
    assert set(found.traffic.kinds) == {"short, streamed", "short, whole", "long, streamed"}
    assert edge.spread < 0.15


def test_too_few_answers_are_no_measurement() -> None:
    """The hint says what helps."""
    with pytest.raises(StageError, match="too few"):
        measured.scenario(
            journal.read([line(float(n)) for n in range(50)], 0, 99), nodes=4, slots=SLOTS, policy=Policy()
        )


def test_what_is_asked_has_every_kind_and_is_the_same_each_time() -> None:
    """Half of it streamed; long prompts exceed what the edge takes."""
    golden = [
        GoldenPrompt.model_validate_json(
            json.dumps({"id": f"g{n}", "family": "f", "prompt": f"where is {n}?", "expected": "a", "max_tokens": 4})
        )
        for n in range(40)
    ]
    asked = questions(golden)
    assert asked == questions(golden)
    assert {q["kind"] for q in asked} == {"short", "session", "sensitive", "long"}
    assert sum(bool(q["body"].get("stream")) for q in asked) == len(asked) / 2
    longest = max(len(q["body"]["messages"][0]["content"].split()) for q in asked)
    assert longest >= Policy().tiny_prompt_tokens
