# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Sendmail for tests, as an administrator has it, with the lines of examples/sendmail; gatepost beside it.

Its programs and its m4 files are those that packaging/fetch-peers has unpacked. For root only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Optional, Union

from daemonprocess import ROOTS, Gatepost, free_ports, poll
from peers import _overlaid, tree

from gatepost.admin.authority import Authority, Credentials
from gatepost.admin.nexthop import NextHop
from gatepost.admin.setup import sendmail as setup_sendmail
from gatepost.admin.stage import Transcript, transact
from gatepost.service.config import load

EXAMPLE = Path(__file__).parent.parent / "examples/sendmail"
OURS, PARTNER, ABROAD = "127.0.0.9", "127.0.0.20", "127.0.0.200"
"""Clients: of the connector by address, one that Sendmail lets relay and no connector knows, one from elsewhere."""
MESSAGE = (
    b"From: Bob <bob@fabrikam.com>\r\nTo: John <john.work@contoso.com>\r\nSubject: lunch\r\n"
    b"Message-Id: <1@fabrikam.com>\r\nDate: Sat, 1 Aug 2026 12:00:00 +0200\r\n\r\nhello\r\n"
)
_TIMEOUT_S = 30.0

# What an administrator has: mail for contoso.com stays here, a server inside has that of corp.contoso.com, all else
# goes to a smart host.
SERVER = """\
include(`@CF@/m4/cf.m4')dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `mail.contoso.com')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
define(`confSERVICE_SWITCH_FILE', `@ROOT@/service.switch')dnl
define(`confPID_FILE', `@ROOT@/sendmail.pid')dnl
define(`QUEUE_DIR', `@ROOT@/queue')dnl
define(`STATUS_FILE', `@ROOT@/statistics')dnl
define(`HELP_FILE', `@ROOT@/helpfile')dnl
define(`ALIAS_FILE', `@ROOT@/aliases')dnl
define(`confHOST_STATUS_DIRECTORY')dnl
define(`confFORWARD_PATH', `@ROOT@/forward/$u')dnl
define(`confDELIVERY_MODE', `interactive')dnl
define(`confMIN_QUEUE_AGE', `0')dnl
define(`confTO_IDENT', `0')dnl
define(`confQUEUE_LA', `1000')dnl
define(`confREFUSE_LA', `1000')dnl
define(`confCACERT', `@ROOT@/tls/ca.pem')dnl
define(`confCACERT_PATH', `@ROOT@/tls')dnl
define(`confSERVER_CERT', `@SERVER@.pem')dnl
define(`confSERVER_KEY', `@SERVER@.key')dnl
define(`LOCAL_MAILER_PATH', `@ROOT@/deliver')dnl
define(`LOCAL_MAILER_ARGS', `deliver $u $g')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-mf')dnl
define(`ESMTP_MAILER_ARGS', `TCP $h @INSIDE@')dnl
define(`RELAY_MAILER_ARGS', `TCP $h @INTERNET@')dnl
define(`SMART_HOST', `relay:[127.0.0.1]')dnl
DAEMON_OPTIONS(`Family=inet, Name=MTA, Port=@PORT@, Addr=127.0.0.1')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`access_db', `hash -T<TMPF> @ROOT@/access')dnl
FEATURE(`mailertable', `hash @ROOT@/mailertable')dnl
FEATURE(`virtusertable', `hash @ROOT@/virtusertable')dnl
LOCAL_DOMAIN(`contoso.com')dnl
RELAY_DOMAIN(`corp.contoso.com')dnl
RELAY_DOMAIN(`127.0.0.9')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"""
_TABLES = {
    "aliases": "postmaster: root\nbounces: root\nteam: one@example.com, two@example.net\ndesk: list, desk@example.com\n"
    "corp: mary@corp.contoso.com, far@example.org\n",
    "mailertable": "corp.contoso.com inside:[127.0.0.1]\n",
    "virtusertable": "john.work@contoso.com john.home@example.com\n",
    "access": "CertIssuer:/CN=Sandbox+20CA RELAY\n",
}
_DELIVER = '#!/bin/sh\n{ echo "P1 <$2>"; cat; echo; } >>@ROOT@/mailboxes/"$1"\n'


class Sendmail:
    """Sendmail with gatepost, *internet* behind it and *inside*, a server inside. A context manager.

    configuration, lines: edit the example's gatepost.toml and gatepost.m4. server: lines of sendmail.mc before its
    MAILER lines. tables: by name, in the place of aliases, mailertable, virtusertable or access. inet: gatepost listens
    at ports, not in *sockets*.
    """

    def __init__(
        self,
        root: Path,
        *,
        configuration: Callable[[str], str] = lambda text: text,
        lines: Callable[[str], str] = lambda text: text,
        server: str = "",
        tables: Optional[Mapping[str, str]] = None,
        inet: bool = False,
    ) -> None:
        self.root = root
        self.sockets = root / "gatepost"
        self.internet = NextHop()
        self.inside = NextHop()
        self.port, metrics, *free = free_ports(4)
        ports = zip(("milter", "policyd"), free)
        self.authority = Authority(root / "tls")
        self._cf = root / "sendmail.cf"
        self._log: list[str] = []
        self._group = 0
        self._stack = ExitStack()
        credentials = self.authority.issue("mail.contoso.com", ["127.0.0.1"])
        self._values = {
            "CF": str(tree() / "usr/share/sendmail/cf"),
            "ROOT": str(root),
            "PORT": str(self.port),
            "INSIDE": str(self.inside.address[1]),
            "INTERNET": str(self.internet.address[1]),
            "SERVER": str(credentials.key.with_suffix("")),
        }
        for name in ("mailboxes", "forward", "etc", "dev", "queue", "gatepost"):
            (root / name).mkdir(mode=0o700 if name == "queue" else 0o755)
        self._write("deliver", _DELIVER).chmod(0o755)
        self._write("service.switch", "hosts files\naliases files\n")
        self._write("etc/hosts", "127.0.0.1 mail.contoso.com localhost\n127.0.0.9 app.contoso.com\n")
        self._write("dev/log", "")
        self._write("forward/games", "games.home@example.com\n")
        for name, text in {**_TABLES, **(tables or {})}.items():
            self._write(name, text)
        before, mailers = SERVER.split("MAILER(", 1)
        self._write("sendmail.mc", f"{before}{server}MAILER({mailers}include(`@ROOT@/gatepost.m4')dnl\n")
        self.gatepost = Gatepost(root, command="run")
        self.gatepost.metrics_port = metrics
        text = (EXAMPLE / "gatepost.toml").read_text()
        for here, there in {
            "/run/gatepost": str(self.sockets),
            "/var/lib/gatepost": str(self.gatepost.state),
            "192.0.2.0/28": "127.0.0.8/29",
            "127.0.0.1:9797": f"127.0.0.1:{metrics}",
            **({f"unix:{self.sockets}/{name}.sock": f"inet:127.0.0.1:{port}" for name, port in ports} if inet else {}),
        }.items():
            text = text.replace(here, there)
        self.gatepost.configuration.write_text(configuration(text))
        own = setup_sendmail.lines(load(self.gatepost.configuration))
        self._write("gatepost.m4", lines(own))

    def _write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(re.sub(r"@([A-Z]+)@", lambda found: self._values[found[1]], text))
        return path

    def __enter__(self) -> Sendmail:
        with ExitStack() as stack:
            stack.enter_context(self.internet)
            stack.enter_context(self.inside)
            stack.enter_context(self._logged())
            stack.enter_context(self.gatepost)
            made = subprocess.run(["m4", "sendmail.mc"], cwd=self.root, stdout=subprocess.PIPE, text=True, check=True)
            self._cf.write_text(made.stdout)
            for name in ("mailertable", "virtusertable", "access"):
                command = [str(tree() / "usr/libexec/sendmail/makemap"), "-C", str(self._cf), "hash", name]
                with (self.root / name).open("rb") as table:
                    subprocess.run(command, cwd=self.root, stdin=table, check=True)
            self._run("-bi")
            stack.enter_context(self._daemon())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Take what Sendmail gives to syslog, at a socket that lies over /dev/log for it alone."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind(str(self.root / "log.sock"))

            def read() -> None:
                while octets := log.recv(65536):
                    self._log.append(octets.decode("utf-8", "replace").rstrip("\0\n"))

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    log.shutdown(socket.SHUT_RDWR)
                reader.join(_TIMEOUT_S)

    def _command(self, *arguments: str) -> list[str]:
        program = str(tree() / "usr/libexec/sendmail/sendmail")
        # A host name without a dot makes it wait for DNS.
        script = f'hostname mail.contoso.com; mount --bind {self.root}/log.sock /dev/log; exec "$@"'
        uts = ["unshare", "--uts", "sh", "-c", script, "sh", program, "-C", str(self._cf), *arguments]
        return _overlaid(uts, etc=[self.root / "etc"], dev=[self.root / "dev"])

    def _run(self, *arguments: str, stdin: bytes = b"", retrying: bool = False) -> str:
        done = subprocess.run(
            self._command(*arguments),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0 or retrying, (arguments, done.returncode, done.stdout)
        return done.stdout.decode()

    @contextmanager
    def _daemon(self) -> Iterator[None]:
        with (self.root / "output").open("wb") as output:
            command = ["setpriv", "--pdeathsig", "TERM", *self._command("-bD")]
            process = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=subprocess.STDOUT)
        self._group = process.pid
        try:
            poll(self._answers, "Sendmail's greeting")
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(_TIMEOUT_S)

    def _answers(self) -> bool:
        try:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=_TIMEOUT_S):
                return True
        except OSError:
            return False

    # Mail

    @contextmanager
    def session(self, client: str = OURS, certificate: Optional[Credentials] = None) -> Iterator[smtplib.SMTP]:
        """Open a session from *client*, an address of loopback."""
        with smtplib.SMTP("127.0.0.1", self.port, source_address=(client, 0), timeout=_TIMEOUT_S) as smtp:
            if certificate:
                smtp.starttls(context=self.authority.client_context(certificate))
            smtp.ehlo("app.contoso.com")
            yield smtp

    def wait_until_idle(self) -> None:
        """Return when all that was taken is delivered, or waits in the queue: the daemon is alone again."""
        poll(lambda: _members(self._group) == 1, "Sendmail's processes have ended")

    def send(
        self,
        mail_from: str,
        rcpt: Union[str, Sequence[str]],
        message: bytes = MESSAGE,
        *,
        client: str = OURS,
        certificate: Optional[Credentials] = None,
    ) -> Transcript:
        """Send one message and return when it is delivered, or waits in the queue."""
        with self.session(client, certificate) as smtp:
            transcript = transact(smtp, mail_from, rcpt, message)
        self.wait_until_idle()
        return transcript

    def flush(self) -> None:
        """Try all that waits in the queue once more."""
        self._run("-qf", retrying=True)

    def release(self, queue_id: str) -> None:
        """Let a quarantined message go."""
        self._run("-Q", "-qQ", f"-qI{queue_id}")

    def test(self, *lines: str) -> str:
        """Return what address test mode prints."""
        return self._run("-bt", stdin="\n".join([*lines, ""]).encode())

    def queued(self) -> list[str]:
        """Return the queue IDs of what waits, in the order of their names; `hf` files are quarantined."""
        return sorted(path.name for path in (self.root / "queue").glob("[qh]f*"))

    def left(self) -> list[tuple[str, str]]:
        """Return P1 and recipient of all that has left. See `shape`."""
        return _envelopes(self.internet)

    def at_inside(self) -> list[tuple[str, str]]:
        return _envelopes(self.inside)

    def mailbox(self, user: str) -> list[str]:
        """Return the P1 of each message that was delivered to *user* here."""
        path = self.root / "mailboxes" / user
        return re.findall(r"(?m)^P1 <(.*)>$", path.read_text() if path.exists() else "")

    def log(self) -> str:
        """Return what Sendmail has logged."""
        return "\n".join(self._log)

    def forget(self) -> None:
        """Empty what the last test left."""
        self.internet.messages.clear()
        self.internet.refuse.clear()
        self.inside.messages.clear()
        for path in [*(self.root / "mailboxes").iterdir(), *(self.root / "queue").iterdir()]:
            path.unlink()

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `gatepost` command on the same configuration."""
        return subprocess.run(
            [sys.executable, "-m", "gatepost.admin", "-c", str(self.gatepost.configuration), *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Take a socket of gatepost's away for a while."""
        path = self.sockets / name
        path.rename(path.with_suffix(".away"))
        try:
            yield
        finally:
            path.with_suffix(".away").rename(path)


@contextmanager
def sendmail_root() -> Iterator[Path]:
    """Yield a folder for one Sendmail. It wants its sockets below folders that only root can write to; /tmp is none."""
    root = Path(tempfile.mkdtemp(dir="/run", prefix="gatepost-"))
    root.chmod(0o755)
    try:
        yield root
    finally:
        shutil.rmtree(root)


def shape(address: str) -> str:
    """Return *address* with HASH and TT for the hash and the timestamp of an SRS address."""
    return re.sub(r"\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=", "+SRS=HASH=TT=", address)


def _members(group: int) -> int:
    """Return how many processes are alive in a process group."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, members_group = stat.read_text().rpartition(")")[2].split()[:3]
            found += members_group == str(group) and state != "Z"
    return found


def _envelopes(hop: NextHop) -> list[tuple[str, str]]:
    return sorted((shape(mail.mail_from), rcpt) for mail in hop.messages for rcpt in mail.rcpt_to)
