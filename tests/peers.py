# SPDX-License-Identifier: GPL-3.0-or-later
"""Other mail programs as peers of ours: those that packaging/fetch-peers has unpacked, run without being installed."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import BufferedRWPair
from pathlib import Path
from typing import Optional
from urllib.parse import unquote_to_bytes

from daemonprocess import free_ports

from gatepost.admin.sandbox import Postfix, find_programs, free_port

DAY_S = 86400
TIMEOUT_S = 20.0

_MAIL_SRS = """
my $now;
BEGIN { $now = shift @ARGV; *CORE::GLOBAL::time = sub () { $now } }
use Mail::SRS;
my ($secret, $separator, $length, $alias) = @ARGV;
my $srs = Mail::SRS->new(Secret => $secret, Separator => $separator, HashLength => $length);
while (<STDIN>) {
    chomp;
    my ($way, $address) = split / /, $_, 2;
    my $answer = eval { $way eq "forward" ? $srs->forward($address, $alias) : $srs->reverse($address) };
    print defined $answer ? "$answer\\n" : "\\n";
}
"""


def tree(name: str = "peers") -> Path:
    """Return the folder of the unpacked programs. Raises FileNotFoundError if there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatepost"
    folders = sorted(cache.glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        raise FileNotFoundError(f"no {cache}/{name}-*: run packaging/fetch-peers")
    return folders[-1]


class MailSrs:
    """Mail::SRS of Perl with a clock that stands at noon of *day* (days since 1970-01-01)."""

    def __init__(self, secret: str, srs_domain: str, day: int, separator: str = "=", hash_length: int = 4) -> None:
        now = str(day * DAY_S + DAY_S // 2)
        self._command = ["perl", "-e", _MAIL_SRS, now, secret, separator, str(hash_length), srs_domain]

    def __enter__(self) -> MailSrs:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def forward(self, addresses: Sequence[str]) -> list[Optional[str]]:
        """Return the SRS address for each of *addresses*, None where it is refused."""
        return self._ask("forward", addresses)

    def reverse(self, addresses: Sequence[str]) -> list[Optional[str]]:
        """Return what each SRS address stands for, None where it is refused."""
        return self._ask("reverse", addresses)

    def _ask(self, way: str, addresses: Sequence[str]) -> list[Optional[str]]:
        questions = "".join(f"{way} {address}\n" for address in addresses).encode()
        answers = subprocess.run(self._command, input=questions, stdout=subprocess.PIPE, timeout=60, check=True).stdout
        lines = answers.decode().split("\n")[:-1]
        assert len(lines) == len(addresses), answers
        return [line or None for line in lines]


class Postsrsd:
    """postsrsd 1.10 on two ports of its own, under faketime from noon of *day* on. A context manager."""

    def __init__(self, secret: str, srs_domain: str, day: int, separator: str = "=", hash_length: int = 4) -> None:
        self._secret = secret
        self._ports: dict[str, int] = {}
        self._arguments = [
            # Not the wrapper faketime: it refuses to start where a semaphore is left of an old process of its number.
            *("env", "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1"),
            time.strftime("FAKETIME=@%Y-%m-%d 12:00:00", time.gmtime(day * DAY_S)),
            *(str(tree() / "usr/sbin/postsrsd"), "-4", "-l", "127.0.0.1", "-d", srs_domain, "-a", separator),
            *("-n", str(hash_length), "-N", str(hash_length)),
        ]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Postsrsd:
        for attempt in range(3):
            try:
                self._start()
                break
            except AssertionError:  # it has ended: a port that was free may be taken by the time that it wants it
                if attempt == 2:
                    raise
        return self

    def _start(self) -> None:
        self._ports = dict(zip(("forward", "reverse"), free_ports(2)))
        ports = ["-f", str(self._ports["forward"]), "-r", str(self._ports["reverse"])]
        with contextlib.ExitStack() as stack:
            secret = stack.enter_context(tempfile.NamedTemporaryFile("w"))
            secret.write(f"{self._secret}\n")
            secret.flush()
            daemon = start([*self._arguments, *ports, f"-s{secret.name}"])
            stack.callback(_forget_faketime, daemon.pid)
            stack.callback(stop, daemon)
            for port in self._ports.values():
                wait_for_port(port, daemon)
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forward(self, addresses: Sequence[str]) -> list[Optional[str]]:
        """Return the SRS address for each of *addresses*, None where postsrsd has none."""
        return self._ask("forward", addresses)

    def reverse(self, addresses: Sequence[str]) -> list[Optional[str]]:
        """Return what each SRS address stands for, None where it is refused."""
        return self._ask("reverse", addresses)

    def _ask(self, way: str, addresses: Sequence[str]) -> list[Optional[str]]:
        port = self._ports[way]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as peer, peer.makefile("rwb") as stream:
            return [self._get(stream, address) for address in addresses]

    @staticmethod
    def _get(stream: BufferedRWPair, address: str) -> Optional[str]:
        # tcp_table(5): %XX for what is no printable ASCII, and for the percent sign.
        stream.write(b"get " + re.sub(rb"[^!-$&-~]", lambda found: b"%%%02X" % ord(found[0]), address.encode()) + b"\n")
        stream.flush()
        code, _, text = stream.readline().rstrip(b"\n").partition(b" ")
        if code != b"200":
            assert code == b"500", (address, code, text)
            return None
        return unquote_to_bytes(text).decode()


def _forget_faketime(pid: int) -> None:
    """Remove what libfaketime leaves of a process."""
    for name in (f"sem.faketime_sem_{pid}", f"faketime_shm_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)


class Sendmail:
    """Sendmail in address test mode, `sendmail -bt`, with its own sendmail.cf in *root*. A context manager.

    maps: K lines, rulesets: S and R lines. root: below folders that root alone can write to, as Sendmail wants for the
    socket of a map; /tmp is none. For root only.
    """

    _CF = """V10/Berkeley
Djmail.contoso.com
O DontProbeInterfaces=true
O QueueDirectory=@ROOT@
Mlocal, P=/bin/false, F=l, A=false
Mprog, P=/bin/false, F=l, A=false
"""

    def __init__(self, root: Path, maps: str, rulesets: str) -> None:
        self._root = root
        (root / "sendmail.cf").write_text(f"{self._CF.replace('@ROOT@', str(root))}{maps}{rulesets}")
        (root / "etc").mkdir()
        (root / "etc/hosts").write_text("127.0.0.1 mail.contoso.com localhost\n")
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Sendmail:
        program = str(tree() / "usr/libexec/sendmail/sendmail")
        command = _overlaid([program, "-C", str(self._root / "sendmail.cf"), "-bt"], etc=[self._root / "etc"])
        # A host name without a dot makes it wait for DNS.
        uts = ["unshare", "--uts", "sh", "-c", 'hostname mail.contoso.com; exec "$@"', "sh"]
        self._process = subprocess.Popen([*uts, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.communicate(timeout=TIMEOUT_S)

    def look_up(self, map_name: str, key: str) -> str:
        """Return what `/map` says: `returns VALUE (0)`, or `no match (STATUS)`, a status of sysexits.h."""
        return self._ask(f"/map {map_name} {key}").partition(f"({key}) ")[2]

    def rewrite(self, ruleset: str, address: str) -> tuple[str, int]:
        """Return what *ruleset* makes of *address*, and its status of sysexits.h."""
        answer = self._ask(f"{ruleset} {address}")
        returned = re.findall(rf"(?m)^{ruleset} +returns: (.*)$", answer)[-1]
        status = re.search(r"status (\d+)$", answer)
        quoted = re.split(r'("(?:[^"\\]|\\.)*")', returned)  # its tokens stand apart, a quoted string is one
        joined = "".join(part if part.startswith('"') else part.replace(" ", "") for part in quoted)
        return joined, int(status[1]) if status else 0

    def _ask(self, line: str) -> str:
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        """Return what it prints until it prompts."""
        assert self._process
        assert self._process.stdout
        text = b"\n"
        while not text.endswith(b"\n> "):
            more = os.read(self._process.stdout.fileno(), 4096)
            assert more, text
            text += more
        return text[:-3].decode()


class Dovecot:
    """Dovecot with Pigeonhole below *root*, made here: takes mail by LMTP at *port*, and redirects by sendmail(1).

    scripts: the Sieve script of each user. What is kept for user bob is in home/bob/mail/new.

    It runs as if installed, in a mount namespace that lays the unpacked folders over /usr, and over /etc the
    configuration of the Postfix that mail is given to: Dovecot has many paths compiled in. For root only.
    """

    def __init__(self, root: Path, scripts: Mapping[str, str]) -> None:
        self.root = root
        self.port = free_port()
        self.log_file = root / "log"
        self._scripts = scripts
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self, postfix: Postfix) -> None:
        """Start it beside *postfix*, which is running; return when it takes mail."""
        account = pwd.getpwnam("games")
        mail_gid = (postfix.queue_directory / "maildrop").stat().st_gid  # postdrop(1) without its set-gid bit
        for user, script in self._scripts.items():
            home = self.root / "home" / user
            home.mkdir(parents=True)
            os.chown(home, account.pw_uid, mail_gid)
            (home / ".dovecot.sieve").write_text(script)
        self._write_etc(postfix)
        text = f"{_DOVECOT_VERSIONS[self._version()]}{_DOVECOT}"
        for name, value in {"ROOT": self.root, "PORT": self.port, "UID": account.pw_uid, "GID": mail_gid}.items():
            text = text.replace(f"@{name}@", str(value))
        (self.root / "dovecot.conf").write_text(text)
        usr = [tree() / "usr"]
        programs = find_programs()
        if programs.libraries:
            usr.append(programs.commands.parent)
        dovecot = ["dovecot", "-F", "-c", str(self.root / "dovecot.conf")]
        self._process = start(_overlaid(dovecot, usr=usr, etc=[self.root / "etc"]))
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        if self._process:
            stop(self._process)

    def log(self) -> str:
        """Return its whole log."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    @staticmethod
    def _version() -> str:
        """Return the version's first two numbers."""
        libraries = tree() / "usr/lib/dovecot"
        command = [str(tree() / "usr/sbin/dovecot"), "--version"]
        told = subprocess.check_output(command, env={"LD_LIBRARY_PATH": str(libraries)}, text=True)
        return ".".join(told.split(".")[:2])

    def _write_etc(self, postfix: Postfix) -> None:
        """Write what is laid over /etc: Dovecot's own users, and main.cf for sendmail(1) and postdrop(1)."""
        etc = self.root / "etc"
        (etc / "postfix").mkdir(parents=True)
        users = (("dovecot", 64998), ("dovenull", 64999))
        passwd = [f"{name}:x:{number}:{number}::/:/bin/false\n" for name, number in users]
        groups = [f"{name}:x:{number}:\n" for name, number in users]
        (etc / "passwd").write_text(Path("/etc/passwd").read_text() + "".join(passwd))
        (etc / "group").write_text(Path("/etc/group").read_text() + "".join(groups))
        main_cf = (postfix.config_directory / "main.cf").read_text()
        main_cf = re.sub(r"(?m)^command_directory = .*$", "command_directory = /usr/sbin", main_cf)
        (etc / "postfix/main.cf").write_text(main_cf)
        os.utime(etc / "postfix/main.cf", (0, 0))  # programs wait for a file changed within two seconds to settle


# 2.3 and 2.4 of Dovecot name the same things differently.
_DOVECOT_VERSIONS = {
    "2.3": """
mail_location = maildir:~/mail
passdb {
  driver = static
  args = nopassword=yes
}
userdb {
  driver = static
  args = uid=@UID@ gid=@GID@ home=@ROOT@/home/%n allow_all_users=yes
}
service lmtp {
  inet_listener lmtp {
    address = 127.0.0.1
    port = @PORT@
  }
}
protocol lmtp {
  mail_plugins = sieve
}
plugin {
  sieve = ~/.dovecot.sieve
}
""",
    "2.4": """
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
mail_driver = maildir
mail_path = ~/mail
passdb static {
  fields {
    nopassword = yes
  }
}
userdb static {
  fields {
    uid = @UID@
    gid = @GID@
    home = @ROOT@/home/%{user|username}
  }
  static_allow_all_users = yes
}
service lmtp {
  inet_listener lmtp {
    listen = 127.0.0.1
    port = @PORT@
  }
}
protocol lmtp {
  mail_plugins {
    sieve = yes
  }
}
sieve_script personal {
  driver = file
  path = ~/.dovecot.sieve
}
""",
}
_DOVECOT = """
protocols = lmtp
base_dir = @ROOT@/run
state_dir = @ROOT@/state
log_path = @ROOT@/log
ssl = no
hostname = mail.contoso.com
postmaster_address = postmaster@contoso.com
first_valid_uid = 1
first_valid_gid = 1
service anvil {
  chroot =
}
"""


def _overlaid(command: Sequence[str], **layers: Sequence[Path]) -> list[str]:
    """Return *command* to be run where the folders usr and etc lie over /usr and /etc, for it alone, read-only."""
    # A chroot's root is no mount, so that it can't be made private.
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    propagation = "private" if "/" in mounts else "unchanged"
    script = "set -e; while [ $1 != -- ]; do mount -t overlay -o nosuid,lowerdir=$2 overlay $1; shift 2; done; shift; "
    arguments = [
        word for name, over in layers.items() for word in (f"/{name}", ":".join(map(str, [*over, f"/{name}"])))
    ]
    return [
        "unshare",
        "--mount",
        "--propagation",
        propagation,
        "sh",
        "-c",
        f'{script}exec "$@"',
        "sh",
        *arguments,
        "--",
        *command,
    ]


def start(command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, that ends with these tests."""
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC"}
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command],
        env={**path, **environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program that `start` has started, and all that it has started."""
    process.terminate()
    try:
        process.wait(TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(TIMEOUT_S)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when a port of 127.0.0.1 takes connections. Raises AssertionError where *process* ends before that."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), TIMEOUT_S):
            return
        assert process.poll() is None, f"{process.args!r} has ended"
        assert time.monotonic() < deadline, f"port {port}: nobody listens within {TIMEOUT_S} s"
        time.sleep(0.02)
