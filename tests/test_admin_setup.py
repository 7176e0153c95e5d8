# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost setup postfix` prints what it would add and why; --apply does it, --undo takes it back, byte for byte."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from setuphost import STOCK, SetupHost, setup_host

from gatepost.admin.postfix.wiring import Topology

TOPOLOGIES = [topology.value for topology in Topology]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="main.cf is root's")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetupHost:
    return setup_host(tmp_path, monkeypatch, "relay-hub")


# What is printed


@pytest.mark.parametrize("topology", ["relay-hub", "forwarder"])
def test_what_it_prints_for_debians_main_cf(host: SetupHost, topology: str) -> None:
    result = host.configure(topology).setup()
    told = re.sub(r"^Postfix \d+\.\d+", "Postfix VERSION", host.told(result))
    assert (result.exit_code, told) == (0, (STOCK / f"{topology}.txt").read_text())


def test_it_fits_a_narrow_terminal(host: SetupHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    reasons = [line for line in host.setup().output.splitlines() if line.startswith("        ")]
    assert max(map(len, reasons)) <= 60


def test_override_is_shown_as_it_can_be_written_in_master_cf(host: SetupHost) -> None:
    host.add(master_cf="submission inet n - y - - smtpd\n  -o smtpd_milters=inet:localhost:11332,inet:localhost:8891\n")
    assert (
        "  +   -o { smtpd_milters = { unix:gatepost/milter.sock, default_action=tempfail },"
        in host.setup().output.replace("\n", " ")
    )


def test_printing_changes_nothing(host: SetupHost) -> None:
    before = host.files()
    assert host.setup().exit_code == 0
    assert (host.files(), host.actions) == (before, [])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_topology_is_the_one_that_gatepost_toml_is_written_for(host: SetupHost, topology: str) -> None:
    assert f"topology {topology}\n" in host.configure(topology).setup().output


def test_json_has_each_change_with_its_reason(host: SetupHost) -> None:
    document = json.loads(host.setup("--json").output)
    assert (document["topology"], document["applied"], document["refusals"]) == ("relay-hub", False, [])
    assert document["reloaded"] is None
    assert document["changes"][0] == {
        "service": "",
        "parameter": "smtpd_milters",
        "old": None,
        "new": "unix:gatepost/milter.sock",
        "why": "The milter applies the relay rule to what comes in by SMTP, and gives a foreign sender its SRS"
        " address.",
    }


def test_no_postfix_is_said_with_status_69(host: SetupHost, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.programs / "postconf").unlink()
    (host.programs / "postconf").write_text("#!/bin/sh\necho postconf: fatal: broken >&2; exit 1\n")
    (host.programs / "postconf").chmod(0o755)
    result = host.setup()
    assert result.exit_code == 69
    assert result.output.endswith("postconf: fatal: broken\n")


def test_folder_without_main_cf_is_said_with_status_66(host: SetupHost) -> None:
    (host.directory / "main.cf").unlink()
    result = host.setup()
    assert (result.exit_code, host.told(result)) == (66, "/etc/postfix: no main.cf there\n")


@pytest.mark.parametrize("options", [("--config-directory", ""), ("--instance", ""), ("--undo", "--json")])
def test_options_that_make_no_sense_are_refused_with_status_64(host: SetupHost, options: tuple[str, ...]) -> None:
    assert host.setup(*options).exit_code == 64


def test_unusable_configuration_is_said_with_status_78(host: SetupHost) -> None:
    host.configuration.write_text("[relay]\nmode = 1\n")
    assert host.setup().exit_code == 78


# Applying


@root_only
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_applied_twice_there_is_nothing_left_to_do(host: SetupHost, topology: str) -> None:
    assert host.configure(topology).setup("--apply").exit_code == 0
    files = host.files()
    result = host.setup("--apply")
    assert result.exit_code == 0
    assert result.output.endswith(f"\nNothing to change: Postfix has all that topology {topology} needs.\n")
    assert host.files() == files


@root_only
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_undo_is_the_way_back_byte_for_byte(host: SetupHost, topology: str) -> None:
    (host.directory / "master.cf").chmod(0o640)
    os.chown(host.directory / "main.cf", 8, 8)
    before = host.files()
    assert host.configure(topology).setup("--apply").exit_code == 0
    assert host.files() != before
    assert host.setup("--undo").exit_code == 0
    assert (host.files(), (host.directory / "main.cf").stat().st_uid) == (before, 8)
    assert not (host.directory / "gatepost-setup").exists()


MAIN_CF = st.lists(
    st.sampled_from(
        [
            "# a comment\n",
            "\n",
            "smtpd_milters = inet:localhost:8891,\n# inside\n   inet:localhost:11332\n",
            "non_smtpd_milters = $smtpd_milters\n",
            "milter_default_action = accept\n",
            "smtpd_recipient_restrictions =\n\tpermit_mynetworks\r\n\treject_unauth_destination\n",
            "smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:10023, reject_unlisted_recipient\n",
            "smtpd_relay_restrictions=permit_mynetworks,reject_unauth_destination\n",
            "virtual_alias_domains = $virtual_alias_maps, example.org\n",
            "virtual_alias_maps = inline:{ {a@example.org = b@example.org} }\n",
            "  continued = for nobody\n",
            "mua_milters = inet:localhost:8891\n",
            "smtpd_tls_loglevel = 1\r\n",
            "sender_dependent_default_transport_maps = inline:{ {x@contoso.com = smtp:[192.0.2.9]} }\n",
            "sender_canonical_maps = tcp:localhost:10001, inline:{ {root = admin@contoso.com} }\n"
            "sender_canonical_classes = envelope_sender\n",
        ]
    ),
    max_size=8,
)
MASTER_CF = st.sampled_from(
    [
        "",
        "# amavis\n127.0.0.1:10025 inet n - y - - smtpd\n  -o content_filter=\n# inside\n  -o smtpd_milters=\n",
        "submission inet n - y - - smtpd -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject",
        "465 inet n - n - - smtpd\n  -o { smtpd_milters = $mua_milters }\n  -o smtpd_data_restrictions=\n",
    ]
)


@root_only
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MAIN_CF, MASTER_CF, st.sampled_from(TOPOLOGIES))
def test_apply_and_undo_together_change_no_byte(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    main_cf: list[str],
    master_cf: str,
    topology: str,
) -> None:
    host = setup_host(tmp_path_factory.mktemp("host"), monkeypatch, topology).add(
        "".join(main_cf).rstrip("\n"), master_cf
    )
    before = host.files()
    result = host.setup("--apply")
    assert result.exit_code == 0, result.output
    assert "Nothing to change" in host.setup("--apply").output
    assert host.setup("--undo").exit_code == 0
    assert host.files() == before


@root_only
def test_what_postfix_check_complains_of_is_put_back(host: SetupHost) -> None:
    (host.programs / "complaint").write_text("postfix: fatal: no such thing\n")
    before = host.files()
    result = host.setup("--apply")
    assert result.exit_code == 1
    assert result.output.endswith(
        "Postfix complains of the result:\npostfix: fatal: no such thing\npostfix check: exit status 1\n"
    )
    assert host.files() == before
    assert not (host.directory / "gatepost-setup").exists()


@root_only
def test_running_postfix_is_not_reloaded_while_gatepost_does_not_answer(host: SetupHost) -> None:
    host.run_postfix()
    before = host.files()
    result = host.setup("--apply")
    assert result.exit_code == 1
    assert "* gatepost does not answer at\n" in result.output
    assert (host.files(), host.actions) == (before, [])


@root_only
def test_running_postfix_reads_what_is_applied_and_undone(host: SetupHost) -> None:
    host.run_postfix()
    result = host.setup("--apply", "--force")
    assert result.output.endswith("Postfix has read it.\n")
    assert host.actions == ["check", "check", "reload"]
    host.setup("--undo")
    assert host.actions[3:] == ["reload"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_without_root_nothing_is_applied(host: SetupHost) -> None:
    os.seteuid(65534)
    try:
        result = host.setup("--apply")
    finally:
        os.seteuid(0)
    assert (result.exit_code, result.output) == (
        77,
        "main.cf and master.cf are root's: run this with sudo. Without --apply and --undo it only looks.\n",
    )


# Taking it back


@root_only
def test_undo_of_nothing_says_so(host: SetupHost) -> None:
    result = host.setup("--undo")
    assert (result.exit_code, host.told(result)) == (
        1,
        "/etc/postfix: setup has changed nothing here, so there is nothing to take back\n",
    )


@root_only
def test_undo_keeps_what_was_changed_by_hand_since(host: SetupHost) -> None:
    before = host.files()
    host.setup("--apply")
    host.add("relay_domains = contoso.net\n", "tlsproxy unix - - y - 0 tlsproxy\n")
    result = host.setup("--undo")
    assert result.exit_code == 0
    assert "are as they were before setup, but for what was changed by hand since:\n" in result.output
    assert "\n+relay_domains = contoso.net\n" in result.output
    assert host.files() == {
        name: (
            octets + {"main.cf": b"relay_domains = contoso.net\n"}.get(name, b"tlsproxy unix - - y - 0 tlsproxy\n"),
            mode,
        )
        for name, (octets, mode) in before.items()
    }


@root_only
def test_undo_does_not_lose_what_was_changed_by_hand_in_gateposts_entries(host: SetupHost) -> None:
    before = host.files()
    host.setup("--apply")
    main_cf = host.directory / "main.cf"
    ours, edited = (
        "smtpd_milters = unix:gatepost/milter.sock\n",
        "smtpd_milters = unix:gatepost/milter.sock, inet:d:1\n",
    )
    main_cf.write_text(main_cf.read_text().replace(f"\n{ours}", f"\n{edited}"))
    after = host.files()
    result = host.setup("--undo")
    assert result.exit_code == 1
    assert f"-{ours}+{edited}" in result.output
    assert host.files() == after
    assert host.setup("--undo", "--force").exit_code == 0
    assert host.files() == before


@root_only
def test_what_was_changed_by_hand_before_a_second_run_is_not_lost_either(host: SetupHost) -> None:
    before = host.files()["main.cf"][0]
    host.setup("--apply")
    host.add("smtpd_banner = hello\n")
    host.configuration.write_text(host.configuration.read_text().replace("milter.sock", "other.sock"))
    assert host.setup("--apply").exit_code == 0
    assert host.setup("--undo").exit_code == 0
    assert host.files()["main.cf"][0] == before + b"smtpd_banner = hello\n"


@root_only
def test_entry_of_gateposts_that_was_changed_by_hand_before_a_second_run_is_not_lost_either(host: SetupHost) -> None:
    host.setup("--apply")
    main_cf = host.directory / "main.cf"
    main_cf.write_text(main_cf.read_text().replace("unix:gatepost/milter.sock", "unix:gatepost/milter.sock, inet:d:1"))
    os.utime(main_cf, (0, 0))
    host.configuration.write_text(host.configuration.read_text().replace("policyd.sock", "other.sock"))
    assert host.setup("--apply").exit_code == 0
    result = host.setup("--undo")
    assert (result.exit_code, "inet:d:1" in result.output) == (1, True)


@root_only
def test_another_topology_waits_until_the_first_is_undone(host: SetupHost) -> None:
    host.setup("--apply")
    host.configure("policy-only")
    result = host.setup("--apply")
    assert result.exit_code == 1
    assert "was set up for topology relay-hub. Take that back first: gatepost setup postfix --undo" in result.output
