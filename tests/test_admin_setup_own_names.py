# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost setup postfix` beside a command filter, and beside services that have the names [egress] would give."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuphost import EXAMPLES, SetupHost, setup_host

from gatepost.admin.postfix.wiring import Topology, filter_files
from gatepost.admin.setup.plan import Planner
from gatepost.admin.setup.refusals import Refusal, refusals
from gatepost.admin.setup.sockets import sockets
from gatepost.service.config import load


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetupHost:
    return setup_host(tmp_path, monkeypatch, "relay-hub")


@pytest.fixture
def forwarder(host: SetupHost) -> SetupHost:
    return host.configure("forwarder")


def planned(host: SetupHost, topology: str) -> list[tuple[str, str]]:
    """Return what smtpd_command_filter is to be, and for which service."""
    config, gatepost, kind = host.read(), load(host.configuration), Topology(topology)
    plan = Planner(config, gatepost, kind, sockets(config, gatepost, kind)).plan()
    return [(item.service, item.new) for item in plan.changes if item.parameter == "smtpd_command_filter"]


def refused(host: SetupHost, topology: str = "forwarder") -> list[Refusal]:
    return refusals(host.read(), load(host.configuration), Topology(topology))


# smtpd_command_filter

OWN = "regexp:{{/^HELP/ NOOP}}"
OURS = "regexp:$config_directory/gatepost_command_filter"
REFUSED = "main.cf: smtpd_command_filter is"


@pytest.mark.parametrize("example", ["forwarder", "postsrsd-replacement"])
def test_command_filter_of_another_topology_gives_way(host: SetupHost, example: str) -> None:
    main_cf = (EXAMPLES / example / "main.cf").read_text()
    for name in ("gatepost_decode", "smtpd_command_filter"):
        if name in main_cf:
            host.add(main_cf[main_cf.index(f"\n{name} =") :].partition("\n\n")[0] + "\n")
    assert planned(host, "exchange-online") == ([] if example == "forwarder" else [("", OURS)])
    assert refused(host, "exchange-online") == []


def test_file_of_gateposts_among_tables_of_ones_own_does_not_give_way(host: SetupHost) -> None:
    table = f"pipemap:{{{OWN}, regexp:/etc/postfix/gatepost_command_filter}}"
    assert [item.what for item in refused(host.add(f"smtpd_command_filter = {table}\n"), "relay-hub")] == [
        f"{REFUSED} {table}"
    ]


def test_command_filter_with_gateposts_rules_in_it_stays(forwarder: SetupHost) -> None:
    table = forwarder.directory / "commands"
    table.write_text("\n".join([*filter_files(Topology.FORWARDER)["gatepost_command_filter"], "/^HELP/ NOOP\n"]))
    forwarder.add(f"smtpd_command_filter = regexp:{table}\n")
    assert (planned(forwarder, "forwarder"), refused(forwarder)) == ([], [])


def test_orcpt_survives_a_content_filter_though_ones_own_table_takes_it_out(forwarder: SetupHost) -> None:
    rules = " ".join(f"{{{rule}}}" for rule in filter_files(Topology.FORWARDER)["gatepost_command_filter"])
    forwarder.add(
        "content_filter = amavis:[127.0.0.1]:10024\n"
        f"smtpd_command_filter = regexp:{{{rules.replace('$', '$$')} {{/^HELP/ NOOP}}}}\n",
        "127.0.0.1:10025 inet n - y - - smtpd\n  -o content_filter=\n  -o mynetworks=127.0.0.0/8\n",
    )
    assert planned(forwarder, "forwarder") == [("127.0.0.1:10025/inet", "")]


def test_several_tables_of_gateposts_cannot_be_added_to_another(host: SetupHost) -> None:
    host.configure("postsrsd-replacement").add(f"smtpd_command_filter = {OWN}\n")
    (refusal,) = refused(host, "postsrsd-replacement")
    assert refusal.remedy.startswith("Take it out; or write the other lines by hand")


def test_service_without_a_command_filter_is_refused_before_the_hop(forwarder: SetupHost) -> None:
    forwarder.add("", "2525 inet n - y - - smtpd\n  -o smtpd_command_filter=\n")
    assert [(item.what, item.remedy) for item in refused(forwarder)] == [
        ("2525/inet in master.cf: smtpd_command_filter is empty", "postconf -PX 2525/inet/smtpd_command_filter")
    ]


def test_service_that_offers_no_dsn_needs_no_command_filter(forwarder: SetupHost) -> None:
    forwarder.add("", "2525 inet n - y - - smtpd\n  -o smtpd_command_filter=\n  -o smtpd_discard_ehlo_keywords=dsn\n")
    assert refused(forwarder) == []


# What is for authenticated users alone


@pytest.mark.parametrize(
    ("restrictions", "exempt", "asked"),
    [
        ("permit_sasl_authenticated,reject", '["authenticated", "local"]', False),
        ("reject_unknown_recipient_domain,permit_sasl_authenticated,reject", '["authenticated", "local"]', False),
        ("permit_sasl_authenticated,reject", '["local"]', True),
        ("permit_mynetworks,permit_sasl_authenticated,reject", '["authenticated", "local"]', True),
        ("permit_sasl_authenticated,reject_unauth_destination", '["authenticated", "local"]', True),
    ],
)
def test_service_for_authenticated_users_asks_policyd_only_if_it_judges_them(
    host: SetupHost, restrictions: str, exempt: str, asked: bool
) -> None:
    host.configure("policy-only", ("[relay]\n", f"[relay]\nexempt = {exempt}\n")).add(
        "", f"587 inet n - y - - smtpd\n  -o smtpd_relay_restrictions={restrictions}\n"
    )
    config, gatepost = host.read(), load(host.configuration)
    kind = Topology.POLICY_ONLY
    plan = Planner(config, gatepost, kind, sockets(config, gatepost, kind)).plan()
    assert ("587/inet" in [item.service for item in plan.changes]) is asked


# Names of [egress]


@pytest.mark.parametrize("name", ["smtp", "relay", "local"])
def test_transport_of_ones_own_is_not_made_the_hop(host: SetupHost, name: str) -> None:
    host.configure("forwarder", ("gatepost-egress:[", f"{name}:[")).add(
        "", "relay unix - - y - - smtp\n  -o syslog_name=postfix/relay\n  -o smtp_fallback_relay=\n"
    )
    (refusal,) = refused(host)
    command = "local" if name == "local" else "smtp"
    assert refusal.what == f"{name}/unix in master.cf is a service of your own ({command})"


def test_cleanup_of_ones_own_is_not_made_the_hops(host: SetupHost) -> None:
    host.configure("forwarder", ("gatepost-egress:[", "pre-egress:[")).add(
        "", "pre-cleanup unix n - y - 0 cleanup\n  -o canonical_maps=\n"
    )
    assert [item.what for item in refused(host)] == ["pre-cleanup/unix in master.cf is a service of your own (cleanup)"]


def test_hop_that_is_there_is_not_refused(forwarder: SetupHost) -> None:
    text = (EXAMPLES / "forwarder/master.cf").read_text()
    assert refused(forwarder.add("", text.replace("-o smtp_fallback_relay=", "-o smtp_fallback_relay=x"))) == []


def test_daemon_name_of_main_cf_is_refused(forwarder: SetupHost) -> None:
    forwarder.add("milter_macro_daemon_name = gatepost-egress\n")
    assert [item.what for item in refused(forwarder)] == [
        "smtp/inet has milter_macro_daemon_name = gatepost-egress, as the egress hop"
    ]


def test_hop_at_its_former_port_is_to_be_taken_out(forwarder: SetupHost) -> None:
    text = (EXAMPLES / "forwarder/master.cf").read_text().replace("127.0.0.1:10027", "127.0.0.1:10028")
    (refusal,) = refused(forwarder.add("", text))
    assert refusal.what.startswith("127.0.0.1:10028/inet has milter_macro_daemon_name = gatepost-egress")
    assert "postconf -MX 127.0.0.1:10028/inet" in refusal.remedy


@pytest.mark.parametrize("nexthop", ["[192.0.2.1]:10027", "[localhost]:10027", "[127.0.0.1]", "mail.contoso.com"])
def test_hop_that_is_not_at_an_address_and_port_of_loopback_is_refused(host: SetupHost, nexthop: str) -> None:
    host.configure("forwarder", ("[127.0.0.1]:10027", nexthop))
    (refusal,) = refused(host)
    assert refusal.what == f"[egress] transport is gatepost-egress:{nexthop}"
    assert 'transport = "gatepost-egress:[127.0.0.1]:10027"' in refusal.remedy


@pytest.mark.parametrize(("name", "port"), [("submission", "587"), ("smtp", "25")])
def test_service_whose_name_is_the_hops_port_is_refused(host: SetupHost, name: str, port: str) -> None:
    host.configure("forwarder", (":10027", f":{port}")).add(
        "", "" if name == "smtp" else f"{name} inet n - y - - smtpd\n"
    )
    assert [item.what for item in refused(host)] == [f"{name}/inet in master.cf is a service of your own (smtpd)"]


@pytest.mark.parametrize("name", ["192.0.2.9:10027", "[::1]:10027", "10028", "nonsense"])
def test_service_that_listens_elsewhere_is_not_refused(forwarder: SetupHost, name: str) -> None:
    assert refused(forwarder.add("", f"{name} inet n - y - - smtpd -o content_filter=\n")) == []
