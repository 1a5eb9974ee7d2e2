"""Contents: the runtimes, every file by its digest, and what built them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.manifest.evidence import File
from pipeline.report.layout import Cell, Section, Table, figures, words
from pipeline.report.model import Report


def section(report: Report) -> Section:
    """Return what a consumer can compare with what was fetched."""
    return Section(key="contents", title="Contents", tables=tuple(_tables(report)))


def _tables(report: Report) -> Iterator[Table]:
    subject = report.subject
    runtimes = {f"{runtime.name}/{file.name}": file for runtime in subject.runtimes for file in runtime.files}
    variants = {f"{part.variant.name}/{file.name}": file for part in subject.parts for file in part.files}
    if runtimes:
        yield _files("Runtimes: the programs of each target", runtimes)
    if variants:
        yield _files("Files of the variants", variants)
    if subject.toolchain:
        yield Table(
            "Built with",
            words("what", "version"),
            tuple((Cell(name), Cell(version)) for name, version in sorted(subject.toolchain.items())),
        )


def _files(caption: str, files: dict[str, File]) -> Table:
    return Table(
        caption,
        (*words("file"), *figures("bytes"), *words("sha256")),
        tuple((Cell(name), Cell(f"{file.size:,}"), Cell(file.sha256, code=True)) for name, file in files.items()),
    )
