"""How a subcommand is declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

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
    sub.set_defaults(run=run)
    return sub
