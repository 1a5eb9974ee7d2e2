"""What users see: results on standard output, bars, notes and errors on standard error, JSON where it was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pipeline.errors import PipelineError, TrustError
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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, ["-" * w for w in widths], *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def verdict_table(verdict: Verdict) -> str:
    """Return the gate's figures, one line a variant and runner class."""
    head = [
        "variant",
        "runner",
        "exact",
        "mean KL",
        "p99 KL",
        "ppl ratio",
        "TTFT p95",
        "token p50",
        "p95",
        "MB",
        "$/1k",
    ]
    rows = [
        [
            r.variant,
            r.runner,
            f"{r.exact_match:.3f}",
            f"{r.mean_kl:.2g}",
            f"{r.p99_kl:.2g}",
            f"{r.perplexity_ratio:.4f}",
            f"{r.ttft_p95_ms:.1f} ms",
            f"{r.per_token_p50_ms:.2f} ms",
            f"{r.per_token_p95_ms:.2f} ms",
            f"{r.bytes / 1e6:.2f}",
            f"{r.cost_per_1k_usd:.2g}",
        ]
        for r in verdict.rows
    ]
    return table(head, rows)


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
    return f"""\
release   {release.line} {release.version} ({release.tag}), valid until {release.expires:%Y-%m-%d}
manifest  sha256:{digest}
built     from commit {source.commit[:12]}{changed}; teacher {source.teacher}
gate      passed for {", ".join(gate.channels)}; {before}

{table(head, rows)}

{verdict_table(gate)}"""


@contextmanager
def byte_bars() -> Iterator[Callable[[int, int, str], None]]:
    """Yield a callback (bytes done, bytes in all, what is at work) that draws one bar on standard error."""
    with tqdm(unit="B", unit_scale=True, leave=False, disable=None, file=sys.stderr) as bar:

        def show(done: int, total: int, label: str) -> None:
            bar.total = total
            bar.set_description(label, refresh=False)
            bar.update(done - bar.n)

        yield show
