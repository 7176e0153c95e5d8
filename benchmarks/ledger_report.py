# SPDX-License-Identifier: GPL-3.0-or-later
"""Times reports on a ledger of many rows: `python benchmarks/ledger_report.py [--rows 10000000] [--folder DIR]`.

The rows are spread over 90 days: 2 % rely on P2, 3 % are refused, 20 % rewritten; one message in three has two
recipients. Times are of whole commands, the start of Python included. A folder that has the rows already is used again.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Optional

TOP = Path(__file__).parent.parent
ROOTS = [str(TOP / name) for name in ("srs", "relay", "service", "milter", "policyd", "admin")]
sys.path[:0] = ROOTS

from gatepost.service.database import Database  # noqa: E402
from gatepost.service.reference import new_reference  # noqa: E402

DAYS = 90
CHUNK = 500_000
CONFIG = """
state_directory = "{folder}"
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/24"]
"""
# m: the message that row i belongs to; kind: 0, 1 rely on P2, 2 to 4 are refused, 5 to 24 are rewritten.
INSERT = """
WITH RECURSIVE
  number(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM number WHERE i < :last),
  message AS (SELECT i, i - (i % 4 = 3) AS m FROM number),
  row AS (SELECT i, m, (m / 4 * 7 + m) % 100 AS kind, 'v' || (m % 997) || '.example' AS vendor FROM message)
INSERT INTO ledger (
  reference, recipient, time, host, queue_id, egress_queue_id, client, helo, certificate_names, reverse_path,
  sender_domain, sender_accepted, rewritten, forwarded_to, header_from, organization, connector, requirements,
  verdict_current, verdict_legacy, reason, action, size_bytes, message_id, subject)
SELECT
  reference(m), 'user' || (i % 50021) || '@customer' || (i % 3001) || '.example', :start + m * :step, 'hub1',
  printf('4C%08X', m), '', '192.0.2.' || (m % 40 + 1), 'app' || (m % 40 + 1) || '.contoso.com', '',
  'app' || (m % 211) || '@' || CASE WHEN kind < 25 THEN vendor ELSE 'contoso.com' END,
  CASE WHEN kind < 25 THEN vendor ELSE 'contoso.com' END, kind >= 25,
  CASE WHEN kind BETWEEN 5 AND 24
    THEN 'bounces+srs=abcdefgh=ij=' || vendor || '=app' || (m % 211) || '@contoso.com' ELSE '' END,
  '', 'news' || (m % 307) || CASE WHEN kind BETWEEN 2 AND 4 THEN '@other.example' ELSE '@contoso.com' END,
  'contoso', 'head office', '2023-11-01',
  CASE WHEN kind < 5 THEN 'refuse' ELSE 'relay' END, CASE WHEN kind BETWEEN 2 AND 4 THEN 'refuse' ELSE 'relay' END,
  CASE WHEN kind < 5 THEN 'nothing-accepted' ELSE 'p1-accepted' END,
  CASE WHEN kind < 2 THEN 'pass' WHEN kind < 5 THEN 'reject' WHEN kind < 25 THEN 'rewrite' ELSE 'pass' END,
  2000 + m % 90000, '<' || m || '.' || kind || '@app.contoso.com>', ''
FROM row
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the store is made, and left")
    options = parser.parse_args()
    if options.folder:
        measure(options.folder, options.rows)
    else:
        with tempfile.TemporaryDirectory(prefix="gatepost-ledger-") as folder:
            measure(Path(folder), options.rows)


def measure(folder: Path, rows: int) -> None:
    """Make the ledger in *folder*, run the reports, print what they took."""
    (folder / "gatepost.toml").write_text(CONFIG.format(folder=folder))
    midnight = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    fill(folder / "gatepost.db", rows, (midnight - timedelta(days=DAYS)).timestamp())
    day = midnight - timedelta(days=40)
    for report_type in ("P2SenderAttribution", "NonAcceptedDomain", "Refused", "Rewritten"):
        timed(folder, f"{report_type}, one day", start(report_type, day, day + timedelta(days=1)))
    timed(
        folder, "P2SenderAttribution, 90 days", start("P2SenderAttribution", midnight - timedelta(days=DAYS), midnight)
    )
    days = -(-100_000 * DAYS // max(rows // 5, 1))
    begin = max(day - timedelta(days=days), midnight - timedelta(days=DAYS))
    timed(folder, f"Rewritten, {(day - begin).days} days", start("Rewritten", begin, day))
    for form in ("csv", "json", "html"):
        timed(folder, f"its export as {form}", ["export", "last", "--format", form], folder / f"report.{form}")
    print(f"rows exported: {sum(1 for _ in (folder / 'report.csv').open()) - 1:,}")


def fill(path: Path, rows: int, start_time: float, days: float = DAYS) -> None:
    """Put *rows* rows of *days* into the store at *path*, straight, with no care for what a crash would leave."""
    Database(f"sqlite:///{path}").open()
    connection = sqlite3.connect(path, isolation_level=None)
    if connection.execute("SELECT id FROM ledger LIMIT 1").fetchone():
        return
    for statement in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
        connection.execute(f"PRAGMA {statement}")
    connection.create_function("reference", 1, reference)
    began = time.monotonic()
    step = days * 86400 / rows
    for first in range(0, rows, CHUNK):
        last = min(first + CHUNK, rows) - 1
        connection.execute(INSERT, {"first": first, "last": last, "start": start_time, "step": step})
        print(f"\r{last + 1:,} rows", end="", file=sys.stderr, flush=True)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    size = path.stat().st_size / 1e9
    print(f"\r{rows:,} rows made in {time.monotonic() - began:.0f} s, {size:.1f} GB")


@lru_cache(maxsize=1)
def reference(number: int) -> str:
    """Return a new reference, or the last one for the recipients of the same message."""
    return new_reference()


def start(report_type: str, begin: datetime, end: datetime) -> list[str]:
    """Return the arguments for a report."""
    dates = ["--start-date", f"{begin:%Y-%m-%d}", "--end-date", f"{end:%Y-%m-%d}"]
    return ["start", "--type", report_type, *dates]


def timed(folder: Path, name: str, arguments: list[str], output: Optional[Path] = None) -> None:
    """Run `gatepost report` and print how long it took."""
    command = [sys.executable, "-m", "gatepost.admin", "-c", str(folder / "gatepost.toml"), "report", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)}
    began = time.monotonic()
    with open(output or os.devnull, "wb") as file:
        subprocess.run(command, env=environment, stdout=file, check=True)
    print(f"{name:<30} {time.monotonic() - began:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
