# SPDX-License-Identifier: GPL-3.0-or-later
"""What DNS says of clients, asked of a real name server; nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import dns.reversename
import pytest
from daemonprocess import poll
from nameserver import NameServer

from gatepost.service import fcrdns
from gatepost.service.client_names import reported, tidy
from gatepost.service.fcrdns import FAILURE_AGE_S, MAX_AGE_S, Fcrdns

NOW = 1_700_000_000
UNKNOWN = ("", "")


def pointers(ip: str, *names: str) -> dict[str, dict[str, Sequence[str]]]:
    """The PTR records of *ip*, in the tongue of zone files."""
    return {dns.reversename.from_address(ip).to_text(omit_final_dot=True): {"PTR": [f"{name}." for name in names]}}


RECORDS = {
    **pointers("192.0.2.1", "Mail.Contoso.com"),
    **pointers("192.0.2.2", "liar.fabrikam.com"),
    **pointers("192.0.2.3", "gone.fabrikam.com"),
    **pointers("192.0.2.4", "a.fabrikam.com", "mail.contoso.com", "z.fabrikam.com"),
    **pointers("192.0.2.5", r"a\255\010action=pass\044\<b\>.example"),
    **pointers("192.0.2.6", r"caf\195\169.example", "liar.fabrikam.com"),
    **pointers("192.0.2.7", *(f"{number}.fabrikam.com" for number in range(100))),
    **pointers("2001:db8::1", "mail.contoso.com"),
    **pointers("10.1.2.3", "crm.corp.contoso.com"),
    "mail.contoso.com": {"A": ["192.0.2.1", "192.0.2.4"], "AAAA": ["2001:db8::1"]},
    "liar.fabrikam.com": {"A": ["203.0.113.1"]},
    "crm.corp.contoso.com": {"CNAME": ["crm.contoso.com."]},
    "crm.contoso.com": {"A": ["10.1.2.3"]},
}
FAILING = ["9.2.0.192.in-addr.arpa", "failing.example"]


@pytest.fixture
def server() -> Iterator[NameServer]:
    records = {**RECORDS, **pointers("192.0.2.8", "failing.example")}
    with NameServer(records, failing=FAILING, silent=["100.51.198.in-addr.arpa"]) as running:
        yield running


def made(server: NameServer, path: Optional[Path] = None, timeout_s: float = 5.0) -> Fcrdns:
    return Fcrdns(path, [server.address], timeout_s)


def asked(names: Fcrdns, ip: str, now: int = NOW) -> tuple[str, str]:
    """Ask for *ip* and return what is known once that is done."""
    names.refresh(ip, now)
    poll(lambda: not names._under_way, f"{ip} is known")
    return names.known(ip, now)


@pytest.mark.parametrize(
    ("ip", "known"),
    [
        ("192.0.2.1", ("mail.contoso.com", "confirmed")),
        ("192.0.2.2", ("liar.fabrikam.com", "unconfirmed")),
        ("192.0.2.3", ("gone.fabrikam.com", "unconfirmed")),
        ("192.0.2.4", ("mail.contoso.com", "confirmed")),
        ("192.0.2.99", ("", "none")),
        ("2001:db8::1", ("mail.contoso.com", "confirmed")),
        ("2001:DB8:0::1", ("mail.contoso.com", "confirmed")),
        ("::ffff:192.0.2.1", ("mail.contoso.com", "confirmed")),
        ("2001:db8::2", ("", "none")),
        ("10.1.2.3", ("crm.corp.contoso.com", "confirmed")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_name_of_a_client_leads_back_to_it_or_not(server: NameServer, ip: str, known: tuple[str, str]) -> None:
    assert asked(made(server), ip) == known


@pytest.mark.parametrize(
    ("ip", "known"),
    [("192.0.2.5", ("", "unconfirmed")), ("192.0.2.6", ("liar.fabrikam.com", "unconfirmed"))],
    ids=["line feed, comma, brackets", "not ASCII beside a right one"],
)
def test_name_that_no_host_can_have_is_not_recorded(server: NameServer, ip: str, known: tuple[str, str]) -> None:
    assert asked(made(server), ip) == known


def test_of_a_hundred_names_a_few_are_followed(server: NameServer) -> None:
    assert asked(made(server), "192.0.2.7") == ("0.fabrikam.com", "unconfirmed")
    assert len([question for question in server.questions if question.endswith(" A")]) == 5


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "fe80::1", "169.254.0.1", "0.0.0.0", "unknown", "", "192.0.2"])
def test_own_host_link_and_what_is_no_address_are_not_asked_for(server: NameServer, ip: str) -> None:
    assert asked(made(server), ip) == UNKNOWN
    assert server.questions == []


def test_nothing_is_known_while_dns_is_asked_and_nobody_waits(server: NameServer) -> None:
    names = made(server)
    server.open.clear()
    names.refresh("192.0.2.1", NOW)
    server.wait_for_questions(1)
    assert names.known("192.0.2.1", NOW) == UNKNOWN
    server.open.set()
    poll(lambda: names.known("192.0.2.1", NOW) != UNKNOWN, "the answer is there")


@pytest.mark.parametrize("ip", ["192.0.2.8", "192.0.2.9", "198.51.100.1"], ids=["forward", "reverse", "silent"])
def test_failing_dns_leaves_it_unknown_and_is_not_asked_again_for_a_while(server: NameServer, ip: str) -> None:
    names = made(server, timeout_s=0.2)
    assert asked(names, ip) == UNKNOWN
    questions = len(server.questions)
    assert asked(names, ip, NOW + FAILURE_AGE_S - 1) == UNKNOWN
    assert len(server.questions) == questions
    asked(names, ip, NOW + FAILURE_AGE_S)
    assert len(server.questions) > questions


def test_answer_is_asked_for_once_and_again_when_it_is_old(server: NameServer, tmp_path: Path) -> None:
    asked(made(server, tmp_path / "names"), "192.0.2.1")
    again = made(server, tmp_path / "names")
    assert asked(again, "192.0.2.1", NOW + MAX_AGE_S - 1) == ("mail.contoso.com", "confirmed")
    assert server.questions == ["1.2.0.192.in-addr.arpa PTR", "mail.contoso.com A"]
    assert again.known("192.0.2.1", NOW + MAX_AGE_S) == UNKNOWN
    asked(again, "192.0.2.1", NOW + MAX_AGE_S)
    assert len(server.questions) == 4


def test_flood_of_clients_is_not_asked_for(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcrdns, "WAITING", 8)
    names = made(server)
    server.open.clear()
    for number in range(1000):
        names.refresh(f"203.0.113.{number % 256}", NOW)
    assert len(names._under_way) == 8
    server.open.set()
    poll(lambda: not names._under_way, "all are answered")
    assert len(server.questions) == 8


def test_those_that_waited_too_long_behind_silent_dns_are_not_asked_for(server: NameServer) -> None:
    names = made(server, timeout_s=0.2)
    for number in range(100):
        names.refresh(f"198.51.100.{number}", NOW)
    poll(lambda: not names._under_way, "none is under way")
    assert len(set(server.questions)) <= fcrdns.THREADS


# What the MTA reports


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("Mail.Contoso.com.", "mail.contoso.com"),
        ("_odd_.contoso.com", "_odd_.contoso.com"),
        ("localhost", "localhost"),
        ("unknown", ""),
        ("[192.0.2.1]", ""),
        ("a\nb.example", ""),
        ("a b.example", ""),
        ("caf\u00e9.example", ""),
        ("\udcff.example", ""),
        ("<script>.example", ""),
        ("=cmd.example", ""),
        (".".join(["x" * 60] * 5), ""),
        ("", ""),
    ],
)
def test_name_is_recorded_in_lower_case_if_a_host_can_have_it(name: str, recorded: str) -> None:
    assert tidy(name) == recorded


def test_verified_name_is_confirmed_another_is_not_and_none_is_unknown() -> None:
    assert reported("mail.contoso.com", "mail.contoso.com") == ("mail.contoso.com", "confirmed")
    assert reported("unknown", "liar.fabrikam.com") == ("liar.fabrikam.com", "unconfirmed")
    assert reported("unknown", "unknown") == UNKNOWN
