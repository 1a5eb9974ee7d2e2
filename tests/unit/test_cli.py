"""The command line: what it accepts, what it prints, how it ends."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.errors import Refusal

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(cli.parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has nothing yet, in an empty folder."""
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("EDGE_RELEASE_REGISTRY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help of each command has a description, and its examples parse."""
    with pytest.raises(SystemExit) as e:
        cli.main([command, "--help"])
    assert e.value.code == 0
    text = capsys.readouterr().out
    for example in re.findall(r"^  edge-release (.+)$", text, re.MULTILINE):
        cli.parser().parse_args(shlex.split(example))


@pytest.mark.parametrize(
    "page", ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_commands_in_the_documentation_exist(page: str) -> None:
    """Every `$ edge-release ...` line of the documentation is accepted by the parser."""
    for line in re.findall(r"^\$ edge-release (.+?)(?:  +#.*)?$", (ROOT / page).read_text(), re.MULTILINE):
        if "COMMAND" not in line:
            cli.parser().parse_args(shlex.split(line))


def test_documentation_links_lead_somewhere() -> None:
    """Relative links in README and docs point to files that exist."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_without_a_registry_the_error_says_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a project, a consumer is told how to name a registry, on standard error, with the catalog's exit code."""
    assert cli.main(["verify"]) == 2
    err = capsys.readouterr().err
    assert "error: " in err
    assert "hint: " in err
    assert not list(home.rglob("*.json"))


def test_errors_are_json_where_json_was_asked_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json an error is one JSON object that repeats the exit code."""
    code = cli.main(["verify", "--registry", "nowhere", "--line", "x", "--json"])
    document = json.loads(capsys.readouterr().err)
    assert document["exit_code"] == code != 0
    assert document["hint"]


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["no-such-command"], id="command"),
        pytest.param(["check", "tiny-edge-mips"], id="variant"),
        pytest.param(["quantize", "--tier", "large", "--target", "arm64"], id="tier without GGUF"),
        pytest.param(["verify", "--channel", "nightly"], id="channel"),
        pytest.param(["verify", "--channel", "dev", "--release", "3"], id="both"),
    ],
)
def test_wrong_usage_ends_with_2(argv: list[str]) -> None:
    """What the parser refuses ends with exit code 2."""
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2


def test_an_unknown_option_is_told_of_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage shown is the one in which the option is missing."""
    with pytest.raises(SystemExit) as e:
        cli.main(["recipe", "show", "tiny-edge-arm64", "--colour"])
    assert e.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: edge-release recipe show")
    assert said.endswith("edge-release recipe show: error: unrecognized arguments: --colour\n")


def test_every_refusal_has_its_own_exit_code() -> None:
    """No two kinds of refusal end with the same status, and none with another error's."""
    assert len({r.value for r in Refusal}) == len(Refusal)
    assert min(Refusal) >= 20


def test_the_light_commands_import_nothing_heavy() -> None:
    """verify, show and pull work where only the base dependencies are installed."""
    heavy = "torch", "transformers", "llama_cpp", "gguf", "dvc", "numpy", "huggingface_hub", "matplotlib", "jinja2"
    code = f"import sys, pipeline.cli as c; c.parser(); sys.exit(', '.join(sorted(set({heavy!r}) & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
