# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of what Postfix itself does to SRS addresses: real tables, asked by the real postmap(1)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from doctorpostfix import Looked

Look = Callable[..., Looked]


def shape(text: str) -> str:
    """Return *text* with HASH and TT for hash and timestamp."""
    return re.sub(r"\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=", "+SRS=HASH=TT=", text)


ADDRESS = "bounces+SRS=HASH=TT=gatepost.invalid=doctor@contoso.com"
UNCHANGED = "ok: no map of Postfix changes SRS senders"


@pytest.mark.parametrize(
    ("line", "table"),
    [
        ("sender_canonical_maps = {}", "regexp:{ {/@contoso.com$/ postmaster@contoso.com} }"),
        ("sender_canonical_maps = {}", "inline:{ @contoso.com=postmaster@contoso.com }"),
        ("canonical_maps = {}", "inline:{ bounces@contoso.com=postmaster@contoso.com }"),
        ("smtp_generic_maps = {}", "inline:{ @contoso.com=postmaster@contoso.com }"),
    ],
)
def test_a_map_that_changes_srs_senders_is_named(look: Look, line: str, table: str) -> None:
    looked = look("relay-hub", main_cf=f"recipient_delimiter = +\n{line.format(table.replace('$/', '$$/'))}\n")
    (text,) = looked.texts("srs-senders-unchanged")
    name = line.partition(" ")[0]
    assert shape(text) == f"error: {name}: {table} changes the SRS address {ADDRESS} to postmaster@contoso.com"
    looked.paste("srs-senders-unchanged")
    assert looked.texts("srs-senders-unchanged") == [UNCHANGED]


@pytest.mark.parametrize(
    "line",
    [
        "sender_canonical_maps = inline:{ ceo@contoso.com=chief@contoso.com }",
        "sender_canonical_maps = inline:{ @contoso.com=x@contoso.com }\nsender_canonical_classes = header_sender",
        "masquerade_domains = contoso.com",
    ],
)
def test_maps_for_others_are_well(look: Look, line: str) -> None:
    assert look("relay-hub", main_cf=f"{line}\n").texts("srs-senders-unchanged") == [UNCHANGED]


def test_masquerading_cuts_an_srs_domain_short(look: Look) -> None:
    looked = look("exchange-online", main_cf="masquerade_domains = contoso.com\n")
    assert looked.texts("srs-senders-unchanged") == [
        "error: masquerade_domains has contoso.com: it changes the SRS domain srs.contoso.com to contoso.com"
    ]
    looked.paste("srs-senders-unchanged")
    assert looked.texts("srs-senders-unchanged") == [UNCHANGED]


def test_gateposts_own_canonical_maps_are_well(look: Look) -> None:
    looked = look("postsrsd-replacement")
    assert looked.texts("srs-senders-unchanged") == [UNCHANGED]
    assert looked.texts("srs-recipients-unchanged") == ["ok: no map of Postfix changes SRS recipients"]


def test_a_map_that_changes_srs_recipients_is_named(look: Look) -> None:
    looked = look("relay-hub", main_cf="recipient_canonical_maps = inline:{ @contoso.com=postmaster@contoso.com }\n")
    (text,) = looked.texts("srs-recipients-unchanged")
    assert shape(text) == (
        "error: recipient_canonical_maps: inline:{ @contoso.com=postmaster@contoso.com } changes the SRS address "
        f"{ADDRESS} to postmaster@contoso.com"
    )


def test_a_map_that_does_not_answer_is_unknown(look: Look) -> None:
    looked = look("relay-hub", main_cf="sender_canonical_maps = hash:/etc/postfix/none\n")
    assert looked.texts("srs-senders-unchanged")[0].startswith(
        "unknown: sender_canonical_maps: hash:/etc/postfix/none does not answer: "
    )


def test_srs_addresses_outlive_the_queue(look: Look) -> None:
    assert look("relay-hub").texts("queue-lifetime") == [
        "ok: SRS addresses are good for 21 days; maximal_queue_lifetime = 5d, bounce_queue_lifetime = 5d"
    ]


@pytest.mark.parametrize(("lifetime", "days"), [("20d", 32), ("3w", 33), ("600h", 37)])
def test_mail_that_may_wait_longer_than_its_srs_address_is_good(look: Look, lifetime: str, days: int) -> None:
    looked = look("relay-hub", main_cf=f"maximal_queue_lifetime = {lifetime}\n")
    assert looked.texts("queue-lifetime") == [
        f"warning: srs.validity_days is 21; maximal_queue_lifetime = {lifetime}, bounce_queue_lifetime = 5d"
    ]
    assert looked.commands("queue-lifetime") == [f"gatepost.toml: [srs] validity_days = {days}"]


@pytest.mark.parametrize("example", ["relay-hub", "forwarder", "exchange-online", "postsrsd-replacement"])
def test_an_examples_command_filter_decodes(look: Look, example: str) -> None:
    assert look(example).texts("command-filter") == ["ok: smtpd_command_filter decodes SRS addresses"]


@pytest.mark.parametrize("value", ["", "regexp:{ {/^EHLO/ EHLO x} }"])
def test_without_the_command_filter_some_sites_bounces_are_refused(look: Look, value: str) -> None:
    looked = look("relay-hub", main_cf=f"smtpd_command_filter = {value}\n")
    assert looked.texts("command-filter") == ["warning: smtp/inet: smtpd_command_filter does not decode SRS addresses"]


@pytest.mark.parametrize(
    "value",
    ["regexp:/etc/postfix/none", "regexp:{{/^HELP/ NOOP}}, regexp:{{/^XNOOP/ NOOP}}"],
    ids=["missing", "a list of two"],
)
def test_a_command_filter_that_fails_is_an_error(look: Look, value: str) -> None:
    looked = look("relay-hub", main_cf=f"smtpd_command_filter = {value}\n")
    (text,) = looked.texts("command-filter")
    assert text.startswith("error: smtp/inet: smtpd_command_filter does not answer: ")


def test_the_smtp_client_may_have_generic_maps_of_its_own(look: Look) -> None:
    looked = look("relay-hub").postconf("-P", "smtp/unix/smtp_generic_maps=static:x@contoso.com")
    (told,) = looked.texts("srs-senders-unchanged")
    assert told.startswith("error: smtp/unix: smtp_generic_maps: static:x@contoso.com changes the SRS address ")
    looked.paste("srs-senders-unchanged")
    assert looked.texts("srs-senders-unchanged") == ["ok: no map of Postfix changes SRS senders"]
