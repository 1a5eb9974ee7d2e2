"""A plugin of pytest: failures are shown when they happen, so that a run that is cut off has told what it knew.

Use: python -m pytest -p tests.support.at_once
"""

from __future__ import annotations

import pytest


class _Shown:
    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(
                f"\n{report.nodeid}, {report.when}, {report.duration:.0f} s:\n{report.longreprtext}"
            )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Show them where there is a terminal: not in the processes that xdist starts."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Shown(terminal), "at_once")
