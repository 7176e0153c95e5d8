# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` on examples that run: it says that all is well, and what is wrong when it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from realmta_site import CONFIGURATION, EGRESS, ORGANIZATION

from gatepost.admin.sandbox import find_programs, temporary_root
from gatepost.admin.stage import Stage

SITES = Path(__file__).parent / "setup/configurations"
Boot = Callable[..., Stage]
GROUPS = ("Configuration", "Postfix", "Egress hop", "Sockets")
"""Those whose checks look at Postfix and gatepost alone, not at DNS or the host."""


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = find_programs()
    monkeypatch.setenv("PATH", f"{programs.commands}:/usr/sbin:/usr/bin:/sbin:/bin")
    if programs.libraries:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(programs.libraries))


def found(stage: Stage) -> dict[str, list[str]]:
    """Return severity and sentence of what the doctor finds in Postfix and gatepost, by check; no OK, no INFO."""
    done = stage.gatepost("doctor", "--json", "--config-directory", str(stage.postfix.config_directory))
    document: dict[str, Any] = json.loads(done.stdout)
    rows = [row for row in document["findings"] if row["group"] in GROUPS]
    assert len(rows) > 10
    problems: dict[str, list[str]] = {}
    for row in rows:
        if row["severity"] not in ("ok", "info"):
            problems.setdefault(row["check"], []).append(f"{row['severity']}: {row['what']}")
    return problems


@pytest.fixture(scope="module")
def hub(boot: Boot) -> Stage:
    after = "relay_domains = contoso.com\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
    return boot("relay-hub", tls=True, after=after)


@pytest.fixture(scope="module")
def forwarder(boot: Boot) -> Stage:
    after = (
        "virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse\nvirtual_alias_domains =\n"
        "relay_domains = contoso.com\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
    )
    return boot("forwarder", after=after)


def test_a_relay_hub_that_runs_is_well(hub: Stage) -> None:
    assert found(hub) == {}


def test_a_forwarder_that_runs_is_well(forwarder: Stage) -> None:
    assert found(forwarder) == {}


def test_a_configuration_that_was_not_loaded_is_told(forwarder: Stage) -> None:
    text = forwarder.configuration.read_text()
    forwarder.configuration.write_text(text.replace('mode = "enforce"', 'mode = "monitor"'))
    try:
        (told,) = found(forwarder)["configuration-in-force"]
    finally:
        forwarder.configuration.write_text(text)
    assert told.startswith("warning: policyd answers OK gatepost-egress:[127.0.0.1]:")
    assert told.endswith("says NOTFOUND (map egress)")


def test_daemons_that_do_not_run_are_told(hub: Stage) -> None:
    hub.stop_gatepost()
    try:
        problems = found(hub)
    finally:
        hub.start_gatepost()
    sockets = hub.postfix.queue_directory / "gatepost"
    assert problems == {
        "daemons-answer": [
            f"error: {daemon}.listen: nobody listens at unix:{sockets}/{daemon}.sock"
            for daemon in ("milter", "policyd")
        ]
    }


def test_the_text_ends_with_what_was_counted(hub: Stage) -> None:
    done = hub.gatepost("doctor", "--quiet", "--config-directory", str(hub.postfix.config_directory))
    assert done.stdout.splitlines()[-1].endswith(" well.")


# Servers that `gatepost setup postfix` has been applied to


@pytest.mark.parametrize("name", ["amavis", "proxy-filter"])
def test_after_setup_nothing_of_the_wiring_is_wrong(name: str) -> None:
    with temporary_root() as root:
        stage = Stage(
            SITES / name,
            root / "s",
            configuration=lambda text: (
                text + CONFIGURATION.replace('"localhost"', '"localhost", "localhost.contoso.com"')
            ),
            whole=True,
        )
        text = stage.configuration.read_text() + ORGANIZATION.replace("192.0.2.0/28", "192.0.2.0/24")
        stage.configuration.write_text(text + stage.render(EGRESS))
        with stage:
            stage.postfix.postmap(stage.postfix.config_directory / "virtual")
            assert set(found(stage)) >= {"wired-in"}
            where = ("--config-directory", str(stage.postfix.config_directory))
            applied = stage.gatepost("setup", "postfix", "--apply", *where)
            assert applied.returncode == 0, applied.stderr
            problems = found(stage)
    for check in ("client-certificates-asked", "bounces-mailbox"):  # what is not setup's to say
        problems.pop(check, None)
    assert problems == {}
