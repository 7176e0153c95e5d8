# SPDX-License-Identifier: GPL-3.0-or-later
"""The site: three servers, each a real Postfix and gatepost with a folder of examples/postfix as configuration.

hub: relay hub and forwarder in one, with the egress hop. upstream: a hub in front of Exchange Online, known there by
its address. policy: policyd alone. Each state folder is on a small file system of its own; each gatepost has a clock of
its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

from gatepost.admin.authority import Credentials
from gatepost.admin.logfile import SandboxError
from gatepost.admin.stage import Stage
from gatepost.service.exporter import collect
from gatepost.srs import Keys
from soak.clock import Clock

EXAMPLES = Path(__file__).parents[2] / "examples/postfix"
DISK = "64m"
FORWARDED_TO = "fwd.home@example.com"
GONE = "gone.home@example.com"
REFUSED_THERE = "550 5.1.1 No such user"

_SERVER = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x}, {bounces@contoso.com = x} }
local_header_rewrite_clients =
notify_classes =
enable_long_queue_ids = yes
smtpd_hard_error_limit = 1000
smtpd_client_connection_count_limit = 0
recipient_delimiter = +
"""
_RELAYING = """
relay_clientcerts = texthash:/etc/postfix/relay_clientcerts
smtpd_relay_restrictions = permit_mynetworks, permit_tls_clientcerts, reject_unauth_destination
"""
_CRM = """
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "crm.contoso.com"
"""
_LEDGER = "\n[ledger]\nrequired = true\n"


def _hub(text: str) -> str:
    return text.replace("\n[relay]", f"{_CRM}\n[relay]")


def _enforced(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


class Host(Stage):
    """One server. name: the example's folder. lock: held by whoever changes
    its files or needs them right."""

    def __init__(self, name: str, root: Path, edit: Callable[[str], str], gatepost: Sequence[str], after: str) -> None:
        self.name = name
        disk = root / "disk"
        root.mkdir(parents=True)
        self.clock = Clock(root)
        state = disk / "state"
        super().__init__(
            EXAMPLES / name,
            root,
            before=_SERVER,
            after=after,
            configuration=lambda text: edit(text).replace(str(root / "state"), str(state)) + _LEDGER,
            refuse={GONE: REFUSED_THERE},
            tls=True,
            gatepost=gatepost,
            replacing={
                "hash:/etc/postfix/virtual": f"inline:{{ {{fwd@contoso.com = {FORWARDED_TO}}}, "
                f"{{gone@contoso.com = {GONE}}} }}"
            },
        )
        self.inside.refuse[GONE] = REFUSED_THERE
        self.state_directory = state
        self.disk = disk
        self.lock = threading.Lock()
        self.text = self.configuration.read_text()
        """The configuration as it should be."""
        self.crm = self.authority.issue("crm.contoso.com")
        self.san = self.authority.issue("CRM System 1", ["crm.contoso.com"])
        self._prepare_certificates()
        self._keys: dict[bytes, None] = {}
        self._starting = False

    def _prepare_certificates(self) -> None:
        folder = self.configuration.parent / "certificates"
        folder.mkdir()
        shutil.copy(self.san.certificate, folder)
        table = self.postfix.config_directory / "relay_clientcerts"
        table.write_text("".join(f"{item.fingerprint} crm\n" for item in (self.crm, self.san)))

    def certificate(self, name: str) -> Credentials:
        return {"crm": self.crm, "san": self.san}[name]

    def _command(self) -> list[str]:
        settings = [f"{name}={value}" for name, value in self.clock.environment.items()]
        return ["env", *settings, *super()._command()]

    def keys(self) -> Keys:
        """Return all keys that this host ever had, as far as this was called in time."""
        with contextlib.suppress(OSError):
            for line in (self.state_directory / "srs.secret").read_bytes().splitlines():
                if line and not line.startswith(b"#"):
                    self._keys.setdefault(line)
        return Keys(list(self._keys))

    def workers(self, daemon: str) -> list[int]:
        """Return the processes of *daemon* that are under way, as its series files tell.

        A file has the supervisor's number until its worker begins, then that of one that is gone until it is put away.
        """
        with contextlib.suppress(OSError):
            found = collect(self.state_directory / "metrics").processes
            children = descendants(self.pid)[1:]
            return [process.pid for process in found if process.daemon == daemon and process.pid in children]
        return []

    def kill_supervisor(self) -> None:
        """Kill the supervisor and start it anew, as systemd would: what is left of it then is killed, too."""
        rest = [pid for pid in descendants(self.pid) if pid != self.pid]
        process = self._gatepost
        assert process
        process.kill()
        process.wait()
        for pid in rest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._starting = True
        try:
            self._start_until_ready()
        finally:
            self._starting = False

    def _start_until_ready(self) -> None:
        """Start gatepost, again where it ends, as `Restart=` has it. Raises SandboxError."""
        self.launch_gatepost()
        for attempts_left in reversed(range(5)):
            try:
                self.wait_until_ready()
                return
            except SandboxError:
                if not attempts_left:
                    raise
                if self._gatepost and self._gatepost.poll() is not None:
                    self.launch_gatepost()

    def hang_up(self) -> None:
        """Send SIGHUP, unless gatepost is being started: Python itself takes no signals yet, and systemd sends none."""
        if not self._starting:
            os.kill(self.pid, signal.SIGHUP)

    def __enter__(self) -> Host:
        self.disk.mkdir()
        self.mounted = _mount("-t", "tmpfs", "-o", f"size={DISK}", "gatepost-soak", str(self.disk))
        try:
            super().__enter__()
        except BaseException:
            self._unmount()
            raise
        self.keys()
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            super().__exit__(None, None, None)
        finally:
            self._unmount()

    def _unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Have *folder* read-only for whoever opens a file in it."""
    if not _mount("--bind", str(folder), str(folder)):
        yield
        return
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextlib.contextmanager
def hidden(folder: Path) -> Iterator[None]:
    """Have an empty folder, read-only, in the place of *folder*."""
    if not _mount("-t", "tmpfs", "-o", "ro,size=4k", "gatepost-soak", str(folder)):
        yield
        return
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def descendants(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def site(root: Path) -> list[Host]:
    """Return the servers, not started yet."""
    return [
        Host("forwarder", root / "hub", _hub, ["run"], _RELAYING),
        Host("exchange-online", root / "upstream", _enforced, ["run"], ""),
        Host("policy-only", root / "policy", _enforced, ["policyd"], ""),
    ]
