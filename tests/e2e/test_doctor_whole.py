# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` with DNS, host and store beside an example that runs: all is well, and what is not is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nameserver import NameServer

from gatepost.admin.sandbox import find_programs
from gatepost.admin.stage import Stage

Boot = Callable[..., Stage]
ADDRESS = "192.0.2.10"
RECORDS = {
    "contoso.com": {"TXT": [f'"v=spf1 ip4:{ADDRESS} -all"'], "MX": ["10 mail.contoso.com."]},
    "mail.contoso.com": {"A": [ADDRESS]},
    "10.2.0.192.in-addr.arpa": {"PTR": ["mail.contoso.com."]},
}


@pytest.fixture(scope="module")
def dns() -> Iterator[NameServer]:
    with NameServer(RECORDS) as server:
        yield server


@pytest.fixture(scope="module")
def hub(boot: Boot, dns: NameServer) -> Stage:
    def with_dns(text: str) -> str:
        return f'{text}\n[dns]\nnameservers = ["{dns.address[0]}:{dns.address[1]}"]\n'

    after = "relay_domains = contoso.com\nmynetworks = 127.0.0.0/8, 192.0.2.0/28\n"
    return boot("relay-hub", tls=True, after=after, configuration=with_dns)


def doctor(stage: Stage, *options: str) -> tuple[int, dict[str, list[str]]]:
    """Return the exit status, and what is not well, by check."""
    programs = find_programs()
    path = f"{programs.commands}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        if programs.libraries:
            patch.setenv("LD_LIBRARY_PATH", str(programs.libraries))
        done = stage.gatepost("doctor", "--json", "--config-directory", str(stage.postfix.config_directory), *options)
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    problems: dict[str, list[str]] = {}
    for row in document["findings"]:
        if row["severity"] not in ("ok", "info"):
            problems.setdefault(row["check"], []).append(f"{row['severity']}: {row['what']}")
    return done.returncode, problems


def test_a_host_is_well_but_for_daemons_that_run_as_root_here(hub: Stage) -> None:
    assert doctor(hub, "--address", ADDRESS) == (
        1,
        {"state-directory": [f"warning: {hub.state_directory} is root's"]},
    )


def test_to_be_looked_at_is_no_bounce(hub: Stage) -> None:
    doctor(hub, "--address", ADDRESS)
    assert hub.metric("gatepost_srs_reversals_total", result="original") == 0
    assert hub.metric("gatepost_ledger_records_total", result="spooled") == 0


def test_an_address_that_spf_does_not_cover_has_exit_status_2(hub: Stage) -> None:
    status, problems = doctor(hub, "--address", "192.0.2.11")
    assert status == 2
    assert problems["spf"] == [f"error: contoso.com: SPF says fail of mail from 192.0.2.11: v=spf1 ip4:{ADDRESS} -all"]


def test_dns_that_fails_has_exit_status_1(hub: Stage, dns: NameServer) -> None:
    dns.failing = ["contoso.com", "in-addr.arpa"]
    try:
        status, problems = doctor(hub, "--address", ADDRESS)
    finally:
        dns.failing = ()
    assert status == 1
    for check in ("spf", "mx", "reverse-name", "store-shared"):
        (line,) = problems[check]
        assert line.startswith("unknown: DNS does not tell of ")
