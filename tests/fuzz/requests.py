# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets: what policyd reads, from the octets on the wire to the answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union

from gatepost.policyd import decisions
from gatepost.policyd.decisions import Aids, Transaction
from gatepost.policyd.server import _map_reply
from gatepost.policyd.wire import (
    MAX_POLICY_OCTETS,
    MAX_SOCKETMAP_OCTETS,
    MAX_TCP_TABLE_OCTETS,
    PolicyParser,
    ProtocolError,
    SocketmapParser,
    TcpTableParser,
    parser_for,
    policy_reply,
)
from gatepost.policyd.worker import LookUp, octets_of, text_of
from gatepost.relay import normalize_domain
from gatepost.service.addresses import plain, routed
from gatepost.service.ledger import line, record
from gatepost.service.reversal import Bounce
from gatepost.service.snapshot import Snapshot
from gatepost.srs import Address

from .addresses import ADDRESSES, NOW, SYNTAX, contoso, made, safe, snapshot
from .engine import Target
from .reference import relays

Parser = Union[PolicyParser, SocketmapParser, TcpTableParser]
_ACTION = re.compile(r"DUNNO|OK|HOLD gatepost: .+|REDIRECT .+@.+|[45]\d\d [45]\.\d{1,3}\.\d{1,3} .+")
_NETSTRING = re.compile(rb"(\d+):((?:OK|NOTFOUND|TEMP|PERM) .*),", re.DOTALL)
_TCP_TABLE = re.compile(rb"(?:200|400|500) [!-~]*\n")


def in_pieces(parser: Callable[[], Parser], octets: bytes) -> tuple[list[Any], str]:
    """Return the requests in *octets*, and what is wrong with these; fail where it counts in which pieces they come.

    In what words they are refused may differ.
    """
    requests, wrong = _fed(parser(), [octets])
    third = len(octets) // 3
    ways = [[octets[:third], octets[third : third + 1], octets[third + 1 :]]]
    if len(octets) < 400:
        ways.append([octets[index : index + 1] for index in range(len(octets))])
    for pieces in ways:
        others, wrong_there = _fed(parser(), pieces)
        assert (others, bool(wrong_there)) == (requests, bool(wrong))
    return requests, wrong


def _fed(parser: Parser, pieces: Sequence[bytes]) -> tuple[list[Any], str]:
    """Return the requests up to the first error, which ends a connection; of its own piece none is answered."""
    found: list[Any] = []
    for piece in pieces:
        for begin in range(0, len(piece), 1 << 18):  # as an event loop reads
            try:
                found += parser.feed(piece[begin : begin + (1 << 18)])
            except ProtocolError as error:
                return [], str(error)
    kept = len(getattr(parser, "_buffer", b"") or getattr(parser, "_begun", b""))
    assert kept <= MAX_POLICY_OCTETS + 1, f"{kept} octets kept"
    return found, "unfinished" if parser.unfinished else ""


def _policy_request(**attributes: str) -> bytes:
    lines = {"request": "smtpd_access_policy", "protocol_state": "RCPT", "protocol_name": "ESMTP", **attributes}
    return "".join(f"{name}={value}\n" for name, value in lines.items()).encode() + b"\n"


def _policy_samples(addresses: Sequence[str]) -> list[bytes]:
    found = []
    for number, address in enumerate(addresses):
        envelope = {"sender": ADDRESSES[number % len(ADDRESSES)], "recipient": address, "instance": f"1.{number}.0"}
        client = {"client_address": "192.0.2.5" if number % 2 else "203.0.113.9", "client_port": "40001"}
        named = {"client_name": "unknown", "reverse_client_name": "app.vendor.example", "helo_name": "app"}
        shown = {"ccert_subject": "mail.contoso.com", "ccert_issuer": "CA", "ccert_fingerprint": "AA:BB"}
        rcpt = {**envelope, **client, **named, **(shown if number % 3 == 0 else {})}
        data = {
            **rcpt,
            "protocol_state": "DATA",
            "recipient_count": "1",
            "queue_id": "4CgSNs5Q9s" if number % 2 else "",
        }
        found.append(_policy_request(**rcpt) + _policy_request(**data))
        found.append(_policy_request(**{**rcpt, "sender": "", "protocol_state": "VRFY" if number % 5 == 0 else "RCPT"}))
    several = {"protocol_state": "DATA", "recipient_count": "2", "recipient": "", "sender": "", "instance": "1.0.0"}
    return [*found, _policy_request(**several), _policy_request(sasl_username="bob", recipient="x@example.com")]


def deciding(relay: str = "reject", reverse: str = "map") -> Snapshot:
    """Return the snapshot of a policyd that applies the relay rule itself."""
    return contoso(
        relay={"mode": "enforce", "enforced_by": "policyd", "action": relay},
        srs={"also_reverse": ["exchange", "srs0", "compact"], "reverse": reverse},
    )


def policy(folder: Path) -> Target:
    store: dict[str, str] = {}
    addresses = [*ADDRESSES, "x@example.com", *made(snapshot(), store), *made(snapshot("long", "srs0"), store)]
    samples = _policy_samples(addresses)
    styles = [deciding(), deciding("quarantine"), deciding("tempfail", "redirect"), deciding("reject", "redirect")]
    styles.append(snapshot())
    tokens = [b"request=smtpd_access_policy\n", b"protocol_state=DATA\n", b"sender=\n", b"recipient=x@example.com\n"]
    tokens += [b"recipient_count=1\n", b"queue_id=\n", b"sasl_username=a\n", b"client_address=192.0.2.5\n", b"\n\n"]
    tokens += [b"ccert_issuer=CA\n", b"ccert_subject=mail.contoso.com\n", b"instance=\n", *SYNTAX]
    oracle = (
        "the same requests in whatever pieces they come; one line of action that Postfix knows; OK and 5.7.64 where a "
        "slow reckoning of the rule says so; the ledger's line reads back as it was"
    )

    def check(octets: bytes) -> str:
        style = styles[len(octets) % len(styles)]
        try:
            if isinstance(parser_for(octets), SocketmapParser):
                return "socketmap"
        except ProtocolError as error:
            return str(error)
        requests, wrong = in_pieces(PolicyParser, octets)
        transaction = Transaction()
        outcome = [wrong]
        for request in requests[:50]:
            aids = Aids(lambda: "ABCDEFGHIJ", store.get, lambda client: len(octets) % 7 == 0, lambda request: "")
            answer, transaction = decisions.decide(style, request, transaction, NOW, aids)
            _answered(style, request, answer)
            bounce = answer.bounce.value if answer.bounce else ""
            outcome.append(f"{answer.action.value} {answer.text[:9]} {bounce} {bool(answer.refused)}")
        return " ".join(dict.fromkeys(outcome))

    return Target("policy", "policy requests", oracle, check, samples, tokens, longest=1 << 20)


def _answered(style: Snapshot, request: dict[bytes, bytes], answer: decisions.Answer) -> None:
    assert _ACTION.fullmatch(answer.text), f"action {answer.text!r}"
    assert policy_reply(octets_of(answer.text)).count(b"\n") == 2
    assert b"\0" not in octets_of(answer.text)
    for entry in (answer.refused, *answer.passed):
        if entry is not None:
            assert line(record(line(entry))) == line(record(line(entry)))
            assert line(entry).count(b"\n") == 1
    client, rcpt, sender = (text_of(request.get(name, b"")) for name in (b"client_address", b"recipient", b"sender"))
    if answer.action.value == "redirect":
        assert not sender, "a bounce has no sender"
    if style.config.relay.enforced_by != "policyd" or request.get(b"protocol_state") != b"RCPT":
        return
    issuer, subject = request.get(b"ccert_issuer", b""), text_of(request.get(b"ccert_subject", b""))
    names = [subject] if issuer and "+" not in subject else []
    relayed = relays(client, names, [sender], ["contoso.com"], ["192.0.2.0/28"], "mail.contoso.com")
    if answer.action.value == "ok" and b"+" not in request.get(b"ccert_subject", b""):
        assert relayed, "relayed against the rule"
    if "5.7.64" in answer.text:
        assert not relayed, "refused against the rule"
        assert normalize_domain(rcpt.rpartition("@")[2]) != "contoso.com" or not plain(rcpt) or routed(rcpt)


def _map_samples(store: dict[str, str]) -> list[tuple[bytes, bytes]]:
    keys = [*ADDRESSES, *made(snapshot(), store), *made(snapshot("long", "srs0"), store), "@contoso.com", "bob"]
    names = (b"reverse", b"egress", b"forward", b"other")
    return [(names[number % 4], key.encode()) for number, key in enumerate(keys)]


def socketmap(folder: Path) -> Target:
    store: dict[str, str] = {}
    pairs = [b"%b %b" % pair for pair in _map_samples(store)]
    samples = [b"%d:%b," % (len(pair), pair) for pair in pairs]
    samples += [b"".join(samples[number : number + 4]) for number in range(0, len(samples), 9)]
    style = snapshot()
    oracle = (
        "the same requests in whatever pieces they come; one netstring each; what is OK is an address or a transport"
    )

    def check(octets: bytes) -> str:
        requests, wrong = in_pieces(SocketmapParser, octets)
        words = {wrong}
        for name, key in requests[:50]:
            assert len(key) <= MAX_SOCKETMAP_OCTETS
            request = LookUp(name.decode("ascii", "replace"), text_of(key))
            reply = _looked_up(style, request, store)
            found = _NETSTRING.fullmatch(reply)
            assert found, f"answer {reply!r}"
            assert int(found[1]) == len(found[2])
            words.add(f"{request.map_name[:8]} {text_of(found[2])[:6]}")
        return " ".join(sorted(words))

    return Target("socketmap", "socketmap look-ups", oracle, check, samples, SYNTAX, longest=1 << 20)


def tcp_table(folder: Path) -> Target:
    store: dict[str, str] = {}
    samples = [b"get %b\n" % key.replace(b"%", b"%25").replace(b" ", b"%20") for _, key in _map_samples(store)]
    style = snapshot()
    oracle = "the same requests in whatever pieces they come; one line of printable ASCII each"

    def check(octets: bytes) -> str:
        requests, wrong = in_pieces(TcpTableParser, octets)
        words = {wrong}
        for key in requests[:50]:
            request = LookUp("reverse" if len(octets) % 2 else "forward", text_of(key), True)
            reply = _looked_up(style, request, store)
            assert _TCP_TABLE.fullmatch(reply), f"answer {reply!r}"
            assert len(reply) <= MAX_TCP_TABLE_OCTETS
            words.add(f"{request.map_name} {text_of(reply)[:3]}")
        return " ".join(sorted(words))

    return Target(
        "tcp-table", "tcp_table look-ups", oracle, check, samples, [b"get ", b"put ", *SYNTAX], longest=1 << 20
    )


def _looked_up(style: Snapshot, request: LookUp, store: dict[str, str]) -> bytes:
    """Return the answer as policyd's worker gives it, with a store that is a dict."""
    if request.map_name == "forward":
        rewritten = decisions.forward(style, request.key, NOW)
        entry = decisions.Entry(decisions.Found.OK, rewritten.address) if rewritten else decisions.NOTFOUND
        if rewritten and rewritten.form != decisions.NONE:
            safe(entry.text)
    else:
        entry = decisions.look_up(style, request.map_name, request.key, NOW, store.get)
    if entry.bounce is Bounce.ORIGINAL:
        safe(str(Address.parse(entry.text)))
    return _map_reply(request, entry)


TARGETS = {"policy": policy, "socketmap": socketmap, "tcp-table": tcp_table}
