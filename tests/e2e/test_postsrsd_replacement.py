# SPDX-License-Identifier: GPL-3.0-or-later
"""In place of postsrsd: canonical maps on a real Postfix, and the move of a postsrsd that has made addresses before.

Postfix hands mail for contoso.com to a mailbox server; john.work forwards to john.home@example.com.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import peers
import pytest
from daemonprocess import free_ports

from gatepost.admin import import_postsrsd
from gatepost.admin.nexthop import Received
from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage

SERVER = """
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x}, {john.work@contoso.com = x}, {both@contoso.com = x} }
virtual_alias_domains =
local_header_rewrite_clients =
virtual_alias_maps = inline:{
  {john.work@contoso.com = john.home@example.com}
  {both@contoso.com = mary@contoso.com, both.home@example.com}
  {gone@contoso.com = nobody@example.com}}
"""
README = Path(__file__).parents[2] / "docs/postsrsd.md"
MESSAGE = b"From: Bob <bob@fabrikam.com>\r\nSubject: lunch\r\nMessage-Id: <1@fabrikam.com>\r\n\r\nhello\r\n"
NDR = b"From: MAILER-DAEMON@example.com\r\nSubject: undelivered\r\n\r\nno such user\r\n"
ABROAD = "198.51.100.7"
SRS0_OF_BOB = re.compile(r"SRS0=[A-Za-z0-9+/]{4}=[A-Z2-7]{2}=fabrikam\.com=bob@contoso\.com")
FOREIGN = "SRS0=aBcD=JK=fabrikam.com=bob@relay.example"


def with_tcp_tables(forward: int, reverse: int) -> Callable[[str], str]:
    """Return what takes the comments from the example's tcp_table lines and puts ports of this test there."""

    def edit(text: str) -> str:
        text = text.replace("#tcp_table", "tcp_table")
        return text.replace("127.0.0.1:10001", f"127.0.0.1:{forward}").replace(
            "127.0.0.1:10002", f"127.0.0.1:{reverse}"
        )

    return edit


def tcp_maps(forward: int, reverse: int) -> str:
    """Return the lines that main.cf has for postsrsd 1.x."""
    return (
        f"sender_canonical_maps = tcp:127.0.0.1:{forward}\nsender_canonical_classes = envelope_sender\n"
        f"recipient_canonical_maps = tcp:127.0.0.1:{reverse}\n"
        "recipient_canonical_classes = envelope_recipient,header_recipient\n"
    )


@pytest.fixture(scope="module")
def tcp_ports() -> tuple[int, int]:
    forward, reverse = free_ports(2)
    return forward, reverse


@pytest.fixture(scope="module")
def server(boot: Callable[..., Stage], tcp_ports: tuple[int, int]) -> Stage:
    """The example, with its tcp_table lines in force."""
    return boot(
        "postsrsd-replacement",
        before=SERVER,
        gatepost=["policyd"],
        configuration=with_tcp_tables(*tcp_ports),
        refuse={"nobody@example.com": "550 5.1.1 No such user"},
    )


@pytest.fixture(scope="module")
def maps(server: Stage, tcp_ports: tuple[int, int]) -> dict[str, dict[str, str]]:
    """Each way to ask, with its maps' names for main.cf."""
    tcp = f"socketmap:inet:127.0.0.1:{server.ports['10041']}"
    return {
        "unix": {name: f"socketmap:unix:gatepost/policyd.sock:{name}" for name in ("forward", "reverse")},
        "tcp": {name: f"{tcp}:{name}" for name in ("forward", "reverse")},
        "tcp_table": {name: f"tcp:127.0.0.1:{port}" for name, port in zip(("forward", "reverse"), tcp_ports)},
    }


WAYS = pytest.mark.parametrize("way", ["unix", "tcp", "tcp_table"])


def at_internet(stage: Stage, rcpt: str) -> Received:
    return stage.internet.wait(lambda mail: mail.rcpt_to == [rcpt])


def srs0(stage: Stage, sender: str) -> str:
    found = stage.postfix.postmap_query(sender, "socketmap:unix:gatepost/policyd.sock:forward")
    assert found
    return found


# postmap -q


@WAYS
def test_postmap_shows_an_address_there_and_back(server: Stage, maps: dict[str, dict[str, str]], way: str) -> None:
    forward, reverse = maps[way]["forward"], maps[way]["reverse"]
    found = server.postfix.postmap_query("bob@fabrikam.com", forward)
    assert found is not None
    assert SRS0_OF_BOB.fullmatch(found)
    assert server.postfix.postmap_query(found, reverse) == "bob@fabrikam.com"


@WAYS
@pytest.mark.parametrize(
    "sender",
    ["ann@contoso.com", "Ann@CONTOSO.COM", "x@adatum.com", "x@mail.adatum.com", "bob", "@fabrikam.com", "<>"],
)
def test_sender_that_is_not_rewritten_is_not_found(
    server: Stage, maps: dict[str, dict[str, str]], way: str, sender: str
) -> None:
    assert server.postfix.postmap_query(sender, maps[way]["forward"]) is None


@WAYS
@pytest.mark.parametrize(
    "rcpt",
    [
        "mary@contoso.com",
        FOREIGN,
        "SRS0=aBcD=JK=fabrikam.com=bob@contoso.com",
        "SRS1=aBcD=relay.example==eFgH=JK=fabrikam.com=bob@contoso.com",
        "SRS0=@contoso.com",
        "@contoso.com",
    ],
)
def test_recipient_that_is_not_reversed_is_not_found(
    server: Stage, maps: dict[str, dict[str, str]], way: str, rcpt: str
) -> None:
    assert server.postfix.postmap_query(rcpt, maps[way]["reverse"]) is None


@WAYS
def test_address_with_signs_that_tcp_table_encodes_comes_back(
    server: Stage, maps: dict[str, dict[str, str]], way: str
) -> None:
    found = server.postfix.postmap_query("b%b+x@fabrikam.com", maps[way]["forward"])
    assert found is not None
    assert server.postfix.postmap_query(found, maps[way]["reverse"]) == "b%b+x@fabrikam.com"


@WAYS
def test_long_address_becomes_a_short_one_and_comes_back(
    server: Stage, maps: dict[str, dict[str, str]], way: str
) -> None:
    sender = "a" * 60 + f"{way}@fabrikam.com"
    found = server.postfix.postmap_query(sender, maps[way]["forward"])
    assert found is not None
    assert len(found.rpartition("@")[0]) <= 64
    assert server.postfix.postmap_query(found, maps[way]["reverse"]) == sender


# Mail


def test_forwarded_mail_leaves_with_an_srs_sender_and_all_else_as_it_came(server: Stage) -> None:
    assert server.send("bob@fabrikam.com", "john.work@contoso.com", MESSAGE, client=ABROAD).accepted
    mail = at_internet(server, "john.home@example.com")
    assert SRS0_OF_BOB.fullmatch(mail.mail_from)
    assert mail.content.endswith(MESSAGE)


def test_mail_that_stays_inside_is_rewritten_too_as_with_postsrsd(server: Stage) -> None:
    assert server.send("bob@fabrikam.com", "mary@contoso.com", MESSAGE, client=ABROAD).accepted
    mail = server.inside.wait(lambda mail: mail.rcpt_to == ["mary@contoso.com"])
    assert SRS0_OF_BOB.fullmatch(mail.mail_from)


def test_refusal_of_the_next_hop_goes_back_to_the_original_sender(server: Stage) -> None:
    """This Postfix's own bounce(8) makes the bounce; no smtpd sees it."""
    server.postfix.sendmail(["-f", "carol@fabrikam.com", "gone@contoso.com"], b"Subject: x\n\nhello\n")
    mail = at_internet(server, "carol@fabrikam.com")
    assert mail.mail_from == ""
    assert b"550 5.1.1 No such user" in mail.content


def test_bounce_from_outside_goes_back_to_the_original_sender(server: Stage) -> None:
    assert server.send("", srs0(server, "dave@fabrikam.com"), NDR, client=ABROAD).accepted
    mail = at_internet(server, "dave@fabrikam.com")
    assert mail.mail_from == ""
    assert mail.content.endswith(NDR)


def test_bounce_to_a_lower_cased_address_goes_back(server: Stage) -> None:
    assert server.send("", srs0(server, "erin@fabrikam.com").lower(), NDR, client=ABROAD).accepted
    assert at_internet(server, "erin@fabrikam.com").mail_from == ""


def encoded(address: str, signs: str) -> str:
    for sign in signs:
        address = address.replace(sign, f"%{ord(sign):02X}")
    return address


@pytest.mark.parametrize("signs", ["=", "=+", "=+/", "+"])
@pytest.mark.parametrize("user", ["Bob", "bob+list", "bob=x", "b+c=d"])
def test_bounce_to_an_srs0_address_that_the_mta_has_percent_encoded_goes_back(
    server: Stage, user: str, signs: str
) -> None:
    """Without the command filter Postfix would say "Relay access denied"."""
    sender = f"{user}@{len(signs)}{signs.count('/')}.fabrikam.com"
    rcpt = encoded(srs0(server, sender), signs)
    assert server.send("", rcpt, NDR, client=ABROAD, rcpt_options="NOTIFY=NEVER").accepted
    assert at_internet(server, sender).mail_from == ""


@pytest.mark.parametrize("user", ["heidi", "h+i", "h=i"])
def test_bounce_to_an_srs1_address_that_the_mta_has_percent_encoded_goes_back(server: Stage, user: str) -> None:
    sender = FOREIGN.replace("bob", user)
    assert server.send("", encoded(srs0(server, sender), "=+/"), NDR, client=ABROAD).accepted
    assert at_internet(server, sender).mail_from == ""


def test_bounce_to_a_compact_address_that_the_mta_has_percent_encoded_goes_back(server: Stage) -> None:
    sender = f"{'h' * 60}@fabrikam.com"
    rcpt = srs0(server, sender)
    assert rcpt.startswith("bounces+SRS=")
    assert server.send("", encoded(rcpt, "=+"), NDR, client=ABROAD).accepted
    assert at_internet(server, sender).mail_from == ""


def test_parameters_behind_a_percent_encoded_recipient_stay_as_they_are(server: Stage) -> None:
    sender = "judy@fabrikam.com"
    options = "NOTIFY=NEVER ORCPT=rfc822;judy%3Dx+2By@fabrikam.com"
    assert server.send("", encoded(srs0(server, sender), "="), NDR, client=ABROAD, rcpt_options=options).accepted
    (found,) = at_internet(server, sender).rcpt_options
    assert sorted(found) == options.split()


def test_bounce_to_an_address_as_it_was_made_passes_the_command_filter_untouched(server: Stage) -> None:
    rcpt, start = srs0(server, "kim@fabrikam.com"), len(server.postfix.log())
    assert server.send("", rcpt, NDR, client=ABROAD, rcpt_options="ORCPT=rfc822;a%b").accepted
    assert at_internet(server, "kim@fabrikam.com").mail_from == ""
    assert "replacing command" not in server.postfix.log()[start:]


@pytest.mark.parametrize("rcpt", ["ann%3Dx@contoso.com", "ann%example.com@contoso.com", "SRS%3Dx@contoso.com"])
def test_percent_in_any_other_recipient_is_refused_as_without_gatepost(server: Stage, rcpt: str) -> None:
    start = len(server.postfix.log())
    assert str(server.send("", rcpt, NDR, client=ABROAD).last) == f"454 4.7.1 <{rcpt}>: Relay access denied"
    assert "replacing command" not in server.postfix.log()[start:]


def test_bounce_to_two_srs_addresses_and_a_mailbox_reaches_each_once(server: Stage) -> None:
    message = NDR.replace(b"undelivered", b"to three")
    rcpt = [srs0(server, "f1@fabrikam.com"), "mary@contoso.com", srs0(server, "f2@fabrikam.com")]
    assert server.send("", rcpt, message, client=ABROAD).accepted
    server.postfix.wait_until_idle()
    copies = [mail for mail in server.internet.messages + server.inside.messages if b"to three" in mail.content]
    found = sorted(rcpt for mail in copies for rcpt in mail.rcpt_to)
    assert found == ["f1@fabrikam.com", "f2@fabrikam.com", "mary@contoso.com"]


def test_null_sender_stays_and_makes_no_noise(server: Stage) -> None:
    start = len(server.log())
    assert server.send("", "john.work@contoso.com", NDR + b"quiet\r\n", client=ABROAD).accepted
    mail = server.internet.wait(lambda mail: mail.content.endswith(b"quiet\r\n"))
    assert mail.mail_from == ""
    assert server.log()[start:] == ""


@pytest.mark.parametrize("sender", ["ann@contoso.com", "x@adatum.com", "x@mail.adatum.com"])
def test_own_and_excluded_senders_leave_as_they_came(server: Stage, sender: str) -> None:
    message = MESSAGE + sender.encode() + b"\r\n"
    assert server.send(sender, "john.work@contoso.com", message, client=ABROAD).accepted
    mail = server.internet.wait(lambda mail: mail.content.endswith(message))
    assert mail.mail_from == sender


def test_subdomain_of_an_accepted_domain_is_foreign_as_with_postsrsd(server: Stage) -> None:
    assert srs0(server, "x@mail.contoso.com").endswith("=mail.contoso.com=x@contoso.com")


def test_foreign_srs0_becomes_srs1_and_its_bounce_goes_to_who_made_it(server: Stage) -> None:
    message = MESSAGE + b"chain\r\n"
    assert server.send(FOREIGN, "john.work@contoso.com", message, client=ABROAD).accepted
    mail = server.internet.wait(lambda mail: mail.content.endswith(message))
    assert re.fullmatch(r"SRS1=[\w+/]{4}=relay\.example==aBcD=JK=fabrikam\.com=bob@contoso\.com", mail.mail_from)
    assert server.send("", mail.mail_from, NDR, client=ABROAD).accepted
    assert at_internet(server, FOREIGN).mail_from == ""


def test_own_srs_sender_that_comes_by_again_is_not_rewritten_twice(server: Stage) -> None:
    sender, message = srs0(server, "bob@fabrikam.com"), MESSAGE + b"again\r\n"
    assert server.send(sender, "john.work@contoso.com", message, client=ABROAD).accepted
    assert server.internet.wait(lambda mail: mail.content.endswith(message)).mail_from == sender


def test_forged_srs_recipient_is_refused_by_postfix(server: Stage) -> None:
    forged = srs0(server, "bob@fabrikam.com").replace("=bob@", "=eve@")
    assert str(server.send("", forged, NDR, client=ABROAD).last).startswith("550 5.1.1 ")


def test_srs_address_in_the_to_header_of_own_mail_becomes_the_original_again(server: Stage) -> None:
    """An out-of-office reply: sendmail(1) hands it in, written to the Return-Path."""
    rcpt = srs0(server, "grace@fabrikam.com")
    server.postfix.sendmail(["-f", "", rcpt], f"From: mary@contoso.com\nTo: {rcpt}\n\naway\n".encode())
    assert b"To: grace@fabrikam.com\r\n" in at_internet(server, "grace@fabrikam.com").content


def test_while_policyd_is_down_mail_is_put_off_and_passes_later(server: Stage) -> None:
    server.stop_gatepost()
    try:
        assert server.send("bob@fabrikam.com", "john.work@contoso.com", client=ABROAD).last.code == 451
    finally:
        server.start_gatepost()
    message = MESSAGE + b"later\r\n"
    assert server.send("bob@fabrikam.com", "john.work@contoso.com", message, client=ABROAD).accepted
    mail = server.internet.wait(lambda mail: mail.content.endswith(message))
    assert SRS0_OF_BOB.fullmatch(mail.mail_from)


# The move

DEFAULTS = """\
SRS_DOMAIN=contoso.com
SRS_EXCLUDE_DOMAINS=adatum.com,.adatum.com
SRS_SEPARATOR=+
SRS_SECRET={secret}
SRS_HASHLENGTH=6
SRS_HASHMIN=4
SRS_FORWARD_PORT={forward}
SRS_REVERSE_PORT={reverse}
RUN_AS=postsrsd
SRS_LISTEN_ADDR=127.0.0.1
CHROOT=/var/lib/postsrsd
"""
SENDERS = ["bob@fabrikam.com", "Carol.Mixed@Fabrikam.COM", "b+c=d@fabrikam.com", FOREIGN.replace("SRS0=", "SRS0-")]


@contextmanager
def postsrsd(defaults: Path) -> Iterator[None]:
    """Run postsrsd 1.10 with the arguments that Debian's start script makes of /etc/default/postsrsd."""
    values = dict(line.split("=", 1) for line in defaults.read_text().splitlines())
    forward, reverse = values["SRS_FORWARD_PORT"], values["SRS_REVERSE_PORT"]
    daemon = peers.start(
        [
            *(str(peers.tree() / "usr/sbin/postsrsd"), "-f", forward, "-r", reverse, "-d", values["SRS_DOMAIN"]),
            *("-s", values["SRS_SECRET"], "-a", values["SRS_SEPARATOR"], "-n", values["SRS_HASHLENGTH"]),
            *("-N", values["SRS_HASHMIN"], "-l", values["SRS_LISTEN_ADDR"], f"-X{values['SRS_EXCLUDE_DOMAINS']}"),
        ]
    )
    try:
        for port in (forward, reverse):
            peers.wait_for_port(int(port), daemon)
        yield
    finally:
        peers.stop(daemon)


def ask(port: int, addresses: list[str]) -> list[str]:
    """Return what a tcp_table answers for each address."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection, connection.makefile("rw") as stream:
        answers = []
        for address in addresses:
            stream.write(f"get {address}\n")
            stream.flush()
            answers.append(stream.readline().rstrip("\n"))
        return answers


class Moved:
    """A host before and after the move. made: postsrsd's SRS address of each of SENDERS."""

    def __init__(self, stage: Stage, ports: tuple[int, int], made: list[str]) -> None:
        self.stage = stage
        self.forward, self.reverse = ports
        self.made = made


@pytest.fixture(scope="module")
def moved(boot: Callable[..., Stage]) -> Iterator[Moved]:
    """postsrsd has run on this host, and gatepost runs with what the import made, under main.cf as it was."""
    ports = free_ports(2)
    with temporary_root() as host:
        defaults, secret = host / "defaults", host / "postsrsd.secret"
        secret.write_bytes(b"tops3cret")
        defaults.write_text(DEFAULTS.format(secret=secret, forward=ports[0], reverse=ports[1]))
        with postsrsd(defaults):
            made = ask(ports[0], SENDERS)

        def move(stage: Stage) -> None:
            stage.configuration.unlink()
            stage.state_directory.mkdir()
            status = import_postsrsd.run([defaults], stage.configuration, state_directory=stage.state_directory)
            assert status == os.EX_OK
            # Where the import names a folder of a real server.
            metrics = '\n[metrics]\nlisten = "127.0.0.1:9797"\n'
            stage.configuration.write_text(stage.render(stage.configuration.read_text() + metrics))

        stage = boot("postsrsd-replacement", before=SERVER, after=tcp_maps(*ports), prepare=move, gatepost=["policyd"])
        yield Moved(stage, ports, [answer[len("200 ") :] for answer in made])


def test_postsrsd_made_srs0_and_srs1_addresses(moved: Moved) -> None:
    """What the tests below stand on."""
    assert [address[:4] for address in moved.made] == ["SRS0", "SRS0", "SRS0", "SRS1"]


def test_addresses_that_postsrsd_made_are_reversed_at_the_same_port(moved: Moved) -> None:
    assert ask(moved.reverse, moved.made) == [f"200 {sender}" for sender in SENDERS]


def test_gatepost_makes_the_very_addresses_that_postsrsd_made(moved: Moved) -> None:
    """All but hash and stamp, which another day has made where midnight came in between."""
    stamp = re.compile(r"(?<=^SRS0\+)[^=]+=[A-Z2-7]{2}|(?<=^SRS1\+)[^=]+")
    found = [answer[len("200 ") :] for answer in ask(moved.forward, SENDERS)]
    assert [stamp.sub("", address) for address in found] == [stamp.sub("", address) for address in moved.made]
    assert ask(moved.reverse, found) == [f"200 {sender}" for sender in SENDERS]


def test_bounce_to_an_address_of_postsrsd_finds_the_original_sender(moved: Moved) -> None:
    assert moved.stage.send("", moved.made[0], NDR, client=ABROAD).accepted
    assert at_internet(moved.stage, "bob@fabrikam.com").mail_from == ""


def test_forwarding_goes_on_with_main_cf_as_it_was(moved: Moved) -> None:
    assert moved.stage.send("bob@fabrikam.com", "john.work@contoso.com", MESSAGE, client=ABROAD).accepted
    mail = at_internet(moved.stage, "john.home@example.com")
    assert re.fullmatch(r"SRS0\+[\w+/]{6}=[A-Z2-7]{2}=fabrikam\.com=bob@contoso\.com", mail.mail_from)


def test_excluded_domains_stay_excluded(moved: Moved) -> None:
    answers = ask(moved.forward, ["x@adatum.com", "x@mail.adatum.com", "ann@contoso.com"])
    assert [answer[:4] for answer in answers] == ["500 "] * 3


def test_postsrsd_brings_back_what_gatepost_made_for_who_goes_back(moved: Moved) -> None:
    made = [answer[len("200 ") :] for answer in ask(moved.forward, SENDERS)]
    with temporary_root() as host:
        (host / "srs.secret").write_bytes(b"# signs from 2026-11-24\ntomorrow\ntops3cret\n")
        (command,) = re.findall(r"grep -v '\^#' .*", README.read_text())
        theirs = command.replace("/var/lib/gatepost", str(host)).replace("/etc/postsrsd.secret", str(host / "secret"))
        subprocess.run(["sh", "-c", theirs], check=True)
        assert (host / "secret").read_bytes() == b"tomorrow\ntops3cret\n"
        ports = free_ports(2)
        (host / "defaults").write_text(DEFAULTS.format(secret=host / "secret", forward=ports[0], reverse=ports[1]))
        with postsrsd(host / "defaults"):
            assert ask(ports[1], made) == [f"200 {sender}" for sender in SENDERS]
