# SPDX-License-Identifier: GPL-3.0-or-later
"""The package of an earlier revision is replaced by this one's under load, in a booted Debian; see upgradeload.

The .rpm fits Debian's Python, and has in the place of Fedora's macros what the specification says. It takes three to
five minutes each time, so it is run where it is asked for, in a clone with its history:
GATEPOST_UPGRADE_FROM=REVISION python3 -m pytest tests/test_upgrade_package.py -s
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from chroots import SUITES, Chroot, chroot

TOP = Path(__file__).parent.parent
REVISION = os.environ.get("GATEPOST_UPGRADE_FROM", "")
LOGS = "journalctl --no-pager --priority=err | tail -40; tail -40 /var/log/mail.log"
PACKAGES = ("systemd-sysv", "postfix", "procps")
DEPENDENCIES = (
    "python3-milter python3-dnspython python3-spf python3-sqlalchemy python3-cryptography python3-prometheus-client "
    "python3-click python3-jinja2 python3-rich"
)

pytestmark = [
    pytest.mark.skipif(not REVISION, reason="GATEPOST_UPGRADE_FROM names no revision"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter a chroot"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source of the revision, and that of this one."""
    older = tmp_path_factory.mktemp("older")
    archive = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP), "archive", REVISION]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as git:
        subprocess.run(["tar", "-x", "-C", older], stdin=git.stdout, check=True)
    return older, TOP


def built(tree: Path, kind: str, folder: Path) -> Path:
    """Return the package that *tree* builds into *folder*."""
    subprocess.run(
        [tree / f"packaging/build-{kind}", folder], check=True, stdin=subprocess.DEVNULL, capture_output=True
    )
    (package,) = [path for path in folder.glob(f"*.{kind}") if not path.name.endswith(".src.rpm")]
    return package


@pytest.mark.parametrize("suite", SUITES)
def test_nothing_is_lost_while_a_deb_is_replaced(suite: str, trees: tuple[Path, Path], tmp_path: Path) -> None:
    older, newer = (built(tree, "deb", tmp_path / str(number)) for number, tree in enumerate(trees))
    unpacked = tmp_path / "unpacked"
    subprocess.run(["dpkg-deb", "--raw-extract", older, unpacked], check=True)
    control = unpacked / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 0.0.1", control.read_text()))
    with chroot(suite) as system:
        subprocess.run(["dpkg-deb", "--build", unpacked, system.root / "mnt/older.deb"], check=True)
        shutil.copy(newer, system.root / "mnt/newer.deb")
        system.apt("install", *PACKAGES, "/mnt/older.deb")
        replace(system, "deb")


def test_nothing_is_lost_while_an_rpm_is_replaced(trees: tuple[Path, Path], tmp_path: Path) -> None:
    spec = trees[0] / "packaging/rpm/gatepost.spec"
    spec.write_text(re.sub(r"(?m)^(Release: *)1", r"\g<1>0", spec.read_text()))
    older, newer = (built(tree, "rpm", tmp_path / str(number)) for number, tree in enumerate(trees))
    with chroot("bookworm") as system:
        shutil.copy(older, system.root / "mnt/older.rpm")
        shutil.copy(newer, system.root / "mnt/newer.rpm")
        system.apt("install", *PACKAGES, "rpm", *DEPENDENCIES.split())
        subprocess.run(["rpm", "--root", system.root, "--nodeps", "--install", older], check=True)
        replace(system, "rpm")


def replace(system: Chroot, kind: str) -> None:
    """Boot *system* and have upgradeload replace older.KIND, which is there, by newer.KIND."""
    shutil.copy(TOP / "tests/upgradeload.py", system.root / "mnt")
    load = f"python3 -u /mnt/upgradeload.py /mnt/older.{kind} /mnt/newer.{kind}"
    print(system.boot(f"{load} || {{ {LOGS}; exit 1; }}", timeout_s=600))
