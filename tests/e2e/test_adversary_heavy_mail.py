# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that strangers make as heavy as Postfix lets it through: what it costs gatepost, and that others are served."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest
from tlsclients import HUB

from gatepost.admin.stage import MESSAGE, Stage, command

CPU_S = 2.0
"""What one message may cost all of gatepost's processes together. A plain one costs a thousandth of it."""
SIZES = """
mynetworks = 127.0.0.0/8, 192.0.2.0/28
message_size_limit = 20480000
smtpd_recipient_limit = 10000
"""
MANY = 30_000
HEAVY = {
    "many header fields": b"X-Line: 1\r\n" * 10_000,
    "many empty From": b"From:\r\n" * MANY,
    "many From of one letter": b"From: a\r\n" * MANY,
    "many From with groups": b"From: g:\r\n" * 10_000,
    "many of every kind": b"Subject: a\r\nMessage-Id: <a>\r\nReceived: by a id b\r\n" * 3_000,
    "many X-Sieve-Redirected-From": b"X-Sieve-Redirected-From: ceo@contoso.com\r\n" * 5_000,
    "a From of 60 kB": b"From: " + b"a@b, " * 12_000 + b"\r\n",
    "a From of at signs": b"From: " + b"@" * 8_000 + b"\r\n",
    "a From of parentheses": b"From: " + b"(" * 8_000 + b"\r\n",
    "a From of quotes and backslashes": b"From: " + b'"\\' * 4_000 + b"\r\n",
    "a header of 10 MB": b"Subject: " + b"a" * 10_000_000 + b"\r\n",
    "a header of 1 MB, folded": b"From: a\r\n" + b" b\r\n" * 250_000,
    "nested encoded words": b"Subject: " + b"=?utf-8?q?=3D=3Futf-8=3Fq=3F" * 3_000 + b"?=" * 3_000 + b"\r\n",
    "a Received without end": b"Received: by a (" + b") with b (" * 9_000 + b"\r\n",
    "a Received of white space": b"Received: by a" + b" \t" * 40_000 + b"id\r\n",
}


def legacy(text: str) -> str:
    text = text.replace('mode = "monitor"', 'mode = "enforce"').replace('"2023-11-01"', '"legacy"')
    return text + "\n[ledger]\nsubjects = true\n" if "[ledger]" not in text else text


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, after=SIZES, configuration=legacy)


def cpu_s(stage: Stage) -> float:
    """Return the processor time that gatepost's processes have used so far."""
    pids = subprocess.run(["pgrep", "-P", str(stage.pid)], capture_output=True, text=True).stdout.split()
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in (str(stage.pid), *pids))
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


@contextmanager
def bounded(stage: Stage) -> Iterator[None]:
    """Check what happens inside costs, and that an honest client is served at once afterwards."""
    before = cpu_s(stage)
    yield
    spent = cpu_s(stage) - before
    print(f"{spent:.2f} s")
    began = time.monotonic()
    assert stage.send("app@contoso.com", "x@example.com").accepted
    assert time.monotonic() - began < 10.0
    assert spent < CPU_S


@pytest.mark.parametrize("headers", HEAVY.values(), ids=HEAVY)
def test_message_that_is_heavy_to_read_costs_seconds_at_most(hub: Stage, headers: bytes) -> None:
    with bounded(hub):
        reply = hub.send("app@vendor.example", "x@example.com", headers + MESSAGE).last
    assert reply.code in (250, 550, 552, 554), reply


@pytest.mark.parametrize(
    "value", [b"@" * 8_000, b", ".join(b"%d@a" % number for number in range(1_200))], ids=["at signs", "addresses"]
)
def test_thousand_recipients_refused_by_a_heavy_from_cost_seconds_at_most(hub: Stage, value: bytes) -> None:
    rcpts = [f"r{number}@example.com" for number in range(1000)]
    with bounded(hub), hub.session() as smtp:
        smtp.send("MAIL FROM:<app@vendor.example>\r\n" + "".join(f"RCPT TO:<{rcpt}>\r\n" for rcpt in rcpts))
        assert {smtp.getreply()[0] for _ in range(1001)} == {250}
        assert command(smtp, "DATA").code == 354
        reply = command(smtp, b"From: " + value + b"\r\n\r\nhello\r\n.")
    assert str(reply).startswith("550 5.7.64 "), reply


def test_two_thousand_recipients_are_judged_each(hub: Stage) -> None:
    with bounded(hub), hub.session() as smtp:
        assert command(smtp, "MAIL FROM:<app@contoso.com>").code == 250
        for first in range(0, 2_000, 500):
            smtp.send("".join(f"RCPT TO:<r{number}@example.com>\r\n" for number in range(first, first + 500)))
            assert {smtp.getreply()[0] for _ in range(500)} == {250}
        command(smtp, "RSET")
