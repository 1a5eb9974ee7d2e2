"""The stand-in for GitHub Actions: it evaluates as GitHub does, and what it does not know it does not guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import actions
from tests.support.expressions import Open, Scope, Unknown

CONTEXTS: dict[str, Any] = {
    "github": {"ref": "refs/tags/v1", "event": Open({"pull_request": {"head": {"repo": {"full_name": "a/b"}}}})},
    "needs": {
        "plan": {"result": "success", "outputs": {"list": '[{"name": "x"}]'}},
        "board": {"result": "skipped", "outputs": {}},
    },
    "vars": Open({"SET": "Yes"}),
}
SCOPE = Scope(CONTEXTS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("vars.SET == 'yes'", True),  # strings are compared without their case
        ("vars.UNSET", None),
        ("vars.UNSET == ''", True),
        ("vars.UNSET || 'default'", "default"),
        ("vars.SET && vars.UNSET || ''", ""),
        ("needs.*.result", ["success", "skipped"]),
        ("contains(needs.*.result, 'skipped') && !contains(needs.*.result, 'failure')", True),
        ("fromJSON(needs.plan.outputs.list)", [{"name": "x"}]),
        ("github.event.pull_request.head.repo.full_name != 'c/d'", True),
        ("github.event.release.tag", None),
        ("startsWith(github.ref, 'refs/tags/v') == true", True),
        ("format('{0}/it''s', 'a')", "a/it's"),
        ("'a' == 'b' || ('c' == 'c' && 3)", 3),
    ],
)
def test_values_are_those_of_github(text: str, value: Any) -> None:
    """Operators give their operands, comparison ignores case, what is not set is empty."""
    assert SCOPE.evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "hashFiles('x')",
        "runner.os",
        "needs.plan.outputs.none",
        "needs.nobody.result",
        "1 +",
        "'open",
        "a.b",
        "1 == '1'",
        "",
    ],
)
def test_what_is_not_known_is_an_error(text: str) -> None:
    """A function, context or output that is not there, odd grammar, and comparisons of other kinds raise."""
    with pytest.raises(Unknown):
        SCOPE.evaluate(text)


@pytest.mark.parametrize(
    ("condition", "after_success", "after_failure"),
    [
        (None, True, False),
        ("vars.SET == 'yes'", True, False),
        ("${{ !cancelled() }}", True, True),
        ("always()", True, True),
        ("failure()", False, True),
        ("vars.SET == 'no'", False, False),
    ],
)
def test_a_condition_asks_for_success_unless_it_asks_for_a_status(
    condition: str | None, after_success: bool, after_failure: bool
) -> None:
    """`if` holds only after success, but where one of the status functions stands in it."""
    assert Scope(CONTEXTS, succeeded=True).holds(condition) is after_success
    assert Scope(CONTEXTS, succeeded=False).holds(condition) is after_failure


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("build/a", ["one"]),
        ("build/a/one", ["one"]),
        ("build/a\nbuild/b", ["a/one", "b/two"]),
        ("build/a\nbuild/missing", ["a/one"]),
        ("build/a\nbuild/*", ["a/one", "b/two"]),
    ],
)
def test_names_in_an_artifact_start_at_what_its_paths_share(tmp_path: Path, path: str, names: list[str]) -> None:
    """As actions/upload-artifact has it: one path is the root itself, several give their common folder."""
    write(tmp_path / "work", "build/a/one", "build/b/two")
    actions.upload(tmp_path / "work", {"name": "n", "path": path}, tmp_path / "artifacts")
    found = [p for p in (tmp_path / "artifacts/n").rglob("*") if p.is_file()]
    assert sorted(str(p.relative_to(tmp_path / "artifacts/n")) for p in found) == names
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in found)


def test_an_artifact_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Nothing to upload, nothing to download and an unknown input raise."""
    write(tmp_path / "work", "build/a/one")
    with pytest.raises(AssertionError, match="no file"):
        actions.upload(tmp_path / "work", {"name": "n", "path": "build/none"}, tmp_path / "artifacts")
    for given in ({"name": "none"}, {"pattern": "none-*", "merge-multiple": True}):
        with pytest.raises(AssertionError, match="no artifact"):
            actions.download(tmp_path / "artifacts", {**given, "path": "."}, tmp_path)
    with pytest.raises(Unknown, match="run-id"):
        actions.download(tmp_path, {"name": "n", "path": ".", "run-id": "7"}, tmp_path)
