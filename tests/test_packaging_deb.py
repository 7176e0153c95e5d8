# SPDX-License-Identifier: GPL-3.0-or-later
"""The .deb: built, checked by lintian, and in minimal Debian 12 and 13 installed, used, upgraded, removed, purged.

The tests of a system follow one another: each fixture is the next thing that its administrator does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroots import SUITES, Chroot, chroot

from gatepost.service.version import __version__

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter a chroot"),
    pytest.mark.timeout(600),  # debootstrap and downloads, on a new machine
]

TOP = Path(__file__).parent.parent
DEB = f"gatepost_{__version__}_all.deb"
NEWER = "gatepost_99_all.deb"
CONFIGURATION = "etc/gatepost/gatepost.toml"
SECRET = "var/lib/gatepost/srs.secret"
SOCKETS = "/var/spool/postfix/gatepost"
RUN_DAEMONS = f"""
setpriv --reuid=gatepost --regid=gatepost --clear-groups gatepost run 2>&1 &
until [ -S {SOCKETS}/milter.sock ] && [ -S {SOCKETS}/policyd.sock ]; do sleep 0.1; done
stat -c '%a %U:%G' {SOCKETS}/milter.sock {SOCKETS}/policyd.sock
kill $!
wait $!
"""
UNITS = "gatepost.target gatepost-milter.service gatepost-policyd.service"
LIFE = f"""
apt='apt-get -qq --yes --no-install-recommends'
say() {{ echo "$1:" $(systemctl is-active {UNITS} || true); }}
say booted
$apt purge gatepost
say purged
$apt install /mnt/{DEB}
say installed
/mnt/mail
systemctl disable --now gatepost-milter
before=$(systemctl show -P MainPID gatepost-policyd)
$apt install /mnt/{NEWER}
say upgraded
[ "$before" = "$(systemctl show -P MainPID gatepost-policyd)" ] || echo 'policyd is another process'
before=$(systemctl show -P MainPID gatepost-policyd)
cp -p /{CONFIGURATION} /root/right
echo 'gone = "a key of the version before"' >>/{CONFIGURATION}
$apt install --reinstall /mnt/{NEWER}
say 'not understood'
[ "$before" = "$(systemctl show -P MainPID gatepost-policyd)" ] && echo 'policyd has gone on'
cp -p /root/right /{CONFIGURATION}
systemctl restart gatepost.target
say mended
[ "$before" = "$(systemctl show -P MainPID gatepost-policyd)" ] || echo 'policyd is a new process'
echo "failed: $(systemctl list-units --failed --plain --no-legend 'gatepost*')"
"""
KEEP = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")
"""As unattended-upgrades does: an edited configuration file stays."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what packaging/build-deb makes, and a newer release with another configuration."""
    folder = tmp_path_factory.mktemp("deb")
    subprocess.run([TOP / "packaging/build-deb", folder], check=True, stdin=subprocess.DEVNULL)
    tree = folder / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", folder / DEB, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"\nVersion: {__version__}\n", "\nVersion: 99\n"))
    with (tree / CONFIGURATION).open("a") as file:
        file.write("# of release 99\n")
    subprocess.run(["dpkg-deb", "--build", tree, folder / NEWER], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module", params=SUITES)
def debian(request: pytest.FixtureRequest, built: Path) -> Iterator[Chroot]:
    with chroot(request.param) as system:
        for name in (DEB, NEWER):
            shutil.copy(built / name, system.root / "mnt" / name)
        shutil.copy(TOP / "packaging/debian/tests/mail", system.root / "mnt")
        yield system


def owner(system: Chroot, *paths: str) -> list[str]:
    """Return mode, user and group of *paths*."""
    return system.run("stat", "-c", "%a %U:%G", *paths).splitlines()


# The package itself


def test_version_of_the_package_is_that_of_the_program() -> None:
    first = (TOP / "packaging/debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"gatepost ({__version__}) ")


def test_build_gives_package_source_and_changes(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    assert {DEB, f"gatepost_{__version__}.dsc", f"gatepost_{__version__}.tar.xz"} <= names
    assert any(name.endswith(".changes") for name in names)


def test_lintian_finds_neither_errors_nor_warnings(built: Path) -> None:
    if not shutil.which("lintian"):
        pytest.skip("lintian is not installed")
    changes = next(built.glob("*.changes"))
    done = subprocess.run(
        ["lintian", "--allow-root", "--pedantic", "--fail-on", "error,warning", changes], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_git_holds_no_package() -> None:
    if not (TOP / ".git").exists():
        pytest.skip("no clone")
    command = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP), "ls-files", "*.deb", "*.dsc", "*.rpm"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


# Installed without Postfix


@pytest.fixture(scope="module")
def installed(debian: Chroot) -> str:
    """What apt prints when gatepost is installed on a system with nothing."""
    return debian.apt("install", f"/mnt/{DEB}")


def test_secret_is_made_for_the_own_user_and_that_is_said(debian: Chroot, installed: str) -> None:
    assert f"Made a new SRS secret in /{SECRET}. Keep a copy of it: bounces of rewritten mail need it.\n" in installed
    assert owner(debian, f"/{SECRET}", "/var/lib/gatepost") == ["640 gatepost:gatepost", "750 gatepost:gatepost"]
    assert re.fullmatch(
        r"gatepost:x:\d+:\d+:[^:]*:/var/lib/gatepost:/usr/sbin/nologin\n", debian.run("getent", "passwd", "gatepost")
    )


def test_configuration_declares_nobody_and_can_be_used(debian: Chroot, installed: str) -> None:
    assert owner(debian, f"/{CONFIGURATION}") == ["640 root:gatepost"]
    assert debian.run("gatepost", "config", "check").splitlines()[:2] == [
        f"/{CONFIGURATION}: OK, 0 organizations, 0 accepted domains, 0 connectors",
        "warning: no organization is declared, so nothing is refused and nothing is rewritten",
    ]


def test_units_are_enabled_and_the_weekly_mail_is_not(debian: Chroot, installed: str) -> None:
    units = ("gatepost.target", "gatepost-milter.service", "gatepost-policyd.service")
    assert debian.run("systemctl", "--root=/", "is-enabled", *units).split() == ["enabled"] * 3
    assert debian.run("systemctl", "--root=/", "is-enabled", "gatepost-report-notify.timer", status=1) == "disabled\n"


def test_daemons_run_without_postfix(debian: Chroot, installed: str) -> None:
    printed = debian.shell(RUN_DAEMONS)
    assert printed.count("660 gatepost:gatepost\n") == 2
    assert "no organization is declared, so nothing is refused and nothing is rewritten\n" in printed


def test_shell_completes_commands(debian: Chroot, installed: str) -> None:
    complete = "source /usr/share/bash-completion/completions/gatepost && complete -p gatepost"
    assert "gatepost" in debian.run("bash", "-ec", complete)
    for file in ("zsh/vendor-completions/_gatepost", "fish/vendor_completions.d/gatepost.fish"):
        assert "_GATEPOST_COMPLETE" in (debian.root / "usr/share" / file).read_text()


def test_manual_and_examples_are_there(debian: Chroot, installed: str) -> None:
    assert {page.name for page in (TOP / "packaging/man").iterdir()} <= {
        page.name[: -len(".gz")] for page in (debian.root / "usr/share/man").rglob("gatepost*.gz")
    }
    assert (debian.root / "usr/share/doc/gatepost/examples/postfix/relay-hub/main.cf").exists()


# Postfix is installed after gatepost


@pytest.fixture(scope="module")
def with_postfix(debian: Chroot, installed: str) -> None:
    debian.apt("install", "postfix")


def test_sockets_are_for_postfix_alone_once_it_is_there(debian: Chroot, with_postfix: None) -> None:
    assert owner(debian, SOCKETS) == ["2750 gatepost:postfix"]
    assert debian.shell(RUN_DAEMONS).count("660 gatepost:postfix\n") == 2


def test_mail_is_rewritten_and_its_bounces_come_back(debian: Chroot, with_postfix: None) -> None:
    printed = debian.run("/mnt/mail")
    assert "ok   and comes back to bob@fabrikam.com\n" in printed
    assert "ok   and Postfix's own bounce comes back to bob@fabrikam.com\n" in printed


# Upgraded, removed, installed again, purged


@pytest.fixture(scope="module")
def secret(debian: Chroot, with_postfix: None) -> bytes:
    return (debian.root / SECRET).read_bytes()


@pytest.fixture(scope="module")
def upgraded(debian: Chroot, secret: bytes) -> str:
    """What apt prints at an upgrade after the configuration was edited."""
    with (debian.root / CONFIGURATION).open("a") as file:
        file.write("# edited\n")
    return debian.apt(*KEEP, "install", f"/mnt/{NEWER}")


def test_upgrade_keeps_edited_configuration_and_secret(debian: Chroot, secret: bytes, upgraded: str) -> None:
    assert (debian.root / CONFIGURATION).read_text().endswith("# edited\n")
    assert (debian.root / f"{CONFIGURATION}.dpkg-dist").read_text().endswith("# of release 99\n")
    assert owner(debian, f"/{CONFIGURATION}", f"/{SECRET}") == ["640 root:gatepost", "640 gatepost:gatepost"]
    assert (debian.root / SECRET).read_bytes() == secret
    assert "SRS secret" not in upgraded


@pytest.fixture(scope="module")
def removed(debian: Chroot, upgraded: str) -> str:
    """What apt prints when gatepost is removed while Postfix asks for it."""
    debian.run("postconf", "-e", "smtpd_milters = unix:gatepost/milter.sock")
    printed = debian.apt("remove", "gatepost")
    debian.run("postconf", "-X", "smtpd_milters")
    return printed


def test_remove_says_that_postfix_still_asks_for_gatepost(removed: str) -> None:
    assert "gatepost: Postfix is still set up to ask gatepost, and puts off mail while it is away.\n" in removed


def test_remove_keeps_configuration_and_secret(debian: Chroot, secret: bytes, removed: str) -> None:
    assert (debian.root / CONFIGURATION).read_text().endswith("# edited\n")
    assert (debian.root / SECRET).read_bytes() == secret
    assert not (debian.root / SOCKETS[1:]).exists()


def test_installed_again_it_has_the_same_configuration_and_secret(debian: Chroot, secret: bytes, removed: str) -> None:
    printed = debian.apt(*KEEP, "install", "--allow-downgrades", f"/mnt/{DEB}")
    assert (debian.root / CONFIGURATION).read_text().endswith("# edited\n")
    assert (debian.root / SECRET).read_bytes() == secret
    assert owner(debian, SOCKETS) == ["2750 gatepost:postfix"]
    assert "SRS secret" not in printed


@pytest.fixture(scope="module")
def purged(debian: Chroot, removed: str) -> str:
    """What apt prints when gatepost is purged."""
    (debian.root / "etc/gatepost/certificates").mkdir(exist_ok=True)
    (debian.root / "etc/gatepost/certificates/crm.pem").touch()
    return debian.apt("purge", "gatepost")


def test_purge_leaves_nothing_but_the_system_user(debian: Chroot, purged: str) -> None:
    left = debian.run(
        *("find", "/", "-xdev", "-path", "/proc", "-prune", "-o", "-path", "/mnt", "-prune", "-o"),
        *("(", "-name", "*gatepost*", "-o", "-user", "gatepost", "-o", "-group", "gatepost", ")", "-print"),
    )
    assert left == "/var/log/gatepost-test.log\n"  # Postfix's, of the mail test
    assert "gatepost" in debian.run("getent", "passwd", "gatepost")


# Installed after Postfix


@pytest.fixture(scope="module")
def after_postfix(debian: Chroot, purged: str) -> None:
    debian.apt("install", f"/mnt/{DEB}")


def test_installed_after_postfix_its_sockets_are_for_postfix_alone(debian: Chroot, after_postfix: None) -> None:
    assert owner(debian, SOCKETS) == ["2750 gatepost:postfix"]


def test_upgrade_replaces_a_configuration_that_nobody_has_edited(debian: Chroot, after_postfix: None) -> None:
    debian.apt("install", f"/mnt/{NEWER}")
    assert (debian.root / CONFIGURATION).read_text().endswith("# of release 99\n")
    assert owner(debian, f"/{CONFIGURATION}") == ["640 root:gatepost"]


# Under systemd


@pytest.fixture(scope="module")
def booted(debian: Chroot, after_postfix: None) -> str:
    """What the life of the package looks like while systemd runs."""
    return debian.boot(LIFE)


@pytest.mark.parametrize(
    ("moment", "states"),
    [
        ("booted", "active active active"),
        ("purged", "inactive inactive inactive"),
        ("installed", "active active active"),
        ("upgraded", "active inactive active"),  # the milter was disabled before, and stays so
        ("not understood", "active inactive active"),
    ],
)
def test_units_run_whenever_they_should(booted: str, moment: str, states: str) -> None:
    assert f"{moment}: {states}\n" in booted
    assert "failed: \n" in booted


def test_upgrade_restarts_what_runs(booted: str) -> None:
    assert "policyd is another process\n" in booted


def test_upgrade_lets_daemons_go_on_that_could_not_start_again_and_says_so(booted: str) -> None:
    assert "gone: unknown key\n" in booted
    assert "gatepost: Mend it, then: systemctl restart gatepost.target\n" in booted
    assert "policyd has gone on\n" in booted
    assert "policyd is a new process\n" in booted


def test_mail_passes_the_units_sandbox(booted: str) -> None:
    assert "ok   and comes back to bob@fabrikam.com\n" in booted
