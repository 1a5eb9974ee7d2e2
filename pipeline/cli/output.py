"""What users see: results on standard output, bars, notes and errors on standard error, JSON where it was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pipeline.errors import PipelineError, TrustError
from pipeline.manifest.evidence import Agreement, Certificate, Evidence
from pipeline.manifest.search import Tuned
from pipeline.manifest.statement import Manifest, Verdict


def say(text: str) -> None:
    """Print one line for the user."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print one line that is not the command's result."""
    print(text, file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """Print a JSON document."""
    print(json.dumps(value, indent=2, sort_keys=True), flush=True)


def fail(error: PipelineError, *, as_json: bool) -> int:
    """Print an error and return its exit code."""
    if as_json:
        kind = error.refusal.name if isinstance(error, TrustError) else type(error).__name__
        document = {"error": error.message, "hint": error.hint, "kind": kind, "exit_code": error.exit_code}
        print(json.dumps(document, sort_keys=True), file=sys.stderr)
    else:
        kind = f" [{error.refusal.name.lower().replace('_', '-')}]" if isinstance(error, TrustError) else ""
        print(f"edge-release: error{kind}: {error.message}\n  hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[str] | None = None) -> str:
    """Return an aligned table; the columns named by `right` are right-aligned, without it all but the first."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    aligned = [str.rjust if (i > 0 if right is None else name in right) else str.ljust for i, name in enumerate(head)]
    lines = [
        "  ".join(align(cell, w) for align, cell, w in zip(aligned, row, widths, strict=True))
        for row in [head, ["-" * w for w in widths], *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def tuned_table(found: Sequence[Tuned]) -> str:
    """Return what tuning to each prompt family is worth."""
    rows = [
        [
            t.family, str(t.examples), f"{t.general:.3g}", f"{t.own:.3g}", f"{t.ratio:.2f}",
            f"{t.low:.2f}-{t.high:.2f}", "yes" if t.pays else "no",
        ]
        for t in found
    ]  # fmt: skip
    return table(["family", "examples", "KL", "KL tuned", "ratio", "95 %", "pays"], rows)


def check_line(found: Evidence) -> str:
    """Return one check in a line."""
    line = f"{found.variant} on {found.runner}: exact match {found.quality.exact_match:.3f}, "
    line += f"mean KL {found.quality.mean_kl:.3g}, {len(found.answers)} prompts"
    if found.instructions and found.instructions.per_token:
        line += f", {found.instructions.per_token / 1e6:.3f} M instructions a token"
    return line + (f" (not on its own hardware: {found.stand_in})" if found.stand_in else "")


def certificate_line(found: Certificate) -> str:
    """Return a certificate in a line."""
    told = [f"{t.target} {_agreement(t)}" for t in found.targets]
    told += [f"{target} missing ({why})" for target, why in found.missing.items()]
    state = "holds" if found.holds else "INCOMPLETE" if all(t.holds for t in found.targets) else "BROKEN"
    return (
        f"model {found.model_sha256[:12]} against {found.reference}, {len(found.prompts)} prompts: "
        f"{'; '.join(told)}: {state}"
    )


def _agreement(target: Agreement) -> str:
    kl = f"mean KL {target.mean_kl:.2g} (largest {target.max_kl:.2g})"
    if not target.differences:
        return f"equal tokens, {kl}"
    worst = max(target.differences, key=lambda d: d.margin)
    return (
        f"{len(target.differences)} differ at near ties (margin {worst.margin:.2g} in {worst.id} at {worst.position}), "
        + kl
    )


def pin(runner: str, public_pem: bytes) -> str:
    """Return the lines of params.yaml that pin a machine's key."""
    body = "".join(f"      {line}\n" for line in public_pem.decode().strip().splitlines())
    return f"runners:\n  {runner}:\n    public_keys:\n    - |\n{body}".rstrip()


def verdict_table(verdict: Verdict) -> str:
    """Return the gate's figures, one line a variant and runner class; what a class does not measure stays empty."""
    head = [
        "variant", "runner", "exact", "mean KL", "p99 KL", "ppl ratio", "TTFT p95", "token p50", "p95", "M insn/tok",
        "MB", "$/1k",
    ]  # fmt: skip
    rows = [
        [
            r.variant,
            r.runner + ("*" if r.stand_in else ""),
            f"{r.exact_match:.3f}",
            f"{r.mean_kl:.2g}",
            f"{r.p99_kl:.2g}",
            f"{r.perplexity_ratio:.4f}",
            _figure(r.ttft_p95_ms, ".1f", " ms"),
            _figure(r.per_token_p50_ms, ".2f", " ms"),
            _figure(r.per_token_p95_ms, ".2f", " ms"),
            _figure(r.instructions_per_token and r.instructions_per_token / 1e6, ".3f"),
            f"{r.bytes / 1e6:.2f}",
            _figure(r.cost_per_1k_usd, ".2g"),
        ]
        for r in verdict.rows
    ]
    stood_in = sorted({f"* {r.runner} stood in for by {r.stand_in}" for r in verdict.rows if r.stand_in})
    return "\n".join([table(head, rows), *stood_in])


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def release_summary(manifest: Manifest, digest: str) -> str:
    """Return a release as a page of text: what it is, its variants, and what the gate saw."""
    release, source, gate = manifest.release, manifest.predicate.source, manifest.predicate.gate
    changed = f", with {len(source.modified)} files modified" if source.modified else ""
    before = f"compared with release {gate.previous_version}" if gate.previous_version else "no release before it"
    rows = [
        [
            v.name,
            v.format,
            str(v.recipe.get("base", v.recipe.get("matrices"))),
            f"{v.model.parameters / 1e6:.2f} M",
            f"{sum(f.size for f in v.files) / 1e6:.2f}",
            str(len(v.files)),
            max(v.files, key=lambda f: f.size).sha256[:12],
            ", ".join(e.runner for e in v.evidence),
        ]
        for v in manifest.predicate.variants
    ]
    head = ["variant", "format", "recipe", "parameters", "MB", "files", "sha256", "evidence"]
    runtimes = [
        [r.name, f"{sum(f.size for f in r.files) / 1e6:.2f}", ", ".join(f.name for f in r.files)]
        for r in manifest.predicate.runtimes
    ]
    return f"""\
release   {release.line} {release.version} ({release.tag}), valid until {release.expires:%Y-%m-%d}
manifest  sha256:{digest}
built     from commit {source.commit[:12]}{changed}; teacher {source.teacher}
gate      passed for {", ".join(gate.channels)}; {before}

{table(head, rows)}

{table(["runtime", "MB", "programs"], runtimes)}

{verdict_table(gate)}
{_determinism(manifest)}"""


def _determinism(manifest: Manifest) -> str:
    entries = manifest.predicate.variants
    certificates = {v.certificate.model_sha256: v.certificate for v in entries if v.certificate}
    lines = ["", "determinism", *(f"  {certificate_line(c)}" for c in certificates.values())] if certificates else []
    missing = [f"  {m.variant} on {m.runner}: {m.missing}" for v in entries for m in v.missing]
    return "\n".join([*lines, *(["", "evidence missing", *missing] if missing else [])])


@contextmanager
def byte_bars() -> Iterator[Callable[[int, int, str], None]]:
    """Yield a callback (bytes done, bytes in all, what is at work) that draws one bar on standard error."""
    with tqdm(unit="B", unit_scale=True, leave=False, disable=None, file=sys.stderr) as bar:

        def show(done: int, total: int, label: str) -> None:
            bar.total = total
            bar.set_description(label, refresh=False)
            bar.update(done - bar.n)

        yield show
