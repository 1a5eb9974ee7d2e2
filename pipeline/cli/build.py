"""The stages of dvc.yaml and what prepares them, each one call."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.catalog.names import GGUF_TIERS, RunnerClass, Target, Tier, Variant
from pipeline.cli import output
from pipeline.cli.access import Access, add_json_option, add_registry_option, add_signer_option, add_trust_options
from pipeline.cli.command import Commands, add
from pipeline.errors import CatalogError, StageError
from pipeline.manifest.dsse import Opened
from pipeline.manifest.evidence import Missing
from pipeline.ports import keys
from pipeline.ports.torch_env import pin_cpu_kernels
from pipeline.stages.project import Project


def add_commands(commands: Commands) -> None:
    """Add the build commands."""
    add(commands, "teacher", _teacher, "stage: fetch the teacher, from the hub or the repository", "teacher")
    for name, run, summary in (
        ("distill", _distill, "stage: prune the teacher and distil it into a tier"),
        ("convert", _convert, "stage: convert a tier to GGUF"),
        ("calibrate", _calibrate, "stage: collect a tier's importance matrix"),
        ("sensitivity", _sensitivity, "stage: what each matrix of a tier loses at each quantization type"),
        ("reference", _reference, "stage: tokenize the golden prompts, and decode them with the unquantized tier"),
        ("certify", _certify, "stage: compare how each file of a tier decodes on all targets"),
    ):
        _tier_option(add(commands, name, run, summary, f"{name} --tier tiny-edge"))
    search = add(
        commands,
        "search",
        _search,
        "stage: a variant's recipe, written out in models/*.yaml or found within its budget, for families too",
        "search --tier tiny-edge --target arm64",
        "search --tier tiny-edge --target arm64 --families",
    )
    _tier_option(search)
    _target_option(search)
    search.add_argument(
        "--families",
        action="store_true",
        help="only say of each prompt family whether a recipe tuned to it would pay; writes nothing",
    )
    quantize = add(
        commands,
        "quantize",
        _quantize,
        "stage: quantize a variant by its recipe, and those tuned to families by theirs",
        "quantize --tier tiny-edge --target arm64",
    )
    _tier_option(quantize)
    _target_option(quantize)
    add(commands, "shard", _shard, "stage: split the large tier for tensor parallelism")
    _target_option(
        add(commands, "runtime", _runtime, "stage: a target's programs, compiled where the cache lacks them")
    )
    add(commands, "emulators", _emulators, "stage: which emulators this machine has")
    check = add(
        commands,
        "check",
        _check,
        "stage: prove variants, and those tuned to families beside them, on the golden prompts",
        "check tiny-edge-arm64 --runner host",
        "check tiny-edge-arm64 mid-tier-arm64 --runner pi5",
        "check large-x86_64 --runner nvlink",
    )
    _checks(check)
    check.add_argument(
        "--allow-throttled", action="store_true", help="keep, marked, a run in which the machine was held back"
    )
    attest = add(
        commands,
        "attest",
        _attest,
        "sign the evidence of checks that this machine made",
        "attest --init",
        "attest tiny-edge-arm64 mid-tier-arm64 --runner pi5",
    )
    _checks(attest, many="*")
    add_trust_options(attest)
    add_signer_option(attest)
    attest.add_argument("--init", action="store_true", help="make this machine's key, and print what is to be pinned")
    previous = add(commands, "previous", _previous, "stage: look up what the registry's last release was judged by")
    add_registry_option(previous)
    add(commands, "gate", _gate, "stage: decide over all evidence, with reasons", "gate")
    add(commands, "manifest", _manifest, "stage: write the release's unsigned manifest and provenance", "manifest")
    _toolchain_command(commands)
    train = add(
        commands,
        "train-demo",
        _train_demo,
        "train the demo teacher as it is shipped, and write its prompt files",
        "train-demo --out models/demo",
        "train-demo --out /tmp/demo --data-only",
    )
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for teacher/ and the prompt files"
    )
    train.add_argument("--data-only", action="store_true", help="write only the prompt files")
    rebuild = add(
        commands, "rebuild", _rebuild, "repeat the release in a clean folder and compare every digest", "rebuild"
    )
    rebuild.add_argument("--into", type=Path, metavar="DIR", help="clean folder to build in (default: a temporary one)")


def _toolchain_command(commands: Commands) -> None:
    toolchain = add(
        commands,
        "toolchain",
        _toolchain,
        "build llama.cpp from its pinned source, or find it in the cache",
        "toolchain host",
        "toolchain build --target arm64",
        "toolchain build",
    )
    toolchain.add_argument(
        "what",
        choices=["host", "build"],
        help="host: the Python binding's wheel and the tools for this machine; build: the static programs of targets",
    )
    toolchain.add_argument(
        "--target",
        type=Target,
        choices=list(Target),
        action="append",
        metavar="TARGET",
        help=f"with build: {', '.join(Target)} (default: all)",
    )
    toolchain.add_argument("--cache", type=Path, metavar="DIR", help="with build: cache folder (default: the user's)")
    add_json_option(toolchain)


def _checks(parser: argparse.ArgumentParser, many: str = "+") -> None:
    parser.add_argument("variants", metavar="VARIANT", type=_variant, nargs=many, help="e.g. tiny-edge-arm64")
    parser.add_argument(
        "--runner",
        type=RunnerClass,
        choices=list(RunnerClass),
        default=RunnerClass.HOST,
        metavar="CLASS",
        help=f"runner class: {', '.join(RunnerClass)} (default: host)",
    )


def _tier_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tier", type=Tier, choices=GGUF_TIERS, required=True, metavar="TIER", help=" or ".join(GGUF_TIERS)
    )


def _target_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=Target, choices=list(Target), required=True, metavar="TARGET", help=", ".join(Target)
    )


def _variant(name: str) -> Variant:
    try:
        return Variant.parse(name)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _teacher(args: argparse.Namespace) -> None:
    from pipeline.stages import teacher

    teacher.fetch(Project.load())


def _distill(args: argparse.Namespace) -> None:
    pin_cpu_kernels()
    from pipeline.stages import distill

    distill.distill(Project.load(), args.tier)


def _convert(args: argparse.Namespace) -> None:
    from pipeline.stages import convert

    convert.convert(Project.load(), args.tier)


def _calibrate(args: argparse.Namespace) -> None:
    from pipeline.stages import calibrate

    calibrate.calibrate(Project.load(), args.tier)


def _sensitivity(args: argparse.Namespace) -> None:
    pin_cpu_kernels()
    from pipeline.stages import sensitivity

    sensitivity.sensitivity(Project.load(), args.tier)


def _search(args: argparse.Namespace) -> None:
    from pipeline.stages import search, tuned

    project, variant = Project.load(), Variant(args.tier, args.target)
    if args.families:
        output.say(output.tuned_table(tuned.tuned(project, variant)))
    else:
        search.search(project, variant)


def _quantize(args: argparse.Namespace) -> None:
    from pipeline.stages import quantize

    quantize.quantize(Project.load(), Variant(args.tier, args.target))


def _shard(_: argparse.Namespace) -> None:
    pin_cpu_kernels()
    from pipeline.stages import shard

    shard.shard(Project.load())


def _check(args: argparse.Namespace) -> None:
    pin_cpu_kernels()
    from pipeline.stages import check

    for found in check.check(Project.load(), args.variants, args.runner, allow_throttled=args.allow_throttled):
        if isinstance(found, Missing):
            output.say(f"{found.variant} on {found.runner}: missing: {found.missing}")
            continue
        if not found.deterministic:
            raise StageError(
                f"{found.variant}: two runs of the same files gave different tokens",
                hint="use one thread (params.yaml: check.threads) and compare the engine's settings",
            )
        output.say(output.check_line(found))


def _reference(args: argparse.Namespace) -> None:
    from pipeline.stages import reference

    reference.reference(Project.load(), args.tier)


def _certify(args: argparse.Namespace) -> None:
    from pipeline.stages import certify

    for certificate in certify.certify(Project.load(), args.tier).certificates:
        output.say(output.certificate_line(certificate))


def _runtime(args: argparse.Namespace) -> None:
    from pipeline.stages import runtime

    runtime.runtime(Project.load(), args.target)


def _emulators(args: argparse.Namespace) -> None:
    from pipeline.ports import qemu
    from pipeline.stages import emulators

    for target, name in emulators.emulators(Project.load()).items():
        output.say(f"{target}: {name or f'no emulator; {qemu.HINT}'}")


def _attest(args: argparse.Namespace) -> None:
    from pipeline.stages import attest

    if args.init:
        output.say(output.pin(args.runner, keys.load_or_create().public_pem))
        return
    if not args.variants:
        raise CatalogError("which variants?", hint="name those that were checked here, or give --init")
    signed = attest.attest(Project.load(), args.variants, args.runner, Access(args).signer)
    output.say(f"signed the evidence of {', '.join(v.name for v in signed)} on {args.runner}")


def _previous(args: argparse.Namespace) -> None:
    from pipeline.stages import previous

    project, access = Project.load(), Access(args)
    release = project.params.release

    def opener(bundle: bytes) -> Opened:
        return access.opener(bundle)  # looked up when needed: before the first release nobody is trusted yet

    found = previous.look(access.store, opener, release.line, release.version)
    previous.write(project, found)
    output.say(f"previous release: {found.version or 'none'}")


def _gate(args: argparse.Namespace) -> None:
    from pipeline.stages import gate

    verdict = gate.decide(Project.load())
    output.say(output.verdict_table(verdict))
    for reason in verdict.reasons:
        output.say(f"refused: {reason}")
    gate.refuse(verdict)
    output.say(f"gate: passed, for channels {', '.join(verdict.channels) or 'none'}")


def _manifest(args: argparse.Namespace) -> None:
    from pipeline.stages import manifest

    made = manifest.write(Project.load())
    release = made.release
    output.say(f"manifest: {release.line} {release.version} ({release.tag}), {len(made.subject)} files")


def _toolchain(args: argparse.Namespace) -> None:
    from pipeline.toolchain import host, runtime

    if args.what == "host":
        output.say(str(host.build().wheel))
        return
    built = runtime.build_all(args.target or list(Target), args.cache)
    if args.json:
        output.emit([{"target": b.target, "folder": str(b.folder), "sha256": b.digests} for b in built])
        return
    for found in built:
        output.say(f"{found.target}: {found.folder}")
        for name, digest in found.digests.items():
            output.say(f"  {digest}  {name}")


def _train_demo(args: argparse.Namespace) -> None:
    from pipeline.demo import data

    data.write_data(args.out)
    if args.data_only:
        return
    pin_cpu_kernels()
    from pipeline.demo import train
    from pipeline.ports import files

    train.train_demo(args.out / "teacher", checkpoint_dir=args.out / ".checkpoint")
    output.say(f"pin it in params.yaml: teacher.embedded.digest: {files.tree_digest(args.out / 'teacher')}")


def _rebuild(args: argparse.Namespace) -> None:
    from pipeline.stages import rebuild

    compared = rebuild.rebuild(Project.load(), args.into)
    output.say(f"rebuild: all {compared} digests are equal")
