# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever reads octets of others, given inputs that are nearly right; and what that has found (tests/fuzz/run)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from daemonprocess import Gatepost, poll
from fuzz.daemons import metrics, milter, policyd
from fuzz.engine import run
from fuzz.requests import deciding
from fuzz.targets import TARGETS
from milterclient import MilterClient, MilterError

from gatepost.admin import postsrsd_settings
from gatepost.admin.replay_log import Log
from gatepost.milter.transaction import Transaction as Collected
from gatepost.policyd.decisions import Action, Aids, Transaction, decide
from gatepost.relay import Rules
from gatepost.service.certificates import NO_CERTIFICATE, read_file
from gatepost.service.config import load
from gatepost.service.tables import ConfigError
from gatepost.srs import Address, first_hop

INPUTS = {"spool": 100, "compressed-log": 150, "config": 500, "postfix-log": 500, "sendmail-log": 500}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where fsync(2) costs nothing."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.filterwarnings("ignore:Parsed a")  # cryptography, of odd certificates
@pytest.mark.parametrize("name", TARGETS)
def test_target_stands_inputs_that_are_nearly_right(name: str, memory: Path) -> None:
    target = TARGETS[name](memory)
    try:
        report = run(target, INPUTS.get(name, 1500), seed=2, growth=False)
    finally:
        target.close()
    assert not report.findings, "\n".join(finding.told for finding in report.findings.values())
    assert len(report.outcomes) > 4


def test_malformed_milter_sessions_harm_nobody_elses(tmp_path: Path) -> None:
    assert milter(tmp_path, 200, seed=2).clean == 4


def test_malformed_requests_to_policyd_harm_nobody_elses(tmp_path: Path) -> None:
    assert policyd(tmp_path, 200, seed=2).clean == 4


def test_malformed_requests_for_metrics_harm_nobody_elses(tmp_path: Path) -> None:
    assert metrics(tmp_path, 200, seed=2).clean == 4


# What was found


def test_sender_wrapped_in_thousands_of_srs_layers_is_unwrapped_in_no_time() -> None:
    layer = "x+SRS=aaaaaaaa=AA=y.example="
    sender = Address(layer * 2000 + "z", "w.example")
    began = time.process_time()
    assert first_hop(sender).local.startswith(layer)
    assert time.process_time() - began < 0.5


def test_sender_wrapped_in_as_many_srs_layers_as_an_address_holds_is_unwrapped_whole() -> None:
    sender = Address("a+SRS=b=AA=c.d=" * 15 + "z", "w.example")
    assert str(first_hop(sender)) == "a+SRS=b=AA=c.d=z@c.d"


def test_message_with_very_many_empty_from_headers_costs_no_more_than_each_of_them() -> None:
    transaction = Collected("", Rules([]).client(None), NO_CERTIFICATE, False)
    began = time.process_time()
    for _ in range(50_000):
        transaction.add_from("")
    assert time.process_time() - began < 0.5
    assert len(transaction.headers_from) < 10_000


@pytest.mark.parametrize(
    "given", ["9" * 5000, "0x" + "f" * 5000, "[0x" + "f" * 5000 + "]"], ids=["decimal", "hex", "list"]
)
def test_number_of_thousands_of_digits_in_the_configuration_is_an_error_in_one_line(given: str, tmp_path: Path) -> None:
    (tmp_path / "gatepost.toml").write_text(f"[milter]\nworkers = {given}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "gatepost.toml")
    (problem,) = caught.value.problems
    assert "gatepost.toml: " in problem
    assert len(problem) < 300


@pytest.mark.parametrize(
    "line",
    [
        b"postfix/qmgr[3]: 4jXL7j5cc5zKSLb: from=<a@b.example>, size=" + b"9" * 5000 + b", nrcpt=1 (queue active)",
        b"sendmail[1]: 6AM7iZcu031990: from=<a@b.example>, size="
        + b"9" * 5000
        + b", class=0, nrcpts=1, relay=[192.0.2.5]",
    ],
    ids=["postfix", "sendmail"],
)
def test_size_of_thousands_of_digits_in_a_log_is_a_line_that_cannot_be_read(line: bytes) -> None:
    log = Log()
    log.feed([b"Nov 22 07:15:17 mail " + line])
    assert log.unread == 1


def test_recipient_count_of_thousands_of_digits_puts_the_message_off() -> None:
    request = {b"protocol_state": b"DATA", b"instance": b"1.0.0", b"recipient_count": b"9" * 5000}
    aids = Aids(lambda: "REFERENCE1", lambda token: None, lambda client: False)
    answer, _ = decide(deciding("quarantine"), request, Transaction(), 0, aids)
    assert answer.action is Action.DEFER


@pytest.mark.parametrize("port", ["9" * 5000, "²"])
def test_port_of_postsrsd_that_is_no_number_is_a_problem(port: str, tmp_path: Path) -> None:
    (tmp_path / "postsrsd.conf").write_text(f'domains = {{ "contoso.com" }}\nsocketmap = "inet:localhost:{port}"\n')
    given = postsrsd_settings.read([tmp_path / "postsrsd.conf"])
    postsrsd_settings.settings_of(given, None)
    assert given.problems == [f'socketmap: "inet:localhost:{port}" is no address that gatepost can listen on']


def test_certificate_that_is_begun_thousands_of_times_is_looked_through_once(tmp_path: Path) -> None:
    (tmp_path / "client.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n" * 36_000)
    began = time.process_time()
    assert read_file(tmp_path / "client.pem") == ([], ["ends within a certificate"])
    assert time.process_time() - began < 2


def test_macro_without_a_value_costs_a_worker_at_the_most_and_the_next_session_is_served(tmp_path: Path) -> None:
    """libmilter (8.17) reads on behind such macros, which no MTA sends, and may die of it."""
    with Gatepost(tmp_path, workers=2) as gatepost:
        for _ in range(10):
            try:
                with MilterClient(gatepost.socket) as client:
                    client.packet(b"D", b"Cj\0")
                    client.connect()
                    client.helo()
                    client.mail(b"<app@contoso.com>")
                    client.rcpt(b"<x@gmail.example>")
            except (OSError, MilterError):
                continue
        poll(lambda: _serves(gatepost.socket), "a session")


def _serves(path: str) -> bool:
    try:
        with MilterClient(path) as client:
            served = client.open().send(b"<app@contoso.com>", [b"<x@gmail.example>"]).eom == "continue"
            client.quit()
            return served
    except (OSError, MilterError):
        return False
