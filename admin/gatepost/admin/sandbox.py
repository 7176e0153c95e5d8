# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a private, chrooted Postfix on loopback for the demo and the end-to-end tests.

Its programs are those of an installed Postfix or of one that packaging/fetch-postfix unpacked. All else lies
below one folder, configuration, queue, log, mailboxes and .forward files: /etc/postfix, the system's mailboxes
and home folders are neither read nor written. Daemons are chrooted as on Debian: for root only.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Optional

from gatepost.admin.logfile import POLL_S, LogFile, SandboxError

_STOP_S = 10.0

# Debian's master.cf, less the services that need programs outside Postfix.
_MASTER_CF = """
smtp       inet       n - y -     - smtpd
pickup     unix       n - y 60    1 pickup
cleanup    unix       n - y -     0 cleanup
qmgr       unix       n - n 300   1 qmgr
tlsmgr     unix       - - y 1000? 1 tlsmgr
rewrite    unix       - - y -     - trivial-rewrite
bounce     unix       - - y -     0 bounce
defer      unix       - - y -     0 bounce
trace      unix       - - y -     0 bounce
verify     unix       - - y -     1 verify
flush      unix       n - y 1000? 0 flush
proxymap   unix       - - n -     - proxymap
proxywrite unix       - - n -     1 proxymap
smtp       unix       - - y -     - smtp
relay      unix       - - y -     - smtp -o syslog_name=postfix/relay
showq      unix       n - y -     - showq
error      unix       - - y -     - error
retry      unix       - - y -     - error
discard    unix       - - y -     - discard
local      unix       - n n -     - local
virtual    unix       - n n -     - virtual
lmtp       unix       - - y -     - lmtp
anvil      unix       - - y -     1 anvil
scache     unix       - - y -     1 scache
postlog    unix-dgram n - n -     1 postlogd
"""

# What the base configuration has in common with any server's; all else of it is what keeps a Postfix in its sandbox.
_ANY_SERVERS = (
    *("compatibility_level", "myhostname", "mydestination", "mynetworks"),
    *("alias_maps", "alias_database", "append_dot_mydomain", "biff"),
)

# Below the queue folder, mail_owner's alone; postfix-files(5) has the list.
_PRIVATE_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("private", "saved", "trace"),
)


@dataclass(frozen=True)
class Programs:
    """Where Postfix's programs are. *libraries*: what the loader must be told where they were unpacked."""

    commands: Path
    daemons: Path
    libraries: Optional[Path]


def find_programs() -> Programs:
    """Return an installed Postfix's programs, else the newest unpacked one's. Raises SandboxError if none."""
    if Path("/usr/sbin/postconf").exists():
        # -c: the compiled-in defaults are asked for, and the system's main.cf stays unread.
        command = ["/usr/sbin/postconf", "-c", "/nonexistent", "-dh", "command_directory", "daemon_directory"]
        commands, daemons = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).split()
        return Programs(Path(commands), Path(daemons), None)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatepost"
    unpacked = sorted(cache.glob("postfix-*"), key=lambda folder: folder.stat().st_mtime)
    if not unpacked:
        raise SandboxError(f"no /usr/sbin/postconf and no {cache}/postfix-*: run packaging/fetch-postfix")
    usr = unpacked[-1] / "usr"
    return Programs(usr / "sbin", usr / "lib/postfix/sbin", usr / "lib/postfix")


def accounts() -> tuple[str, str]:
    """Return mail_owner and setgid_group: postfix and postdrop, or uucp and news where these are missing.

    Postfix insists on an unprivileged owner and group, different from each other and from default_privs
    (nobody). uucp and news are in base-passwd: every Debian system has them, and nothing runs as them now.
    """
    try:
        return pwd.getpwnam("postfix").pw_name, grp.getgrnam("postdrop").gr_name
    except KeyError:
        return "uucp", "news"


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on, and that no other process here was given of late.

    Below those that the kernel gives to outgoing connections (ip_local_port_range): one of them could take it.
    """
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            mark = socket.socket(socket.AF_UNIX)
            mark.bind(f"\0gatepost-free-port-{port}")
            _given.append(mark)
            return port


_given: deque[socket.socket] = deque(maxlen=64)
"""What marks ports as given until they are used: two Postfixes of one user can listen on the same one."""


@contextlib.contextmanager
def temporary_root() -> Iterator[Path]:
    """Make a short-named folder that every user can traverse, and delete it in the end.

    Postfix drops root before it opens some files, so a 0700 folder, as TemporaryDirectory's or pytest's, will
    not do; and the path of a Unix socket has 107 octets at most.
    """
    root = Path(tempfile.mkdtemp(prefix="gatepost-"))
    try:
        root.chmod(0o755)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _logical_lines(text: str) -> Iterator[str]:
    """Yield the entries of a main.cf or master.cf: without comments, continuation lines joined."""
    entry = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace():
            if entry:
                yield entry
            entry = ""
        entry += line if not entry else "\n" + line
    if entry:
        yield entry


def _parameters(text: str) -> dict[str, str]:
    parameters = {}
    for line in _logical_lines(text):
        name, equals, value = line.partition("=")
        if not equals:
            raise SandboxError(f"main.cf: not `name = value`: {line}")
        parameters[name.strip()] = value.strip()
    return parameters


def _services(text: str) -> dict[tuple[str, str], str]:
    """Return the entries of a master.cf by name and type, without those two fields."""
    services = {}
    for line in _logical_lines(text):
        fields = line.split(None, 2)
        if len(fields) < 3:
            raise SandboxError(f"master.cf: not a service: {line}")
        services[fields[0], fields[1]] = fields[2]
    return services


def _without(main_cf: str, names: Container[str]) -> str:
    """Return a main.cf less the parameters *names*; all other lines as they stand, comments too."""
    lines, dropped = [], False
    for line in main_cf.splitlines():
        if line[:1].strip() and not line.startswith("#"):
            dropped = line.partition("=")[0].strip() in names
        if not dropped:
            lines.append(f"{line}\n")
    return "".join(lines)


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _make_folder(folder: Path, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(mode)
    os.chown(folder, *owner)


class Postfix:
    """A Postfix of its own below *root*, made if missing, which all can traverse (see temporary_root).

    main_cf: lines of a main.cf, which replace those of the base configuration (postconf -n shows the result).
    master_cf: lines of a master.cf; a service of the same name and type replaces the base one. `smtp inet` is
    the smtpd that listens at *smtp*, so that a fragment reads as it would in /etc/postfix.
    whole: the two are a server's whole files, kept as they stand, comments too; what keeps Postfix in the sandbox is
    appended.
    A context manager: start() on entry, stop() on exit.
    """

    def __init__(
        self,
        root: Path,
        *,
        main_cf: str = "",
        master_cf: str = "",
        myhostname: str = "mail.contoso.com",
        smtp_port: Optional[int] = None,
        whole: bool = False,
    ) -> None:
        self.root = root
        self.config_directory = root / "etc"
        self.queue_directory = root / "spool"
        self.mailboxes = root / "mail"
        """Where local(8) delivers: one mbox a user."""
        self.forward_files = root / "forward"
        """The .forward file of user bob is forward/bob, owned by bob or root."""
        self.log_file = root / "maillog"
        self._log = LogFile(self.log_file, "Postfix", self._ended)
        self.smtp = ("127.0.0.1", smtp_port or free_port())
        owner, setgid_group = accounts()
        account = pwd.getpwnam(owner)
        self.owner = (account.pw_uid, account.pw_gid)
        """User and group ID of mail_owner: what smtpd and cleanup are when they open a socket."""
        self._setgid = grp.getgrnam(setgid_group).gr_gid
        self._programs = find_programs()
        base = self._base(myhostname, owner, setgid_group)
        self._main_cf, self._master_cf = (
            self._whole(base, main_cf, master_cf) if whole else self._merged(base, main_cf, master_cf)
        )
        self._master: Optional[subprocess.Popen[bytes]] = None

    def _base(self, myhostname: str, owner: str, setgid_group: str) -> dict[str, str]:
        # master(8) and sendmail(1) hand down only what is named here.
        loader = f" LD_LIBRARY_PATH={self._programs.libraries}" if self._programs.libraries else ""
        return {
            "compatibility_level": "3.6",
            "command_directory": str(self._programs.commands),
            "daemon_directory": str(self._programs.daemons),
            "shlib_directory": str(self._programs.libraries or "/usr/lib/postfix"),
            "meta_directory": str(self.config_directory),
            "queue_directory": str(self.queue_directory),
            "data_directory": str(self.root / "data"),
            "import_environment": f"MAIL_CONFIG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME{loader}",
            "export_environment": f"MAIL_CONFIG TZ LANG=C{loader}",
            "mail_owner": owner,
            "setgid_group": setgid_group,
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.root),
            "myhostname": myhostname,
            "mydestination": "$myhostname, localhost",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "smtp_dns_support_level": "disabled",
            "smtpd_peername_lookup": "no",
            "alias_maps": "",
            "alias_database": "",
            "mail_spool_directory": str(self.mailboxes),
            "forward_path": f"{self.forward_files}/$user",
            "biff": "no",
            "append_dot_mydomain": "no",
            "smtpd_error_sleep_time": "0",
            "queue_run_delay": "2s",
            "minimal_backoff_time": "2s",
            "maximal_backoff_time": "4s",
            "transport_retry_time": "2s",
        }

    def _whole(self, base: dict[str, str], main_cf: str, master_cf: str) -> tuple[str, str]:
        private = {name: value for name, value in base.items() if name not in _ANY_SERVERS}
        private.update({"inet_interfaces": self.smtp[0], "smtpd_authorized_xclient_hosts": "127.0.0.0/8"})
        lines = "".join(f"{name} = {value}\n" for name, value in private.items())
        master_cf = re.sub(r"(?m)^smtp(?=[ \t]+inet\b)", str(self.smtp[1]), master_cf)
        return f"{_without(main_cf, private)}\n# The sandbox\n{lines}", master_cf

    def _merged(self, base: dict[str, str], main_cf: str, master_cf: str) -> tuple[str, str]:
        parameters = {**base, **_parameters(main_cf)}
        lines = []
        for (name, kind), rest in {**_services(_MASTER_CF), **_services(master_cf)}.items():
            listen = f"{self.smtp[0]}:{self.smtp[1]}" if (name, kind) == ("smtp", "inet") else name
            lines.append(f"{listen} {kind} {rest}\n")
        return "".join(f"{name} = {value}\n" for name, value in parameters.items()), "".join(lines)

    def _ended(self) -> bool:
        return self._master is not None and self._master.poll() is not None

    def __enter__(self) -> Postfix:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.stop()

    # Starting and stopping

    def start(self) -> None:
        """Write the configuration and start; return when every service is listening. Raises SandboxError."""
        if os.getuid() != 0:
            raise SandboxError("a chrooted Postfix can only be run by root")
        self.prepare()
        self._check_configuration()
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise

    def prepare(self) -> None:
        """Write the configuration and make folders, so that its commands can be run without starting it."""
        self._make_folders()
        self._write_configuration()

    def _launch(self) -> None:
        start = len(self.log())
        # Until its own log service runs, master(8) would tell only syslog what keeps it from starting.
        early_log = self.root / "early.log"
        early_log.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as early:
            early.setblocking(False)
            early.bind(str(early_log))
            self._master = subprocess.Popen(
                # A Postfix must not outlive a demo or a test that is killed.
                ["setpriv", "--pdeathsig", "TERM", str(self._programs.daemons / "master")],
                env={**self.environment, "POSTLOG_SERVICE": str(early_log)},
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                self.wait_for_log(r"master\[\d+\]: daemon started", start=start)
            except SandboxError as error:
                with contextlib.suppress(BlockingIOError):
                    raise SandboxError(f"{early.recv(4096).decode(errors='replace')}\n{error}") from error
                raise

    def stop(self) -> None:
        """End every process of this Postfix, at once (mail stays in the queue); return when they are gone."""
        if self._master is None:
            return
        master, self._master = self._master, None
        master.terminate()  # master(8) passes it on to its process group
        deadline = time.monotonic() + _STOP_S
        try:
            master.wait(_STOP_S)
            while self._group(master.pid) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._group(master.pid):
                os.killpg(master.pid, signal.SIGKILL)
            master.wait()

    def reload(self) -> None:
        """Make Postfix read its configuration again, as `postfix reload` does; return when it has."""
        if self._master is None:
            raise SandboxError("reload: Postfix is not running")
        self._age_main_cf()
        start = len(self.log())
        before = self._queue_managers(self._master.pid)
        self._master.send_signal(signal.SIGHUP)
        self.wait_for_log(r"master\[\d+\]: reload ", start=start)
        # A message that the old qmgr takes on before it ends would lie there until something wakes the new one.
        deadline = time.monotonic() + _STOP_S
        while before & self._queue_managers(self._master.pid):
            if time.monotonic() > deadline:
                raise SandboxError(f"reload: the old qmgr goes on{self._log.tail()}")
            time.sleep(POLL_S)

    def _queue_managers(self, master: int) -> set[int]:
        return {process for process in self._group(master) if _name(process) == "qmgr"}

    @staticmethod
    def _group(leader: int) -> list[int]:
        """Return the living processes of a process group; a zombie whose parent does not care is not one."""
        living = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _parent, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == leader and state not in "ZX":
                living.append(int(stat.parent.name))
        return living

    def _make_folders(self) -> None:
        for folder in [self.root, self.config_directory, self.queue_directory, self.forward_files]:
            _make_folder(folder, 0o755)
        for folder in self.root.resolve().parents:
            if not folder.stat().st_mode & 0o001:
                raise SandboxError(f"{folder}: Postfix must be able to traverse it (see temporary_root)")
        _make_folder(self.mailboxes, 0o1777)
        _make_folder(self.root / "data", 0o700, self.owner)
        for name in _PRIVATE_QUEUES:
            _make_folder(self.queue_directory / name, 0o700, self.owner)
        _make_folder(self.queue_directory / "maildrop", 0o730, (self.owner[0], self._setgid))
        _make_folder(self.queue_directory / "public", 0o710, (self.owner[0], self._setgid))
        _make_folder(self.queue_directory / "pid", 0o755)
        # What Debian's start script copies into the chroot, as far as loopback needs it.
        _make_folder(self.queue_directory / "etc", 0o755)
        for name in ("hosts", "services", "nsswitch.conf", "localtime"):
            if Path("/etc", name).exists():
                shutil.copyfile(Path("/etc", name), self.queue_directory / "etc" / name)
        (self.queue_directory / "etc/resolv.conf").write_text("")

    def _write_configuration(self) -> None:
        (self.config_directory / "main.cf").write_text(self._main_cf)
        (self.config_directory / "master.cf").write_text(self._master_cf)
        self._age_main_cf()
        # The built-in table types only.
        (self.config_directory / "dynamicmaps.cf").write_text("")
        # For `postfix check`; in Debian's package it lies in /etc/postfix.
        installed = self._programs.libraries.parents[2] if self._programs.libraries else Path("/")
        if (installed / "etc/postfix/postfix-files").exists():
            shutil.copy(installed / "etc/postfix/postfix-files", self.config_directory)

    def _age_main_cf(self) -> None:
        """Set main.cf's time back: every program waits for a file changed within two seconds to settle."""
        minute_ago = time.time() - 60
        os.utime(self.config_directory / "main.cf", (minute_ago, minute_ago))

    def _check_configuration(self) -> None:
        """Refuse what Postfix would only log, or die of in its log: misspelled parameters, wrong values."""
        complaints = self._command("postconf", "-n").stderr + self._command("postsuper").stderr
        if complaints:
            raise SandboxError(f"main.cf:\n{complaints.decode(errors='replace')}{self._log.tail()}")

    def program(self, name: str) -> Path:
        """Return one of this Postfix's commands, to be run with `environment`."""
        return self._programs.commands / name

    @property
    def environment(self) -> dict[str, str]:
        """What its commands need to find this Postfix."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MAIL_CONFIG": str(self.config_directory)}
        if self._programs.libraries:
            environment["LD_LIBRARY_PATH"] = str(self._programs.libraries)
        return environment

    def _command(self, name: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        # In the queue folder, so that a socket's relative path means what it means to a chrooted daemon.
        return subprocess.run(
            [str(self.program(name)), *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=self.queue_directory,
            timeout=60,
            check=False,
        )

    def _checked(self, name: str, *arguments: str, stdin: bytes = b"") -> str:
        done = self._command(name, *arguments, stdin=stdin)
        if done.returncode:
            told = (done.stderr + done.stdout).decode(errors="replace")
            command = " ".join([name, *arguments])
            raise SandboxError(f"{command}: exit status {done.returncode}: {told}{self._log.tail()}")
        return done.stdout.decode(errors="surrogateescape")

    # The log

    def log(self) -> str:
        """Return the whole mail log."""
        return self._log.text()

    def wait_for_log(self, pattern: str, timeout_s: float = 20, *, start: int = 0) -> re.Match[str]:
        """Return the first match of *pattern* after *start* characters of the log; see LogFile.wait_for."""
        return self._log.wait_for(pattern, timeout_s, start)

    # The queue and other commands

    def queue(self) -> list[dict[str, object]]:
        """Return the mail queue as `postqueue -j` shows it: a dictionary a message."""
        return [json.loads(line) for line in self._checked("postqueue", "-j").splitlines()]

    def flush(self) -> None:
        """Try all deferred mail again (`postqueue -f`); returns before that has happened."""
        self._checked("postqueue", "-f")

    def release(self, queue_id: str) -> None:
        """Let a message that is held go on (`postsuper -H`)."""
        self._checked("postsuper", "-H", queue_id)

    def wait_until_idle(self, timeout_s: float = 20) -> None:
        """Return when no mail is left but what is deferred or held. Raises SandboxError."""
        deadline = time.monotonic() + timeout_s
        while True:
            busy = [mail for mail in self.queue() if mail["queue_name"] not in ("deferred", "hold")]
            if not busy:
                return
            if time.monotonic() > deadline:
                raise SandboxError(f"mail still moving after {timeout_s} s: {busy}{self._log.tail()}")
            time.sleep(POLL_S)

    def postmap_query(self, key: str, table: str) -> Optional[str]:
        """Return what *table* (`type:name`) has for *key*, None if nothing.

        A Unix socket's relative path is taken from the queue folder, as daemons take it.
        Raises SandboxError if the look-up fails.
        """
        done = self._command("postmap", "-q", key, table)
        if done.stderr:
            told = done.stderr.decode(errors="replace")
            raise SandboxError(f"postmap -q {key} {table}: {told}{self._log.tail()}")
        return done.stdout.decode(errors="surrogateescape").rstrip("\n") if done.returncode == 0 else None

    def postmap(self, table: Path) -> str:
        """Index the text file *table* and return its name for main.cf, such as `hash:/path`."""
        kind = self._checked("postconf", "-h", "default_database_type").strip()
        self._checked("postmap", f"{kind}:{table}")
        return f"{kind}:{table}"

    def sendmail(self, arguments: list[str], message: bytes) -> None:
        """Submit *message* by sendmail(1), as a local program does."""
        self._checked("sendmail", *arguments, stdin=message)

    def postconf(self, *arguments: str) -> str:
        """Return what postconf(1) prints; `-e name=value` changes main.cf for the next reload()."""
        return self._checked("postconf", *arguments)
