"""The command `edge-release`: parse, call, report.

Rules: one subcommand for each stage and each operator's verb; the only `except PipelineError`; heavy modules are
imported by the command that needs them.

Exit codes: 0 done, 1 other error, 2 wrong usage or catalog, 3 gate, 4 tool, 5 stage, 6 registry, 7 conflict,
20 and above: a release is refused (pipeline/errors.py lists them), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pipeline.cli import (
    actions,
    build,
    certs,
    consume,
    controller,
    deploy,
    gateway,
    lab,
    output,
    picker,
    recipe,
    release,
    report,
    scheduler,
    serve,
    simulate,
)
from pipeline.errors import PipelineError

_ABOUT = """From one teacher model to a signed release of variants, each proven on its own kind of machine.

examples:
  make release                                       build, check, sign and publish the release
  edge-release show                                  what the registry's dev channel holds
  edge-release verify                                check every signature, rule and byte of it
  edge-release pull tiny-edge-arm64 --into models    fetch one variant, verified, ready to run
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="edge-release", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root.add_argument("--version", action="version", version=f"edge-release {version('edge-release')}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serving = serve, gateway, picker, controller, scheduler, deploy
    for group in (consume, release, report, build, recipe, *serving, certs, lab, simulate, actions):
        group.add_commands(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args, unknown = parser().parse_known_args(argv)
    if unknown:  # told by the command, whose options they are not
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return args.run(args) or 0
    except PipelineError as e:
        return output.fail(e, as_json=getattr(args, "json", False))
    except KeyboardInterrupt:
        output.note("edge-release: interrupted; run the same command again to go on")
        return 130
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
