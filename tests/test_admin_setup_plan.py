# SPDX-License-Identifier: GPL-3.0-or-later
"""How gatepost's entries combine with what main.cf and master.cf have: what is there stays, behind them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from setuphost import EXAMPLES, SetupHost, setup_host

from gatepost.admin.postfix.config import PostfixConfig
from gatepost.admin.postfix.wiring import Topology
from gatepost.admin.setup.plan import Plan, Planner, Role, entry_line, hop_line, hop_of, role
from gatepost.admin.setup.sockets import UnreachableError, silent, sockets
from gatepost.service.config import load

MILTER = "unix:gatepost/milter.sock"
POLICY = "check_policy_service unix:gatepost/policyd.sock"
AWAY = "451 4.3.0 Service unavailable, try again later"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetupHost:
    return setup_host(tmp_path, monkeypatch, "relay-hub")


def plan(host: SetupHost, topology: str = "relay-hub") -> Plan:
    config, gatepost, kind = host.read(), load(host.configuration), Topology(topology)
    return Planner(config, gatepost, kind, sockets(config, gatepost, kind)).plan()


def new(host: SetupHost, parameter: str, service: str = "", topology: str = "relay-hub") -> list[str]:
    """Return what *parameter* is to become: a list with one value, or with none where it stays."""
    changes = plan(host, topology).changes
    return [change.new for change in changes if (change.service, change.parameter) == (service, parameter)]


# main.cf


@pytest.mark.parametrize("topology", [topology.value for topology in Topology])
def test_example_as_it_stands_needs_nothing(host: SetupHost, topology: str) -> None:
    master_cf = EXAMPLES / topology / "master.cf"
    host.configure(topology).add(
        (EXAMPLES / topology / "main.cf").read_text(), master_cf.read_text() if master_cf.exists() else ""
    )
    assert plan(host, topology).is_empty


def test_milter_is_put_before_others_and_acts_for_itself(host: SetupHost) -> None:
    host.add("smtpd_milters = inet:localhost:8891\nmilter_default_action = accept\n")
    assert new(host, "smtpd_milters") == ["{ unix:gatepost/milter.sock, default_action=tempfail }, inet:localhost:8891"]
    assert new(host, "milter_default_action") == []


def test_milter_that_is_alone_shares_the_default_action(host: SetupHost) -> None:
    assert (new(host, "smtpd_milters"), new(host, "milter_default_action")) == ([MILTER], ["tempfail"])


def test_milter_that_is_there_behind_another_stays_there(host: SetupHost) -> None:
    host.add(f"smtpd_milters = inet:localhost:8891, {MILTER}\nmilter_default_action = tempfail\n")
    assert new(host, "smtpd_milters") == []


def test_milter_that_would_be_skipped_while_it_is_away_is_not_right(host: SetupHost) -> None:
    host.add(f"smtpd_milters = {MILTER}\nmilter_default_action = accept\n")
    assert new(host, "smtpd_milters") == ["{ unix:gatepost/milter.sock, default_action=tempfail }"]


def test_milter_list_that_names_the_other_one_inherits_its_entry(host: SetupHost) -> None:
    host.add("smtpd_milters = inet:localhost:8891\nnon_smtpd_milters = $smtpd_milters\n")
    assert new(host, "non_smtpd_milters") == []


def test_policy_service_is_put_before_a_permit(host: SetupHost) -> None:
    host.add("smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination\n")
    assert new(host, "smtpd_recipient_restrictions") == [f"{POLICY}, permit_mynetworks, reject_unauth_destination"]


def test_policy_service_behind_a_permit_is_moved_before_it(host: SetupHost) -> None:
    host.add(f"smtpd_recipient_restrictions = permit_mynetworks, {POLICY}, check_client_access static:OK, reject\n")
    assert new(host, "smtpd_recipient_restrictions") == [
        f"{POLICY}, permit_mynetworks, check_client_access static:OK, reject"
    ]


def test_policy_service_beside_postgrey_acts_for_itself(host: SetupHost) -> None:
    host.add("smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:10023\n")
    own = f"check_policy_service {{ unix:gatepost/policyd.sock, {{ default_action = {AWAY} }} }}"
    assert new(host, "smtpd_recipient_restrictions") == [f"{own}, check_policy_service inet:127.0.0.1:10023"]
    assert new(host, "smtpd_policy_service_default_action") == []


def test_virtual_alias_domains_are_the_tables_that_were_meant(host: SetupHost) -> None:
    host.add("virtual_alias_maps = hash:/etc/postfix/virtual\n")
    assert new(host, "virtual_alias_maps") == [
        "socketmap:unix:gatepost/policyd.sock:reverse, hash:/etc/postfix/virtual"
    ]
    assert new(host, "virtual_alias_domains") == ["hash:/etc/postfix/virtual"]


def test_virtual_alias_domains_that_are_named_stay(host: SetupHost) -> None:
    host.add("virtual_alias_maps = hash:/etc/postfix/virtual\nvirtual_alias_domains = example.org\n")
    assert new(host, "virtual_alias_domains") == []


def test_srs_domain_that_postfix_does_not_know_becomes_an_alias_domain(host: SetupHost) -> None:
    host.configure("exchange-online")
    assert new(host, "virtual_alias_domains", topology="exchange-online") == ["srs.contoso.com"]
    assert new(host, "virtual_alias_maps", topology="exchange-online") == [
        "socketmap:unix:gatepost/policyd.sock:reverse, inline:{ {bounces@srs.contoso.com = postmaster@contoso.com} }"
    ]


def test_probes_keep_the_transports_that_senders_had(host: SetupHost) -> None:
    host.configure("forwarder").add("sender_dependent_default_transport_maps = hash:/etc/postfix/senders\n")
    assert new(host, "sender_dependent_default_transport_maps", topology="forwarder") == [
        "socketmap:unix:gatepost/policyd.sock:egress, hash:/etc/postfix/senders"
    ]
    assert new(host, "address_verify_sender_dependent_default_transport_maps", topology="forwarder") == [
        "hash:/etc/postfix/senders"
    ]


def test_probes_that_are_to_go_as_senders_do_do_not_take_the_hop(host: SetupHost) -> None:
    host.configure("forwarder").add(
        "address_verify_sender_dependent_default_transport_maps = $sender_dependent_default_transport_maps\n"
    )
    assert new(host, "address_verify_sender_dependent_default_transport_maps", topology="forwarder") == [""]


def test_postsrsds_maps_give_way_and_others_stay(host: SetupHost) -> None:
    host.configure("postsrsd-replacement").add(
        "sender_canonical_maps = tcp:localhost:10001, hash:/etc/postfix/canonical\n"
        "recipient_canonical_maps = socketmap:unix:srs:reverse\n"
    )
    assert new(host, "sender_canonical_maps", topology="postsrsd-replacement") == [
        "hash:/etc/postfix/canonical, socketmap:unix:gatepost/policyd.sock:forward"
    ]
    assert new(host, "recipient_canonical_maps", topology="postsrsd-replacement") == [
        "socketmap:unix:gatepost/policyd.sock:reverse"
    ]


def test_postsrsds_ports_that_gatepost_listens_on_stay(host: SetupHost) -> None:
    host.configure(
        "postsrsd-replacement", ("#tcp_table_forward", "tcp_table_forward"), ("#tcp_table_reverse", "tcp_table_reverse")
    ).add("sender_canonical_maps = tcp:127.0.0.1:10001\nrecipient_canonical_maps = tcp:localhost:10002\n")
    assert new(host, "sender_canonical_maps", topology="postsrsd-replacement") == []
    assert new(host, "recipient_canonical_maps", topology="postsrsd-replacement") == []


def test_reason_names_the_postsrsd_whose_place_is_taken(host: SetupHost) -> None:
    host.configure("postsrsd-replacement").add("sender_canonical_maps = tcp:localhost:10001\n")
    whys = [
        item.why for item in plan(host, "postsrsd-replacement").changes if item.parameter == "sender_canonical_maps"
    ]
    assert [why.endswith(" It takes the place of postsrsd's tcp:localhost:10001.") for why in whys] == [True]


def test_postsrsd_that_was_put_behind_gatepost_stays(host: SetupHost) -> None:
    host.configure("postsrsd-replacement").add(
        "recipient_canonical_maps = socketmap:unix:gatepost/policyd.sock:reverse, socketmap:unix:srs:reverse\n"
    )
    assert new(host, "recipient_canonical_maps", topology="postsrsd-replacement") == []


def test_restrictions_of_policy_only_keep_what_was_the_default(host: SetupHost) -> None:
    main_cf = host.directory / "main.cf"
    lines = [line for line in main_cf.read_text().splitlines() if not line.startswith("smtpd_relay_restrictions")]
    main_cf.write_text("\n".join(lines) + "\n")
    host.configure("policy-only").add()
    assert new(host, "smtpd_relay_restrictions", topology="policy-only") == [
        f"{POLICY}, permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination"
    ]


def test_certificates_are_asked_for_only_where_a_connector_has_a_name(host: SetupHost) -> None:
    assert new(host, "smtpd_tls_ask_ccert") == ["yes"]
    host.configure(
        "relay-hub", ('tls_sender_certificate_name = "crm.contoso.com"', 'sender_ip_addresses = ["192.0.2.99"]')
    )
    assert new(host, "smtpd_tls_ask_ccert") == []


def test_digest_that_fingerprints_are_listed_in_stays(host: SetupHost) -> None:
    host.add("compatibility_level = 2\nrelay_clientcerts = hash:/etc/postfix/relay_clientcerts\n")
    assert new(host, "smtpd_tls_fingerprint_digest") == []


def test_digest_that_an_access_table_lists_fingerprints_in_stays(host: SetupHost) -> None:
    host.add(
        "compatibility_level = 2\nsmtpd_relay_restrictions = check_ccert_access hash:/x, reject_unauth_destination\n"
    )
    assert new(host, "smtpd_tls_fingerprint_digest") == []


# master.cf


def test_port_for_users_alone_is_not_opened_to_connectors(host: SetupHost) -> None:
    host.configure("policy-only").add(
        "", "587 inet n - y - - smtpd -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n"
    )
    assert new(host, "smtpd_relay_restrictions", "587/inet", "policy-only") == []


def test_port_with_a_relay_list_for_hosts_asks_policyd(host: SetupHost) -> None:
    host.configure("policy-only").add(
        "", "587 inet n - y - - smtpd -o smtpd_relay_restrictions=permit_mynetworks,reject\n"
    )
    assert new(host, "smtpd_relay_restrictions", "587/inet", "policy-only") == [f"{POLICY}, permit_mynetworks,reject"]


def test_list_of_a_submission_service_gets_the_policy_service_too(host: SetupHost) -> None:
    host.add("", "submission inet n - y - - smtpd\n -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject\n")
    assert new(host, "smtpd_recipient_restrictions", "submission/inet") == [
        f"{POLICY}, permit_sasl_authenticated,reject"
    ]


def test_milters_of_a_service_of_its_own_get_gatepost_too(host: SetupHost) -> None:
    host.add("", "465 inet n - y - - smtpd -o smtpd_milters=\n")
    assert new(host, "smtpd_milters", "465/inet") == [MILTER]


def test_service_without_lists_of_its_own_is_left_alone(host: SetupHost) -> None:
    host.add("", "465 inet n - y - - smtpd -o smtpd_tls_wrappermode=yes\n")
    assert new(host, "smtpd_milters", "465/inet") == []


AMAVIS = """127.0.0.1:10025 inet n - y - - smtpd
  -o content_filter=
  -o mynetworks=127.0.0.0/8
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
"""


def test_service_behind_a_content_filter_is_kept_from_gatepost(host: SetupHost) -> None:
    host.add("content_filter = smtp-amavis:[127.0.0.1]:10024\nsmtpd_milters = inet:localhost:8891\n", AMAVIS)
    assert new(host, "smtpd_milters", "127.0.0.1:10025/inet") == ["inet:localhost:8891"]
    assert new(host, "smtpd_data_restrictions", "127.0.0.1:10025/inet") == [""]
    assert new(host, "smtpd_recipient_restrictions", "127.0.0.1:10025/inet") == []


def test_service_behind_a_content_filter_that_asks_no_milters_stays(host: SetupHost) -> None:
    host.add("content_filter = smtp-amavis:[127.0.0.1]:10024\n", AMAVIS + "  -o receive_override_options=no_milters\n")
    assert new(host, "smtpd_milters", "127.0.0.1:10025/inet") == []


def test_orcpt_survives_a_content_filter_on_its_way_to_the_egress_hop(host: SetupHost) -> None:
    host.configure("forwarder").add("content_filter = smtp-amavis:[127.0.0.1]:10024\n", AMAVIS)
    assert new(host, "smtpd_command_filter", "127.0.0.1:10025/inet", "forwarder") == [""]


@pytest.mark.parametrize(
    ("main_cf", "master_cf", "expected"),
    [
        ("", "127.0.0.1:2525 inet n - y - - smtpd\n", Role.INGRESS),
        (
            "content_filter = x:[127.0.0.1]:1\n",
            "127.0.0.1:2525 inet n - y - - smtpd -o content_filter=\n",
            Role.FROM_FILTER,
        ),
        ("content_filter = x:[127.0.0.1]:1\n", "127.0.0.1:2525 inet n - y - - smtpd\n", Role.INGRESS),
        ("content_filter = x:[127.0.0.1]:1\n", "587 inet n - y - - smtpd -o content_filter=\n", Role.INGRESS),
        (
            "",
            "192.0.2.9:2525 inet n - y - - smtpd -o smtpd_authorized_xforward_hosts=192.0.2.7\n"
            "26 inet n - y - - smtpd -o smtpd_proxy_filter=192.0.2.7:1\n",
            Role.FROM_FILTER,
        ),
        (
            "content_filter = x:[127.0.0.1]:1\n",
            "10025 inet n - y - - smtpd -o content_filter="
            " -o mynetworks=127.0.0.0/8,[::ffff:127.0.0.0]/104,[::1]/128\n",
            Role.FROM_FILTER,
        ),
        (
            "content_filter = x:[192.0.2.7]:1\n",
            "10025 inet n - y - - smtpd -o content_filter= -o mynetworks=192.0.2.7/32\n",
            Role.FROM_FILTER,
        ),
        (
            "content_filter = x:[192.0.2.7]:1\n",
            "10025 inet n - y - - smtpd -o content_filter= -o mynetworks=192.0.2.0/24\n",
            Role.INGRESS,
        ),
        (
            "smtpd_client_restrictions = check_client_access cidr:{{0.0.0.0/0 FILTER x:[127.0.0.1]:1}}\n",
            "127.0.0.1:10025 inet n - y - - smtpd -o mynetworks=127.0.0.0/8 -o smtpd_client_restrictions=\n",
            Role.FROM_FILTER,
        ),
        ("", "127.0.0.1:2525 inet n - y - - smtpd -o mynetworks=127.0.0.0/8\n", Role.INGRESS),
        (
            "",
            "127.0.0.1:587 inet n - y - - smtpd -o content_filter= -o smtpd_sasl_auth_enable=yes\n"
            "26 inet n - y - - smtpd -o content_filter=x:[127.0.0.1]:1\n",
            Role.INGRESS,
        ),
        (
            "",
            "127.0.0.1:2525 inet n - y - - smtpd\n26 inet n - y - - smtpd -o content_filter=x:[127.0.0.1]:1\n",
            Role.INGRESS,
        ),
        (
            "",
            "127.0.0.1:2525 inet n - y - - smtpd -o smtpd_client_restrictions=permit_mynetworks,reject\n"
            "26 inet n - y - - smtpd -o content_filter=x:[127.0.0.1]:1\n",
            Role.FROM_FILTER,
        ),
        ("", "127.0.0.1:10027 inet n - y - - smtpd -o milter_macro_daemon_name=gatepost-egress\n", Role.HOP),
    ],
    ids=[
        "loopback",
        "amavis",
        "filtered loopback",
        "submission unfiltered",
        "proxy filter elsewhere",
        "amavis with Debian's mynetworks",
        "amavis elsewhere",
        "network unfiltered",
        "filter by an access table",
        "loopback for one's own programs",
        "webmail's submission beside a filter",
        "loopback beside a filter",
        "closed loopback beside a filter",
        "the hop",
    ],
)
def test_what_a_service_is_for(host: SetupHost, main_cf: str, master_cf: str, expected: Role) -> None:
    config = host.add(main_cf, master_cf).read()
    name = master_cf.split()[0]
    service = config.service(name, "inet")
    assert service is not None
    assert role(config, service, hop_of(load(host.configuration))) is expected


def test_services_of_the_hop_are_chrooted_as_the_smtpd_is(host: SetupHost) -> None:
    master_cf = host.directory / "master.cf"
    master_cf.write_text(master_cf.read_text().replace("inet  n       -       y", "inet  n       -       n"))
    lines = [hop_line(item) for item in plan(host.configure("forwarder"), "forwarder").services]
    assert [line.split()[:8] for line in lines] == [
        ["gatepost-egress", "unix", "-", "-", "n", "-", "-", "smtp"],
        ["127.0.0.1:10027", "inet", "n", "-", "n", "-", "-", "smtpd"],
        ["gatepost-cleanup", "unix", "n", "-", "n", "-", "0", "cleanup"],
    ]


def test_part_of_the_hop_that_was_changed_is_mended(host: SetupHost) -> None:
    text = (EXAMPLES / "forwarder/master.cf").read_text().replace("-o smtp_fallback_relay=", "-o smtp_fallback_relay=x")
    host.configure("forwarder").add((EXAMPLES / "forwarder/main.cf").read_text(), text)
    (change,) = plan(host, "forwarder").changes
    assert (change.service, change.parameter, change.old, change.new) == (
        "gatepost-egress/unix",
        "smtp_fallback_relay",
        "x",
        "",
    )


def test_changed_service_keeps_its_other_arguments(host: SetupHost) -> None:
    host.add("", "465 inet n - y - 50 smtpd -v -o { mynetworks = 192.0.2.1 192.0.2.2 }\n  -o smtpd_milters= -o a=b\n")
    config, changes = host.read(), plan(host).changes
    service = config.service("465", "inet")
    assert service is not None
    assert entry_line(service, [change for change in changes if change.service]) == (
        "465 inet n - y - 50 smtpd -v -o {mynetworks=192.0.2.1 192.0.2.2} -o a=b"
        " -o smtpd_milters=unix:gatepost/milter.sock"
    )


# Sockets


def called(host: SetupHost, milter: str, policyd: str) -> tuple[str, str]:
    text = host.configuration.read_text().replace(f"unix:{host.queue}/gatepost/milter.sock", milter)
    host.configuration.write_text(text.replace(f"unix:{host.queue}/gatepost/policyd.sock", policyd))
    found = sockets(host.read(), load(host.configuration), Topology.RELAY_HUB)
    return found.milter, found.policyd


def test_socket_on_all_addresses_is_called_on_loopback(host: SetupHost) -> None:
    assert called(host, "inet:0.0.0.0:10040", "inet:[::]:10041") == ("inet:127.0.0.1:10040", "inet:[::1]:10041")


def test_socket_outside_the_queue_directory_is_out_of_reach_for_a_chrooted_smtpd(host: SetupHost) -> None:
    with pytest.raises(UnreachableError) as caught:
        called(host, "unix:/run/gatepost/milter.sock", "inet:127.0.0.1:10041")
    assert str(caught.value) == (
        f"smtp/inet, cleanup/unix in master.cf: chrooted to {host.queue}, so /run/gatepost/milter.sock is out of reach."
        f' In gatepost.toml, [milter] listen, use "unix:{host.queue}/gatepost/milter.sock" or "inet:127.0.0.1:10040"'
    )


def test_socket_outside_the_queue_directory_is_called_by_its_path_where_nothing_is_chrooted(host: SetupHost) -> None:
    master_cf = host.directory / "master.cf"
    master_cf.write_text(master_cf.read_text().replace("-       y  ", "-       n  "))
    assert called(host, "unix:/run/gatepost/milter.sock", "unix:/run/gatepost/policyd.sock") == (
        "unix:/run/gatepost/milter.sock",
        "unix:/run/gatepost/policyd.sock",
    )


def test_sockets_that_postfix_calls_are_those_that_must_answer(host: SetupHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        policyd, elsewhere = f"unix:{host.queue}/gatepost/policyd.sock", f"inet:127.0.0.1:{port}"
        host.configure("policy-only", (f'"{policyd}"', f'"{elsewhere}", "{policyd}"'))
        missing = silent(host.read(), load(host.configuration), Topology.POLICY_ONLY)
    assert [str(listen) for listen in missing] == [policyd]


# Reading the configuration


def test_override_of_a_service_is_what_its_daemon_sees(host: SetupHost) -> None:
    host.add(
        "mua_list = permit_sasl_authenticated\n", "587 inet n - - - - smtpd -o smtpd_client_restrictions=$mua_list\n"
    )
    config = host.read()
    service = config.service("587", "inet")
    assert service is not None
    assert config.effective(service, "smtpd_client_restrictions") == "permit_sasl_authenticated"
    assert config.effective(service, "myhostname") == "mail.contoso.com"
    assert service.overrides == {"smtpd_client_restrictions": "$mua_list"}


@pytest.mark.parametrize(("level", "chrooted"), [("0", True), ("1", False), ("3.6", False)])
def test_default_of_the_chroot_column_depends_on_the_compatibility_level(
    host: SetupHost, level: str, chrooted: bool
) -> None:
    config = host.add(f"compatibility_level = {level}\n", "587 inet n - - - - smtpd\n").read()
    service = config.service("587", "inet")
    assert service is not None
    assert config.is_chrooted(service) is chrooted


def test_instances_are_those_that_the_primary_one_names(host: SetupHost) -> None:
    second = host.root / "postfix-out"
    second.mkdir()
    (second / "main.cf").write_text("multi_instance_name = postfix-out\n")
    host.add(f"multi_instance_directories = {second}\n")
    found = PostfixConfig.read(host.directory).instances
    assert [(item.name, item.directory) for item in found] == [("-", host.directory), ("postfix-out", second)]
