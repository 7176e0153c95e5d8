# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` and the mailbox bounces, in real Postfix configurations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctorpostfix import Looked, postfix_programs

from gatepost.admin.sandbox import temporary_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sandbox needs root")
CHECK = "bounces-mailbox"


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    postfix_programs(monkeypatch)
    with temporary_root() as folder:
        yield folder


def test_the_alias_of_the_example_is_found(root: Path) -> None:
    assert Looked("exchange-online", root).texts(CHECK) == [
        "ok: bounces@srs.contoso.com leads to postmaster@contoso.com"
    ]


def test_a_virtual_alias_domain_without_it_is_a_warning_and_what_is_pasted_mends_it(root: Path) -> None:
    looked = Looked("exchange-online", root).postconf(
        "-e", "virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse"
    )
    (finding,) = looked.find(CHECK)
    assert finding.what == (
        "bounces@srs.contoso.com does not exist: virtual_alias_domains has srs.contoso.com, virtual_alias_maps not "
        "bounces"
    )
    assert finding.why == (
        "Mail to it gets no such user, and so do bounces to bounces+SRS=… that this host has not made, as Exchange "
        "Online makes them in its domain."
    )
    looked.paste(CHECK)
    (line,) = looked.texts(CHECK)
    assert line.startswith("ok: bounces@srs.contoso.com leads to postmaster@")


def test_a_local_user_is_found(root: Path) -> None:
    looked = Looked("relay-hub", root)
    looked.postconf(
        "-e",
        "mydestination = contoso.com",
        "relay_domains =",
        "virtual_alias_domains =",
        "local_recipient_maps = inline:{ {bounces = x} }",
    )
    assert looked.texts(CHECK) == ["ok: bounces@contoso.com is in local_recipient_maps"]


def test_a_local_domain_without_the_user_is_a_warning(root: Path) -> None:
    looked = Looked("relay-hub", root)
    looked.postconf(
        "-e", "mydestination = contoso.com", "relay_domains =", "local_recipient_maps = inline:{ {root = x} }"
    )
    assert looked.texts(CHECK) == [
        "warning: bounces@contoso.com does not exist: it is in neither virtual_alias_maps nor local_recipient_maps"
    ]


def test_a_catch_all_of_virtual_mailboxes_is_found(root: Path) -> None:
    looked = Looked("relay-hub", root)
    looked.postconf(
        "-e",
        "mydestination =",
        "relay_domains =",
        "virtual_mailbox_domains = contoso.com",
        "virtual_mailbox_maps = inline:{ {@contoso.com = x} }",
    )
    assert looked.texts(CHECK) == ["ok: bounces@contoso.com is in virtual_mailbox_maps"]


def test_a_relay_domain_without_list_of_recipients_takes_it(root: Path) -> None:
    looked = Looked("relay-hub", root)
    looked.postconf("-e", "mydestination =", "relay_domains = contoso.com", "relay_recipient_maps =")
    assert looked.texts(CHECK) == [
        "ok: bounces@contoso.com is taken: relay_recipient_maps is empty, so that Postfix takes every recipient in "
        "contoso.com"
    ]


def test_a_domain_that_is_elsewhere_is_mentioned(root: Path) -> None:
    looked = Looked("relay-hub", root).postconf("-e", "mydestination =", "relay_domains =", "virtual_alias_domains =")
    assert looked.texts(CHECK) == [
        "info: bounces@contoso.com is not in Postfix, for contoso.com is none of its domains"
    ]


def test_a_table_that_is_not_there_leaves_it_open(root: Path) -> None:
    looked = Looked("relay-hub", root)
    looked.postconf("-e", "virtual_alias_maps = texthash:/nonexistent/virtual")
    (line,) = looked.texts(CHECK)
    assert line.startswith("unknown: whether bounces@contoso.com exists is not known: ")


def long(text: str) -> str:
    return text.replace('format = "srs0"', 'format = "srs0"\nform = "long"')


def test_srs0_addresses_have_no_such_mailbox(root: Path) -> None:
    assert Looked("postsrsd-replacement", root, gatepost=long).texts(CHECK) == []
