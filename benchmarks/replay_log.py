# SPDX-License-Identifier: GPL-3.0-or-later
"""Times `gatepost replay` on a made-up log: `python benchmarks/replay_log.py [--lines N] [--file FILE] [--hostile]`.

The log is of a busy hub: 2,000 hosts, sessions of one to three messages with one to four recipients, whose lines are
interleaved; some mail is deferred and tried again, one connection in ten is TLS with a client certificate, one in eight
brings only a refusal by Postfix. A hostile one has a million hosts, and names and addresses of up to 2,000 octets.
Prints lines a second and the peak of resident memory, of the whole command.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parent.parent
ROOTS = [str(TOP / name) for name in ("srs", "relay", "service", "milter", "policyd", "admin")]
CONFIG = """
state_directory = "{folder}"
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["10.0.0.0/22"]
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "*.contoso.com"
"""
OPEN = 400
"""How many sessions are under way at a time."""
FINGERPRINT = ":".join(["A5"] * 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--file", type=Path, help="where the log is written, and left; one that is there is used again")
    parser.add_argument("--hostile", action="store_true", help="with as much to remember as possible")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gatepost-replay-") as folder:
        path = options.file or Path(folder) / "mail.log"
        if not path.exists():
            write(path, options.lines, hostile=options.hostile)
        measure(Path(folder), path)


def write(path: Path, lines: int, *, hostile: bool = False) -> None:
    """Write a log of about *lines* lines."""
    random.seed(1)
    sessions = [session(number, number, hostile=hostile) for number in range(OPEN)]
    number, written = OPEN, 0
    with path.open("w") as file:
        while written < lines:
            place = random.randrange(OPEN)
            line = next(sessions[place], None)
            if line is None:
                sessions[place] = session(number, place, hostile=hostile)
                number += 1
                continue
            seconds = written // 50
            clock = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            file.write(f"Nov {1 + seconds // 86400 % 30:2} {clock} mail postfix/{line}\n")
            written += 1


def session(number: int, place: int, *, hostile: bool) -> Iterator[str]:
    """Yield what one SMTP connection leads to in the log, without time and host. place: which smtpd serves it."""
    host = random.randrange(2000)
    client = f"app{host}.contoso.com[10.0.{host // 250}.{host % 250}]"
    if hostile:
        host = random.randrange(1_000_000)
        client = f"app{host}.{'x' * random.randrange(2000)}[2001:db8::{host // 65536:x}:{host % 65536:x}]"
    smtpd = f"smtpd[{1000 + place}]"
    yield f"{smtpd}: connect from {client}"
    if random.random() < 0.1:
        yield (
            f"{smtpd}: {client}: subject_CN=app{host}.contoso.com, issuer=CA, fingerprint={FINGERPRINT}, "
            f"pkey_fingerprint={FINGERPRINT}"
        )
        yield (
            f"{smtpd}: Trusted TLS connection established from {client}: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 "
            "(256/256 bits) key-exchange X25519 server-signature RSA-PSS (2048 bits) server-digest SHA256"
        )
    if random.random() < 0.125:
        envelope = f"from=<spam@s{number % 9973}.example> to=<x{number}@example.com>"
        yield (
            f"{smtpd}: NOQUEUE: reject: RCPT from {client}: 554 5.7.1 <x{number}@example.com>: Relay access denied; "
            f"{envelope} proto=ESMTP helo=<app{host}.contoso.com>"
        )
    else:
        for message in range(random.choice((1, 1, 1, 2, 3))):
            yield from transaction(f"4j{number:09}z{message}", client, smtpd, number, hostile=hostile)
    yield f"{smtpd}: disconnect from {client} ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5"


def transaction(queue_id: str, client: str, smtpd: str, number: int, *, hostile: bool) -> Iterator[str]:
    """Yield the lines of one message."""
    recipients = random.choice((1, 1, 1, 1, 2, 4))
    sender = f"app{number % 211}@" + ("contoso.com" if random.random() < 0.8 else f"vendor{number % 997}.example")
    if hostile:
        sender = f"{'p' * random.randrange(2000)}{number}@{'d' * random.randrange(2000)}{number}.example"
    yield f"{smtpd}: {queue_id}: client={client}"
    yield f"cleanup[{2000 + number % 50}]: {queue_id}: message-id=<{queue_id}@mail.contoso.com>"
    queued = f"qmgr[77]: {queue_id}: from=<{sender}>, size={2000 + number % 90000}, nrcpt={recipients} (queue active)"
    yield queued
    tries = ["deferred", "sent"] if random.random() < 0.05 else ["sent"]
    for status in tries:
        for place in range(recipients):
            domain = "contoso.com" if number % 5 == 0 else f"customer{(number + place) % 3001}.example"
            yield (
                f"smtp[{3000 + number % 100}]: {queue_id}: to=<user{number % 50021}@{domain}>, "
                f"relay=mx.{domain}[198.51.100.{number % 250}]:25, delay=0.42, delays=0.01/0/0.2/0.21, dsn=2.0.0, "
                f"status={status} (250 2.0.0 Ok: queued as 4jXL{number})"
            )
        if status == "deferred":
            yield queued
    yield f"qmgr[77]: {queue_id}: removed"


def measure(folder: Path, path: Path) -> None:
    """Replay *path*; print what it took."""
    configuration = folder / "gatepost.toml"
    configuration.write_text(CONFIG.format(folder=folder))
    with path.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    command = [sys.executable, "-m", "gatepost.admin", "-c", str(configuration), "replay", "--json", str(path)]
    began = time.monotonic()
    subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    took = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = path.stat().st_size / (1 << 20)
    print(
        f"{lines:,} lines, {size:,.0f} MiB: {took:.1f} s, {lines / took:,.0f} lines/s, {peak:.0f} MiB resident at most"
    )


if __name__ == "__main__":
    main()
