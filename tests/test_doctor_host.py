# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` and the host: modes and owners of files, folders of sockets, room on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctors import Raw, circumstances, found, texts

from gatepost.admin.doctor.host import judged_room
from gatepost.admin.doctor.model import Circumstances
from gatepost.admin.doctor.units import judged_units
from gatepost.admin.sandbox import temporary_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
USER, OTHER = 4321, 4322
"""Users that nobody is."""


@pytest.fixture
def root() -> Iterator[Path]:
    with temporary_root() as folder:
        yield folder


@pytest.fixture
def state(root: Path) -> Path:
    """A state directory as daemons leave it behind, with a secret as the package makes it."""
    made = root / "state"
    for folder in (made, made / "ledger", made / "metrics"):
        folder.mkdir(mode=0o750)
        os.chown(folder, USER, USER)
    secret = made / "srs.secret"
    secret.write_text("0123456789abcdef\n")
    os.chown(secret, 0, USER)
    secret.chmod(0o640)
    return made


def looking(root: Path, **more: Raw) -> Circumstances:
    """A configuration that lies in *root*, with its state there."""
    file = root / "gatepost.toml"
    file.touch()
    return circumstances({"state_directory": str(root / "state"), **more}, path=file, sendmail_cf=file)


# Who may read


def test_files_that_the_daemons_may_read_are_well(root: Path, state: Path) -> None:
    assert texts(looking(root), "files-readable") == [f"ok: {USER} may read all files that the configuration names"]


def test_a_configuration_that_they_may_not_read_is_an_error(root: Path, state: Path) -> None:
    looked_at = looking(root)
    (root / "gatepost.toml").chmod(0o600)
    (finding,) = found(looked_at, "files-readable")
    assert finding.severity.value == "error"
    assert finding.what == f"{root}/gatepost.toml: the user of the daemons ({USER}) may not read it"
    assert finding.remedy == (f"chgrp {USER} {root}/gatepost.toml && chmod g+r {root}/gatepost.toml",)


def test_a_secret_that_they_may_not_read_is_an_error(root: Path, state: Path) -> None:
    (state / "srs.secret").chmod(0o600)
    assert texts(looking(root), "files-readable") == [
        f"error: {state}/srs.secret: the user of the daemons ({USER}) may not read it"
    ]


def test_a_folder_of_certificates_that_they_may_not_read_is_a_warning(root: Path, state: Path) -> None:
    folder = root / "certificates"
    folder.mkdir(mode=0o700)
    (folder / "crm.pem").touch()
    assert texts(looking(root), "files-readable") == [
        f"warning: {folder}: the user of the daemons ({USER}) may not read it"
    ]


# Who may write


def test_a_configuration_that_others_may_not_write_is_well(root: Path, state: Path) -> None:
    assert texts(looking(root), "files-writable") == ["ok: nobody else may write the configuration or what it names"]


def test_a_configuration_that_everybody_may_write_is_an_error(root: Path, state: Path) -> None:
    looked_at = looking(root)
    (root / "gatepost.toml").chmod(0o666)
    (finding,) = found(looked_at, "files-writable")
    assert finding.what == f"{root}/gatepost.toml can be written by everybody (mode 0666)"
    assert finding.remedy == (f"chmod o-w {root}/gatepost.toml",)


def test_a_state_directory_that_everybody_may_write_is_an_error(root: Path, state: Path) -> None:
    state.chmod(0o777)
    assert texts(looking(root), "files-writable") == [f"error: {state} can be written by everybody (mode 0777)"]


# The secret


def test_a_secret_for_the_daemons_group_is_well(root: Path, state: Path) -> None:
    assert texts(looking(root), "secret-readers") == [f"ok: {state}/srs.secret: 0640, root:{USER}"]


def test_a_secret_for_another_group_is_a_warning(root: Path, state: Path) -> None:
    os.chown(state / "srs.secret", USER, OTHER)
    (finding,) = found(looking(root), "secret-readers")
    assert finding.what == f"{state}/srs.secret (0640, {USER}:{OTHER}) can be read by group {OTHER}"
    assert finding.remedy == (f"chown root:{USER} {state}/srs.secret && chmod 0640 {state}/srs.secret",)


def test_a_secret_of_another_user_is_a_warning(root: Path, state: Path) -> None:
    os.chown(state / "srs.secret", OTHER, USER)
    assert texts(looking(root), "secret-readers") == [
        f"warning: {state}/srs.secret (0640, {OTHER}:{USER}) can be read by {OTHER}"
    ]


# The state directory


def test_a_state_directory_of_one_user_is_well(root: Path, state: Path) -> None:
    (state / "bypass").touch()  # an administrator's
    assert texts(looking(root), "state-directory") == [f"ok: {state}: all of it is {USER}:{USER}'s"]


def test_what_a_run_as_root_left_behind_is_an_error(root: Path, state: Path) -> None:
    (state / "gatepost.db").touch()
    (state / "ledger" / "1.spool").touch()
    (finding,) = found(looking(root), "state-directory")
    assert finding.what == (f"not {USER}'s, perhaps by a run as root: {state}/gatepost.db, {state}/ledger/1.spool")
    assert finding.remedy == (f"chown -R {USER}:{USER} {state}",)


def test_a_store_elsewhere_that_is_root_s_is_an_error(root: Path, state: Path) -> None:
    (root / "gatepost.db-wal").touch()
    looked_at = looking(root, store={"url": f"sqlite:///{root}/gatepost.db"})
    assert texts(looked_at, "state-directory") == [
        f"error: not {USER}'s, perhaps by a run as root: {root}/gatepost.db-wal"
    ]
    assert len(texts(looked_at, "disk")) == 2


def test_a_state_directory_of_root_is_a_warning(root: Path, state: Path) -> None:
    os.chown(state, 0, 0)
    assert texts(looking(root), "state-directory") == [f"warning: {state} is root's"]


def test_no_state_directory_is_a_warning(root: Path) -> None:
    assert texts(looking(root), "state-directory") == [f"warning: the state directory, {root}/state, is not there"]


# Folders of sockets


def with_sockets(root: Path, folder: Path) -> Circumstances:
    listen = f"unix:{folder}/milter.sock"
    return looking(root, milter={"listen": listen}, policyd={"listen": [f"unix:{folder}/policyd.sock"]})


def test_a_folder_that_hands_its_group_on_is_well(root: Path) -> None:
    folder = root / "sockets"
    folder.mkdir()
    os.chown(folder, USER, OTHER)
    folder.chmod(0o2750)
    assert texts(with_sockets(root, folder), "socket-folders") == [f"ok: {folder}: 2750, {USER}:{OTHER}"]


def test_a_folder_that_does_not_is_a_warning(root: Path) -> None:
    folder = root / "sockets"
    folder.mkdir(mode=0o750)
    os.chown(folder, USER, OTHER)
    (finding,) = found(with_sockets(root, folder), "socket-folders")
    assert finding.what == f"{folder} (0750, {USER}:{OTHER}) does not hand its group on to the sockets"
    assert finding.remedy == (f"chmod g+s {folder}",)


def test_a_folder_of_the_daemons_own_group_is_well(root: Path) -> None:
    folder = root / "sockets"
    folder.mkdir(mode=0o750)
    assert texts(with_sockets(root, folder), "socket-folders") == [f"ok: {folder}: 0750, root:root"]


def test_without_an_mta_the_folder_waits_for_one(root: Path) -> None:
    sockets = {"milter": {"listen": f"unix:{root}/none/m"}, "policyd": {"listen": [f"unix:{root}/none/p"]}}
    assert texts(circumstances(sockets), "socket-folders") == []


def test_no_folder_is_an_error(root: Path) -> None:
    folder = root / "sockets"
    assert texts(with_sockets(root, folder), "socket-folders") == [
        f"error: the folder of the sockets, {folder}, is not there"
    ]


# What systemd shows

UNIT = {
    "Id": "gatepost-policyd.service",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "StateDirectory": "gatepost",
    "RuntimeDirectory": "gatepost",
    "ReadWritePaths": "-/var/spool/postfix/gatepost",
}
WRITTEN = [Path("/var/lib/gatepost"), Path("/var/spool/postfix/gatepost"), Path("/run/gatepost")]
READ = [Path("/etc/gatepost/gatepost.toml"), Path("/var/lib/gatepost/srs.secret")]


def judged(read: list[Path], written: list[Path], **properties: str) -> list[str]:
    return [finding.what for finding in judged_units([{**UNIT, **properties}], read, written)]


def test_what_the_packages_have_is_within_the_units_reach() -> None:
    assert judged(READ, WRITTEN) == []


def test_a_file_below_home_is_hidden_from_the_daemons() -> None:
    export = Path("/home/admin/exchange.json")
    assert judged([*READ, export], WRITTEN) == [
        "ProtectHome of gatepost-policyd hides /home/admin/exchange.json from the daemons"
    ]
    assert judged([*READ, export], WRITTEN, ProtectHome="read-only") == []
    assert judged([*READ, export], WRITTEN, ProtectHome="no") == []
    assert judged([*READ, export], WRITTEN, BindReadOnlyPaths="/home/admin/exchange.json:/home/admin:rbind") == []


def test_a_store_elsewhere_is_read_only_to_the_daemons() -> None:
    milter = {**UNIT, "Id": "gatepost-milter.service"}
    (finding,) = judged_units([milter, UNIT], READ, [*WRITTEN, Path("/srv/gatepost")])
    assert finding.what == (
        "ProtectSystem of gatepost-milter, gatepost-policyd lets the daemons write nothing below /srv/gatepost"
    )
    assert finding.remedy == (
        "systemctl edit gatepost-milter gatepost-policyd: [Service] ReadWritePaths=/srv/gatepost",
        "systemctl restart gatepost-milter gatepost-policyd",
    )
    assert judged(READ, [*WRITTEN, Path("/srv/gatepost")], ReadWritePaths="-/var/spool/postfix /srv") == []
    assert judged(READ, [*WRITTEN, Path("/srv/gatepost")], ProtectSystem="full") == []


def test_another_configuration_than_the_units_is_not_compared_with_them(root: Path) -> None:
    assert texts(looking(root), "unit-sandbox") == []


# Room


@pytest.mark.parametrize(
    ("mebibytes", "inodes", "line"),
    [
        (9000, (90_000, 100_000), "ok: /var/lib/gatepost: 9000 MiB free"),
        (9000, (0, 0), "ok: /var/lib/gatepost: 9000 MiB free"),  # btrfs
        (900, (90_000, 100_000), "warning: /var/lib/gatepost: 900 MiB free"),
        (9000, (4000, 100_000), "warning: /var/lib/gatepost: 4000 inodes of 100000 free"),
        (60, (90_000, 100_000), "error: /var/lib/gatepost: 60 MiB free"),
        (9000, (900, 100_000), "error: /var/lib/gatepost: 900 inodes free"),
    ],
)
def test_room_on_the_disk(mebibytes: int, inodes: tuple[int, int], line: str) -> None:
    config = circumstances().config
    (finding,) = judged_room(config, config.state_directory, mebibytes << 20, *inodes)
    assert f"{finding.severity.value}: {finding.what}" == line


def test_a_real_disk_is_looked_at(root: Path, state: Path) -> None:
    (line,) = texts(looking(root), "disk")
    assert f": {state}: " in line
    assert " free" in line


def test_a_small_disk_is_full(root: Path, small_disk: Path) -> None:
    (root / "state").symlink_to(small_disk)
    (line,) = texts(looking(root), "disk")
    assert line.startswith(f"error: {root}/state: 1 MiB free")
