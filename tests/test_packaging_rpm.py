# SPDX-License-Identifier: GPL-3.0-or-later
"""The .rpm: built, checked by rpmlint, and in a minimal system installed, used, upgraded, erased.

There is no Fedora here: the system is Debian 12, whose packages rpm knows nothing of (--nodeps), and the build uses
what the specification has in place of Fedora's macros. The tests of the system follow one another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroots import Chroot, chroot

from gatepost.service.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter a chroot"),
    pytest.mark.timeout(600),  # debootstrap and downloads, on a new machine
]

TOP = Path(__file__).parent.parent
SELINUX = Path("/usr/share/selinux/devel/Makefile")
SPEC = TOP / "packaging/rpm/gatepost.spec"
CONFIGURATION = "etc/gatepost/gatepost.toml"
SECRET = "/var/lib/gatepost/srs.secret"
SOCKETS = "/var/spool/postfix/gatepost"
FEDORA_NAMES = {
    "pymilter": "python3-pymilter",
    "dnspython": "python3-dns",
    "pyspf": "python3-pyspf",
    "sqlalchemy": "python3-sqlalchemy",
    "cryptography": "python3-cryptography",
    "prometheus-client": "python3-prometheus_client",
    "tomli": "python3-tomli",
    "click": "python3-click",
    "jinja2": "python3-jinja2",
    "markupsafe": "python3-markupsafe",
    "rich": "python3-rich",
}
"""As packages.fedoraproject.org had them in Fedora 42 to 45 and, with RHEL's own, in EPEL 9."""
DEBIAN_PACKAGES = (
    "python3-milter python3-dnspython python3-spf python3-sqlalchemy python3-cryptography python3-prometheus-client "
    "python3-click python3-jinja2 python3-rich"
)
RUN_DAEMONS = f"""
install -d -m 2750 -o gatepost -g gatepost {SOCKETS}
setpriv --reuid=gatepost --regid=gatepost --clear-groups gatepost run 2>&1 &
until [ -S {SOCKETS}/milter.sock ] && [ -S {SOCKETS}/policyd.sock ]; do sleep 0.1; done
python3 - <<'END'
import socket
map_query = socket.socket(socket.AF_UNIX)
map_query.connect("{SOCKETS}/policyd.sock")
map_query.sendall(b"29:reverse bob@elsewhere.example,")
print(map_query.recv(100).decode())
END
kill $!
wait $!
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what packaging/build-rpm makes."""
    folder = tmp_path_factory.mktemp("rpm")
    subprocess.run([TOP / "packaging/build-rpm", folder], check=True, stdin=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def newer(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A later release with another configuration, made from the source package."""
    folder = tmp_path_factory.mktemp("newer")
    define = ["--define", f"_topdir {folder}"]
    subprocess.run(["rpm", *define, "--install", package(built, "src")], check=True)
    spec = folder / "SPECS/gatepost.spec"
    text = spec.read_text().replace("\nRelease:        1", "\nRelease:        2")
    text = text.replace("\n%pre\n", f"\necho '# of release 2' >>%{{buildroot}}/{CONFIGURATION}\n\n%pre\n", 1)
    spec.write_text(text)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--nodeps", "--without", "selinux", *define, spec],
        env=environment,
        capture_output=True,
        check=True,
    )
    return folder / "RPMS/noarch"


@pytest.fixture(scope="module")
def system() -> Iterator[Chroot]:
    with chroot("bookworm") as debian:
        debian.apt("install", *DEBIAN_PACKAGES.split())
        yield debian


@pytest.fixture(scope="module")
def installed(system: Chroot, built: Path) -> Chroot:
    rpm(system, "--install", str(package(built, "noarch")))
    return system


def package(folder: Path, kind: str) -> Path:
    (found,) = folder.glob(f"*.{kind}.rpm")
    return found


def rpm(system: Chroot, *arguments: str) -> str:
    done = subprocess.run(["rpm", "--root", system.root, "--nodeps", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def query(folder: Path, *what: str) -> list[str]:
    done = subprocess.run(
        ["rpm", "--query", *what, "--package", package(folder, "noarch")], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


# The package itself


def test_version_of_the_package_is_that_of_the_program() -> None:
    assert re.search(r"^Version: +(\S+)$", SPEC.read_text(), re.M)[1] == __version__  # type: ignore[index]


def test_build_gives_package_and_source(built: Path) -> None:
    names = sorted(path.name for path in built.iterdir())
    assert names == [f"gatepost-{__version__}-1.noarch.rpm", f"gatepost-{__version__}-1.src.rpm"]


def test_every_dependency_of_the_program_is_required_by_the_name_that_fedora_has_for_it() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = {FEDORA_NAMES[re.split(r"[^a-z0-9-]", line)[0]] for line in project["dependencies"]}
    required = set(re.findall(r"^Requires: +(python3-\S+)", SPEC.read_text(), re.M))
    assert required == wanted


def test_rpmlint_finds_nothing_that_is_not_excused(built: Path) -> None:
    done = subprocess.run(
        ["rpmlint", "-r", TOP / "packaging/rpm/gatepost.rpmlintrc", *built.glob("*.rpm"), SPEC],
        capture_output=True,
        text=True,
    )
    assert "specfiles checked" in done.stdout
    found = re.findall(r"^\S+ [EW]: .*$", done.stdout, flags=re.MULTILINE)
    # Releases differ in what they find, and a newer one says which filters it has no use for.
    assert [line for line in found if "unused-rpmlintrc-filter" not in line] == []


def test_package_has_units_manuals_examples_completion_and_no_bytecode_of_tests(built: Path) -> None:
    files = [re.sub(r"\.gz$", "", path) for path in query(built, "--list")]
    for path in (
        "/usr/bin/gatepost",
        "/usr/lib/systemd/system/gatepost-milter.service",
        "/usr/lib/systemd/system/gatepost-policyd.service",
        "/usr/lib/systemd/system/gatepost-report-notify.service",
        "/usr/lib/systemd/system/gatepost-report-notify.timer",
        "/usr/lib/systemd/system/gatepost.target",
        "/usr/lib/sysusers.d/gatepost.conf",
        "/usr/lib/tmpfiles.d/gatepost.conf",
        "/usr/share/man/man8/gatepost.8",
        "/usr/share/man/man5/gatepost.toml.5",
        "/usr/share/bash-completion/completions/gatepost",
        "/usr/share/doc/gatepost/examples/postfix/relay-hub/main.cf",
    ):
        assert path in files
    assert not [path for path in files if "test" in Path(path).parts]


@pytest.mark.skipif(not SELINUX.exists(), reason="selinux-policy-dev is not installed")
def test_selinux_module_compiles_and_labels_program_and_sockets(tmp_path: Path) -> None:
    for source in (TOP / "packaging/selinux").glob("gatepost.*"):
        shutil.copy(source, tmp_path)
    subprocess.run(["make", "-C", tmp_path, "-f", SELINUX, "gatepost.pp"], check=True, capture_output=True)
    labels = (tmp_path / "gatepost.pp").read_bytes().decode("latin-1")
    for path, kind in (("/usr/bin/gatepost", "exec"), (f"{SOCKETS}(/.*)?", "data"), ("/run/gatepost(/.*)?", "data")):
        assert re.search(rf"{re.escape(path)}\s.*:gatepost_milter_{kind}_t:s0", labels), path


# In a system


def test_installing_makes_the_user_the_folders_and_the_secret(installed: Chroot) -> None:
    assert installed.run("getent", "passwd", "gatepost").split(":")[5:] == ["/var/lib/gatepost", "/usr/sbin/nologin\n"]
    paths = ("/etc/gatepost/certificates", f"/{CONFIGURATION}", "/var/lib/gatepost", SECRET, "/usr/bin/gatepost")
    assert installed.run("stat", "-c", "%a %U:%G", *paths).splitlines() == [
        "755 root:root",
        "640 root:gatepost",
        "750 gatepost:gatepost",
        "640 gatepost:gatepost",
        "755 root:root",
    ]


def test_files_are_as_the_package_has_them(installed: Chroot) -> None:
    assert rpm(installed, "--verify", "gatepost") == ""


def test_installed_command_knows_its_version_and_finds_the_configuration_right(installed: Chroot) -> None:
    assert installed.run("gatepost", "--version") == f"gatepost {__version__}\n"
    assert f"/{CONFIGURATION}: OK, 0 organizations" in installed.run("gatepost", "config", "check")


def test_daemons_start_as_their_user_answer_and_end(installed: Chroot) -> None:
    printed = installed.shell(RUN_DAEMONS)
    assert "9:NOTFOUND ," in printed
    assert "error" not in printed


def test_upgrade_keeps_an_edited_configuration_and_puts_the_new_one_beside_it(installed: Chroot, newer: Path) -> None:
    secret = (installed.root / SECRET[1:]).read_bytes()
    with (installed.root / CONFIGURATION).open("a") as file:
        file.write("# my own line\n")
    rpm(installed, "--upgrade", str(package(newer, "noarch")))
    assert (installed.root / CONFIGURATION).read_text().endswith("# my own line\n")
    assert (installed.root / f"{CONFIGURATION}.rpmnew").read_text().endswith("# of release 2\n")
    assert (installed.root / SECRET[1:]).read_bytes() == secret


def test_erasing_leaves_the_edited_configuration_and_the_state_alone(installed: Chroot) -> None:
    rpm(installed, "--erase", "gatepost")
    found = (path.relative_to(installed.root) for path in installed.root.rglob("*gatepost*"))
    left = {str(path) for path in found if path.parts[0] not in ("proc", "sys") and path.parent.name != "gatepost"}
    assert left == {"etc/gatepost", "var/lib/gatepost", SOCKETS[1:]}
    assert sorted(path.name for path in (installed.root / "etc/gatepost").iterdir()) == [
        "gatepost.toml.rpmnew",
        "gatepost.toml.rpmsave",
    ]
