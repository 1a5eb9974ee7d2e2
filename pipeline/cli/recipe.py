"""Recipes by hand: show, compare, try."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.catalog.names import GGUF_TIERS, Tier
from pipeline.cli import output
from pipeline.cli.access import add_json_option
from pipeline.cli.command import Commands, add
from pipeline.stages.project import Project


def add_commands(commands: Commands) -> None:
    """Add `recipe` with its verbs."""
    recipe = add(
        commands,
        "recipe",
        _needs_verb,
        "show, compare and try quantization recipes",
        "recipe show tiny-edge-arm64",
        "recipe show tiny-edge-arm64 --tensor-type-file",
        "recipe diff tiny-edge-arm64 tiny-edge-x86_64",
        "recipe apply mine.yaml --tier tiny-edge --out mine.gguf",
    )
    verbs: Commands = recipe.add_subparsers(title="verbs", metavar="VERB", required=True)
    what = "a variant of this project, a recipe as .yaml, or a .gguf file"
    show = add(verbs, "show", _show, "print a recipe as models/*.yaml takes it", "recipe show tiny-edge-arm64")
    show.add_argument("what", metavar="WHAT", help=what)
    show.add_argument(
        "--tensor-type-file", action="store_true", help="only the lines that llama-quantize --tensor-type-file reads"
    )
    add_json_option(show)
    diff = add(verbs, "diff", _diff, "print the tensors whose types two files differ in", "recipe diff a.gguf b.gguf")
    for name in ("before", "after"):
        diff.add_argument(name, metavar=name.upper(), help="a variant that was built, or a .gguf file")
    add_json_option(diff)
    apply = add(
        verbs, "apply", _apply, "quantize a tier by a recipe", "recipe apply mine.yaml --tier tiny-edge --out mine.gguf"
    )
    apply.add_argument("what", metavar="RECIPE", help=what)
    apply.add_argument(
        "--tier", type=Tier, choices=GGUF_TIERS, required=True, metavar="TIER", help=" or ".join(GGUF_TIERS)
    )
    apply.add_argument("--out", type=Path, required=True, metavar="FILE", help="the GGUF file to write")


def _needs_verb(args: argparse.Namespace) -> None:
    raise AssertionError("argparse requires a verb")


def _show(args: argparse.Namespace) -> None:
    from pipeline.stages import recipes, search

    found = recipes.recipe(Project.load(), args.what)
    if args.json:
        output.emit(found.model_dump(mode="json"))
    elif args.tensor_type_file:
        for line in found.tensors:
            output.say(line)
    else:
        sys.stdout.write(search.written(found).decode())


def _diff(args: argparse.Namespace) -> None:
    from pipeline.stages import recipes

    found = list(recipes.changes(Project.load(), args.before, args.after))
    if args.json:
        output.emit([asdict(change) for change in found])
        return
    rows = [[c.tensor, c.before or "-", c.after or "-", f"{c.size_after - c.size_before:+d}"] for c in found]
    rows.append(["all", "", "", f"{sum(c.size_after - c.size_before for c in found):+d}"])
    output.say(output.table(["tensor", "before", "after", "bytes"], rows))


def _apply(args: argparse.Namespace) -> None:
    from pipeline.stages import recipes

    project = Project.load()
    size = recipes.apply(project, recipes.recipe(project, args.what), args.tier, args.out)
    output.say(f"{args.out}: {size} bytes")
