# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of how gatepost is wired into Postfix, each on an example as it is and with one thing changed.

Services: smtp/inet is the example's smtpd. The configurations are read by the real postconf(1) and postmap(1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from doctorpostfix import Looked
from doctors import circumstances, texts

Look = Callable[..., Looked]
SUBMISSION = "submission inet n - y - - smtpd\n  -o smtpd_milters=\n"
REDIRECT = ("srs", 'reverse = "redirect"')
POLICY = "check_policy_service unix:gatepost/policyd.sock"
NEVER = "unix:gatepost/other.sock"


def setting(table: str, line: str) -> Callable[[str], str]:
    """Return an edit of gatepost.toml that adds a line to a table."""

    def edit(text: str) -> str:
        head = f"[{table}]\n"
        return text.replace(head, f"{head}{line}\n") if head in text else f"{text}\n{head}{line}\n"

    return edit


# What is well in an example as it is

WELL = [
    ("relay-hub", "postfix", "ok: Postfix 3.7.11, /etc/postfix"),
    ("relay-hub", "wired-in", "ok: Postfix uses of gatepost: milter, policy service, map reverse"),
    ("forwarder", "wired-in", "ok: Postfix uses of gatepost: milter, policy service, map reverse, map egress"),
    ("policy-only", "wired-in", "ok: Postfix uses of gatepost: policy service"),
    ("postsrsd-replacement", "wired-in", "ok: Postfix uses of gatepost: map reverse, map forward"),
    ("relay-hub", "wiring", "ok: the rest of what topology relay-hub needs is there"),
    ("forwarder", "wiring", "ok: the rest of what topology forwarder needs is there"),
    ("exchange-online", "wiring", "ok: the rest of what topology exchange-online needs is there"),
    ("policy-only", "wiring", "ok: the rest of what topology policy-only needs is there"),
    ("postsrsd-replacement", "wiring", "ok: the rest of what topology postsrsd-replacement needs is there"),
    ("relay-hub", "milter", "ok: smtpd_milters has gatepost: smtp/inet"),
    ("relay-hub", "milter-for-sendmail-command", "ok: non_smtpd_milters has gatepost"),
    ("relay-hub", "milter-default-action", "ok: gatepost's milter away: tempfail (smtp/inet)"),
    ("relay-hub", "reverse-map", "ok: bounces come back by virtual_alias_maps"),
    ("postsrsd-replacement", "reverse-map", "ok: bounces come back by recipient_canonical_maps"),
    ("policy-only", "reverse-map", "ok: bounces come back by REDIRECT at DATA"),
    ("relay-hub", "alias-domains", "ok: virtual_alias_domains leaves gatepost out"),
    ("relay-hub", "policy", "ok: policyd is asked: smtp/inet"),
    ("policy-only", "policy", "ok: policyd is asked: smtp/inet"),
    ("relay-hub", "policy-order", "ok: nothing stands before policyd: smtp/inet"),
    ("policy-only", "policy-order", "ok: nothing stands before policyd: smtp/inet"),
    (
        "relay-hub",
        "policy-default-action",
        "ok: policyd away: 451 4.3.0 Service unavailable, try again later",
    ),
]


@pytest.mark.parametrize(("example", "check", "text"), WELL)
def test_an_example_is_well(look: Look, example: str, check: str, text: str) -> None:
    assert look(example).texts(check) == [text.replace("3.7.11", version(look(example)))]


def version(looked: Looked) -> str:
    return looked.stage.postfix.postconf("-h", "mail_version").strip()


@pytest.mark.parametrize("check", ["milter", "milter-for-sendmail-command", "milter-default-action", "alias-domains"])
def test_checks_of_the_milter_have_nothing_to_say_where_there_is_none(look: Look, check: str) -> None:
    assert look("policy-only").texts(check) == []


# One thing changed: what is found, and the first command to paste

CHANGED = [
    (
        "relay-hub",
        "milter",
        ["-e", "smtpd_milters = inet:127.0.0.1:8891"],
        'error: smtp/inet: smtpd_milters is "inet:127.0.0.1:8891"',
        "postconf -e 'smtpd_milters = unix:gatepost/milter.sock, inet:127.0.0.1:8891'",
    ),
    (
        "relay-hub",
        "milter",
        ["-e", "smtpd_milters ="],
        "error: smtp/inet: smtpd_milters is empty",
        "postconf -e 'smtpd_milters = unix:gatepost/milter.sock'",
    ),
    (
        "relay-hub",
        "milter",
        ["-e", "smtpd_milters = unix:/run/gatepost/milter.sock, inet:127.0.0.1:8891"],
        "error: smtp/inet: smtpd_milters has unix:/run/gatepost/milter.sock, where gatepost does not listen "
        "(unix:/var/spool/postfix/gatepost/milter.sock)",
        "postconf -e 'smtpd_milters = unix:gatepost/milter.sock, inet:127.0.0.1:8891'",
    ),
    (
        "relay-hub",
        "milter-for-sendmail-command",
        ["-e", "non_smtpd_milters ="],
        "warning: non_smtpd_milters is empty",
        "postconf -e 'non_smtpd_milters = unix:gatepost/milter.sock'",
    ),
    (
        "relay-hub",
        "milter-default-action",
        ["-e", "milter_default_action = accept"],
        "error: smtp/inet: milter_default_action = accept",
        "postconf -e 'milter_default_action = tempfail'",
    ),
    (
        "relay-hub",
        "milter-default-action",
        ["-e", "milter_default_action = quarantine"],
        "warning: smtp/inet: milter_default_action = quarantine",
        "postconf -e 'milter_default_action = tempfail'",
    ),
    (
        "relay-hub",
        "milter-default-action",
        ["-e", "smtpd_milters = { unix:gatepost/milter.sock, default_action=accept }"],
        "error: smtp/inet: { unix:gatepost/milter.sock, default_action=accept }",
        "postconf -e 'smtpd_milters = { unix:gatepost/milter.sock, default_action=tempfail }'",
    ),
    (
        "relay-hub",
        "reverse-map",
        ["-e", "virtual_alias_maps = static:nobody"],
        "error: virtual_alias_maps does not have gatepost's map reverse",
        "postconf -e 'virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse, static:nobody'",
    ),
    (
        "relay-hub",
        "reverse-map",
        ["-e", f"virtual_alias_maps = socketmap:{NEVER}:reverse"],
        f"error: virtual_alias_maps has socketmap:{NEVER}:reverse, where policyd does not listen "
        "(unix:/var/spool/postfix/gatepost/policyd.sock)",
        "postconf -e 'virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse'",
    ),
    (
        "relay-hub",
        "reverse-map",
        ["-e", "virtual_alias_maps = static:nobody, socketmap:unix:gatepost/policyd.sock:reverse"],
        "warning: virtual_alias_maps: gatepost's map stands behind static:nobody",
        "postconf -e 'virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse, static:nobody'",
    ),
    (
        "relay-hub",
        "alias-domains",
        ["-e", "virtual_alias_domains = $virtual_alias_maps"],
        'warning: virtual_alias_domains is "$virtual_alias_maps"',
        "postconf -e 'virtual_alias_domains ='",
    ),
    (
        "policy-only",
        "policy",
        ["-e", "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination"],
        "error: smtp/inet: smtpd_relay_restrictions does not ask policyd",
        f"postconf -e 'smtpd_relay_restrictions = {POLICY}, permit_mynetworks, reject_unauth_destination'",
    ),
    (
        "policy-only",
        "policy-order",
        ["-e", f"smtpd_relay_restrictions = permit_mynetworks, {POLICY}, reject_unauth_destination"],
        "error: smtp/inet: in smtpd_relay_restrictions policyd stands behind permit_mynetworks",
        f"postconf -e 'smtpd_relay_restrictions = {POLICY}, permit_mynetworks, reject_unauth_destination'",
    ),
    (
        "policy-only",
        "policy-order",
        ["-e", f"smtpd_relay_restrictions = {POLICY}, permit_mynetworks"],
        "error: smtp/inet: smtpd_relay_restrictions has no reject_unauth_destination behind policyd",
        f"postconf -e 'smtpd_relay_restrictions = {POLICY}, permit_mynetworks, reject_unauth_destination'",
    ),
    (
        "policy-only",
        "policy-order",
        ["-e", f"smtpd_relay_restrictions = {POLICY}, permit_mynetworks, defer_unauth_destination"],
        "warning: smtp/inet: smtpd_relay_restrictions ends in defer_unauth_destination",
        f"postconf -e 'smtpd_relay_restrictions = {POLICY}, permit_mynetworks, reject_unauth_destination'",
    ),
    (
        "policy-only",
        "policy-default-action",
        ["-e", "smtpd_policy_service_default_action = DUNNO"],
        "error: smtp/inet: smtpd_policy_service_default_action = DUNNO",
        "postconf -e 'smtpd_policy_service_default_action = 451 4.3.0 Service unavailable, try again later'",
    ),
    (
        "relay-hub",
        "policy-order",
        ["-e", f"smtpd_recipient_restrictions = permit_mynetworks, {POLICY}"],
        "warning: smtp/inet: in smtpd_recipient_restrictions policyd stands behind permit_mynetworks",
        f"postconf -e 'smtpd_recipient_restrictions = {POLICY}, permit_mynetworks'",
    ),
    (
        "relay-hub",
        "policy-order",
        ["-e", f"smtpd_recipient_restrictions = check_client_access static:DUNNO, {POLICY}"],
        "info: smtp/inet: in smtpd_recipient_restrictions policyd stands behind check_client_access static:DUNNO",
        f"postconf -e 'smtpd_recipient_restrictions = {POLICY}, check_client_access static:DUNNO'",
    ),
    (
        "relay-hub",
        "policy",
        ["-e", "smtpd_recipient_restrictions ="],
        "warning: smtp/inet: smtpd_recipient_restrictions does not ask policyd",
        f"postconf -e 'smtpd_recipient_restrictions = {POLICY}'",
    ),
    (
        "relay-hub",
        "policy",
        ["-e", "smtpd_recipient_restrictions = check_policy_service unix:private/gatepost"],
        "warning: smtp/inet: smtpd_recipient_restrictions does not ask policyd: unix:private/gatepost is not where it "
        "listens (unix:/var/spool/postfix/gatepost/policyd.sock)",
        f"postconf -e 'smtpd_recipient_restrictions = {POLICY}'",
    ),
    (
        "relay-hub",
        "policy",
        ["-e", "smtpd_data_restrictions = reject_unauth_pipelining"],
        "warning: smtp/inet: smtpd_data_restrictions does not ask policyd",
        f"postconf -e 'smtpd_data_restrictions = {POLICY}, reject_unauth_pipelining'",
    ),
    (
        "relay-hub",
        "policy-default-action",
        ["-e", "smtpd_policy_service_default_action = OK"],
        "warning: smtp/inet: smtpd_policy_service_default_action = OK",
        "postconf -e 'smtpd_policy_service_default_action = 451 4.3.0 Service unavailable, try again later'",
    ),
    (
        "relay-hub",
        "policy-default-action",
        ["-e", "smtpd_policy_service_default_action = 554 5.3.0 Broken"],
        "error: smtp/inet: smtpd_policy_service_default_action = 554 5.3.0 Broken",
        "postconf -e 'smtpd_policy_service_default_action = 451 4.3.0 Service unavailable, try again later'",
    ),
]


@pytest.mark.parametrize(("example", "check", "change", "text", "remedy"), CHANGED)
def test_a_change_is_found_and_what_is_pasted_mends_it(
    look: Look, example: str, check: str, change: Sequence[str], text: str, remedy: str
) -> None:
    looked = look(example).postconf(*change)
    assert looked.texts(check)[0] == text
    assert looked.commands(check)[0] == remedy
    looked.paste(check)
    assert [finding.severity.value for finding in looked.find(check)] == ["ok"]


def test_a_postfix_that_does_not_know_gatepost_is_told_how_to(look: Look) -> None:
    looked = look("relay-hub")
    for name in (
        "smtpd_milters",
        "non_smtpd_milters",
        "smtpd_recipient_restrictions",
        "smtpd_data_restrictions",
        "virtual_alias_maps",
    ):
        looked.postconf("-X", name)
    assert looked.texts("wired-in") == [
        "error: Postfix does not know gatepost: no milter, no policy service, no map in /etc/postfix"
    ]
    assert looked.commands("wired-in") == [
        "gatepost -c gatepost.toml setup postfix --apply   # without --apply it only says what it would do"
    ]
    for check in ("milter", "milter-for-sendmail-command", "reverse-map", "policy", "command-filter"):
        assert looked.texts(check) == []


def test_a_first_instance_without_gatepost_beside_one_that_has_it_is_well(look: Look) -> None:
    inside = look("relay-hub")
    outside = look("relay-hub", main_cf=f"multi_instance_directories = {inside.directory}\n")
    inside.postconf("-e", "multi_instance_name=postfix-in")
    for name in ("smtpd_milters", "non_smtpd_milters", "smtpd_recipient_restrictions"):
        outside.postconf("-X", name)
    for name in ("smtpd_data_restrictions", "virtual_alias_maps"):
        outside.postconf("-X", name)
    assert outside.texts("wired-in") == ["info: Postfix in /etc/postfix does not know gatepost; postfix-in does"]
    assert outside.commands("wired-in") == [f"gatepost -c gatepost.toml doctor --config-directory {inside.directory}"]


def test_a_parameter_that_postfix_does_not_know_is_a_warning(look: Look) -> None:
    looked = look("relay-hub", main_cf="milter_default_actoin = tempfail\n")
    (complaint, _) = looked.texts("postfix")
    assert complaint.startswith("warning: postconf says: ")
    assert "unused parameter: milter_default_actoin=tempfail" in complaint


def test_without_postfix_and_sendmail_there_is_no_mta() -> None:
    assert texts(circumstances(), "postfix") == [
        "error: neither Postfix nor Sendmail: no postconf: is Postfix installed on this host?"
    ]


def test_a_configuration_that_postfix_cannot_read_is_told_as_that(look: Look) -> None:
    looked = look("relay-hub")
    with (looked.directory / "main.cf").open("a") as file:
        file.write("no equals sign\n")
    (told,) = looked.texts("postfix")
    assert told.startswith("error: Postfix cannot read its configuration: ")
    assert looked.commands("postfix") == ["postfix check"]


def test_without_postfix_its_checks_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "sendmail.cf").touch()
    here = circumstances(sendmail_cf=tmp_path / "sendmail.cf")
    assert [texts(here, check) for check in ("postfix", "wired-in", "milter", "policy", "networks")] == [[]] * 5


def test_the_default_action_of_each_milter_counts(look: Look) -> None:
    looked = look(
        "relay-hub",
        main_cf="smtpd_milters = { unix:gatepost/milter.sock, default_action=tempfail }\n"
        "non_smtpd_milters = unix:gatepost/milter.sock, inet:127.0.0.1:8891\nmilter_default_action = accept\n",
    )
    assert looked.texts("milter-default-action") == [
        "error: non_smtpd_milters: milter_default_action = accept",
        "ok: gatepost's milter away: tempfail (smtp/inet)",
    ]
    assert looked.commands("milter-default-action")[0] == (
        "postconf -e 'non_smtpd_milters = { unix:gatepost/milter.sock, default_action=tempfail }, inet:127.0.0.1:8891'"
    )
    looked.paste("milter-default-action")
    assert [finding.severity.value for finding in looked.find("milter-default-action")] == ["ok"]


def test_clients_without_milters_are_told(look: Look) -> None:
    looked = look("relay-hub", main_cf="smtpd_milter_maps = cidr:{ {192.0.2.0/28 DISABLE} }\n")
    assert looked.texts("milter") == [
        "ok: smtpd_milters has gatepost: smtp/inet",
        "info: smtp/inet: smtpd_milter_maps = cidr:{ {192.0.2.0/28 DISABLE} }",
    ]


def test_a_service_that_leaves_milters_out_is_told(look: Look) -> None:
    looked = look("relay-hub", main_cf="receive_override_options = no_milters\n")
    assert looked.texts("milter") == ["error: smtp/inet: receive_override_options has no_milters"]
    looked.paste("milter")
    assert looked.texts("milter") == ["ok: smtpd_milters has gatepost: smtp/inet"]


# Several services


def test_a_service_with_milters_of_its_own_is_told_by_name(look: Look) -> None:
    looked = look("relay-hub", master_cf=SUBMISSION)
    assert looked.texts("milter") == [
        "error: submission/inet: smtpd_milters is empty",
        "ok: smtpd_milters has gatepost: smtp/inet",
    ]
    assert looked.commands("milter")[0] == ("postconf -P submission/inet/smtpd_milters=unix:gatepost/milter.sock")


def test_an_absolute_path_that_a_chrooted_smtpd_cannot_see_is_not_gatepost(look: Look) -> None:
    looked = look("relay-hub")
    queue = looked.stage.postfix.queue_directory
    looked.postconf("-e", f"smtpd_milters = unix:{queue}/gatepost/milter.sock")
    assert [found.severity.value for found in looked.find("milter")] == ["error"]


def test_an_absolute_path_is_right_for_a_service_that_is_not_chrooted(look: Look) -> None:
    looked = look("relay-hub")
    queue = looked.stage.postfix.queue_directory
    host, port = looked.stage.postfix.smtp
    looked.postconf("-e", f"smtpd_milters = unix:{queue}/gatepost/milter.sock")
    looked.postconf("-F", f"{host}:{port}/inet/chroot=n")
    assert looked.texts("milter") == ["ok: smtpd_milters has gatepost: smtp/inet"]


def test_a_service_that_looks_no_address_up_brings_no_bounce_back(look: Look) -> None:
    looked = look("relay-hub", main_cf="receive_override_options = no_address_mappings, no_header_body_checks\n")
    assert looked.texts("reverse-map")[1:] == [
        "error: smtp/inet, pickup/unix: receive_override_options has no_address_mappings"
    ]
    assert looked.commands("reverse-map")[0] == "postconf -e 'receive_override_options = no_header_body_checks'"


def test_a_content_filter_may_look_addresses_up_behind_it(look: Look) -> None:
    looked = look(
        "relay-hub",
        main_cf="content_filter = smtp:[127.0.0.1]:10024\nreceive_override_options = no_address_mappings\n",
        master_cf="127.0.0.1:10025 inet n - y - - smtpd\n  -o content_filter=\n  -o receive_override_options=\n",
    )
    assert looked.texts("reverse-map") == ["ok: bounces come back by virtual_alias_maps"]


# srs.reverse


def test_reversal_by_the_milter_needs_this_hosts_bounces_to_pass_it(look: Look) -> None:
    looked = look("relay-hub", gatepost=setting("srs", 'reverse = "milter"'))
    assert looked.texts("reverse-map") == ['error: internal_mail_filter_classes is "", and srs.reverse is "milter"']
    assert looked.commands("reverse-map")[0] == "postconf -e 'internal_mail_filter_classes = bounce'"
    looked.postconf("-e", "internal_mail_filter_classes = bounce")
    assert looked.texts("reverse-map") == ['ok: bounces come back by the milter (srs.reverse = "milter")']


def test_reversal_by_redirect_needs_policyd_at_data(look: Look) -> None:
    looked = look("policy-only", main_cf="smtpd_data_restrictions =\n")
    assert looked.texts("reverse-map") == [
        'error: smtp/inet: smtpd_data_restrictions does not ask policyd, and srs.reverse is "redirect"'
    ]
    assert looked.commands("reverse-map")[0] == f"postconf -e 'smtpd_data_restrictions = {POLICY}'"


def test_reversal_by_redirect_loses_bcc_copies(look: Look) -> None:
    looked = look("policy-only", main_cf="always_bcc = archive@contoso.com\n")
    assert looked.texts("reverse-map")[1:] == [
        'warning: always_bcc is "archive@contoso.com", and srs.reverse is "redirect"'
    ]


def test_policyd_asked_among_recipient_restrictions_alone_lets_nobody_relay(look: Look) -> None:
    looked = look(
        "policy-only",
        main_cf=f"smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n"
        f"smtpd_recipient_restrictions = {POLICY}\n",
    )
    assert looked.texts("policy") == [
        "warning: smtp/inet: policyd is asked in smtpd_recipient_restrictions, not in smtpd_relay_restrictions"
    ]


# What no other check looks at

POSTSRSD = "postsrsd-replacement"
REST = [
    (
        POSTSRSD,
        "recipient_canonical_classes = header_recipient",
        'error: recipient_canonical_classes is "header_recipient"; topology postsrsd-replacement needs '
        '"envelope_recipient, header_recipient"',
    ),
    (
        POSTSRSD,
        "sender_canonical_classes = envelope_sender, header_sender",
        'error: sender_canonical_classes is "envelope_sender, header_sender"; topology postsrsd-replacement needs '
        '"envelope_sender"',
    ),
    (
        POSTSRSD,
        "sender_canonical_maps =",
        'error: sender_canonical_maps is ""; topology postsrsd-replacement needs '
        '"socketmap:unix:gatepost/policyd.sock:forward"',
    ),
    (
        "forwarder",
        "gatepost-egress_destination_recipient_limit = 50",
        'error: gatepost-egress_destination_recipient_limit is "50"; topology forwarder needs "1"',
    ),
    (
        "forwarder",
        "gatepost-egress_destination_rate_delay = 5s",
        'warning: gatepost-egress_destination_rate_delay is "5s"; topology forwarder needs "0s"',
    ),
]


@pytest.mark.parametrize(("example", "line", "text"), REST)
def test_the_rest_of_the_table_is_compared(look: Look, example: str, line: str, text: str) -> None:
    looked = look(example, gatepost=without_milter if example == POSTSRSD else lambda text: text)
    looked.postconf("-e", line)
    assert looked.texts("wiring") == [text]
    looked.paste("wiring")
    assert [finding.severity.value for finding in looked.find("wiring")] == ["ok"]


def test_a_cleanup_with_sender_maps_of_its_own_is_named(look: Look) -> None:
    looked = look(POSTSRSD, gatepost=without_milter).postconf(
        "-P", "cleanup/unix/sender_canonical_maps=static:x@y.example"
    )
    (told,) = looked.texts("wiring")
    assert told.startswith('error: cleanup/unix: sender_canonical_maps is "static:x@y.example"; topology postsrsd-')
    looked.paste("wiring")
    assert [finding.severity.value for finding in looked.find("wiring")] == ["ok"]


def test_a_rate_delay_for_all_holds_up_forwarded_mail(look: Look) -> None:
    looked = look("forwarder", main_cf="default_destination_rate_delay = 5s\n")
    assert looked.texts("wiring") == ["ok: the rest of what topology forwarder needs is there"]
    looked.postconf("-X", "gatepost-egress_destination_rate_delay")
    assert looked.texts("wiring") == [
        'warning: gatepost-egress_destination_rate_delay is not set; topology forwarder needs "0s"'
    ]


def test_without_a_table_milter_canonical_maps_are_what_is_missing(look: Look) -> None:
    looked = look(POSTSRSD, main_cf="sender_canonical_maps =\n", gatepost=without_milter)
    assert looked.texts("milter") == looked.texts("policy") == looked.texts("networks") == []


def without_milter(text: str) -> str:
    """Return gatepost.toml without its table milter."""
    head, _, rest = text.partition("[milter]\n")
    return head + rest[rest.find("\n[") + 1 :] if "\n[" in rest else head


# Remedies for a service with lists of its own

OWN = (
    "submission inet n - y - - smtpd\n  -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject\n"
    "  -o smtpd_milters=unix:opendkim/opendkim.sock\n  -o smtpd_data_restrictions=reject_unauth_pipelining\n"
)


@pytest.mark.parametrize("check", ["milter", "policy"])
def test_what_is_pasted_mends_a_service_with_lists_of_its_own(look: Look, check: str) -> None:
    looked = look("relay-hub", master_cf=OWN)
    assert any("submission/inet" in text for text in looked.texts(check))
    looked.paste(check)
    assert [finding.severity.value for finding in looked.find(check)] == ["ok"]


ACTIONS = (
    "submission inet n - y - - smtpd\n  -o smtpd_policy_service_default_action=DUNNO\n"
    "  -o milter_default_action=accept\n"
)


@pytest.mark.parametrize("check", ["milter-default-action", "policy-default-action"])
def test_what_is_pasted_mends_a_service_with_default_actions_of_its_own(look: Look, check: str) -> None:
    looked = look("relay-hub", master_cf=ACTIONS)
    assert looked.texts(check)[0].partition(": ")[2].startswith("submission/inet: ")
    looked.paste(check)
    assert [finding.severity.value for finding in looked.find(check)] == ["ok"]


def test_a_list_of_two_milters_of_a_service_is_mended_in_place(look: Look) -> None:
    two = (
        "submission inet n - y - - smtpd\n  -o milter_default_action=accept\n"
        "  -o smtpd_milters=unix:gatepost/milter.sock,inet:127.0.0.1:8891\n  -o syslog_name=postfix/submission\n"
    )
    looked = look("relay-hub", master_cf=two)
    assert looked.texts("milter-default-action")[0] == "error: submission/inet: milter_default_action = accept"
    looked.paste("milter-default-action")
    assert [finding.severity.value for finding in looked.find("milter-default-action")] == ["ok"]
    line = looked.stage.postfix.postconf("-P", "submission/inet/smtpd_milters", "submission/inet/syslog_name")
    assert line.splitlines() == [
        "submission/inet/smtpd_milters = { unix:gatepost/milter.sock, default_action=tempfail }, inet:127.0.0.1:8891",
        "submission/inet/syslog_name = postfix/submission",
    ]


def test_the_remedy_for_another_instance_names_it(look: Look) -> None:
    looked = look("relay-hub", main_cf="smtpd_command_filter =\n")
    (finding,) = looked.find("command-filter")
    assert f" setup postfix --config-directory {looked.directory} --apply " in finding.remedy[0]


# Remedies keep what is written


def test_dollar_signs_of_a_table_in_main_cf_survive_what_is_pasted(look: Look) -> None:
    table = r"regexp:{ {/^(.*)@x[.]example$$/ $$1@contoso.com} }"
    looked = look("relay-hub", main_cf=f"virtual_alias_maps = {table}\n")
    assert looked.texts("reverse-map") == ["error: virtual_alias_maps does not have gatepost's map reverse"]
    looked.paste("reverse-map")
    assert looked.texts("reverse-map") == ["ok: bounces come back by virtual_alias_maps"]
    assert looked.stage.postfix.postconf("-h", "virtual_alias_maps").strip() == (
        f"socketmap:unix:gatepost/policyd.sock:reverse, {table}"
    )


def test_names_of_other_lists_survive_what_is_pasted(look: Look) -> None:
    looked = look("relay-hub", main_cf="virtual_alias_maps = $alias_maps, static:nobody\nalias_maps = inline:{ a=b }\n")
    looked.paste("reverse-map")
    assert looked.stage.postfix.postconf("-h", "virtual_alias_maps").strip() == (
        "socketmap:unix:gatepost/policyd.sock:reverse, $alias_maps, static:nobody"
    )


BRACES = "check_policy_service { unix:gatepost/policyd.sock, timeout=10s, default_action=DUNNO }"


def test_a_default_action_in_braces_is_mended_there(look: Look) -> None:
    looked = look(
        "policy-only", main_cf=f"smtpd_relay_restrictions = {BRACES}, permit_mynetworks, reject_unauth_destination\n"
    )
    assert looked.texts("policy-default-action")[0] == (
        "error: smtp/inet: smtpd_relay_restrictions: { unix:gatepost/policyd.sock, timeout=10s, default_action=DUNNO }"
    )
    looked.paste("policy-default-action")
    assert [finding.severity.value for finding in looked.find("policy-default-action")] == ["ok"]
    assert "{ timeout=10s }" in looked.stage.postfix.postconf("-h", "smtpd_relay_restrictions")


def test_what_stands_in_braces_moves_with_the_entry(look: Look) -> None:
    looked = look(
        "policy-only", main_cf=f"smtpd_relay_restrictions = permit_mynetworks, {BRACES}, reject_unauth_destination\n"
    )
    assert looked.commands("policy-order")[0] == (
        f"postconf -e 'smtpd_relay_restrictions = {BRACES}, permit_mynetworks, reject_unauth_destination'"
    )


# Policy only: what refuses beside policyd


def test_a_refusal_before_policyd_lets_nobody_relay(look: Look) -> None:
    looked = look("policy-only", main_cf=f"smtpd_relay_restrictions = reject_unauth_destination, {POLICY}, reject\n")
    assert looked.texts("policy-order") == [
        "error: smtp/inet: in smtpd_relay_restrictions policyd stands behind reject_unauth_destination"
    ]
    looked.paste("policy-order")
    assert [finding.severity.value for finding in looked.find("policy-order")] == ["ok"]


def test_a_port_for_authenticated_users_alone_need_not_ask_policyd(look: Look) -> None:
    looked = look(
        "policy-only",
        master_cf="submission inet n - y - - smtpd\n  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n",
    )
    assert looked.texts("policy") == ["ok: policyd is asked: smtp/inet"]


OLD = "smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination\n"


def test_a_refusal_in_the_other_list_lets_no_connector_relay_that_mynetworks_lacks(look: Look) -> None:
    looked = look("policy-only", main_cf=f"{OLD}mynetworks = 127.0.0.0/8\n")
    assert looked.texts("policy-order") == [
        "error: smtp/inet: smtpd_recipient_restrictions has reject_unauth_destination"
    ]
    looked.paste("policy-order")
    assert [finding.severity.value for finding in looked.find("policy-order")] == ["ok"]


def test_a_refusal_in_the_other_list_does_no_harm_to_connectors_in_mynetworks(look: Look) -> None:
    looked = look("policy-only", main_cf=f"{OLD}mynetworks = 192.0.2.0/24\n", gatepost=without_certificates)
    assert [finding.severity.value for finding in looked.find("policy-order")] == ["ok"]


def without_certificates(text: str) -> str:
    return text.replace('tls_sender_certificate_name = "crm.contoso.com"', 'sender_ip_addresses = ["192.0.2.9"]')


# Daemons of master.cf that read a parameter of their own

SENDMAIL = "milter-for-sendmail-command"
DAEMONS = [
    (
        "reverse-map",
        "cleanup/unix/virtual_alias_maps=",
        'error: cleanup/unix: virtual_alias_maps is "", without gatepost\'s map reverse',
    ),
    (
        "reverse-map",
        "cleanup/unix/virtual_alias_maps=static:nobody",
        'error: cleanup/unix: virtual_alias_maps is "static:nobody", without gatepost\'s map reverse',
    ),
    (
        "reverse-map",
        "pickup/unix/receive_override_options=no_address_mappings",
        "error: pickup/unix: receive_override_options has no_address_mappings",
    ),
    (SENDMAIL, "cleanup/unix/non_smtpd_milters=", "warning: cleanup/unix: non_smtpd_milters is empty"),
    (
        SENDMAIL,
        "pickup/unix/receive_override_options=no_milters",
        "warning: pickup/unix: receive_override_options has no_milters",
    ),
]


@pytest.mark.parametrize(("check", "override", "text"), DAEMONS)
def test_what_the_daemon_in_master_cf_reads_counts(look: Look, check: str, override: str, text: str) -> None:
    looked = look("relay-hub").postconf("-P", override)
    assert [item for item in looked.texts(check) if not item.startswith("ok")] == [text]
    looked.paste(check)
    assert [finding.severity.value for finding in looked.find(check)] == ["ok"]


def test_a_cleanup_before_the_content_filter_need_not_look_addresses_up(look: Look) -> None:
    looked = look(
        "relay-hub",
        main_cf="content_filter = smtp:[127.0.0.1]:10024\n",
        master_cf="127.0.0.1:10025 inet n - y - - smtpd\n  -o content_filter=\n"
        "pre-cleanup unix n - y - 0 cleanup\n  -o virtual_alias_maps=\n",
    )
    host, port = looked.stage.postfix.smtp
    looked.postconf("-P", f"{host}:{port}/inet/cleanup_service_name=pre-cleanup")
    looked.postconf("-P", "pickup/unix/cleanup_service_name=pre-cleanup")
    assert looked.texts("reverse-map") == ["ok: bounces come back by virtual_alias_maps"]


# Milters by client


@pytest.mark.parametrize("table", ["static:DISABLE", "cidr:{ {0.0.0.0/0 DISABLE} }", "static:inet:127.0.0.1:8891"])
def test_a_table_that_takes_every_client_away_from_gatepost_is_an_error(look: Look, table: str) -> None:
    looked = look("relay-hub", main_cf=f"smtpd_milter_maps = {table}\n")
    assert looked.texts("milter")[1:] == [
        f"error: smtp/inet: smtpd_milter_maps: {table} says {table.split()[-2][:-1] if '{' in table else table[7:]} "
        "for every client"
    ]
    looked.paste("milter")
    assert looked.texts("milter") == ["ok: smtpd_milters has gatepost: smtp/inet"]


# Addresses


@pytest.mark.parametrize(
    ("listening", "called"),
    [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1"), ("0.0.0.0", "198.51.100.9"), ("0.0.0.0", "[::1]")],
)
def test_another_address_is_not_where_gatepost_listens(look: Look, listening: str, called: str) -> None:
    looked = look("relay-hub", main_cf=f"smtpd_milters = inet:{called}:10040\n", gatepost=milter_at(listening))
    assert [finding.severity.value for finding in looked.find("milter")] == ["error"]


@pytest.mark.parametrize(
    ("listening", "called"),
    [("127.0.0.1", "localhost"), ("localhost", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")],
)
def test_another_way_to_write_the_address_is(look: Look, listening: str, called: str) -> None:
    looked = look("relay-hub", main_cf=f"smtpd_milters = inet:{called}:10040\n", gatepost=milter_at(listening))
    assert [finding.severity.value for finding in looked.find("milter")] == ["ok"]


def milter_at(host: str) -> Callable[[str], str]:
    return lambda text: re.sub(r'listen = "unix:[^"]*milter.sock"', f'listen = "inet:{host}:10040"', text)
