# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs`: results on standard output, one line a fault on standard error, exit statuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

from gatepost.srs import Address, Exchange, Keys

CONFIG = """
state_directory = "{state}"
[[organization]]
name = "contoso"
mode = "enforce"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization]]
name = "fabrikam"
srs_domain = "srs.fabrikam.example"
[[organization.accepted_domain]]
domain = "fabrikam.example"
"""
DAY = 19727
RELAYED = "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com"


class Srs:
    """The command as a process of its own, with a known secret."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "gatepost.toml"
        self.config.write_text(CONFIG.format(state=folder))
        self.secret = folder / "srs.secret"
        self.secret.write_text("the first key\n")
        self.secret.chmod(0o600)

    def __call__(
        self, *arguments: str, stdin: Optional[bytes] = None, at: str = "2024-01-05"
    ) -> tuple[int, list[str], list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "gatepost.admin", "-c", str(self.config), "srs", *arguments, "--at", at],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=30,
        )
        return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().splitlines()


@pytest.fixture
def srs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Srs:
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    return Srs(tmp_path)


def test_relayed_mail_is_rewritten_in_the_first_organization(srs: Srs) -> None:
    assert srs("forward", "bob@fabrikam.com") == (0, [RELAYED], [])


def test_what_is_rewritten_comes_back(srs: Srs) -> None:
    senders = ["bob@fabrikam.com", '"john q"@x.example', "a+b=c@x.example", "Bob@Fabrikam.com"]
    _, rewritten, _ = srs("forward", *senders)
    assert srs("reverse", *rewritten) == (0, senders, [])


def test_an_organization_may_be_named(srs: Srs) -> None:
    status, (address,), _ = srs("forward", "--organization", "fabrikam", "bob@x.example")
    assert status == 0
    assert address.endswith("=x.example=bob@srs.fabrikam.example")


def test_a_forwarding_mailbox_is_in_the_address_without_its_extension(srs: Srs) -> None:
    status, (address,), _ = srs("forward", "--mailbox", "john.work+lists@contoso.com", "bob@fabrikam.com")
    assert status == 0
    assert address.startswith("john.work+SRS=")
    assert address.endswith("=IP=fabrikam.com=bob@contoso.com")


def test_standard_input_is_read_line_by_line(srs: Srs) -> None:
    status, out, err = srs("reverse", "-", stdin=f"<{RELAYED}>\n\n{RELAYED}\r\nx@contoso.com\n".encode())
    assert (status, out) == (65, ["bob@fabrikam.com", "bob@fabrikam.com"])
    assert err == [
        "x@contoso.com: no SRS address that can be reversed here (mailbox+SRS=hash=timestamp=domain=user@domain)"
    ]


def test_octets_that_are_no_utf_8_are_a_fault_of_their_line_alone(srs: Srs) -> None:
    status, out, err = srs("forward", "-", stdin=b"b\xf6b@fabrikam.com\nbob@fabrikam.com\n")
    assert (status, out) == (65, [RELAYED])
    assert err == ["b?b@fabrikam.com: the local part is empty, or holds a control character or no UTF-8"]


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("<>", "<>: the null sender is never rewritten"),
        (
            "bob@contoso.com",
            "bob@contoso.com: is never rewritten: contoso.com is a domain of this host's organizations",
        ),
        ("bob", "bob: has no domain"),
        (
            "a" * 230 + "@x.example",
            "a" * 230 + "@x.example: the SRS address has 276 octets, more than 254",
        ),
    ],
)
def test_what_cannot_be_rewritten_is_named(srs: Srs, address: str, fault: str) -> None:
    assert srs("forward", address) == (65, [], [fault])


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        (
            RELAYED.replace("bob", "eve"),
            "wrong hash: no key here made it; it is forged, mistyped, or of another system such as Exchange Online",
        ),
        (
            "bounces+SRS=44ldt=IX=fabrikam.com=bob@example.org",
            "somebody else's SRS address: example.org is no accepted domain and no srs_domain here",
        ),
        (
            "bounces+SRS=44ldt=IX=fabrikam.com=bob@fabrikam.example",
            "somebody else's SRS address: no key here made it, and this host makes its own in srs.fabrikam.example",
        ),
        (
            "bounces+SRS=44ldt=IX@contoso.com",
            "no SRS address that can be reversed here (mailbox+SRS=hash=timestamp=domain=user@domain)",
        ),
    ],
)
def test_what_cannot_be_reversed_is_named(srs: Srs, address: str, fault: str) -> None:
    assert srs("reverse", address) == (65, [], [f"{address}: {fault}"])


def test_an_expired_address_is_named(srs: Srs) -> None:
    fault = f"{RELAYED}: expired: older than 21 days (srs.validity_days), or from the future"
    assert srs("reverse", RELAYED, at="2024-01-27") == (65, [], [fault])


def test_an_address_is_inspected_field_by_field(srs: Srs) -> None:
    assert srs("inspect", RELAYED, at="2024-01-08") == (
        0,
        [
            "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com",
            "  form        long (original in the address)",
            "  mailbox     bounces, of relayed mail",
            "  hash        czvzs4na (8 characters)",
            "  timestamp   IP = 2024-01-05, 3 days ago (or 1,024 days before, and so on)",
            "  original    bob@fabrikam.com",
            "  SRS domain  contoso.com",
            "  state       made here, the hash is right and it has not expired: bounces to it are reversed",
        ],
        [],
    )


def test_exchange_onlines_own_addresses_are_inspected_too(srs: Srs) -> None:
    assert srs(
        "inspect",
        "john.work+SRS=44ldt=IX=fabrikam.com=bob@example.org",
        "bounces+SRS=HnE87=C7@contoso.com",
        at="2018-06-06",
    ) == (
        0,
        [
            "john.work+SRS=44ldt=IX=fabrikam.com=bob@example.org",
            "  form        long (original in the address)",
            "  mailbox     john.work, which forwarded the mail",
            "  hash        44ldt (5 characters)",
            "  timestamp   IX = 2018-06-05, yesterday (or 1,024 days before, and so on)",
            "  original    bob@fabrikam.com",
            "  SRS domain  example.org",
            "  state       somebody else's SRS address: example.org is no accepted domain and no srs_domain here",
            "",
            "bounces+SRS=HnE87=C7@contoso.com",
            "  form        compact (original kept in a store)",
            "  mailbox     bounces, of relayed mail",
            "  hash        HnE87 (5 characters)",
            "  timestamp   C7 = 2017-12-03, 185 days ago (or 1,024 days before, and so on)",
            "  original    not in the address",
            "  SRS domain  contoso.com",
            "  state       compact form: its original is in the store of the system that made it, "
            "and that is not this host",
        ],
        [],
    )


def test_an_expired_address_of_ours_is_told_from_a_foreign_one(srs: Srs) -> None:
    status, out, _ = srs("inspect", RELAYED, at="2024-02-01")
    assert status == 0
    assert out[-1] == (
        "  state       made here, the hash is right, but expired: older than 21 days (srs.validity_days), "
        "or from the future"
    )


def test_inspect_works_without_a_configuration(srs: Srs) -> None:
    srs.config.unlink()
    status, out, err = srs("inspect", RELAYED)
    assert (status, err) == (0, [])
    assert out[-1] == f"  state       not checked: there is no configuration file {srs.config}"


def test_inspect_works_before_there_is_a_secret(srs: Srs) -> None:
    srs.secret.unlink()
    status, out, err = srs("inspect", RELAYED)
    assert (status, err) == (0, [])
    assert out[-1] == "  state       not checked: this host has no SRS secret yet"


def test_what_is_no_srs_address_is_a_data_error(srs: Srs) -> None:
    assert srs("inspect", "bob@contoso.com") == (65, [], ["bob@contoso.com: there is no +SRS= in the local part"])


def test_forward_and_reverse_need_the_secret(srs: Srs) -> None:
    srs.secret.unlink()
    fault = f"{srs.secret}: the SRS secret cannot be read: No such file or directory"
    assert srs("forward", "bob@fabrikam.com") == (78, [], [fault])
    assert srs("reverse", RELAYED) == (78, [], [fault])


def test_without_an_organization_there_is_nothing_to_rewrite_into(srs: Srs) -> None:
    srs.config.write_text(f'state_directory = "{srs.secret.parent}"\n')
    fault = f"{srs.config}: no organization is declared, so there is no domain for SRS addresses"
    assert srs("forward", "bob@fabrikam.com") == (78, [], [fault])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--organization", "none"], 'Error: "none" is no organization; there are: contoso, fabrikam'),
        (
            ["--mailbox", "john@example.org"],
            "Error: --mailbox john@example.org: example.org is no accepted domain, so it forwards nothing here",
        ),
        (
            ["--mailbox", "john@contoso.com", "--organization", "contoso"],
            "Error: --mailbox and --organization exclude each other: the mailbox's domain names it",
        ),
    ],
)
def test_wrong_options_end_with_64(srs: Srs, options: list[str], error: str) -> None:
    status, out, err = srs("forward", *options, "bob@fabrikam.com")
    assert (status, out, err[-1]) == (64, [], error)


def test_the_addresses_of_this_test_are_those_of_the_rewriter() -> None:
    exchange = Exchange(Keys([b"the first key"]))
    assert str(exchange.forward(Address("bob", "fabrikam.com"), "bounces", "contoso.com", DAY)) == RELAYED
