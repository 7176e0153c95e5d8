# SPDX-License-Identifier: GPL-3.0-or-later
"""Minimal Debian systems for tests of packages: made by debootstrap once, copied for each test, run in namespaces.

Processes, mounts and, unless it is asked for, the network of a command are its own: nothing is left when it ends, not
even where it fails. Nothing is started by being installed (policy-rc.d), but where systemd was booted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SUITES = ("bookworm", "trixie")
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
_WEEK_S = 7 * 86400
_ENTER = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
os.chroot(sys.argv[1])
os.chdir("/")
os.execv("/usr/bin/env", ["env", *sys.argv[2:]])
"""
_BOOT = """
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=chroot chroot . /lib/systemd/systemd --log-target=console
"""
_SCRIPT_UNIT = """
[Unit]
After=multi-user.target
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
Environment=DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
ExecStart=/bin/sh -e /root/script
StandardOutput=file:/root/printed
StandardError=inherit
"""
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    **{name: value for name, value in os.environ.items() if name.lower() in ("http_proxy", "https_proxy", "no_proxy")},
}


class Chroot:
    """A Debian system in *root*; *archives* keeps the packages that apt downloads."""

    def __init__(self, root: Path, archives: Path) -> None:
        self.root = root
        self._archives = archives

    def run(self, *command: str, network: bool = False, status: int = 0, timeout_s: float = 300.0) -> str:
        """Run *command* as root, with loopback alone or the host's *network*; return what it prints, errors included.

        It must end with *status*, or the test fails with what it printed.
        """
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={self.root}/proc"]
        terminals = ["sh", "-ec", 'mount -t devpts devpts "$0/dev/pts"; exec "$@"', str(self.root)]
        enter = ["chroot", str(self.root)] if network else [sys.executable, "-I", "-c", _ENTER, str(self.root)]
        done = subprocess.run(
            [*namespaces, *([] if network else ["--net"]), *terminals, *enter, *command],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == status, f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}"
        return done.stdout

    def shell(self, script: str, status: int = 0) -> str:
        """Run *script* in sh as `run` does."""
        return self.run("sh", "-ec", script, status=status)

    def boot(self, script: str, timeout_s: float = 180.0) -> str:
        """Boot systemd, run *script* in sh -e when all is started, shut down; return what the script prints.

        The test is skipped where systemd can't be booted, and fails where the script does.
        """
        units = self.root / "etc/systemd/system"
        (units / "script.service").write_text(_SCRIPT_UNIT)
        wanted = units / "multi-user.target.wants/script.service"
        wanted.symlink_to("../script.service")
        (self.root / "root/script").write_text(script + "\necho done\n")
        printed = self.root / "root/printed"
        printed.unlink(missing_ok=True)
        namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", "--cgroup")
        with (self.root / "root/console").open("w+") as console, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["unshare", *namespaces, "sh", "-ec", _BOOT, "sh", str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                timeout=timeout_s,
            )
        wanted.unlink()
        if not printed.exists():
            pytest.skip(f"systemd cannot be booted here: {(self.root / 'root/console').read_text()[-500:]}")
        text = printed.read_text()
        assert text.endswith("done\n"), text
        return text

    def apt(self, *arguments: str) -> str:
        """Run apt-get, without recommended packages and questions; packages come from the cache if they are there."""
        own = self.root / "var/cache/apt/archives"
        _share(self._archives, own)
        printed = self.run("apt-get", "-qq", "--yes", "--no-install-recommends", *arguments, network=True)
        _share(own, self._archives)
        return printed


@contextlib.contextmanager
def chroot(suite: str) -> Iterator[Chroot]:
    """Yield a fresh minimal Debian *suite*; the test is skipped where none can be made."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatepost"
    archives = cache / f"apt-{suite}"
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{suite}.", dir=cache) as folder:
        with _locked(archives):
            base = _base(cache / f"chroot-{suite}", suite)
            subprocess.run(["cp", "-a", "--reflink=auto", str(base), f"{folder}/root"], check=True)
        yield Chroot(Path(folder) / "root", archives)


def _base(base: Path, suite: str) -> Path:
    """Return the tree that is copied, made anew each week: its package lists grow old."""
    _skip_unless_allowed()
    if base.exists() and time.time() - base.stat().st_mtime < _WEEK_S:
        return base
    with tempfile.TemporaryDirectory(prefix="debootstrap.", dir=base.parent) as folder:
        draft = Path(folder) / "root"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", suite, str(draft), MIRROR], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"debootstrap of {suite}: {(made.stdout + made.stderr)[-500:]}")
        _take_over(draft)
        shutil.rmtree(base, ignore_errors=True)
        draft.rename(base)
    os.utime(base)
    return base


def _skip_unless_allowed() -> None:
    if os.geteuid():
        pytest.skip("only root can enter a chroot")
    if not shutil.which("debootstrap"):
        pytest.skip("debootstrap is not installed")
    probe = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--net", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"namespaces are not allowed here: {probe.stderr.strip()}")


def _take_over(root: Path) -> None:
    """Give a new tree the host's way into the network, and make dpkg fast and quiet."""
    for name in ("resolv.conf", "hosts"):
        (root / "etc" / name).write_bytes(Path("/etc", name).read_bytes())
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout.splitlines()
    settings = [line for line in dump if line.startswith("Acquire::") and "proxy" in line.lower() and '""' not in line]
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copy(authorities, root / "etc/apt/host.crt")
        settings.append('Acquire::https::CaInfo "/etc/apt/host.crt";')
    (root / "etc/apt/apt.conf.d/host").write_text("\n".join([*settings, 'Dpkg::Use-Pty "0";', ""]))
    (root / "etc/dpkg/dpkg.cfg.d/fast").write_text("force-unsafe-io\npath-exclude=/usr/share/locale/*\n")
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\n[ -d /run/systemd/system ] || exit 101\n")
    policy.chmod(0o755)


def _share(source: Path, target: Path) -> None:
    """Have the packages in *source* in *target* as well: the same files, by links."""
    for package in source.glob("*.deb"):
        with contextlib.suppress(FileExistsError):
            os.link(package, target / package.name)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
