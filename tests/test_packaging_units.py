# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd units, their user and their folders: as systemd reads them, and as they run under it.

For the latter a minimal Debian with Postfix and gatepost's .rpm is booted in a container (systemd-nspawn).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest
from chroots import Chroot, chroot

from gatepost.service.supervisor import DRAIN_S

TOP = Path(__file__).parent.parent
UNITS = TOP / "packaging/systemd"
SERVICES = ("gatepost-milter.service", "gatepost-policyd.service", "gatepost-report-notify.service")
DAEMONS = SERVICES[:2]
SOCKETS = "var/spool/postfix/gatepost"

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change owners")


def settings(unit: str, key: str) -> list[str]:
    """Return the values of every line *key* in *unit*."""
    return re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.M)


def hardening(unit: str) -> list[str]:
    """Return the lines that confine a service, from NoNewPrivileges on, without comments."""
    lines = (UNITS / unit).read_text().partition("[Service]")[2].partition("\n[")[0].splitlines()
    return [line for line in lines[lines.index("NoNewPrivileges=yes") :] if line and not line.startswith("#")]


# As they are written


@needs_systemd
@pytest.mark.skipif(not Path("/lib/systemd/system/sysinit.target").exists(), reason="systemd has no units here")
def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/system"
    shutil.copytree("/lib/systemd/system", folder, symlinks=True, ignore_dangling_symlinks=True)
    for unit in UNITS.glob("gatepost*"):
        shutil.copy(unit, folder)
    for program in ("usr/bin/gatepost", "usr/bin/systemd-tmpfiles", "bin/sh"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    names = sorted(unit.name for unit in UNITS.glob("gatepost*"))
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", "--man=no", *names], capture_output=True, text=True
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_at_most_1_5(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", UNITS / unit],
        capture_output=True,
        text=True,
    )
    found = re.search(r"Overall exposure level for \S+ (\d+\.\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 1.5
    assert done.returncode == 0


def test_both_daemons_are_confined_alike_and_the_notification_no_less_but_for_its_sendmail() -> None:
    assert hardening(DAEMONS[0]) == hardening(DAEMONS[1])
    differing = set(hardening(DAEMONS[0])) ^ set(hardening(SERVICES[2]))
    assert differing == {
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallFilter=sched_setaffinity setpriority",
    }


@pytest.mark.parametrize("unit", DAEMONS)
def test_stopping_waits_longer_than_the_drains_of_all_kinds_of_workers(unit: str) -> None:
    kinds = 3  # milter or policyd, ledger, metrics
    assert settings(unit, "KillMode") == ["mixed"]
    assert float(settings(unit, "TimeoutStopSec")[0].rstrip("s")) > kinds * DRAIN_S


def test_every_manual_page_that_the_units_name_is_there() -> None:
    named = {
        page
        for unit in UNITS.glob("gatepost*")
        for line in settings(unit.name, "Documentation")
        for page in line.split()
    }
    manuals = (path.name.rpartition(".") for path in (TOP / "packaging/man").iterdir())
    assert named <= {f"man:{name}({section})" for name, _, section in manuals}


# The user and the folders


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The root of a system that has nothing but gatepost's user."""
    if not shutil.which("systemd-sysusers") or os.geteuid():
        pytest.skip("wants systemd-sysusers and root")
    folder = tmp_path / "usr/lib/sysusers.d"
    folder.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    shutil.copy(UNITS / "sysusers.d/gatepost.conf", folder)
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "gatepost.conf"], check=True)
    return tmp_path


def make_folders(root: Path) -> str:
    """Do what the units do before the start; return what is said about it."""
    folder = root / "usr/lib/tmpfiles.d"
    folder.mkdir(parents=True)
    shutil.copy(UNITS / "tmpfiles.d/gatepost.conf", folder)
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={root}", "gatepost.conf"], capture_output=True, text=True
    )
    return done.stderr


def test_user_has_its_state_as_home_no_shell_and_no_other_group(tree: Path) -> None:
    (user,) = (line for line in (tree / "etc/passwd").read_text().splitlines() if line.startswith("gatepost:"))
    assert user.split(":")[5:] == ["/var/lib/gatepost", "/usr/sbin/nologin"]
    assert [line.split(":")[3] for line in (tree / "etc/group").read_text().splitlines()] == [""]


def test_folder_of_the_sockets_is_for_postfix_group_alone(tree: Path) -> None:
    with (tree / "etc/group").open("a") as file:
        file.write("postfix:x:4711:\n")
    assert make_folders(tree) == ""
    status = (tree / SOCKETS).stat()
    assert (f"{status.st_mode & 0o7777:o}", status.st_gid) == ("2750", 4711)
    assert f":{status.st_uid}:" in (tree / "etc/passwd").read_text()


def test_without_postfix_nothing_is_made_in_its_place(tree: Path) -> None:
    assert "Failed to resolve group 'postfix'" in make_folders(tree)
    assert not (tree / "var/spool").exists()


# Running, under systemd as PID 1 of a container


ALONE = ("--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe")
PACKAGES = (
    "systemd-sysv postfix python3-milter python3-dnspython python3-spf python3-sqlalchemy python3-cryptography "
    "python3-prometheus-client python3-click python3-jinja2 python3-rich python3-uvloop"
)
CONFIGURATION = """
[[organization]]
name = "contoso"
enforce_from = 2099-01-01T00:00:00Z
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "this host"
sender_ip_addresses = ["127.0.0.1"]
"""
MAIN_CF = (
    "smtpd_milters=unix:gatepost/milter.sock",
    "milter_default_action=tempfail",
    "virtual_alias_maps=socketmap:unix:gatepost/policyd.sock:reverse",
    "smtpd_relay_restrictions=check_policy_service unix:gatepost/policyd.sock, permit_mynetworks, reject",
    "mydestination=localhost",
    "default_transport=discard:",
    "inet_interfaces=127.0.0.1",
    "maillog_file=/var/log/postfix.log",
    "compatibility_level=3.6",
)
POSTLOG = "postlog/unix-dgram=postlog unix-dgram n - n - 1 postlogd"
SEND = """
import smtplib, sys, time
end = time.monotonic() + float(sys.argv[1])
sent = 0
while not sent or time.monotonic() < end:
    with smtplib.SMTP("127.0.0.1", 25, timeout=30) as smtp:
        for _ in range(5):
            smtp.sendmail(sys.argv[2], ["x@gmail.com"], "From: bob@contoso.com\\r\\n\\r\\nhello\\r\\n")
            sent += 1
print("all taken")
"""
CONNECT = """
import socket
for name in ("milter", "policyd"):
    try:
        socket.socket(socket.AF_UNIX).connect(f"/var/spool/postfix/gatepost/{name}.sock")
        print("connected")
    except OSError as error:
        print(error.strerror)
"""


class Booted:
    """A Debian with systemd, Postfix and gatepost's package, booted; *leader* is its PID 1 as this host counts."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def start(self, *command: str) -> subprocess.Popen[str]:
        enter = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "env", "-i"]
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.Popen(
            [*enter, path, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, status: Optional[int] = 0) -> str:
        process = self.start(*command)
        printed, _ = process.communicate(timeout=60)
        assert status in (None, process.returncode), f"{' '.join(command)}: {process.returncode}\n{printed}"
        return printed

    def property(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def journal(self, *options: str) -> str:
        return self.run("journalctl", "--no-pager", "--quiet", "--boot", "--output=cat", *options)

    def until(self, command: str) -> None:
        """Wait until *command* in sh succeeds."""
        self.run("timeout", "30", "sh", "-c", f"until {command}; do sleep 0.1; done")

    def send(self, mail_from: str = "bob@contoso.com", seconds: float = 0.0) -> subprocess.Popen[str]:
        return self.start("python3", "-c", SEND, str(seconds), mail_from)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    if not shutil.which("systemd-nspawn") or not shutil.which("rpm"):
        pytest.skip("systemd-nspawn or rpm is not installed")
    folder = tmp_path_factory.mktemp("rpm")
    subprocess.run([TOP / "packaging/build-rpm", folder], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    with chroot("bookworm") as debian:
        debian.apt("install", *PACKAGES.split())
        (package,) = folder.glob("*.noarch.rpm")
        subprocess.run(["rpm", "--root", debian.root, "--nodeps", "--install", package], check=True)
        debian.run("postconf", "-e", *MAIN_CF)
        debian.run("postconf", "-M", POSTLOG)
        (debian.root / "etc/gatepost/gatepost.toml").write_text(CONFIGURATION)
        yield debian


@pytest.fixture(scope="module")
def booted(installed: Chroot) -> Iterator[Booted]:
    root = installed.root
    # One at a time: without a systemd on the host, containers would share a control group.
    boot = ["flock", "--no-fork", "/run/lock/gatepost-nspawn", "systemd-nspawn", "--boot", *ALONE]
    container = subprocess.Popen(
        [*boot, f"--directory={root}", f"--machine=gatepost-{os.getpid()}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Booted(root, _leader(container))
    finally:
        for pid in _children(container.pid):
            os.kill(pid, 9)  # with PID 1 goes all that is in there
        container.communicate(timeout=30)


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _leader(container: subprocess.Popen[bytes]) -> int:
    """Return the container's PID 1 once all of it is up; skip the tests where no container can be booted here."""
    end = time.monotonic() + 120
    while time.monotonic() < end and container.poll() is None:
        for leader in _children(container.pid):
            state = Booted(Path(), leader).run("systemctl", "is-system-running", status=None).strip()
            if state in ("running", "degraded"):
                return leader
        time.sleep(0.1)
    container.kill()
    pytest.skip(f"no systemd can be booted here: {container.communicate()[0][-500:]!r}")


@needs_root
@pytest.mark.timeout(600)
class TestBooted:
    """One after the other, for each leaves behind what it has done."""

    @pytest.mark.parametrize("unit", DAEMONS)
    def test_daemon_is_up_after_the_boot_without_privileges_and_behind_a_system_call_filter(
        self, booted: Booted, unit: str
    ) -> None:
        assert booted.property(unit, "ActiveState") == "active", booted.journal("--unit", unit)
        status = Path("/proc", booted.property(unit, "MainPID"), "status")
        found = dict(re.findall(r"^(\w+):\t(.*)$", booted.run("cat", str(status)), re.M))
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
        assert {int(found[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}

    @pytest.mark.parametrize(
        ("user", "outcome"), [("postfix", "connected"), ("gatepost", "connected"), ("nobody", "Permission denied")]
    )
    def test_sockets_are_for_postfix_and_not_for_others(self, booted: Booted, user: str, outcome: str) -> None:
        identity = [f"--reuid={user}", f"--regid={booted.run('id', '-gn', user).strip()}", "--init-groups"]
        assert booted.run("setpriv", *identity, "python3", "-c", CONNECT) == f"{outcome}\n{outcome}\n"

    def test_mail_passes_a_chrooted_smtpd_and_its_line_in_the_journal_has_level_and_facility(
        self, booted: Booted
    ) -> None:
        assert booted.send().communicate()[0] == "all taken\n"
        matches = ("SYSLOG_IDENTIFIER=gatepost-milter", "PRIORITY=6", "SYSLOG_FACILITY=2")
        booted.until(f"journalctl --quiet --boot {' '.join(matches)} | grep -q action=pass")

    def test_reload_of_the_target_is_for_both_and_loses_no_mail(self, booted: Booted) -> None:
        load = booted.send(seconds=4.0)
        booted.run("systemctl", "reload", "gatepost.target")
        booted.run("systemctl", "reload", *DAEMONS)  # a plain reload waits, so the first ones are over, too
        assert load.communicate()[0] == "all taken\n"
        for unit in DAEMONS:
            assert booted.journal("--unit", unit).count("configuration reloaded") >= 1
            assert booted.property(unit, "NRestarts") == "0"

    def test_reload_of_a_wrong_configuration_fails_and_changes_nothing(self, booted: Booted) -> None:
        file = booted.root / "etc/gatepost/gatepost.toml"
        file.write_text(CONFIGURATION + "\nwrong = 1\n")
        booted.run("systemctl", "reload", DAEMONS[0], status=1)
        file.write_text(CONFIGURATION)
        assert "wrong: unknown key" in booted.journal("--priority=err", "--unit", DAEMONS[0])
        assert booted.send().communicate()[0] == "all taken\n"

    def test_upgrade_restarts_daemons_unless_the_new_version_could_not_start_them_again(self, booted: Booted) -> None:
        query = ["rpm", "--root", booted.root, "--query", "--queryformat", "%{POSTUN}", "gatepost"]
        after = ("sh", "-c", subprocess.check_output(query, text=True), "sh", "1")
        before = [booted.property(unit, "MainPID") for unit in DAEMONS]
        file = booted.root / "etc/gatepost/gatepost.toml"
        file.write_text(CONFIGURATION + "\nwrong = 1\n")
        printed = booted.run(*after)
        assert "wrong: unknown key" in printed
        assert printed.endswith("gatepost: Mend it, then: systemctl restart gatepost.target\n")
        assert [booted.property(unit, "MainPID") for unit in DAEMONS] == before
        file.write_text(CONFIGURATION)
        assert booted.run(*after) == ""
        assert all(booted.property(unit, "MainPID") not in ("0", *before) for unit in DAEMONS)

    @pytest.mark.parametrize("unit", DAEMONS)
    def test_killed_supervisor_is_started_again(self, booted: Booted, unit: str) -> None:
        booted.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", unit)
        booted.until(f"[ $(systemctl show --value -p NRestarts {unit}) = 1 ] && systemctl is-active --quiet {unit}")
        assert booted.send().communicate()[0] == "all taken\n"

    def test_notification_finds_its_way_into_postfix_without_privileges(self, booted: Booted) -> None:
        """postdrop(1) is set-group-ID, which NoNewPrivileges forbids."""
        file = booted.root / "etc/gatepost/gatepost.toml"
        file.write_text(CONFIGURATION.replace("2099-01-01T00:00:00Z", _next_week()))
        booted.run("systemctl", "reload", *DAEMONS)
        assert booted.send("bob@fabrikam.com").communicate()[0] == "all taken\n"
        booted.until("gatepost report notify --dry-run | grep -q 'Would be mailed'")  # the ledger has it
        booted.run("systemctl", "start", "gatepost-report-notify.service")
        assert "contoso: mailed to postmaster@contoso.com" in booted.journal("--unit", "gatepost-report-notify")
        booted.until("grep -q 'pickup.*from=<postmaster@contoso.com>' /var/log/postfix.log")

    def test_timer_of_the_notification_is_off_until_it_is_enabled(self, booted: Booted) -> None:
        assert booted.property("gatepost-report-notify.timer", "ActiveState") == "inactive"
        booted.run("systemctl", "enable", "--now", "gatepost-report-notify.timer")
        assert booted.property("gatepost-report-notify.timer", "ActiveState") == "active"

    def test_sockets_folder_that_is_missing_is_made_at_the_start(self, booted: Booted) -> None:
        booted.run("systemctl", "stop", *DAEMONS)
        booted.run("rmdir", f"/{SOCKETS}")  # so the sockets are gone, too
        booted.run("systemctl", "start", "gatepost.target")
        assert booted.run("stat", "-c", "%a %U:%G", f"/{SOCKETS}") == "2750 gatepost:postfix\n"
        assert booted.send().communicate()[0] == "all taken\n"

    def test_start_without_postfix_is_tried_again_until_postfix_is_there(self, booted: Booted) -> None:
        groups = booted.root / "etc/group"
        before = groups.read_text()
        booted.run("systemctl", "stop", *DAEMONS)
        booted.run("rmdir", f"/{SOCKETS}")
        groups.write_text(before.replace("\npostfix:", "\nnobody-has-this:"))
        booted.run("systemctl", "start", DAEMONS[1], status=1)
        assert f"the folder /{SOCKETS} does not exist" in booted.journal("--unit", DAEMONS[1])
        groups.write_text(before)
        booted.until(f"systemctl is-active --quiet {DAEMONS[1]}")

    def test_nothing_was_forbidden_that_is_needed(self, booted: Booted) -> None:
        errors = booted.journal("--priority=err", "SYSLOG_IDENTIFIER=gatepost-milter")
        errors += booted.journal("--priority=err", "SYSLOG_IDENTIFIER=gatepost-policyd")
        provoked = ("wrong: unknown key", f"the folder /{SOCKETS} does not exist")
        assert [line for line in errors.splitlines() if not any(text in line for text in provoked)] == []


def _next_week() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 7 * 86400))
