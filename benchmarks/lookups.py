# SPDX-License-Identifier: GPL-3.0-or-later
"""Look-ups of policyd: the maps and the policy service, against postsrsd 1.10.

postsrsd reverses its own SRS0 addresses by tcp_table, the only protocol that it has, on TCP; gatepost its default form
by socketmap, which has Postfix ask for the very same. Each request is about another address than the one before,
20,000 in all, more than a worker remembers: so everything is on, and that mail has come back is written down at every
single look-up, and taken into the store by the loader, whose CPU time is in gatepost's figures. Postfix asks several
times about one bounce; the rows "known" go round 5,000 addresses, which each worker records once in 10 seconds.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from benchmarks.figures import AT_LEAST, AT_MOST, Effort, Figure, in_turn
from benchmarks.installation import Installation
from benchmarks.programs import Program, compiled, unpacked
from gatepost.admin.sandbox import free_port
from gatepost.policyd.wire import netstring
from gatepost.srs import Address, Classic, Exchange, Keys

SRS_DOMAIN = "contoso.com"
ORIGINALS = [Address(f"app{number:05}.notices", f"mail{number % 500}.vendor.example") for number in range(20_000)]
KNOWN = 5_000
DAY_S = 86400
WARM_UP_S = 0.5
POSTSRSD = "postsrsd 1.10"
POLICY_ONLY = 'mode = "enforce"\nenforced_by = "policyd"'


class Server(NamedTuple):
    """What is asked: a running program, one of its addresses, and in which protocol."""

    program: Program
    protocol: str
    address: str


class Question(NamedTuple):
    """A file of requests, *together* so many on one connection, and how each answer begins."""

    requests: Path
    expected: str
    together: int = 1


class Measured(NamedTuple):
    """One turn of a server. cpu_us: of all of its processes that are still there, for each answer."""

    per_second: float
    cpu_us: float


def run(effort: Effort) -> Iterable[Figure]:
    """Yield requests a second and CPU time a request."""
    with tempfile.TemporaryDirectory(prefix="gatepost-benchmark-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        tcp_table = free_port()
        gatepost = stack.enter_context(
            Installation(
                "policyd",
                relay=POLICY_ONLY,
                policyd=f'tcp_table_reverse = ["inet:127.0.0.1:{tcp_table}"]',
                more='[srs]\nalso_reverse = ["srs0"]',
            )
        )
        secret = gatepost.state / "srs.secret"
        postsrsd = stack.enter_context(_postsrsd(secret, folder))
        asked = _questions(folder, secret.read_bytes().strip())
        unix = Server(gatepost.program, "socketmap", str(gatepost.policyd_socket))
        tcp = unix._replace(address=f"127.0.0.1:{gatepost.policyd_port}")
        table = Server(gatepost.program, "tcp_table", f"127.0.0.1:{tcp_table}")
        for connections in (8, 32):
            peer = (postsrsd, asked["tcp_table SRS0"])
            for server, text in ((unix, "a Unix socket"), (tcp, "TCP")):
                what = f"map reverse, {connections} connections, {text}"
                yield from _against(effort, what, connections, (server, asked["reverse"]), peer, targets=(1.0, 1.0))
            what = f"tcp_table reverse of SRS0, {connections} connections, TCP"
            yield from _against(effort, what, connections, (table, asked["tcp_table SRS0"]), peer)
            for text in ("reverse of SRS0", "reverse, no SRS", "forward", "reverse, known"):
                what = f"map {text}, {connections} connections, a Unix socket"
                yield from _against(effort, what, connections, (unix, asked[text]), peer)
            yield from _policy(effort, connections, unix, asked)
        yield from _reconnecting(effort, (unix, tcp), postsrsd, asked)


def _against(
    effort: Effort,
    what: str,
    connections: int,
    ours: tuple[Server, Question],
    theirs: tuple[Server, Question],
    targets: Optional[tuple[float, float]] = None,
) -> Iterator[Figure]:
    """Yield the rate and the CPU time beside the peer's."""
    mine, peers = _turns(effort, ours, theirs, connections=connections)
    rate, cpu = targets or (None, None)
    for unit, field, target, bound in (("req/s", 0, rate, AT_LEAST), ("µs CPU a request", 1, cpu, AT_MOST)):
        values = [[turn[field] for turn in turns] for turns in (mine, peers)]
        yield Figure(what, unit, values[0], POSTSRSD, values[1], target, bound)


def _policy(effort: Effort, connections: int, server: Server, asked: dict[str, Question]) -> Iterator[Figure]:
    """Yield policy requests beside the same server's map."""
    policy = server._replace(protocol="policy")
    rows = (("RCPT, relay and SRS judged", "RCPT", 0.5), ("RCPT and DATA, recorded before the answer", "DATA", None))
    for text, question, target in rows:
        pair = (policy, asked[question]), (server, asked["reverse, known"])
        mine, maps = _turns(effort, *pair, connections=connections)
        rates = [[turn.per_second for turn in turns] for turns in (mine, maps)]
        what = f"policy requests, {text}, {connections} connections, a Unix socket"
        yield Figure(what, "req/s", rates[0], "map reverse, known", rates[1], target)


def _reconnecting(
    effort: Effort, servers: Sequence[Server], postsrsd: Server, asked: dict[str, Question]
) -> Iterator[Figure]:
    """Yield the rates with a connection for each request."""
    for server, text, target in zip(servers, ("a Unix socket", "TCP"), (4.0, None)):
        ours, theirs = (server, asked["reverse"]), (postsrsd, asked["tcp_table SRS0"])
        mine, peers = _turns(effort, ours, theirs, connections=8, reconnect=True)
        rates = [[turn.per_second for turn in turns] for turns in (mine, peers)]
        yield Figure(
            f"a connection for each request, 8 at a time, {text}", "req/s", rates[0], POSTSRSD, rates[1], target
        )


def _turns(
    effort: Effort, *pairs: tuple[Server, Question], connections: int, reconnect: bool = False
) -> list[list[Measured]]:
    """Ask each server in turn; return what was measured of each."""
    measured: list[list[Measured]] = [[] for _ in pairs]

    def turn(index: int) -> float:
        server, question = pairs[index]
        measured[index].append(ask(server, question, effort.seconds, connections, reconnect=reconnect))
        return measured[index][-1].per_second

    in_turn(effort.rounds, *(lambda index=index: turn(index) for index in range(len(pairs))))
    return measured


def ask(server: Server, question: Question, seconds: float, connections: int, *, reconnect: bool = False) -> Measured:
    """Ask one server for *seconds*. Raises RuntimeError where an answer is wrong."""
    command = [str(compiled("load_lookups")), "--json", "--protocol", server.protocol, "--address", server.address]
    command += ["--requests", str(question.requests), "--expect", question.expected]
    command += ["--together", str(question.together), "--connections", str(connections)]
    command += ["--seconds", str(seconds), "--warm-up", str(WARM_UP_S), *(["--reconnect"] if reconnect else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        assert load.stdin
        assert load.stdout
        load.stdout.readline()  # "measuring"
        before_s = server.program.cpu_s()
        answer = load.stdout.readline()
        cpu_s = server.program.cpu_s() - before_s
        load.stdin.close()
    if load.returncode:
        raise RuntimeError(f"{server.address}: not all answers begin with {question.expected!r}: {answer!r}")
    found = json.loads(answer)
    return Measured(found["per_second"], cpu_s / found["answers"] * 1e6)


@contextlib.contextmanager
def _postsrsd(secret: Path, folder: Path) -> Iterator[Server]:
    forward, reverse = free_port(), free_port()
    program = str(unpacked("peers") / "usr/sbin/postsrsd")
    command = [program, "-4", "-l", "127.0.0.1", "-f", str(forward), "-r", str(reverse), "-d", SRS_DOMAIN]
    with Program([*command, "-s", str(secret), "-a", "="], folder / "postsrsd.log", address=reverse) as running:
        yield Server(running, "tcp_table", f"127.0.0.1:{reverse}")


def _questions(folder: Path, secret: bytes) -> dict[str, Question]:
    """Write the requests; return them by name. The addresses were made on one of the last 20 days."""
    keys = Keys([secret])
    exchange, classic = Exchange(keys), Classic(keys)
    today = int(time.time()) // DAY_S
    days = [today - number % 20 for number in range(len(ORIGINALS))]
    made = [str(exchange.forward(item, "bounces", SRS_DOMAIN, day)) for item, day in zip(ORIGINALS, days)]
    srs0 = [str(classic.forward(item, SRS_DOMAIN, day)) for item, day in zip(ORIGINALS, days)]
    senders = list(map(str, ORIGINALS))
    relayed = [_policy_request("RCPT", number, f"app@{SRS_DOMAIN}", to) for number, to in enumerate(senders)]
    bounced = [_policy_request("RCPT", number, "", to) for number, to in enumerate(made, len(made))]
    data = [_policy_request("DATA", number, f"app@{SRS_DOMAIN}", to) for number, to in enumerate(senders)]
    streams = {
        "reverse": (b"OK ", 1, [netstring(f"reverse {key}".encode()) for key in made]),
        "reverse, known": (b"OK ", 1, [netstring(f"reverse {key}".encode()) for key in made[:KNOWN]]),
        "reverse of SRS0": (b"OK ", 1, [netstring(f"reverse {key}".encode()) for key in srs0]),
        "reverse, no SRS": (b"NOTFOUND ", 1, [netstring(f"reverse {key}".encode()) for key in senders]),
        "forward": (b"OK ", 1, [netstring(f"forward {key}".encode()) for key in senders]),
        "tcp_table SRS0": (b"200 ", 1, [f"get {key}\n".encode() for key in srs0]),
        "RCPT": (b"action=", 1, [request for pair in zip(relayed, bounced) for request in pair]),
        "DATA": (b"action=", 2, [request for pair in zip(relayed, data) for request in pair]),
    }
    questions = {}
    for number, (name, (expected, together, requests)) in enumerate(streams.items()):
        file = folder / str(number)
        file.write_bytes(b"".join(requests))
        questions[name] = Question(file, expected.decode(), together)
    return questions


def _policy_request(state: str, number: int, reverse_path: str, rcpt: str) -> bytes:
    """Return the request that Postfix 3.7 sends about message *number*, with its one recipient."""
    at_data = state == "DATA"
    attributes = {
        "request": "smtpd_access_policy",
        "protocol_state": state,
        "protocol_name": "ESMTP",
        "client_address": f"192.0.2.{number % 14 + 1}",
        "client_name": "app.contoso.com",
        "client_port": str(20_000 + number % 40_000),
        "reverse_client_name": "app.contoso.com",
        "server_address": "192.0.2.1",
        "server_port": "25",
        "helo_name": "app.contoso.com",
        "sender": reverse_path,
        "recipient": rcpt,
        "recipient_count": str(int(at_data)),
        "queue_id": f"4CgSN{number:05X}" if at_data else "",
        "instance": f"{number:x}.6921b2c4.{number % 99991:x}.0",
        "size": "4096",
        **dict.fromkeys(("etrn_domain", "stress", "sasl_method", "sasl_username", "sasl_sender"), ""),
        **dict.fromkeys(("ccert_subject", "ccert_issuer", "ccert_fingerprint", "ccert_pubkey_fingerprint"), ""),
        "encryption_protocol": "",
        "encryption_cipher": "",
        "encryption_keysize": "0",
        "policy_context": "",
    }
    return "".join(f"{name}={value}\n" for name, value in attributes.items()).encode() + b"\n"
