# SPDX-License-Identifier: GPL-3.0-or-later
"""Malformed sessions with the real daemons, and clean ones in between that must be served as ever.

A daemon may close a connection or refuse what comes by it. It may not fall silent, lose a worker, log a fault of its
own, or keep descriptors, threads or memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from daemonprocess import Gatepost, poll
from milterclient import Address, MilterClient

from gatepost.policyd.wire import netstring

from .engine import TOKENS

EVERY = 50
"""After so many malformed sessions comes a clean one."""
_WAIT_S = 0.02
_TRUSTED = {"{cert_subject}": b"mail.contoso.com", "{cert_issuer}": b"Contoso CA"}
_NEW_SENDER = re.compile(rb"<bounces\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=vendor\.example=app@contoso\.com>")
_RESTARTS = "gatepost_worker_restarts_total"
_RAISED = re.compile(r"error: [\w.]*(?:[Ee]rror|Exception|Interrupt|Exit)\b")
_NOT_OFFERED = re.compile(r"error: milter\.error: cannot (?:change|add|delete) ")
"""What a message needs and its MTA has not offered in the negotiation: it is put off, and that is logged as a fault."""
_LONGEST_PACKET = 65535
_SLACK_MIB = 24
"""By how much a worker may have grown at the end: what it remembers of clients and domains."""

Attack = Callable[[Random, Address], str]


@dataclass
class Told:
    """What came of it. kinds: malformed sessions by what was malformed; grown: of each worker, in MiB."""

    sessions: int = 0
    clean: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    grown_mib: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        grown = " and ".join(f"{grown:.0f}" for grown in self.grown_mib)
        return (
            f"{self.sessions:,} malformed sessions ({kinds}) and {self.clean:,} clean ones in {self.seconds:.0f} s; "
            f"the workers have grown by {grown} MiB"
        )


def milter(folder: Path, sessions: int, seed: int) -> Told:
    """Have so many malformed milter sessions with the daemon. Fails where a clean one is not served, or it has harm."""
    with Gatepost(folder, workers=2, metrics=True, more='[srs]\nreverse = "milter"') as gatepost:
        return _attacked(gatepost, "milter", gatepost.socket, sessions, seed, _malformed_milter, _clean_milter)


def policyd(folder: Path, sessions: int, seed: int) -> Told:
    """Have so many malformed conversations with policyd, of each of its two protocols by turns."""
    with Gatepost(folder, command="policyd", metrics=True, more="[egress]") as gatepost:
        path = gatepost.policyd_socket
        return _attacked(gatepost, "policyd", path, sessions, seed, _malformed_request, _clean_requests)


def metrics(folder: Path, sessions: int, seed: int) -> Told:
    """Have so many malformed HTTP requests with the process that shows the metrics."""
    with Gatepost(folder, metrics=True) as gatepost:
        address = "127.0.0.1", gatepost.metrics_port
        return _attacked(gatepost, "metrics.milter", address, sessions, seed, _malformed_http, _clean_http)


def _attacked(
    gatepost: Gatepost,
    name: str,
    address: Address,
    sessions: int,
    seed: int,
    attack: Attack,
    clean: Callable[[Address], None],
) -> Told:
    random, told, began = Random(f"{seed} {name}"), Told(), time.monotonic()
    for _ in range(EVERY):  # what is loaded when it is first needed is loaded then
        clean(address)
        attack(Random(random.getrandbits(64)), address)
    workers = gatepost.workers(name)
    before = {pid: _state(pid) for pid in workers}
    for number in range(1, sessions + 1):
        told.kinds[attack(Random(random.getrandbits(64)), address)] += 1
        if number % EVERY == 0:
            clean(address)
            told.clean += 1
    told.sessions = sessions
    told_of = [line for line in gatepost.log if "worker" in line or line.startswith("error")]
    assert sorted(gatepost.workers(name)) == sorted(workers), f"a worker has been replaced: {told_of[:20]}"
    for pid in workers:
        poll(partial(_at_rest, before[pid], pid), f"what a worker has left open: {before[pid]}, {_state(pid)}")
        told.grown_mib.append(_state(pid)[2] - before[pid][2])
    lines = gatepost.log
    raised = {line for line in lines if _RAISED.match(line) and not _NOT_OFFERED.match(line)}
    assert not raised, f"a fault of its own: {raised}"
    assert not [line for line in lines if "worker" in line and "ready" not in line], "a worker has died"
    restarts = [line for line in gatepost.get("/metrics")[1].splitlines() if line.startswith(_RESTARTS)]
    assert all(line.endswith(" 0.0") for line in restarts), f"{restarts}"
    assert max(told.grown_mib) < _SLACK_MIB + sessions / 500, f"memory: {told.grown_mib}"
    told.seconds = time.monotonic() - began
    return told


def _state(pid: int) -> tuple[int, int, float]:
    """Return how many descriptors and threads a process has, and its memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    threads, resident = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("Threads", "VmRSS"))
    return len(os.listdir(f"/proc/{pid}/fd")), threads, resident / 1024


def _at_rest(before: tuple[int, int, float], pid: int) -> bool:
    """Tell whether nothing is left open. A thread pool may have got its few threads."""
    after = _state(pid)
    return after[0] <= before[0] + 4 and after[1] <= before[1] + 4


# The milter


def _clean_milter(address: Address) -> None:
    with MilterClient(address) as client:
        refused = client.open().send(b"<app@vendor.example>", [b"<x@gmail.example>"])
        assert [reply[:10] for reply in refused.rcpt] == ["550 5.7.64"], f"verdict {refused}"
        client.quit()
    with MilterClient(address, macros=_TRUSTED) as client:
        outcome = client.open().send(b"<app@vendor.example>", [b"<x@gmail.example>"])
        assert (outcome.rcpt, outcome.eom) == (["continue"], "continue"), f"verdict {outcome}"
        assert [bool(_NEW_SENDER.fullmatch(sender)) for sender in outcome.senders] == [True], f"sender {outcome}"
        client.quit()


def _packet(command: bytes, octets: bytes = b"") -> bytes:
    return struct.pack(">I", len(octets) + 1) + command + octets


def _session(random: Random) -> list[bytes]:
    """Return the packets of a whole session, each a valid one."""
    who = random.choice((b"192.0.2.5", b"203.0.113.9", b"::1", b"IPv6:2001:db8::1"))
    family = random.choice((b"4", b"4", b"6", b"L", b"U"))
    sender = random.choice(
        (b"<app@vendor.example>", b"<>", b'<"a b"@contoso.com>', b"<SRS0=abcd=AA=y.example=z@contoso.com>")
    )
    return [
        _packet(b"O", struct.pack(">III", 6, 0x1FF, 0x1FFFFF)),
        _packet(b"D", b"Cj\0mail.contoso.com\0{daemon_name}\0mail.contoso.com\0"),
        _packet(b"C", b"unknown\0" + family + struct.pack(">H", 40001) + who + b"\0"),
        _packet(b"H", b"app\0"),
        _packet(b"D", b"M{mail_addr}\0app@vendor.example\0{cert_issuer}\0CA\0{cert_subject}\0mail.contoso.com\0"),
        _packet(b"M", sender + b"\0SIZE=100\0"),
        _packet(b"D", b"R{rcpt_addr}\0x@gmail.example\0"),
        _packet(b"R", b"<x@gmail.example>\0ORCPT=rfc822;x@contoso.com\0"),
        _packet(b"D", b"Ti\0004CgSNs5Q9s\0"),
        _packet(b"T"),
        *(
            _packet(b"L", name + b"\0app@contoso.com\0")
            for name in (b"From", b"Subject", b"Received", b"X-Gatepost-Relay")
        ),
        _packet(b"N"),
        _packet(b"B", b"body\r\n"),
        _packet(b"D", b"Ei\0004CgSNs5Q9s\0"),
        _packet(b"E"),
        _packet(b"A"),
        _packet(b"Q"),
    ]


def _malformed_milter(random: Random, address: Address) -> str:
    """Have one malformed session; return what was malformed."""
    packets = _session(random)
    kind = random.choice(tuple(_MALFORMED))
    _MALFORMED[kind](random, packets)
    octets = b"".join(packets)
    if random.random() < 0.3:
        octets = octets[: random.randrange(len(octets) + 1)]
    _converse(random, address, _with_values(octets))
    return kind


def _with_values(octets: bytes) -> bytes:
    """Leave out macros of which the last has no value.

    libmilter (8.17) reads on behind them and dies. No MTA sends such: there, values are texts that end with a NUL.
    """
    kept = b""
    while len(octets) > 4:
        length = int.from_bytes(octets[:4], "big")
        if not 0 < length <= _LONGEST_PACKET:
            break
        packet, octets = octets[: 4 + length], octets[4 + length :]
        if packet[4:5] != b"D" or packet[6:].count(b"\0") % 2 == 0:
            kept += packet
    return kept + octets


def _wrong_length(random: Random, packets: list[bytes]) -> None:
    at = random.randrange(len(packets))
    length = random.choice((0, 1, 2, 0x7F, 0xFFFF, 0x10001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, random.getrandbits(32)))
    packets[at] = struct.pack(">I", length) + packets[at][4:]


def _unknown_command(random: Random, packets: list[bytes]) -> None:
    for _ in range(random.randrange(1, 4)):
        octets = random.choice((b"", b"\0", b"x\0", random.getrandbits(64).to_bytes(8, "big")))
        packets.insert(random.randrange(1, len(packets)), _packet(bytes([random.randrange(256)]), octets))


def _out_of_order(random: Random, packets: list[bytes]) -> None:
    rest = packets[1:] if random.random() < 0.7 else packets
    random.shuffle(rest)
    packets[len(packets) - len(rest) :] = rest


def _again(random: Random, packets: list[bytes]) -> None:
    at = random.randrange(len(packets))
    packets[at:at] = [packets[at]] * random.choice((1, 2, 20))


def _left_out(random: Random, packets: list[bytes]) -> None:
    for _ in range(random.randrange(1, 8)):
        del packets[random.randrange(len(packets))]


def _negotiation(random: Random, packets: list[bytes]) -> None:
    numbers = [
        random.choice((0, 1, 2, 6, 7, 99, 0x1FF, 0x1FFFFF, 0xFFFFFFFF, random.getrandbits(32))) for _ in range(4)
    ]
    packets[0] = _packet(
        b"O", struct.pack(">IIII", *numbers)[: random.choice((0, 3, 4, 8, 11, 12, 12, 12, 12, 13, 16))]
    )


def _macros(random: Random, packets: list[bytes]) -> None:
    bad = (
        b"",
        b"\0",
        b"\0\0\0",
        b"j",
        b"j\0",
        b"{\0x\0",
        b"{cert_issuer\0CA\0",
        b"{}\0\0",
        b"i\0\xff\xfe\0",
        b"\xff\0\xff\0",
    )
    stage = random.choice((b"C", b"H", b"M", b"R", b"T", b"E", b"X", b"", b"\0"))
    octets = stage + random.choice(
        (*bad, b"{cert_subject}\0" + b"x" * 70_000 + b"\0", b"j\0x\0" * 5000, b"i\0" + b"\n" * 9 + b"\0")
    )
    packets.insert(random.randrange(1, len(packets)), _packet(b"D", octets))


def _huge(random: Random, packets: list[bytes]) -> None:
    size = random.choice((4096, 65_534, 65_535, 65_536, 1 << 20))
    piece = random.choice(TOKENS)
    command, octets = random.choice(
        ((b"L", b"From\0"), (b"M", b"<"), (b"R", b"<"), (b"H", b""), (b"B", b""), (b"L", b""))
    )
    packets.insert(
        random.randrange(1, len(packets)), _packet(command, (octets + piece * (size // len(piece) + 1))[:size])
    )


def _strings(random: Random, packets: list[bytes]) -> None:
    """Put octets that trip parsers into arguments; the lengths are right."""
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(1, len(packets))
        command, octets = packets[at][4:5], packets[at][5:]
        place = random.randrange(len(octets) + 1)
        packets[at] = _packet(command, octets[:place] + random.choice(TOKENS) + octets[place:])


def _bits(random: Random, packets: list[bytes]) -> None:
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(len(packets))
        packet = bytearray(packets[at])
        packet[random.randrange(len(packet))] ^= 1 << random.randrange(8)
        packets[at] = bytes(packet)


def _many(random: Random, packets: list[bytes]) -> None:
    packet = random.choice(packets[5:15])
    packets[8:8] = [packet] * random.choice((50, 300))


def _nothing_but_noise(random: Random, packets: list[bytes]) -> None:
    packets[:] = [random.getrandbits(8 * 40).to_bytes(40, "big")]


_MALFORMED: dict[str, Callable[[Random, list[bytes]], None]] = {
    "wrong length": _wrong_length,
    "unknown command": _unknown_command,
    "out of order": _out_of_order,
    "packet again": _again,
    "packets left out": _left_out,
    "odd negotiation": _negotiation,
    "odd macros": _macros,
    "huge packet": _huge,
    "odd strings": _strings,
    "flipped bits": _bits,
    "very many packets": _many,
    "noise": _nothing_but_noise,
}


# policyd


def _request(**attributes: str) -> bytes:
    lines = {"request": "smtpd_access_policy", "protocol_state": "RCPT", "client_address": "203.0.113.9", **attributes}
    return "".join(f"{name}={value}\n" for name, value in lines.items()).encode() + b"\n"


def _clean_requests(address: Address) -> None:
    with _connected(address) as client:
        forged = "bounces+SRS=aaaaaaaa=AA=y.example=z@contoso.com"
        # A host of one's own may name as many as it likes.
        client.sendall(_request(client_address="192.0.2.5", sender="a@b.example", recipient=forged))
        assert client.recv(4096) == b"action=550 5.1.1 SRS address with a wrong hash\n\n"
        client.sendall(_request(sender="a@b.example", recipient="ann@contoso.com"))
        assert client.recv(4096) == b"action=DUNNO\n\n"
    with _connected(address) as client:
        client.sendall(netstring(b"egress bob@fabrikam.com"))
        assert client.recv(4096) == netstring(b"OK gatepost-egress:[127.0.0.1]:10027")
        client.sendall(netstring(b"forward app@vendor.example"))
        assert re.fullmatch(rb"\d+:OK bounces\+SRS=.*=vendor\.example=app@contoso\.com,", client.recv(4096))


def _malformed_request(random: Random, address: Address) -> str:
    kind = random.choice(("policy", "socketmap"))
    if kind == "policy":
        given = (
            "",
            "x@example.com",
            "bounces+SRS=aaaaaaaa=AA=y.example=z@contoso.com",
            '"a b"@contoso.com',
            "x" * 3000,
        )
        states = ("RCPT", "RCPT", "DATA", "VRFY", "CONNECT", "END-OF-MESSAGE", "", "\x7f")
        named = {"sender": random.choice(given), "recipient": random.choice(given), "instance": "1.2.3"}
        pieces = [_request(protocol_state=random.choice(states), recipient_count="1", **named) for _ in range(3)]
    else:
        keys = (
            b"x@example.com",
            b"@contoso.com",
            b"bounces+SRS=aaaaaaaaaaaaaaaa=AA@contoso.com",
            b"a" * 9000,
            b"",
            b"\0\xff",
        )
        names = (b"reverse", b"egress", b"forward", b"other", b"\xff")
        pieces = [netstring(random.choice(names) + b" " + random.choice(keys)) for _ in range(5)]
    octets = b"".join(pieces)
    for _ in range(random.randrange(1, 5)):
        octets = _DISTORTIONS[random.randrange(len(_DISTORTIONS))](random, octets)
    _converse(random, address, octets)
    return kind


def _inserted(random: Random, octets: bytes) -> bytes:
    at = random.randrange(len(octets) + 1)
    return octets[:at] + random.choice(TOKENS) + octets[at:]


def _flipped(random: Random, octets: bytes) -> bytes:
    at = random.randrange(len(octets)) if octets else 0
    return octets[:at] + bytes([random.randrange(256)]) + octets[at + 1 :]


def _cut(random: Random, octets: bytes) -> bytes:
    return octets[: random.randrange(len(octets) + 1)]


def _deleted(random: Random, octets: bytes) -> bytes:
    at = random.randrange(len(octets) + 1)
    return octets[:at] + octets[at + random.randrange(1, 9) :]


def _swollen(random: Random, octets: bytes) -> bytes:
    at = random.randrange(len(octets) + 1)
    return (
        octets[:at]
        + random.choice((b"x", b"\n", b"9", b"=", b"a=b\n", b"+SRS=")) * random.choice((10, 300, 70_000))
        + octets[at:]
    )


_DISTORTIONS = (_inserted, _inserted, _flipped, _cut, _deleted, _swollen)


# The metrics


def _clean_http(address: Address) -> None:
    with _connected(address) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        octets = b""
        while piece := client.recv(1 << 16):
            octets += piece
    assert octets.startswith(b"HTTP/1.0 200 OK\r\n"), f"answer {octets[:200]!r}"
    assert b"\ngatepost_" in octets


def _malformed_http(random: Random, address: Address) -> str:
    method = random.choice((b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"", b"get", b"GET " * 3))
    page = random.choice(
        (b"/metrics", b"/healthz", b"/", b"/%2e%2e/", b"//x", b"*", b"http://x/metrics?name[]=%ff", b"")
    )
    version = random.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/9" + b"9" * 5000, b"HTTP/1.1.1", b"", b"X"))
    headers = (
        b"Host: x",
        b"Content-Length: 99999999999",
        b"Content-Length: -1",
        b"Transfer-Encoding: chunked",
        b"Accept: \xff",
    )
    lines = [b" ".join((method, page, version)), *random.choices(headers, k=random.choice((0, 1, 3, 200)))]
    octets = b"\r\n".join(lines) + b"\r\n\r\n"
    for _ in range(random.randrange(4)):
        octets = _DISTORTIONS[random.randrange(len(_DISTORTIONS))](random, octets)
    _converse(random, address, octets)
    return "HTTP request"


# The wire


@contextmanager
def _connected(address: Address) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(20.0)
        client.connect(address)
        yield client


def _converse(random: Random, address: Address, octets: bytes) -> None:
    """Send *octets* in pieces, hear a while what comes, and hang up; the daemon may hang up first."""
    with contextlib.suppress(OSError), _connected(address) as client:
        if random.random() < 0.2:  # reset, where it would else end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(_WAIT_S)
        size = random.choice((97, 4000, 1 << 20))
        for begin in range(0, len(octets), size):
            client.sendall(octets[begin : begin + size])
        if random.random() < 0.5:
            client.shutdown(socket.SHUT_WR)
        while random.random() < 0.8 and client.recv(1 << 16):
            pass


DAEMONS: dict[str, Callable[[Path, int, int], Told]] = {"milter": milter, "policyd": policyd, "metrics": metrics}
