"""Determinism: how each file decodes on all targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.manifest.evidence import Agreement, Certificate
from pipeline.report import text
from pipeline.report.layout import Cell, Section, Table, Tone, figures, words
from pipeline.report.model import Report


def section(report: Report) -> Section:
    """Return each file's certificate, target by target."""
    certificates = report.subject.certificates
    if not certificates:
        return Section(
            key="determinism",
            title="Determinism",
            says=("There are no certificates: no file was compared on targets.",),
        )
    return Section(
        key="determinism",
        title="Determinism",
        says=(_says(certificates),),
        tables=(_table(report),),
        brief=True,
    )


def _says(certificates: Sequence[Certificate]) -> str:
    holding = sum(1 for certificate in certificates if certificate.holds)
    references = " and ".join(sorted({c.reference for c in certificates}))
    margin, kl = max(c.margin_max for c in certificates), max(c.mean_kl_max for c in certificates)
    return (
        f"Each file decodes the same golden prompts on every target, compared with {references}. {holding} of "
        f"{text.counted(len(certificates), 'certificate')} hold: tokens are equal, or first differ where the two best "
        f"logits lie at most {margin:g} apart, and the mean KL is at most {kl:g} nats."
    )


def _table(report: Report) -> Table:
    return Table(
        "Certificates",
        (
            *words("model", "variants", "target", "decoded by"),
            *figures("prompts"),
            *words("tokens"),
            *figures("mean KL", "largest KL"),
            *words("holds"),
        ),
        tuple(
            row for certificate in report.subject.certificates for row in _rows(certificate, _of(report, certificate))
        ),
    )


def _of(report: Report, certificate: Certificate) -> str:
    held = [p.variant.name for p in report.subject.parts if certificate.model_sha256 in {f.sha256 for f in p.files}]
    return ", ".join(held) or text.NONE


def _rows(certificate: Certificate, variants: str) -> Iterator[tuple[Cell, ...]]:
    model, prompts = Cell(certificate.model_sha256[:16], code=True), Cell(f"{len(certificate.prompts):,}")
    for agreement in certificate.targets:
        yield (
            model,
            Cell(variants),
            Cell(agreement.target),
            Cell(agreement.emulator or "the processor itself"),
            prompts,
            _tokens(agreement),
            Cell(text.number(agreement.mean_kl)),
            Cell(text.number(agreement.max_kl)),
            Cell("yes", tone=Tone.GOOD) if agreement.holds else Cell("no", tone=Tone.BAD),
        )
    for target, why in certificate.missing.items():
        nothing = Cell(text.NONE)
        missing = Cell("missing", note=why, tone=Tone.WEAK)
        yield model, Cell(variants), Cell(target), nothing, prompts, nothing, nothing, nothing, missing


def _tokens(agreement: Agreement) -> Cell:
    if not agreement.differences:
        return Cell("equal")
    worst = max(agreement.differences, key=lambda d: d.margin)
    return Cell(
        text.counted(len(agreement.differences), "difference"),
        note=f"widest margin {text.number(worst.margin)}, in {worst.id} at token {worst.position}",
    )
