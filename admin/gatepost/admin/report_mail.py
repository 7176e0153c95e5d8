# SPDX-License-Identifier: GPL-3.0-or-later
"""Mails a report: its summary as text, its rows as CSV and its page attached, through the local MTA."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import IO, Optional

import click

from gatepost.admin import report_export, report_output
from gatepost.admin.configuration import complain, printable
from gatepost.admin.report_model import Job, Summary
from gatepost.relay import Rules, domain_of
from gatepost.service.database import Database

GROUPS = 10
GZIP_ABOVE_BYTES = 5 << 20
LEFT_OUT_ABOVE_BYTES = 7 << 20
"""In base64 that is what still goes through a Postfix as it comes (message_size_limit)."""
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Attachments:
    """A report's files. csv: None where it is too large; csv_name says whether it is compressed."""

    csv: Optional[bytes]
    csv_name: str
    html: str


def attachments(database: Database, job: Job, summary: Summary) -> Attachments:
    """Return the files of a report. Raises StoreError, OSError."""
    html = report_export.html(job, summary, report_export.rows(database, job))
    with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as packed:
        text = io.TextIOWrapper(plain, encoding="utf-8", newline="")
        report_export.write_csv(text, job, report_export.rows(database, job))
        text.flush()
        if plain.tell() <= GZIP_ABOVE_BYTES:
            return Attachments(_content(plain), "report.csv", html)
        plain.seek(0)
        with gzip.GzipFile("report.csv", "wb", fileobj=packed) as compressed:
            shutil.copyfileobj(plain, compressed)
        small = packed.tell() <= LEFT_OUT_ABOVE_BYTES
        return Attachments(_content(packed) if small else None, "report.csv.gz", html)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def message(sender: str, recipient: str, subject: str, text: str, files: Attachments) -> EmailMessage:
    """Return the mail. It says that no answer is wanted from a program (RFC 3834)."""
    mail = EmailMessage()
    mail["From"] = f"gatepost <{sender}>"
    mail["To"] = recipient
    mail["Subject"] = printable(subject)
    mail["Date"] = formatdate(localtime=True)
    mail["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text)
    if files.csv is not None:
        kind = ("text", "csv") if files.csv_name.endswith(".csv") else ("application", "gzip")
        mail.add_attachment(files.csv, maintype=kind[0], subtype=kind[1], filename=files.csv_name)
    mail.add_attachment(files.html, subtype="html", filename="report.html")
    return mail


def body(lead: Sequence[str], job: Job, summary: Summary, files: Attachments) -> str:
    """Return the text of a mail: what is said first, what to change, how to get the rest."""
    lines = [*lead, ""]
    if summary.groups:
        lines += ["What to change, the most frequent first:", ""]
    for group in summary.groups[:GROUPS]:
        lines += [*report_output.group_lines(group, job.type), ""]
    lines.append(f"Report:  {job.title}")
    lines.append(f"Period:  {job.start:%Y-%m-%d %H:%M} to {job.end:%Y-%m-%d %H:%M} UTC, the end exclusive")
    lines.append(f"Rows:    {job.rows:,}")
    command = f"gatepost report export {job.job_id[:8]} --format csv"
    if files.csv is None:
        lines.append(f"The rows are too many to be attached. On the mail host: {command}")
    else:
        lines.append(f"Attached: {files.csv_name}, and report.html to look at. On the mail host: {command}")
    return "\n".join(map(printable, lines)) + "\n"


def postmaster(rules: Rules, address: str) -> str:
    """Return who a report to *address* comes from: the postmaster of the organization that *address* is of."""
    accepted = rules.accepted(domain_of(address) or "")
    domain = accepted.organization.default_domain if accepted else domain_of(address) or "localhost"
    return f"postmaster@{domain}"


def notify(database: Database, job: Job, summary: Summary, rules: Rules) -> int:
    """Mail the report to its notify addresses; return the exit status. Raises StoreError, OSError."""
    files = attachments(database, job, summary)
    text = body([summary.sentence], job, summary, files)
    status = os.EX_OK
    for address in job.notify_addresses:
        sender = postmaster(rules, address)
        error = send(message(sender, address, job.title, text, files), sender, address)
        if error:
            complain(f"The report is kept, but could not be mailed to {address}: {error}")
            status = os.EX_TEMPFAIL
        else:
            click.echo(f"Mailed to {printable(address)}.", err=True)
    return status


def send(mail: EmailMessage, sender: str, recipient: str) -> str:
    """Hand *mail* to sendmail(1); return "", or why that failed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/lib"])
    program = shutil.which("sendmail", path=path)
    if program is None:
        return "there is no sendmail(1) in PATH, /usr/sbin or /usr/lib"
    borrowed = os.getuid() != os.geteuid()  # a shell would take the real user
    try:
        done = subprocess.run(
            [program, "-oi", "-f", sender, "--", recipient],
            input=mail.as_bytes(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            user=os.geteuid() if borrowed else None,
            group=os.getegid() if borrowed else None,
        )
    except subprocess.TimeoutExpired:
        return f"{program} took longer than {_TIMEOUT_S:.0f} s"
    except OSError as error:
        return f"{program}: {error.strerror}"
    if done.returncode == 0:
        return ""
    said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())
    return f"{program} ended with status {done.returncode}" + (f": {said}" if said else "")
