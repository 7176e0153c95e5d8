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
SHAPES = "mailbox+SRS=hash=timestamp=domain=user@domain, bounces+SRS=token=timestamp@domain"
LONG_USER = "a" * 60 + "@fabrikam.com"
COMPACT = "bounces+SRS=4m22l4so5k3gcxxr=IP@contoso.com"
RELAYED = "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com"


class Srs:
    """The command as a process of its own, with a known secret."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "gatepost.toml"
        self.configure("")
        self.secret = folder / "srs.secret"
        self.secret.write_text("the first key\n")
        self.secret.chmod(0o600)

    def configure(self, srs: str) -> None:
        self.config.write_text(CONFIG.format(state=self.folder) + srs)

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


def test_standard_input_is_answered_line_by_line(srs: Srs) -> None:
    status, out, err = srs("reverse", "-", stdin=f"<{RELAYED}>\n\n{RELAYED}\r\nx@contoso.com\n".encode())
    assert (status, out) == (65, ["bob@fabrikam.com", "", "bob@fabrikam.com", ""])
    fault = f"no SRS address: there is no +SRS= in the local part (brought back here: {SHAPES})"
    assert err == [f"x@contoso.com: {fault}"]


def test_octets_that_are_no_utf_8_are_a_fault_of_their_line_alone(srs: Srs) -> None:
    status, out, err = srs("forward", "-", stdin=b"b\xf6b@fabrikam.com\nbob@fabrikam.com\n")
    assert (status, out) == (65, ["", RELAYED])
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
    ],
)
def test_what_cannot_be_rewritten_is_named(srs: Srs, address: str, fault: str) -> None:
    assert srs("forward", address) == (65, [], [fault])


def test_what_is_too_long_for_the_long_form_is_named_where_there_is_no_other(srs: Srs) -> None:
    srs.configure('[srs]\nform = "long"\n')
    address = "a" * 230 + "@x.example"
    assert srs("forward", address) == (65, [], [f"{address}: the SRS address has 276 octets, more than 254"])


@pytest.mark.parametrize(
    ("lists", "key"),
    [
        ('exclude = ["fabrikam.com"]\nexclude_file = "listed"', "in srs.exclude"),
        ('exclude = ["x.example"]\nexclude_file = "listed"', "in srs.exclude_file"),
        ('include = ["*.fabrikam.com", "x.example"]', "not in srs.include"),
        ('include_file = "empty"', "not in srs.include_file"),
        ('include = ["x.example"]\ninclude_file = "empty"', "not in srs.include or srs.include_file"),
    ],
)
def test_the_list_that_leaves_a_sender_out_is_named(srs: Srs, lists: str, key: str) -> None:
    (srs.folder / "listed").write_text("fabrikam.com\n")
    (srs.folder / "empty").touch()
    srs.configure(f"[srs]\n{lists}\n")
    fault = f"bob@fabrikam.com: is never rewritten: fabrikam.com is {key}"
    assert srs("forward", "bob@fabrikam.com") == (65, [], [fault])


def test_that_the_daemons_rewrite_nothing_in_mode_monitor_is_noted(srs: Srs) -> None:
    status, out, err = srs("forward", "--organization", "fabrikam", "bob@x.example", "eve@x.example")
    assert (status, len(out), err) == (0, 2, ["note: in mode monitor the daemons rewrite nothing"])


def test_that_the_daemons_ask_for_spf_is_noted(srs: Srs) -> None:
    srs.configure('[srs]\nonly_spf = true\noutgoing_addresses = "192.0.2.1"\n')
    status, out, err = srs("forward", "bob@fabrikam.com")
    assert (status, out) == (0, [RELAYED])
    assert err == [
        "note: with srs.only_spf the daemons rewrite only where the domain publishes an SPF record that does not cover"
        " srs.outgoing_addresses; no DNS is asked here"
    ]


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
            "compact form of another system: its original is in that system's store",
        ),
        (
            COMPACT,
            "no original: the store does not know its token; it is forged, mistyped, long expired, or of a host with"
            " another store",
        ),
    ],
)
def test_what_cannot_be_reversed_is_named(srs: Srs, address: str, fault: str) -> None:
    assert srs("reverse", address) == (65, [], [f"{address}: {fault}"])


def test_an_expired_address_is_named(srs: Srs) -> None:
    fault = f"{RELAYED}: expired: it is 22 days old, and srs.validity_days is 21"
    assert srs("reverse", RELAYED, at="2024-01-27") == (65, [], [fault])


@pytest.mark.parametrize(("at", "when"), [("2024-01-04", "1 day"), ("2024-01-02", "3 days")])
def test_an_address_from_the_future_is_told_from_an_expired_one(srs: Srs, at: str, when: str) -> None:
    back = 1024 - int(when[0])
    fault = f"{RELAYED}: from the future: its timestamp is {when} ahead (or {back:,} days back)"
    assert srs("reverse", RELAYED, at=at) == (65, [], [fault])


def test_a_hash_that_is_too_short_is_told_from_a_wrong_one(srs: Srs) -> None:
    srs.configure('[srs]\nformat = "srs0"\n')
    address = SRS0.replace("VPDx", "VPD")
    fault = f"{address}: wrong hash: the hash has 3 characters, srs.srs0.hash_minimum is 4"
    assert srs("reverse", address) == (65, [], [fault])


def test_an_address_is_inspected_field_by_field(srs: Srs) -> None:
    assert srs("inspect", RELAYED, at="2024-01-08") == (
        0,
        [
            "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com",
            "  form        exchange, long (original in the address)",
            "  mailbox     bounces, of relayed mail",
            "  hash        czvzs4na (8 characters)",
            "  timestamp   IP = 2024-01-05, 3 days ago (or 1,024 days before, and so on)",
            "  original    bob@fabrikam.com",
            "  SRS domain  contoso.com",
            "  state       made here, the hash is right and it has not expired: bounces to it go to bob@fabrikam.com",
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
            "  form        exchange, long (original in the address)",
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
            "  state       compact form of another system: its original is in that system's store",
        ],
        [],
    )


def test_an_expired_address_of_ours_is_told_from_a_foreign_one(srs: Srs) -> None:
    status, out, _ = srs("inspect", RELAYED, at="2024-02-01")
    assert status == 0
    assert out[-1] == (
        "  state       made here, the hash is right, but expired: it is 27 days old, and srs.validity_days is 21"
    )


SRS0 = "SRS0=VPDx=IP=fabrikam.com=bob@contoso.com"
SRS1 = "SRS1=8dRf=adatum.com==abcd=IP=fabrikam.com=bob@contoso.com"


def test_the_classic_format_is_made_and_comes_back(srs: Srs) -> None:
    srs.configure('[srs]\nformat = "srs0"\n')
    others = "SRS0=abcd=IP=fabrikam.com=bob@adatum.com"
    assert srs("forward", "bob@fabrikam.com", others) == (0, [SRS0, SRS1], [])
    assert srs("reverse", SRS0, SRS1) == (0, ["bob@fabrikam.com", others], [])


def test_a_format_that_is_not_enabled_is_not_reversed(srs: Srs) -> None:
    fault = f'{SRS0}: of the format srs0, which this host does not bring back; srs.also_reverse = ["srs0"] would'
    assert srs("reverse", SRS0) == (65, [], [fault])
    srs.configure('[srs]\nalso_reverse = ["srs0"]\n')
    assert srs("reverse", SRS0, RELAYED) == (0, ["bob@fabrikam.com", "bob@fabrikam.com"], [])


def test_classic_addresses_are_inspected_field_by_field(srs: Srs) -> None:
    srs.configure('[srs]\nformat = "srs0"\n')
    assert srs("inspect", SRS0, SRS1) == (
        0,
        [
            SRS0,
            "  form        SRS0, the classic form (original in the address)",
            "  hash        VPDx (4 characters)",
            "  timestamp   IP = 2024-01-05, today (or 1,024 days before, and so on)",
            "  original    bob@fabrikam.com",
            "  SRS domain  contoso.com",
            "  state       made here, the hash is right and it has not expired: bounces to it go to bob@fabrikam.com",
            "",
            SRS1,
            "  form        SRS1, the classic form of a second forwarder (leads to the SRS0 address of the first)",
            "  hash        8dRf (4 characters)",
            "  first host  adatum.com, to which bounces go on",
            "  timestamp   IP = 2024-01-05, today (or 1,024 days before, and so on)",
            "  original    bob@fabrikam.com",
            "  SRS domain  contoso.com",
            "  state       made here, the hash is right and it has not expired: "
            "bounces to it go to SRS0=abcd=IP=fabrikam.com=bob@adatum.com",
        ],
        [],
    )


def test_a_long_sender_becomes_compact_and_comes_back(srs: Srs) -> None:
    assert srs("forward", LONG_USER) == (0, [COMPACT], [])
    assert srs("reverse", COMPACT, COMPACT.upper()) == (0, [LONG_USER, LONG_USER], [])


def test_a_compact_address_of_ours_is_told_from_exchange_onlines(srs: Srs) -> None:
    srs("forward", LONG_USER)
    _, out, _ = srs("inspect", COMPACT)
    assert out[1] == "  form        compact (original kept in a store)"
    assert out[-1] == (
        f"  state       made here, the hash is right and it has not expired: bounces to it go to {LONG_USER}"
    )


def test_a_compact_address_is_not_said_to_be_foreign_where_none_is_reversed(srs: Srs) -> None:
    srs.configure('[srs]\nform = "long"\n')
    _, out, _ = srs("inspect", COMPACT)
    assert out[-1] == (
        '  state       of the format compact, which this host does not bring back; srs.also_reverse = ["compact"] would'
    )


def test_a_store_that_is_away_is_named(srs: Srs) -> None:
    srs.configure('[store]\nurl = "sqlite:////nowhere/gatepost.db"\n')
    fault = f"{COMPACT}: store /nowhere/gatepost.db: the folder /nowhere does not exist"
    assert srs("reverse", COMPACT) == (65, [], [fault])
    status, out, err = srs("forward", LONG_USER, "bob@fabrikam.com")
    assert (status, out) == (65, [RELAYED])
    assert err == [f"{LONG_USER}: store /nowhere/gatepost.db: the folder /nowhere does not exist"]
    _, out, _ = srs("inspect", COMPACT)
    assert out[-1] == (
        "  state       not checked: the store cannot be asked: "
        "store /nowhere/gatepost.db: the folder /nowhere does not exist"
    )


@pytest.mark.parametrize(
    ("day", "stamp"),
    [("2026-01-26", "77"), ("2026-01-27", "AA"), ("2026-01-28", "AB"), ("1970-01-01", "AA"), ("2038-01-19", "IX")],
)
def test_addresses_of_any_day_are_made_and_come_back(srs: Srs, day: str, stamp: str) -> None:
    _, made, _ = srs("forward", "bob@fabrikam.com", LONG_USER, at=day)
    assert [f"={stamp}=" in made[0], f"={stamp}@" in made[1]] == [True, True]
    assert srs("reverse", *made, at=day) == (0, ["bob@fabrikam.com", LONG_USER], [])


def test_an_address_from_before_the_wrap_is_good_after_it_and_not_before_its_day(srs: Srs) -> None:
    _, (made,), _ = srs("forward", "bob@fabrikam.com", at="2026-01-20")
    assert srs("reverse", made, at="2026-02-10") == (0, ["bob@fabrikam.com"], [])
    assert srs("reverse", made, at="2026-02-11")[0] == 65
    assert srs("reverse", made, at="2026-01-19")[0] == 65


@pytest.mark.parametrize("srs_table", ['format = "srs0"', 'format = "exchange"', 'form = "compact"'])
def test_thousands_of_addresses_come_and_go_in_one_call(srs: Srs, srs_table: str) -> None:
    srs.configure(f"[srs]\n{srs_table}\n")
    senders = [f"user{number}@fabrikam.com" for number in range(1000)]
    status, made, err = srs("forward", "-", stdin="\n".join(senders).encode())
    assert (status, len(made), err) == (0, 1000, [])
    assert srs("reverse", "-", stdin="\n".join(made).encode()) == (0, senders, [])


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


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("bob@contoso.com", "bob@contoso.com: no SRS address: there is no +SRS= in the local part"),
        (
            "prvs=1234abcdef=bob@contoso.com",
            "prvs=1234abcdef=bob@contoso.com: no SRS address: there is no +SRS= in the local part",
        ),
        ("nonsense", 'nonsense: "@domain" is missing'),
        ("john+SRS=44ldt=IX=fabrikam.com=bob", 'john+SRS=44ldt=IX=fabrikam.com=bob: "@domain" is missing'),
        ("", "<>: the null sender, no SRS address"),
        ("<>", "<>: the null sender, no SRS address"),
    ],
)
def test_what_is_no_srs_address_is_a_data_error(srs: Srs, address: str, fault: str) -> None:
    assert srs("inspect", address) == (65, [], [fault])


def test_an_address_that_an_mta_has_percent_encoded_is_inspected_as_the_daemons_read_it(srs: Srs) -> None:
    _, out, err = srs("inspect", RELAYED.replace("+", "%2B").replace("=", "%3D"))
    assert (out[5], err) == ("  original    bob@fabrikam.com", [])
    assert out[-1].endswith("bounces to it go to bob@fabrikam.com")


def test_a_day_that_is_none_is_named(srs: Srs) -> None:
    status, out, err = srs("inspect", RELAYED, at="24.12.2026")
    assert (status, out) == (64, [])
    assert err[-1] == "Error: Invalid value for '--at': \"24.12.2026\" is no date (YYYY-MM-DD)"


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
