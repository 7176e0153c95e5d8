# SPDX-License-Identifier: GPL-3.0-or-later
"""Daemons that are restarted, reloaded or killed while mail comes in: nothing is lost, doubled or wrongly decided.

The units' two daemons on a real Postfix that forwards; see upgradeload for what is counted.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Callable

import pytest
from daemonprocess import Gatepost, poll
from upgradeload import COMPACT, FORWARDED, OWN, REFUSED, RELAYED, Load, findings, rows

from gatepost.admin.stage import Stage

FORWARDING = """
virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse,
    inline:{ {staff@contoso.com = staff@partner.example} }
virtual_alias_domains = contoso.com
"""
KINDS = (OWN, RELAYED, COMPACT, FORWARDED, REFUSED)
AMONG = 25
"""So many messages are taken before something happens, and after it."""


class Units:
    """Both daemons, each a process of its own, as under systemd."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._arguments = ("-m", "gatepost.admin", "-c", str(stage.configuration))
        self.configuration = stage.configuration
        self.units = {name: self._unit(folder / name, name) for name in ("policyd", "milter")}

    def _unit(self, folder: Path, name: str) -> Gatepost:
        folder.mkdir()
        return Gatepost(folder, program=(*self._arguments, name))

    def start(self, *names: str) -> None:
        for name in names or self.units:
            self.units[name].start()
            self.units[name].wait_for_log(r" ready$")

    def stop(self, *names: str) -> None:
        for name in names or ("milter", "policyd"):
            self.units[name].stop()

    def reload(self, outcome: str) -> None:
        for unit in self.units.values():
            before = unit.mark()
            unit.signal(signal.SIGHUP)
            unit.wait_for_log(outcome, after=before)


def restart(units: Units, *names: str) -> None:
    units.stop(*names)
    units.start(*(names or units.units))


def wrong_configuration(units: Units) -> None:
    """Load one that is not understood, then the one before."""
    text = units.configuration.read_text()
    units.configuration.write_text(f"gone = 1\n{text}")
    units.reload("configuration not reloaded")
    units.configuration.write_text(text)
    units.reload("configuration reloaded")


def killed(units: Units) -> None:
    """Kill both with all of their workers, and start them as systemd does then."""
    for unit in units.units.values():
        unit.signal(signal.SIGKILL)
        unit.stop()
    units.start()


@pytest.fixture(scope="module")
def units(boot: Callable[..., Stage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Units]]:
    def configuration(text: str) -> str:
        return text.replace('mode = "enforce"', 'mode = "enforce"\naction = "rewrite"')

    with ExitStack() as stack:
        stage = boot("forwarder", after=FORWARDING, configuration=configuration)
        stage.stop_gatepost()
        found = Units(stage, tmp_path_factory.mktemp("units"))
        stack.callback(found.stop)
        found.start()
        yield stage, found


@pytest.mark.parametrize(
    "what_happens",
    [
        pytest.param(lambda units: restart(units, "milter"), id="milter restarted"),
        pytest.param(lambda units: restart(units, "policyd"), id="policyd restarted"),
        pytest.param(restart, id="both restarted"),
        pytest.param(wrong_configuration, id="wrong configuration loaded"),
        pytest.param(killed, id="both killed"),
    ],
)
def test_nothing_is_lost(units: tuple[Stage, Units], what_happens: Callable[[Units], None]) -> None:
    stage, daemons = units
    begin = len(stage.internet.messages)
    store = stage.state_directory / "gatepost.db"
    rows_before = len(rows(store)) if store.exists() else 0
    with Load(stage.postfix.smtp[1], KINDS, clients=2) as load:
        poll(lambda: load.taken() > AMONG, "mail is taken")
        what_happens(daemons)
        there = load.taken()
        poll(lambda: load.taken() > there + AMONG, "mail is taken again")
    stage.postfix.wait_until_idle()
    received = stage.internet.messages[begin:]

    def wrong() -> dict[str, list[object]]:
        found = findings(load.sent, received, rows(store)[rows_before:])
        return {what: items for what, items in found.items() if items}

    with suppress(AssertionError):  # the ledger's loader comes later
        poll(lambda: not wrong(), "all is there", timeout_s=10)
    assert wrong() == {}
