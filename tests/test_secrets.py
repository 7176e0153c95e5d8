# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret gets out: SRS keys and the store's password, wherever they stand, in nothing that gatepost shows."""

from __future__ import annotations

import os
import re
import signal
import socket
import traceback
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from daemonprocess import Gatepost

from gatepost.admin.command import main
from gatepost.service.config import load
from gatepost.service.database import Database
from gatepost.service.secret import read_keys, read_secret
from gatepost.service.snapshot import build
from gatepost.service.store import Store, StoreError
from gatepost.service.tables import ConfigError
from gatepost.srs import Classic, Compact, Exchange

SIGNS, SIGNED, WILL_SIGN = "hush-that-signs", "hush-that-signed", "hush-of-tomorrow"
PASSWORD = "hush-of-the-store"
HUSH = re.compile(r"hush|aHVzaC|68757368")
"""The mark of all of them, as it stands, in base64 and in hexadecimal."""
URL = f"postgresql://gatepost:{PASSWORD}@127.0.0.1:1/gatepost?sslpassword={PASSWORD}&connect_timeout=1"
SRS = '[srs]\nform = "compact"\nformat = "exchange"\nalso_reverse = ["srs0"]\nsecret_file = "srs.secret"\n'


@pytest.fixture
def gatepost(tmp_path: Path) -> Gatepost:
    """A host with three keys, and a store that nobody answers at."""
    process = Gatepost(tmp_path, command="run", more=f'{SRS}[store]\nurl = "{URL}"\n', metrics=True)
    process.state.mkdir(mode=0o750)
    secret = process.state / "srs.secret"
    secret.write_text(f"# signs from 2099-01-01\n{WILL_SIGN}\n{SIGNS}\n{SIGNED}\n")
    secret.chmod(0o600)
    return process


COMMANDS = [
    ["--help"],
    ["config", "check"],
    ["config", "show"],
    ["status"],
    ["status", "--json"],
    ["doctor"],
    ["doctor", "--json"],
    ["explain", "FZYOX5HCUU"],
    ["check", "--ip", "192.0.2.5", "--mail-from", "app@vendor.example", "--rcpt", "x@gmail.com"],
    ["check", "--ip", "192.0.2.5", "--mail-from", "app@vendor.example", "--rcpt", "x@gmail.com", "--json"],
    ["srs", "forward", "bob@fabrikam.com"],
    ["srs", "reverse", "bounces+SRS=abcdefgh=IX=fabrikam.com=bob@contoso.com"],
    ["srs", "inspect", "bounces+SRS=abcdefgh=IX=fabrikam.com=bob@contoso.com"],
    ["srs", "inspect", "SRS0=abcd=IX=fabrikam.com=bob@contoso.com"],
    ["report", "start", "--type", "Refused"],
    ["report", "list"],
    ["setup", "postfix"],
    ["bypass", "status"],
    ["srs", "rotate"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_shows_no_secret(command: list[str], gatepost: Gatepost) -> None:
    result = CliRunner().invoke(main, ["-c", str(gatepost.configuration), *command])
    shown = result.output + repr(result.exception)
    assert shown
    assert not HUSH.search(shown)


def everything(gatepost: Gatepost) -> str:
    """Return all that a running host shows and keeps, but for its configuration and its file of secrets."""
    url = f"http://127.0.0.1:{gatepost.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        found = [answer.read().decode()]
    group = os.getpgid(gatepost.pid)
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit() and _group(int(name)) == group]
    assert len(processes) >= 3
    for process in processes:
        found += [Path(f"/proc/{process}/{name}").read_bytes().decode() for name in ("cmdline", "environ", "comm")]
    kept = [path for path in gatepost.folder.rglob("*") if path.is_file()]
    hidden = {gatepost.configuration, gatepost.state / "srs.secret"}
    found += [path.read_bytes().decode(errors="replace") for path in kept if path not in hidden]
    return "\n".join([*found, *gatepost.log])


def children(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _group(process: int) -> int:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return -1


def ask(gatepost: Gatepost, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(gatepost.policyd_socket)
        client.sendall(request)
        return client.recv(4096)


def test_running_host_shows_no_secret_whatever_goes_wrong(gatepost: Gatepost) -> None:
    with gatepost:
        for key in (b"reverse bounces+SRS=abcdefghijklmnop=IX@contoso.com", b"egress bob@fabrikam.com"):
            assert ask(gatepost, b"%d:%s," % (len(key), key))  # the store is away
        right = gatepost.configuration.read_text()
        gatepost.configuration.write_text(right.replace(f'url = "{URL}"', f'url = ["{URL}"]'))
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("store.url: .* is not a string")
        gatepost.configuration.write_text(right.replace("postgresql:", "mysql:"))
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("is no database")
        gatepost.configuration.write_text(right)
        os.kill(children(gatepost.pid)[0], signal.SIGSEGV)
        gatepost.wait_for_log("signal 11")
        assert not HUSH.search(everything(gatepost))


def test_objects_that_hold_secrets_do_not_show_them(gatepost: Gatepost) -> None:
    config, secret = load(gatepost.configuration), gatepost.state / "srs.secret"
    keys = read_keys(secret)
    shown = [config, build(config, keys, 0.0), keys, read_secret(secret), Exchange(keys), Classic(keys), Compact(keys)]
    shown += [Store(config.store_url), Database(config.store_url)]
    assert not HUSH.search(f"{shown!r} {shown} {vars(config).keys()}")


def test_traceback_out_of_signing_shows_no_secret(gatepost: Gatepost) -> None:
    keys = read_keys(gatepost.state / "srs.secret")
    try:
        keys.sign("no octets", 20500)  # type: ignore[arg-type]
    except TypeError as error:
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in sign" in told
    assert not HUSH.search(told)


@pytest.mark.parametrize(
    "url", [URL, "postgresql://gatepost:hush@[::1/gatepost", "postgresql://gatepost:hush@h:port/gatepost", "hush"]
)
def test_store_that_cannot_be_reached_does_not_say_its_password(url: str) -> None:
    with pytest.raises(StoreError) as raised:
        Database(url).open()
    told = "".join(traceback.format_exception(raised.type, raised.value, raised.tb))
    assert not HUSH.search(told.replace("hush-of-the-store}", "").replace('"hush"', ""))


@pytest.mark.parametrize(
    "toml",
    [
        '[store]\nurl = ["postgresql://gatepost:hush@db/gatepost"]',
        '[store]\nurl = "postgresql://gatepost:hush\\u0001@db/gatepost"',
        '[store]\nurl = "mysql://gatepost:hush@db/gatepost"',
        '[store]\nurl = "mysql://db:3306/gatepost?password=a@hush"',
        '[store]\nurl = "mysql://gatepost:a?password=hush@db/gatepost"',
        '[store]\nurl = "mysql://db/gatepost?passwd=hush"',
        '[store]\nurl = "host=db dbname=gatepost password=hush"',
        'store = "postgresql://gatepost:hush@db/gatepost"',
        '[store]\nurls = "postgresql://gatepost:hush@db/gatepost"',
        '[store]\npassword = "hush"',
        '[srs]\nsecret = "hush"',
        '[store]\nurl = "postgresql://gatepost:hush@db/gatepost',
        '[store]\nurl = "postgresql://gatepost:hush@db/gatepost" hush',
    ],
)
def test_error_about_a_value_does_not_repeat_its_password(toml: str, tmp_path: Path) -> None:
    file = tmp_path / "gatepost.toml"
    file.write_text(f"{toml}\n" if toml.startswith("store") else f'state_directory = "{tmp_path}"\n{toml}\n')
    with pytest.raises(ConfigError) as raised:
        load(file)
    assert not HUSH.search(str(raised.value))


@pytest.mark.parametrize("octets", [b"hush\x00\n", b"# signs from hush\nhush\n", b"# signs from 2026-99-99\nhush\n"])
def test_error_about_a_damaged_file_of_secrets_does_not_repeat_it(octets: bytes, tmp_path: Path) -> None:
    file = tmp_path / "srs.secret"
    file.write_bytes(octets)
    file.chmod(0o600)
    try:
        told = repr(read_secret(file))
    except ConfigError as error:
        told = str(error)
    assert told
    assert not HUSH.search(told)


@pytest.mark.parametrize("daemon", ["milter", "policyd"])
def test_units_leave_no_core_behind(daemon: str) -> None:
    unit = Path(__file__).parent.parent / f"packaging/systemd/gatepost-{daemon}.service"
    assert "LimitCORE=0" in unit.read_text().splitlines()
