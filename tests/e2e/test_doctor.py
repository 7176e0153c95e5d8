# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` on examples that run: it says that all is well, and what is wrong when it is."""

from __future__ import annotations

import json
import subprocess
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


# Servers that run and do something else than they should: seen, told, and mended by what is told


def paste(stage: Stage, check: str) -> None:
    """Run the commands that the doctor gives for *check*, and let Postfix read the result."""
    done = stage.gatepost("doctor", "--json", "--config-directory", str(stage.postfix.config_directory))
    for row in json.loads(done.stdout)["findings"]:
        for command in row["remedy"] if row["check"] == check else ():
            if command.startswith("postconf"):
                subprocess.run(["sh", "-c", command], check=True, timeout=30)
    stage.postfix.reload()


def answer(stage: Stage, client: str, sender: str) -> str:
    """Return the reply to RCPT for a recipient outside."""
    with stage.session(client=client) as session:
        session.mail(sender)
        code, text = session.rcpt("x@example.com")
        return f"{code} {text.decode()}"


def test_a_refusal_in_the_other_list_is_why_a_connectors_host_may_not_relay(boot: Boot) -> None:
    after = (
        "relay_domains = contoso.com\nmynetworks = 127.0.0.0/8\n"
        "smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination\n"
    )
    stage = boot("policy-only", after=after, configuration=lambda text: text.replace('"monitor"', '"enforce"'))
    assert "Relay access denied" in answer(stage, "192.0.2.5", "app@contoso.com")
    (told,) = found(stage)["policy-order"]
    assert told.endswith("/inet: smtpd_recipient_restrictions has reject_unauth_destination")
    paste(stage, "policy-order")
    assert answer(stage, "192.0.2.5", "app@contoso.com").startswith("250 ")
    assert "policy-order" not in found(stage)
    assert "Relay access denied" in answer(stage, "203.0.113.9", "spam@spam.example")


def test_a_table_that_permits_everybody_is_why_strangers_relay(boot: Boot) -> None:
    after = (
        "relay_domains = contoso.com\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
        "smtpd_relay_restrictions = check_client_access cidr:{ {0.0.0.0/0 OK} }, permit_mynetworks, "
        "reject_unauth_destination\n"
    )
    stage = boot("relay-hub", after=after)
    assert answer(stage, "203.0.113.9", "spam@spam.example").startswith("250 ")
    assert len(found(stage)["open-relay"]) == 1
    paste(stage, "open-relay")
    assert "Relay access denied" in answer(stage, "203.0.113.9", "spam@spam.example")
    assert "open-relay" not in found(stage)


def test_a_default_action_in_braces_lets_mail_past_while_policyd_is_away(boot: Boot) -> None:
    after = (
        "relay_domains = contoso.com\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
        "smtpd_relay_restrictions = check_policy_service { unix:gatepost/policyd.sock, timeout=5s, "
        "default_action=DUNNO }, permit_mynetworks, reject_unauth_destination\nsmtpd_data_restrictions =\n"
    )
    stage = boot("policy-only", after=after)
    stage.stop_gatepost()
    assert answer(stage, "192.0.2.5", "bob@fabrikam.com").startswith("250 ")
    paste(stage, "policy-default-action")
    assert answer(stage, "192.0.2.5", "bob@fabrikam.com").startswith("451 4.3.0 ")


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
