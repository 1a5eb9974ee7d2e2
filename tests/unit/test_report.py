"""The report as figures: what is shown of a release, of mere evidence, and of what changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.catalog.names import VARIANTS, Channel, RunnerClass, Target, Tier, Variant
from pipeline.errors import StageError
from pipeline.manifest.evidence import File
from pipeline.manifest.gate import Proof, gate
from pipeline.manifest.statement import Attestation, Row, Verdict
from pipeline.report import changes, durations, text
from pipeline.report.layout import Box, Cell, Section, Span, Table, Tone
from pipeline.report.model import Report, make
from pipeline.report.shown import heading, quality, sections
from pipeline.report.subject import Before, Origin, of_evidence
from pipeline.stages.tuned import judged
from tests.support import reports
from tests.support.evidence import PARAMS, check, evidence, host_checks, measurement
from tests.support.reports import EMULATED, HOST, NVLINK, PI5, RISCV

FIRST, ARM = VARIANTS[0], "tiny-edge-arm64"
ROWS = ("time_to_first_token", "time_per_output_token", "inference")


@pytest.fixture(scope="module")
def full() -> Report:
    """The report of a second release that has everything."""
    return make(reports.material())


def _sections(report: Report) -> dict[str, Section]:
    return {section.key: section for section in sections(report)}


def _table(report: Report, section: str, caption: str) -> Table:
    return next(t for t in _sections(report)[section].tables if t.caption == caption)


def _line(table: Table, *first: str) -> dict[str, Cell]:
    """Return the row that begins with these cells, by its columns."""
    row = next(r for r in table.rows if tuple(c.text for c in r[: len(first)]) == first)
    return {column.name: cell for column, cell in zip(table.columns, row, strict=True)}


def test_a_release_has_every_section(full: Report) -> None:
    """Nothing of what a report promises is left out where there is evidence of it, and keys are unique."""
    keys = [section.key for section in sections(full)]
    assert keys == [
        "gate", "variants", "changes", "quality", "recipes", "latency", "instructions", "bound", "cost", "determinism", "contents",
    ]  # fmt: skip


def test_a_first_release_has_nothing_to_compare_with() -> None:
    """Without a previous release the page says so, and figures have no ticks."""
    found = make(reports.material(reports.manifest(1), before=None))
    assert found.changes is None
    assert _sections(found)["changes"].says == ("There is no earlier release to compare with.",)
    assert {f.name: f.value for f in heading.facts(found)}["gate compared with"] == "no earlier release"
    assert not any("Tick" in chart.legend for s in sections(found) for chart in s.charts)


@pytest.mark.parametrize(
    ("variant", "runner", "word", "note", "tone"),
    [
        pytest.param("tiny-edge-arm64", PI5, "checked", "", Tone.GOOD, id="checked"),
        pytest.param("mid-tier-arm64", PI5, "throttled", "soft temperature limit", Tone.WEAK, id="throttled"),
        pytest.param("large-x86_64", NVLINK, "stand-in", reports.STAND_IN, Tone.WEAK, id="stand-in"),
        pytest.param("large-arm64", NVLINK, "missing", "no GPU in this machine", Tone.WEAK, id="missing"),
        pytest.param(
            "tiny-edge-riscv64", RISCV, "missing", "no board of this class is attached", Tone.WEAK, id="board"
        ),
        pytest.param("tiny-edge-x86_64", EMULATED, text.NONE, "", Tone.PLAIN, id="not asked"),
    ],
)
def test_evidence_is_marked_as_what_it_is(
    full: Report, variant: str, runner: RunnerClass, word: str, note: str, tone: Tone
) -> None:
    """A proof, a stand-in, a throttled run and a missing check are told apart in words."""
    cell = _line(_table(full, "variants", "Evidence by runner class"), variant)[runner]
    assert (cell.text, cell.note, cell.tone) == (word, note, tone)


def test_a_previous_release_that_is_not_at_hand_is_named() -> None:
    """The page does not claim that there was none."""
    found = make(reports.material(before=None))
    assert _sections(found)["changes"].says == ("Release 1 is not at hand.",)


def test_a_long_list_of_modified_files_is_cut_and_counted() -> None:
    """A commit with many changes on top does not push the verdict off the page."""
    found = reports.manifest(1)
    source = found.predicate.source.model_copy(update={"modified": [f"f{n}" for n in range(20)]})
    facts = {f.name: f.value for f in heading.facts(make(reports.material(reports.changed(found, source=source))))}
    assert facts["modified since"].endswith("f11, and 8 more")


def test_unrepeatable_evidence_is_marked() -> None:
    """Two runs with different tokens are no proof, whatever else they found."""
    manifest = reports.manifest(1)
    first = manifest.predicate.variants[0]
    broken = first.model_copy(update={"evidence": [first.evidence[0].model_copy(update={"deterministic": False})]})
    other = reports.changed(manifest, variants=[broken, *manifest.predicate.variants[1:]])
    cell = _line(_table(make(reports.material(other)), "variants", "Evidence by runner class"), first.name)[HOST]
    assert (cell.text, cell.tone) == ("not repeatable", Tone.BAD)


def test_signed_evidence_is_marked() -> None:
    """A check that carries its maker's signature says so."""
    manifest = reports.manifest(1)
    first = manifest.predicate.variants[0]
    signed = first.model_copy(update={"attestations": [Attestation(runner=HOST, bundle={})]})
    other = reports.changed(manifest, variants=[signed, *manifest.predicate.variants[1:]])
    line = _line(_table(make(reports.material(other)), "variants", "Evidence by runner class"), first.name)
    assert (line[HOST].note, line[EMULATED].note) == ("signed", "")


def test_each_channel_says_what_it_lacks(full: Report) -> None:
    """A stand-in, a throttled board and a missing GPU keep a release from `stable`, by the gate's own rule."""
    assert full.subject.verdict.channels == [Channel.DEV, Channel.CANARY]
    stable = next(s for s in full.channels if s.channel is Channel.STABLE)
    assert {lack.classes: lack.variants for lack in stable.lacks} == {
        (PI5,): ("mid-tier-arm64",),
        (NVLINK,): ("large-arm64", "large-riscv64", "large-x86_64"),
    }


def test_a_policy_that_is_not_here_lists_open_channels_alone() -> None:
    """Outside the publisher's project only what the gate opened is known."""
    found = make(reports.material(params=None))
    assert [(s.channel, s.open) for s in found.channels] == [(Channel.DEV, True), (Channel.CANARY, True)]
    assert "bound" not in _sections(found)


def _row(**update: Any) -> Row:
    fields: dict[str, Any] = {
        "variant": FIRST.name, "runner": HOST, "machine": "a", "exact_match": 0.9, "mean_kl": 0.01, "p99_kl": 0.1,
        "perplexity_ratio": 1.01, "bytes": 1000, "ttft_p95_ms": 5.0, "cost_per_1k_usd": 0.1, "format": "Q4_0",
        "instructions_per_token": 1e6,
    }  # fmt: skip
    return Row(**{**fields, **update})


def _compared(now: Row, last: Row) -> changes.Changes:
    return changes.compare([now], None, Before(1, [last]))


@pytest.mark.parametrize(
    ("update", "figure", "better"),
    [
        pytest.param({"bytes": 900}, "bytes", True, id="smaller"),
        pytest.param({"bytes": 1100}, "bytes", False, id="larger"),
        pytest.param({"exact_match": 0.95}, "exact match", True, id="more right answers"),
        pytest.param({"exact_match": 0.85}, "exact match", False, id="fewer right answers"),
        pytest.param({"mean_kl": 0.02}, "mean KL", False, id="further from the reference"),
        pytest.param({"instructions_per_token": 2e6}, "instructions per token", False, id="more work"),
        pytest.param({"cost_per_1k_usd": 0.01}, "1,000 inferences", True, id="cheaper"),
    ],
)
def test_a_figure_that_moved_is_judged(update: dict[str, Any], figure: str, better: bool) -> None:
    """Each figure knows whether more of it is better; the others count as equal."""
    found = _compared(_row(**update), _row())
    (change,) = found.figures
    assert (change.figure.name, change.better) == (figure, better)
    assert change.variant == FIRST.name


@pytest.mark.parametrize(
    ("update", "silent", "says"),
    [
        pytest.param({"machine": "b", "ttft_p95_ms": 9.0}, True, "measured on b, before on a", id="another machine"),
        pytest.param({"stand_in": "x", "ttft_p95_ms": 9.0}, True, "class's own hardware", id="a stand-in"),
        pytest.param(
            {"format": "Q8_0", "instructions_per_token": 9e6}, True, "its format is Q8_0", id="another format"
        ),
        pytest.param({"mean_kl": 0.01 + 9e-5}, True, "", id="a difference of rounding"),
        pytest.param({"ttft_p95_ms": None, "cost_per_1k_usd": None}, True, "", id="no longer measured"),
        pytest.param({"machine": "b", "bytes": 900}, False, "measured on b", id="size on another machine"),
    ],
)
def test_what_cannot_be_compared_is_said(update: dict[str, Any], silent: bool, says: str) -> None:
    """Figures are compared under the gate's conditions, and the reason stands there where they are not."""
    found = _compared(_row(**update), _row())
    assert (not found.figures) == silent
    assert says in " ".join(found.apart)
    assert bool(found.apart) == bool(says)


def test_checks_that_came_and_went_are_named() -> None:
    """A runner class more or less is a change of its own."""
    now, last = [_row(), _row(runner=PI5)], [_row(), _row(runner=EMULATED)]
    found = changes.compare(now, None, Before(1, last))
    assert found.checks == (
        f"{FIRST} is checked on pi5, and was not before",
        f"{FIRST} is no longer checked on emulated",
    )


def test_a_size_is_compared_once_however_often_it_was_checked() -> None:
    """Figures of the files do not depend on the runner class; those of a run do."""
    now = [_row(bytes=900, exact_match=1.0), _row(bytes=900, exact_match=1.0, runner=PI5)]
    found = changes.compare(now, None, Before(1, [_row(), _row(runner=PI5)]))
    assert [(c.figure.name, c.runner) for c in found.figures] == [
        ("bytes", None), ("exact match", HOST), ("exact match", PI5),
    ]  # fmt: skip


def test_files_are_added_removed_and_changed() -> None:
    """Files are compared by their whole entry; equal ones are counted."""
    a, b = (File(name="x", size=1, sha256=digit * 64) for digit in "ab")
    found = changes.compare(
        [], {"v/new": a, "v/other": b, "v/same": a}, Before(1, [], {"v/old": a, "v/other": a, "v/same": a})
    )
    assert found.files is not None
    assert [(f.name, f.kind) for f in found.files] == [("v/new", "added"), ("v/old", "removed"), ("v/other", "changed")]
    assert found.same_files == 1


def test_changes_are_shown_with_before_and_now(full: Report) -> None:
    """Variants that moved alike share a line; a figure stands with what it was, by how much, and whether for the better."""
    line = _line(_table(full, "changes", "Size"), "tiny-edge-riscv64, tiny-edge-x86_64")
    assert line["bytes"] == Cell("749,000", note="was 793,940: -5.7%, better", tone=Tone.GOOD)


def test_clock_noise_is_not_called_better_or_worse(full: Report) -> None:
    """A tenth is noise of a shared machine, a half is not."""
    table = _table(full, "changes", "Time and cost")
    quiet = _line(table, "tiny-edge-arm64", "host")["per token p50"]
    slower = _line(table, "mid-tier-x86_64", "host")["per token p50"]
    assert (quiet.tone, slower.tone) == (Tone.PLAIN, Tone.BAD)
    assert slower.note.endswith("worse")


def test_the_bound_is_called_an_estimate_beside_what_was_measured(full: Report) -> None:
    """Bytes a second over bytes a token, with its source; a measurement stands in a column of its own."""
    bound = full.bounds[0]
    roofline = PARAMS.rooflines[Target.ARM64]
    assert bound.tokens_per_second == roofline.bytes_per_second / bound.bytes_per_token
    section = _sections(full)["bound"]
    assert "estimate" in section.title
    assert section.says[0].startswith("Not measured.")
    assert roofline.source in section.items[0]
    line = _line(section.tables[0], "tiny-edge-arm64")
    assert line["at most (estimate)"].text.startswith("≤ ")
    assert float(line["measured"].text.replace(",", "")) == pytest.approx(bound.measured, rel=0.01)


def test_a_bound_is_not_measured_by_another_machine() -> None:
    """What a host or an emulator did says nothing of the board."""
    arm = Variant(Tier.TINY_EDGE, Target.ARM64)
    proof = Proof([check(evidence(arm), measurement(arm))])
    found = make(reports.Material(_evidence_of(proof), params=PARAMS))
    assert [(b.variant, b.measured) for b in found.bounds] == [(arm.name, None)]
    assert (
        _line(_table(found, "bound", _sections(found)["bound"].tables[0].caption), arm.name)["measured"].text
        == "not measured"
    )


def test_prices_are_cited_only_where_they_give_the_gates_cost(full: Report) -> None:
    """Under other prices than those the release was judged by, a source would be a false one."""
    assert {p.runner: p.cost for p in full.prices} == {r: PARAMS.costs[r] for r in (HOST, NVLINK, PI5)}
    dearer = PARAMS.costs[HOST].model_copy(update={"device_usd": 2000})
    other = make(reports.material(params=PARAMS.model_copy(update={"costs": {**PARAMS.costs, HOST: dearer}})))
    assert next(p for p in other.prices if p.runner is HOST).cost is None
    assert next(p for p in other.prices if p.runner is PI5).cost == PARAMS.costs[PI5]


def test_energy_is_measured_or_said_to_be_assumed(full: Report) -> None:
    """Joules that the board told stand as measured; elsewhere they follow from watts."""
    table = _table(full, "cost", "Cost of 1,000 inferences")
    assert _line(table, "tiny-edge-arm64", "pi5")["energy"].text == "measured: 0.0310 J"
    assert _line(table, "tiny-edge-arm64", "host")["energy"].text == "assumed from watts"


def test_distributions_are_drawn_where_they_are_the_measurements_own() -> None:
    """Durations of another run are left out: the measurement's p50 and p95 are drawn instead."""
    ours = make(reports.material())
    other = make(reports.material(durations=reports.clocked(reports.manifest(1))))
    for report, kind in ((ours, Box), (other, Span)):
        chart = _sections(report)["latency"].charts[0]
        assert {type(line.marks[0]) for line in chart.lines} == {kind}


def test_instructions_are_compared_within_one_format(full: Report) -> None:
    """The table has what the previous release needed, unless its format was another."""
    caption = "Instructions and bytes per token"
    assert _line(_table(full, "instructions", caption), "tiny-edge-arm64")["before"].text == "2.213 M"
    last = reports.manifest(1)
    rows = [row.model_copy(update={"format": "Q8_0"}) for row in last.predicate.gate.rows]
    other = make(reports.material(before=Before(1, rows)))
    assert _line(_table(other, "instructions", caption), "tiny-edge-arm64")["before"].text == text.NONE


def test_certificates_say_where_targets_differ_or_are_missing(full: Report) -> None:
    """Equal tokens, a near tie and a missing emulator each stand in a line of their target."""
    rows = _table(full, "determinism", "Certificates").rows
    words = {(row[2].text, row[5].text, row[8].text) for row in rows}
    assert words == {
        ("arm64", "equal", "yes"),
        ("riscv64", "equal", "yes"),
        ("riscv64", "1 difference", "yes"),
        ("riscv64", text.NONE, "missing"),
    }
    assert "3 of 4 certificates hold" in _sections(full)["determinism"].says[0]


def test_what_tuning_is_worth_is_shown_whether_it_pays_or_not() -> None:
    """Each family that was asked for has a row with its interval; without any there is no such table."""
    caption = "Recipes tuned to a prompt family, on examples that the tuning did not see"
    assert caption not in {t.caption for t in _sections(make(reports.material()))["recipes"].tables}
    verdicts = [judged("lookup", [(1.2, 1.0)] * 16, 100), judged("summary", [(0.5, 1.0)] * 16, 100)]
    found = reports.manifest()
    entries = [
        v.model_copy(update={"search": v.search.model_copy(update={"tuned": verdicts})}) if v.search else v
        for v in found.predicate.variants
    ]
    shown = make(reports.material(reports.changed(found, variants=entries)))
    table = _table(shown, "recipes", caption)
    assert _line(table, ARM, "lookup")["pays"].text == "no, it is not built"
    assert _line(table, ARM, "summary")["pays"].text == "yes, it is released"
    assert _line(table, ARM, "summary")["ratio"].note == "0.500 to 0.500"


def test_a_tuned_variant_stands_beside_its_kin() -> None:
    """The page calls it by its name, in the rows of its kin, and says what it is judged by."""
    found = reports.manifest()
    kin = next(v for v in found.predicate.variants if v.name == ARM)
    own = kin.model_copy(
        update={
            "name": f"{ARM}+lookup",
            "family": "lookup",
            "evidence": [e.model_copy(update={"variant": f"{ARM}+lookup"}) for e in kin.evidence],
            "measurements": [m.model_copy(update={"variant": f"{ARM}+lookup"}) for m in kin.measurements],
        }
    )
    shown = make(reports.material(reports.changed(found, variants=[kin, own]), durations={}))
    table = _table(shown, "variants", "What was made")
    assert [row[0].text for row in table.rows] == [ARM, f"{ARM}+lookup"]
    assert quality.TUNED in _sections(shown)["quality"].says
    assert quality.TUNED not in _sections(make(reports.material()))["quality"].says


def _evidence_of(proof: Proof, verdict: Verdict | None = None) -> Any:
    return of_evidence(
        proof,
        [],
        verdict or gate(proof, PARAMS, None, None),
        line="edge-demo",
        version=3,
        tag="v3",
        origin=Origin(commit="0" * 40),
        recipes={v: {"base": "Q4_0"} for v in VARIANTS},
        models={},
        searches={},
    )


def test_a_refused_release_is_reported_from_its_evidence() -> None:
    """Without a manifest the reasons come first, then what the checks found; what is not known is a dash."""
    checks = [check(evidence(FIRST, exact_match=0.1), measurement(FIRST)), *host_checks()[1:-1]]
    found = make(reports.Material(_evidence_of(Proof(checks, objections=["pi5: not signed"])), params=PARAMS))
    assert heading.outcome(found) == "Refused: 3 reasons"
    items = _sections(found)["gate"].items
    assert items[:2] == ("pi5: not signed", f"{VARIANTS[-1]}: there is no evidence")
    assert f"{FIRST} on host: exact match is 0.1, below 0.9" in items
    assert "There is no manifest" in _sections(found)["gate"].says[0]
    assert _line(_table(found, "variants", "What was made"), FIRST.name)["parameters"].text == text.NONE
    assert _line(_table(found, "variants", "Evidence by runner class"), VARIANTS[-1].name)[HOST].text == text.NONE


def test_evidence_without_a_release_has_no_files_to_compare() -> None:
    """A refused release's figures are compared with the previous one's, its files are not."""
    proof = Proof(host_checks())
    last = gate(proof, PARAMS, None, None)
    found = make(reports.Material(_evidence_of(proof, last), before=Before(1, last.rows, {}), params=PARAMS))
    assert found.changes is not None
    assert found.changes.files is None


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(None, text.NONE, id="unknown"),
        pytest.param(0, "0", id="zero"),
        pytest.param(0.0190617, "0.0191", id="small"),
        pytest.param(1.35227e-05, "1.35e-5", id="tiny"),
        pytest.param(30745.2, "30,745", id="thousands"),
        pytest.param(9.996, "10.00", id="rounded up"),
        pytest.param(-0.5, "-0.500", id="negative"),
        pytest.param(2.5e12, "2.50e12", id="huge"),
    ],
)
def test_numbers_are_written_with_three_digits(value: float | None, written: str) -> None:
    """Three significant digits, an exponent at the ends, and a dash for what is not known."""
    assert text.number(value) == written


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (None, text.NONE), (0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (643_008, "643 kB"),
        (26_000_000_000, "26.0 GB"),
    ],
)  # fmt: skip
def test_sizes_have_a_unit(count: int | None, written: str) -> None:
    """Bytes are written in the decimal unit that suits them."""
    assert text.size(count) == written


@pytest.mark.parametrize(
    ("before", "now", "written"),
    [(2.0, 2.0, "equal"), (2.0, 1.0, "-50.0%"), (0.0, 0.5, "+0.5"), (1.0, 20.0, "20.0 times")],
)
def test_changes_are_written_as_shares(before: float, now: float, written: str) -> None:
    """A change is a share of what was; from zero it is the amount, beyond tenfold a factor."""
    assert text.change(before, now) == written


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[]", id="not an object"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(json.dumps({"durations_ns": {"inference": [1]}}).encode(), id="rows missing"),
        pytest.param(json.dumps({"durations_ns": {name: [] for name in ROWS}}).encode(), id="empty rows"),
    ],
)
def test_durations_of_no_check_are_an_error(data: bytes) -> None:
    """A file that no check wrote is named, with what to do."""
    with pytest.raises(StageError, match=r"somewhere\.json is not what a check writes"):
        durations.parse(data, "somewhere.json")


def test_both_kinds_of_durations_are_read() -> None:
    """pytest-benchmark's seconds and a board's bare nanoseconds give the same milliseconds."""
    rows = dict(zip(ROWS, ([2], [1, 3], [5]), strict=True))
    bare = {"durations_ns": {name: [ms * 1_000_000 for ms in row] for name, row in rows.items()}}
    replayed = {
        "benchmarks": [
            {"name": "x", "params": {"name": name}, "stats": {"data": [ms / 1e3 for ms in row]}}
            for name, row in rows.items()
        ]
    }
    found = [durations.parse(json.dumps(d).encode(), "x") for d in (bare, replayed)]
    for one in found:
        assert one.per_token_ms == pytest.approx((1.0, 3.0))
        assert one.inference_ms == pytest.approx((5.0,))
