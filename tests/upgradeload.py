# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail through gatepost and an MTA while daemons and packages are replaced: all that was taken is accounted for.

What counts is what clients and the next hop have seen, and then the ledger's rows. As a program, for root in a Debian
that is thrown away afterwards, with systemd, Postfix and the older package: upgradeload.py OLDER.deb NEWER.deb, or
.rpm
"""

from __future__ import annotations

import contextlib
import functools
import re
import smtplib
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Union

from gatepost.admin.nexthop import NextHop, Received

CONFIGURATION = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "this host"
sender_ip_addresses = ["127.0.0.1"]
[relay]
mode = "enforce"
action = "rewrite"
local_domains = ["mail.contoso.com", "localhost"]
[milter]
workers = 2
[policyd]
workers = 2
[egress]
transport = "gatepost-egress:[127.0.0.1]:10027"
daemon_name = "gatepost-egress"
"""
FILE = Path("/etc/gatepost/gatepost.toml")
STORE = Path("/var/lib/gatepost/gatepost.db")
UNITS = ("gatepost-milter", "gatepost-policyd")
SETTLE_S = 3.0
BEFORE = 7
"""The number of the messages that the version before has sent on."""
LONG = "a-long-name-for-which-there-is-no-room-beside-hash-and-time"
KEEP = ("-o", "Dpkg::Options::=--force-confold")
APT = ("apt-get", "-qq", "--yes", "--no-install-recommends", *KEEP, "install", "--reinstall", "--allow-downgrades")
RPM = ("rpm", "--upgrade", "--nodeps", "--oldpackage", "--replacepkgs")


class Kind(NamedTuple):
    """One kind of message; {n} is its number. left: what its P1 must look like at the next hop."""

    name: str
    mail_from: str
    rcpt_to: str
    arrives: str
    left: str
    client: str = "127.0.0.1"
    refused: bool = False


OWN = Kind("own", "app{n}@contoso.com", "own@example.com", "own@example.com", r"app{n}@contoso\.com")
RELAYED = Kind(
    *("relayed", "bob{n}@fabrikam.com", "relayed@example.com", "relayed@example.com"),
    left=r"bounces\+SRS=[a-z2-7]+=..=fabrikam\.com=bob{n}@contoso\.com",
)
# While the store cannot be written the long form takes its place.
COMPACT = Kind(
    *("compact", LONG + "{n}@fabrikam.com", "compact@example.com", "compact@example.com"),
    left=r"bounces\+SRS=[a-z2-7]+=..(=fabrikam\.com=" + LONG + r"{n})?@contoso\.com",
)
FORWARDED = Kind(
    *("forwarded", "carol{n}@fabrikam.com", "staff@contoso.com", "staff@partner.example"),
    left=r"staff\+SRS=[a-z2-7]+=..=fabrikam\.com=carol{n}@contoso\.com",
)
REFUSED = Kind("refused", "eve{n}@fabrikam.com", "you@example.com", "", "", client="127.0.0.2", refused=True)


class Sent(NamedTuple):
    number: int
    kind: Kind
    reply: str
    """The one that ended the message: 250 where it was taken."""
    at: float
    """When that came, by the monotonic clock."""


class Row(NamedTuple):
    """Of the ledger."""

    message_id: str
    recipient: str
    reverse_path: str
    action: str


class Load:
    """Clients that send one message after the other to *port*, of each of *kinds* in turn; a context manager."""

    def __init__(self, port: int, kinds: Sequence[Kind], clients: int = 4, pause_s: float = 0.03) -> None:
        self.sent: list[Sent] = []
        self._port = port
        self._kinds = kinds
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def taken(self) -> int:
        return sum(item.reply.startswith("250") for item in self.sent)

    def _run(self, client: int) -> None:
        number = 1_000_000 * (client + 1)
        while not self._stop.wait(self._pause_s):
            number += 1
            self.sent.append(send(self._port, self._kinds[number % len(self._kinds)], number))


def send(port: int, kind: Kind, number: int) -> Sent:
    """Send one message; keep the reply that ended it."""
    mail_from = kind.mail_from.format(n=number)
    message = f"From: <{mail_from}>\r\nTo: <{kind.rcpt_to}>\r\nMessage-Id: {message_id(number)}\r\n\r\nhello\r\n"
    try:
        with smtplib.SMTP("127.0.0.1", port, source_address=(kind.client, 0), timeout=120) as smtp:
            smtp.sendmail(mail_from, [kind.rcpt_to], message)
        return _answered(number, kind, 250, "taken")
    except smtplib.SMTPRecipientsRefused as error:
        return _answered(number, kind, *error.recipients[kind.rcpt_to])
    except smtplib.SMTPResponseException as error:
        return _answered(number, kind, error.smtp_code, error.smtp_error)


def _answered(number: int, kind: Kind, code: int, text: Union[str, bytes]) -> Sent:
    return Sent(number, kind, f"{code} {text.decode() if isinstance(text, bytes) else text}", time.monotonic())


def message_id(number: int) -> str:
    return f"<{number}@load.example>"


def rows(store: Path) -> list[Row]:
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT message_id, recipient, reverse_path, action FROM ledger")
        return [Row(*row) for row in found]


def findings(sent: Sequence[Sent], received: Sequence[Received], ledger: Sequence[Row]) -> dict[str, list[object]]:
    """Return by what was looked for what is wrong: nothing, where nothing was lost, doubled or wrongly decided."""
    taken = {item.number: item for item in sent if item.reply.startswith("250")}
    arrived = Counter((_number(mail), rcpt) for mail in received for rcpt in mail.rcpt_to)
    left = {_number(mail): mail.mail_from for mail in received}
    recorded = Counter(row.message_id for row in ledger)
    refusals = Counter(row.reverse_path for row in ledger if row.action == "reject")
    refused = [item for item in sent if item.reply.startswith("5")]
    return {
        "what may pass was taken or put off": [
            item for item in sent if not item.kind.refused and not item.reply.startswith(("250", "4"))
        ],
        "what may not was refused or put off": [
            item for item in sent if item.kind.refused and not item.reply.startswith(("550 5.7.64", "4"))
        ],
        "what was taken arrived once": [
            item for item in taken.values() if arrived[item.number, item.kind.arrives] != 1
        ],
        "nothing else arrived": [key for key in arrived if key[0] not in taken and key[0] != BEFORE],
        "with the right envelope sender": [
            (item, left[number])
            for number, item in taken.items()
            if number in left and not re.fullmatch(item.kind.left.format(n=number), left[number])
        ],
        "and has one row in the ledger": [
            (item, recorded[message_id(item.number)])
            for item in taken.values()
            if recorded[message_id(item.number)] != 1
        ],
        "as each refusal has": [item for item in refused if refusals[item.kind.mail_from.format(n=item.number)] != 1],
    }


def _number(mail: Received) -> int:
    found = re.search(rb"(?im)^Message-Id: <(\d+)@load\.example>", mail.content)
    return int(found[1]) if found else 0


# As a program


def run(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def set_up(internet: NextHop) -> None:
    """Have Postfix as gatepost's own setup has it for the topology forwarder."""
    FILE.write_text(CONFIGURATION)
    Path("/etc/postfix/virtual").write_text("staff@contoso.com staff@partner.example\n")
    run("postmap", "/etc/postfix/virtual")
    run(
        *("postconf", "-e", "maillog_file = /var/log/mail.log", "inet_interfaces = loopback-only"),
        *("inet_protocols = ipv4", f"relayhost = [127.0.0.1]:{internet.address[1]}", "myhostname = mail.contoso.com"),
        *("mydestination = mail.contoso.com, localhost", "virtual_alias_maps = hash:/etc/postfix/virtual"),
        *("virtual_alias_domains = contoso.com", "smtpd_client_connection_count_limit = 0", "queue_run_delay = 5s"),
        *("minimal_backoff_time = 5s", "maximal_backoff_time = 10s", "smtpd_peername_lookup = no"),
    )
    run("systemctl", "restart", "postfix", *UNITS)
    run("gatepost", "setup", "postfix", "--apply")


def bounces(internet: NextHop) -> list[Kind]:
    """Have the version before make an address of each form; return what comes back to these later."""
    found = []
    for kind in (RELAYED, COMPACT, FORWARDED):
        sent = send(25, kind, BEFORE)
        if not sent.reply.startswith("250"):
            sys.exit(f"{kind.name}: {sent.reply}")
        address = internet.wait(functools.partial(_is_for, kind.arrives)).mail_from
        found.append(Kind(f"bounce of {kind.name}", "", address, kind.mail_from.format(n=BEFORE), ""))
    return found


def _is_for(rcpt: str, mail: Received) -> bool:
    return mail.rcpt_to == [rcpt]


def unpacked(newer: str) -> None:
    """The older daemons with the newer files, as between unpacking and configuring; reloaded, and workers killed."""
    run(*([*RPM, "--noscripts"] if _is_rpm(newer) else ["dpkg", "--unpack"]), newer)
    time.sleep(SETTLE_S)
    run("systemctl", "reload", *UNITS)
    time.sleep(SETTLE_S)
    for unit in UNITS:
        run("pkill", "-KILL", "-P", run("systemctl", "show", "-P", "MainPID", unit).strip())
    time.sleep(SETTLE_S)


def install(package: str) -> str:
    """Install *package* in the place of another version or of itself; return what is said about it."""
    return run(*(RPM if _is_rpm(package) else APT), package)


def _is_rpm(package: str) -> bool:
    return package.endswith(".rpm")


def not_understood(newer: str) -> None:
    before = [run("systemctl", "show", "-P", "MainPID", unit) for unit in UNITS]
    FILE.write_text(f'{CONFIGURATION}gone = "a key of the version before"\n')
    said = install(newer)
    if "gatepost: Mend it, then: systemctl restart gatepost.target" not in said:
        sys.exit(said)
    if before != [run("systemctl", "show", "-P", "MainPID", unit) for unit in UNITS]:
        sys.exit("an upgrade whose configuration is not understood has touched the daemons")


def mended() -> None:
    FILE.write_text(CONFIGURATION)
    run("systemctl", "restart", "gatepost.target", *UNITS)


def longest_wait_s(sent: Sequence[Sent], begin: float) -> float:
    """Return for how long since *begin* nothing was taken, at most."""
    taken = sorted(item.at for item in sent if item.reply.startswith("250"))
    moments = [begin, *taken, time.monotonic()]
    return max(later - earlier for earlier, later in zip(moments, moments[1:]))


def steps(older: str, newer: str) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("the version before", lambda: None),
        ("unpacked, then reloaded, then workers killed", lambda: unpacked(newer)),
        (
            "configured, and so restarted",
            lambda: install(newer) if _is_rpm(newer) else run("dpkg", "--configure", "-a"),
        ),
        ("downgraded", lambda: install(older)),
        ("upgraded", lambda: install(newer)),
        ("installed again", lambda: install(newer)),
        ("milter restarted", lambda: run("systemctl", "restart", "gatepost-milter")),
        ("policyd restarted", lambda: run("systemctl", "restart", "gatepost-policyd")),
        ("target restarted", lambda: run("systemctl", "restart", "gatepost.target")),
        ("target reloaded", lambda: run("systemctl", "reload", "gatepost.target")),
        ("upgraded, configuration not understood", lambda: not_understood(newer)),
        ("mended and restarted", mended),
    ]


def settled(internet: NextHop, sent: Sequence[Sent]) -> None:
    """Return when the queue is empty and the ledger grows no more, or after two minutes."""
    end = time.monotonic() + 120
    before = -1
    while time.monotonic() < end:
        run("postqueue", "-f")
        time.sleep(2)
        count = len(rows(STORE))
        if not run("postqueue", "-j") and count == before:
            return
        before = count


def main() -> None:
    older, newer = sys.argv[1:]
    with NextHop() as internet:
        set_up(internet)
        kinds = [OWN, RELAYED, COMPACT, FORWARDED, REFUSED, *bounces(internet)]
        with Load(25, kinds) as load:
            for name, step in steps(older, newer):
                begin, began = len(load.sent), time.monotonic()
                step()
                took = time.monotonic() - began
                time.sleep(SETTLE_S)
                part = load.sent[begin:]
                put_off = sum(item.reply.startswith("4") for item in part)
                wait_s = longest_wait_s(part, began)
                print(f"{name} ({took:.0f} s): {len(part)} sent, {put_off} put off, for {wait_s:.1f} s", flush=True)
        settled(internet, load.sent)
        wrong = {
            what: items[:5] for what, items in findings(load.sent, internet.messages, rows(STORE)).items() if items
        }
        print(f"all: {len(load.sent)} sent, {load.taken()} taken, {len(internet.messages)} arrived")
        print("put off:", Counter(item.reply for item in load.sent if item.reply.startswith("4")))
    sys.exit(f"wrong: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
