"""How a subcommand is declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import ToolError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object

Run = Callable[[argparse.Namespace], int | None]


def add(commands: Commands, name: str, run: Run, summary: str, *examples: str) -> argparse.ArgumentParser:
    """Add a subcommand; `summary` is one line, `examples` end its --help."""
    epilog = "\n".join(["examples:", *(f"  edge-release {e}" for e in examples)]) if examples else None
    sub = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run, parser=sub)
    return sub


@contextmanager
def needs(what: str, extras: str) -> Iterator[None]:
    """Say, where an import within fails, `what` lacks a package and which extras bring it; raises ToolError."""
    try:
        yield
    except ImportError as e:
        raise ToolError(f"{what} {e.name}", hint=f"pip install 'edge-release[{extras}]'") from e


def address(text: str) -> tuple[str, int]:
    """Return the host and port of HOST:PORT."""
    try:
        found = urlsplit(f"//{text}")
        if found.hostname and found.port and found.netloc == text and "@" not in text:
            return found.hostname, found.port
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
