# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot an example folder for the demo and the end-to-end tests: a private Postfix, gatepost beside it, a next hop.

An example's files are written for a real server. Only what cannot be the same here is replaced in them: folders,
ports and the hosts that mail is sent on to.
"""

from __future__ import annotations

import os
import re
import signal
import smtplib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Optional, Union

from prometheus_client.parser import text_string_to_metric_families

from gatepost.admin.authority import Authority, Credentials
from gatepost.admin.logfile import LogFile, SandboxError
from gatepost.admin.nexthop import NextHop
from gatepost.admin.sandbox import Postfix, free_port

MESSAGE = b"From: App <app@contoso.com>\r\nMessage-Id: <1@app.contoso.com>\r\n\r\nhello\r\n"
_PORTS = ("10027", "10041", "9797")
_QUEUE, _STATE, _ETC = "/var/spool/postfix", "/var/lib/gatepost", "/etc/postfix"
_EXAMPLE_FILES = ("main.cf", "master.cf", "gatepost.toml", "README.md")
_STOP_S = 60.0

# gatepost's defaults, which an example need not name and a private place must replace.
_TABLES = {
    "milter": f'listen = "unix:{_QUEUE}/gatepost/milter.sock"',
    "policyd": f'listen = ["unix:{_QUEUE}/gatepost/policyd.sock"]',
    "metrics": 'listen = "127.0.0.1:9797"',
}


@dataclass(frozen=True)
class Reply:
    """One SMTP reply; *text* has the enhanced status code in it, its lines are joined by a blank."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


@dataclass
class Transcript:
    """What the server answered to one message. data: to DATA; end: to the end of the message; None where not sent."""

    mail: Reply
    rcpt: list[Reply] = field(default_factory=list)
    data: Optional[Reply] = None
    end: Optional[Reply] = None

    @property
    def last(self) -> Reply:
        """The last reply: what became of the message, or of its last recipient where none was taken."""
        return self.end or self.data or (self.rcpt[-1] if self.rcpt else self.mail)

    @property
    def accepted(self) -> bool:
        return self.end is not None and self.end.code == 250

    @property
    def queue_id(self) -> str:
        """The queue ID in the final reply, "" where the message was not taken."""
        found = re.search(r"queued as (\w+)", self.end.text) if self.end else None
        return found[1] if found else ""


def command(smtp: smtplib.SMTP, line: Union[str, bytes]) -> Reply:
    """Send one command line, without CRLF; octets go as they are, a string as UTF-8."""
    smtp.send((line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line) + b"\r\n")
    return _reply(smtp)


def _reply(smtp: smtplib.SMTP) -> Reply:
    code, text = smtp.getreply()
    return Reply(code, text.decode("utf-8", "replace").replace("\n", " "))


def transact(
    smtp: smtplib.SMTP,
    mail_from: str,
    rcpt: Union[str, Sequence[str]],
    message: bytes = MESSAGE,
    *,
    mail_options: str = "",
    rcpt_options: str = "",
) -> Transcript:
    """Send one message on an open session; *rcpt* is one recipient or several. Goes on as long as one is taken.

    Ends what it began by RSET where the message was not sent.
    """
    transcript = Transcript(command(smtp, f"MAIL FROM:<{mail_from}> {mail_options}".rstrip()))
    if transcript.mail.code == 250:
        for recipient in [rcpt] if isinstance(rcpt, str) else rcpt:
            transcript.rcpt.append(command(smtp, f"RCPT TO:<{recipient}> {rcpt_options}".rstrip()))
    if any(reply.code == 250 for reply in transcript.rcpt):
        transcript.data = command(smtp, "DATA")
        if transcript.data.code == 354:
            stuffed = re.sub(rb"(?m)^\.", b"..", message)
            end = b"." if stuffed.endswith(b"\r\n") or not stuffed else b"\r\n."
            transcript.end = command(smtp, stuffed + end)  # one write: a second would wait for a delayed ACK
    if transcript.end is None:
        command(smtp, "RSET")
    return transcript


class Stage:
    """An example booted below *root* (see sandbox.temporary_root). A context manager.

    before: main.cf lines of the server that gatepost is added to; the example's lines come after them and win, as
    `postconf -e` would. after: lines that win over the example's. master_before: the same for master.cf.
    configuration: edits the text of gatepost.toml. refuse: the next hop's, see NextHop. tls: smtpd offers STARTTLS.
    gatepost: the daemons' command. whole: main.cf and master.cf are a server's whole files, to which none of these
    lines are added; see Postfix. replacing: what else of the files' text is another one here.

    Mail for `[HOST]:25` in an example goes to *inside*, everything else that leaves to *internet*: `[HOST]:587` in
    whole files.
    """

    def __init__(
        self,
        example: Path,
        root: Path,
        *,
        before: str = "",
        after: str = "",
        master_before: str = "",
        configuration: Callable[[str], str] = lambda text: text,
        refuse: Optional[Mapping[str, str]] = None,
        tls: bool = False,
        gatepost: Sequence[str] = ("run",),
        whole: bool = False,
        replacing: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.root = root
        self._replacing = dict(replacing or {})
        root.mkdir(parents=True, exist_ok=True)
        self.internet = NextHop(refuse=refuse)
        self.inside = NextHop()
        self.authority = Authority(root / "tls")
        self.ports = {port: str(free_port()) for port in _PORTS}
        """The port here for each one that the examples name."""
        self.state_directory = root / "state"
        self.configuration = root / "gatepost.toml"
        self.log_file = root / "gatepost.log"
        self._log = LogFile(self.log_file, "gatepost", self._ended)
        self._mta = root / "mta"
        self._arguments = list(gatepost)
        self._gatepost: Optional[subprocess.Popen[bytes]] = None
        self._stack = ExitStack()
        tls_lines = self.authority.smtpd_parameters(self.authority.issue("mail.contoso.com", ["127.0.0.1"]))
        added = (
            f"relayhost = [127.0.0.1]:{self.internet.address[1]}\n"
            "smtpd_authorized_xclient_hosts = 127.0.0.0/8\n" + (tls_lines if tls else "") + self.render(before)
        )
        self.postfix = Postfix(
            self._mta,
            main_cf="\n".join([*([] if whole else [added]), *map(self.render, (_text(example / "main.cf"), after))]),
            master_cf="\n".join(map(self.render, (master_before, _text(example / "master.cf")))),
            whole=whole,
        )
        (self._mta / "etc").mkdir(parents=True)
        for path in example.iterdir():
            if path.is_file() and path.name not in _EXAMPLE_FILES:
                (self._mta / "etc" / path.name).write_text(self.render(path.read_text()))
        self.configuration.write_text(configuration(self._render_configuration(_text(example / "gatepost.toml"))))

    def render(self, text: str) -> str:
        """Return *text* of an example with what names a real server replaced."""
        for name, value in self._replacing.items():
            text = text.replace(name, value)
        text = text.replace(_QUEUE, str(self._mta / "spool")).replace(_ETC, str(self._mta / "etc"))
        text = text.replace(_STATE, str(self.state_directory))
        for port, hop in (("25", self.inside), ("587", self.internet)):
            text = re.sub(rf"\[[\w.-]+\]:{port}\b", f"[127.0.0.1]:{hop.address[1]}", text)
        return re.sub(rf"(?<=:)({'|'.join(_PORTS)})\b", lambda found: self.ports[found[1]], text)

    def _render_configuration(self, text: str) -> str:
        if not re.search(r"^state_directory", text, re.MULTILINE):
            text = f'state_directory = "{_STATE}"\n{text}'
        for name, line in _TABLES.items():
            if not re.search(rf"^\[{name}\]", text, re.MULTILINE):
                text += f"\n[{name}]\n{line}\n"
        return self.render(text)

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            stack.enter_context(self.internet)
            stack.enter_context(self.inside)
            folder = self._mta / "spool/gatepost"
            folder.mkdir(parents=True)
            os.chown(folder, -1, self.postfix.owner[1])
            folder.chmod(0o2750)
            for table in (self._mta / "etc").iterdir():  # daemons wait for a table changed within two seconds to settle
                os.utime(table, (time.time() - 60,) * 2)
            self.launch_gatepost()
            stack.callback(self.stop_gatepost)
            stack.enter_context(self.postfix)
            self.wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._stack.close()

    # gatepost

    @property
    def pid(self) -> int:
        """The process ID of gatepost's supervisor. Raises SandboxError where it was not started."""
        if self._gatepost is None:
            raise SandboxError("gatepost is not running")
        return self._gatepost.pid

    def launch_gatepost(self) -> None:
        """Start gatepost; returns before it is ready."""
        self._log_start = len(self.log())
        with self.log_file.open("ab") as log:
            self._gatepost = subprocess.Popen(
                [*self._command(), *self._arguments], stderr=log, stdin=subprocess.DEVNULL, env=_environment()
            )

    def start_gatepost(self) -> None:
        """Start gatepost and return when it serves. Raises SandboxError."""
        self.launch_gatepost()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when the gatepost that was launched last serves. Raises SandboxError."""
        self.wait_for_log(r" ready$", start=self._log_start)

    def stop_gatepost(self) -> int:
        """Stop gatepost as systemd does, which drains it; return its exit status, 0 where it was not running."""
        if self._gatepost is None:
            return 0
        process, self._gatepost = self._gatepost, None
        process.terminate()
        try:
            return process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SandboxError(f"gatepost did not stop within {_STOP_S} s{self._log.tail()}") from None

    def reload(self) -> str:
        """Send SIGHUP and return the line in which gatepost says whether it reloaded."""
        start = len(self.log())
        os.kill(self.pid, signal.SIGHUP)
        return self.wait_for_log(r"configuration (?:not )?reloaded.*$", start=start)[0]

    def gatepost(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `gatepost` command on the same configuration."""
        return subprocess.run(
            [*self._command(), *arguments], env=_environment(), capture_output=True, text=True, timeout=60, check=False
        )

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "gatepost.admin", "-c", str(self.configuration)]

    def log(self) -> str:
        """Return gatepost's whole log."""
        return self._log.text()

    def wait_for_log(self, pattern: str, timeout_s: float = 20, *, start: int = 0) -> re.Match[str]:
        """Return the first match of *pattern* after *start* characters of gatepost's log; see LogFile.wait_for."""
        return self._log.wait_for(pattern, timeout_s, start)

    def _ended(self) -> bool:
        return self._gatepost is not None and self._gatepost.poll() is not None

    def http(self, path: str) -> tuple[int, str]:
        """Return status and text of a page of the metrics' address, such as /healthz."""
        url = f"http://127.0.0.1:{self.ports['9797']}{path}"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples *name* that have these labels, 0 where there is none."""
        parse: Any = text_string_to_metric_families  # not typed before prometheus-client 0.22
        samples = (sample for family in parse(self.http("/metrics")[1]) for sample in family.samples)
        samples = (sample for sample in samples if sample.name == name)
        return float(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))

    # Mail

    @contextmanager
    def session(
        self,
        *,
        client: str = "192.0.2.5",
        certificate: Optional[Credentials] = None,
        login: str = "",
        helo: Union[str, bytes] = "app.contoso.com",
        port: Optional[int] = None,
    ) -> Iterator[smtplib.SMTP]:
        """Open a session as *client*, an address that Postfix takes from XCLIENT ("": the real one, on loopback).

        login: as whom SASL has authenticated the client. port: another one than smtpd's first.
        """
        with smtplib.SMTP("127.0.0.1", port or self.postfix.smtp[1], timeout=60) as smtp:
            if certificate:
                smtp.starttls(context=self.authority.client_context(certificate))
            smtp.ehlo("stage")
            if client or login:
                attributes = [f"ADDR={client} NAME=[UNAVAILABLE]"] if client else []
                attributes += [f"LOGIN={login}"] if login else []
                _must(command(smtp, f"XCLIENT {' '.join(attributes)}"), 220)
            command(smtp, b"EHLO " + helo if isinstance(helo, bytes) else f"EHLO {helo}")
            yield smtp

    def send(
        self,
        mail_from: str,
        rcpt: Union[str, Sequence[str]],
        message: bytes = MESSAGE,
        *,
        client: str = "192.0.2.5",
        certificate: Optional[Credentials] = None,
        login: str = "",
        mail_options: str = "",
        rcpt_options: str = "",
    ) -> Transcript:
        """Send one message on a connection of its own; see `session` and `transact`."""
        with self.session(client=client, certificate=certificate, login=login) as smtp:
            return transact(smtp, mail_from, rcpt, message, mail_options=mail_options, rcpt_options=rcpt_options)


def _must(reply: Reply, code: int) -> None:
    if reply.code != code:
        raise SandboxError(f"smtpd answered {reply}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _environment() -> dict[str, str]:
    """Return this process's environment with its import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}
