# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF decides who is spared the rewriting: only no record, or pass for each address that this host sends from."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

import dns.resolver
import pytest
from nameserver import NameServer, Records

from gatepost.service.spf import Spf

NOW = 1_700_000_000
HOUR_S = 3600
DAY_S = 86400
IP4 = "192.0.2.10"
IP6 = "2001:db8::10"
LIMIT_S = 20  # no test should come near it: the machine may be busy


class Counts:
    """What `Spf` counts, each to be waited for."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._new: queue.Queue[str] = queue.Queue()

    def __call__(self, word: str) -> None:
        self.words.append(word)
        if word != "hit":
            self._new.put(word)

    def wait(self) -> str:
        return self._new.get(timeout=LIMIT_S)


def txt(*records: str) -> dict[str, list[str]]:
    return {"TXT": [f'"{record}"' for record in records]}


def spf(
    server: NameServer,
    *,
    addresses: tuple[str, ...] = (IP4,),
    path: Optional[Path] = None,
    timeout_s: float = LIMIT_S,
    count: Optional[Counts] = None,
) -> Spf:
    return Spf(addresses, path, [server.address], timeout_s, count or Counts())


def spared(records: Records, *addresses: str) -> bool:
    """Decide on fabrikam.com once."""
    with NameServer(records) as server:
        return spf(server, addresses=addresses or (IP4,)).spares("fabrikam.com", NOW)


# What the record says (RFC 7208: results 2.6, records 3, evaluation 4 and its limits 4.6.4, mechanisms 5, macros 7)


def test_domain_that_does_not_exist_is_spared() -> None:
    assert spared({})


def test_domain_without_txt_is_spared() -> None:
    assert spared({"fabrikam.com": {"A": ["192.0.2.1"]}})


def test_domain_whose_txt_is_no_spf_is_spared() -> None:
    assert spared({"fabrikam.com": txt("v=spf10 -all", "google-site-verification=x")})


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 ip4:192.0.2.10 -all",
        "v=spf1 ip4:192.0.2.0/24 -all",
        "V=SPF1 IP4:192.0.2.10 -ALL",
        "v=spf1 a:mail.fabrikam.com -all",
        "v=spf1 a:alias.fabrikam.com -all",
        "v=spf1 mx -all",
        "v=spf1 include:spf.fabrikam.com -all",
        "v=spf1 redirect=spf.fabrikam.com",
        "v=spf1 exists:%{i}._spf.%{d} -all",
        "v=spf1 exists:%{ir}.%{v}.%{l}.%{o2}.%{h} -all",
        "v=spf1 ptr -all",
        "v=spf1 ip4:192.0.2.10 -all exp=explain.fabrikam.com",
        "v=spf1 +all",
    ],
)
def test_record_that_covers_the_outgoing_address_spares(record: str) -> None:
    assert spared(
        {
            "fabrikam.com": {**txt(record), "MX": ["10 mail.fabrikam.com.", "5 other.fabrikam.com."]},
            "mail.fabrikam.com": {"A": ["192.0.2.10"]},
            "other.fabrikam.com": {"A": ["192.0.2.11"]},
            "alias.fabrikam.com": {"CNAME": ["mail.fabrikam.com."]},
            "spf.fabrikam.com": txt("v=spf1 ip4:192.0.2.10 -all"),
            "192.0.2.10._spf.fabrikam.com": {"A": ["127.0.0.2"]},
            "10.2.0.192.in-addr.postmaster.fabrikam.com.fabrikam.com": {"A": ["127.0.0.2"]},
            "10.2.0.192.in-addr.arpa": {"PTR": ["mail.fabrikam.com."]},
        }
    )


@pytest.mark.parametrize("record", ["v=spf1 ip6:2001:db8::/32 -all", "v=spf1 a -all", "v=spf1 mx//64 -all"])
def test_record_that_covers_the_outgoing_ipv6_address_spares(record: str) -> None:
    assert spared(
        {
            "fabrikam.com": {**txt(record), "AAAA": [IP6], "MX": ["0 mail.fabrikam.com."]},
            "mail.fabrikam.com": {"AAAA": ["2001:db8::25"]},
        },
        IP6,
    )


@pytest.mark.parametrize(
    "record", ["v=spf1 -all", "v=spf1 ~all", "v=spf1 ?all", "v=spf1", "v=spf1 ip4:192.0.2.11 -all"]
)
def test_fail_softfail_and_neutral_mean_rewrite(record: str) -> None:
    assert not spared({"fabrikam.com": txt(record)})


def test_record_that_covers_one_of_two_outgoing_addresses_means_rewrite() -> None:
    records = {"fabrikam.com": txt("v=spf1 ip4:192.0.2.10 -all")}
    assert spared(records, IP4)
    assert not spared(records, IP4, IP6)
    assert not spared(records, "192.0.2.9", IP4)


def test_record_that_covers_all_outgoing_addresses_spares() -> None:
    assert spared({"fabrikam.com": txt("v=spf1 ip6:2001:db8::10 ip4:192.0.2.10 -all")}, IP4, IP6)


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 include:nothing.fabrikam.com +all",
        "v=spf1 redirect=nothing.fabrikam.com",
        "v=spf1 ip4:192.0.2.10 moo",
        "v=spf1 ip4:192.0.2.10 ip4:192.0.2.256",
        "v=spf1 ip4:192.0.2.10 a:%{",
        "v=spf1 include:fabrikam.com +all",
        "v=spf1 include:loop.fabrikam.com +all",
        "v=spf1 " + "a:mail.fabrikam.com " * 11 + "+all",
        "v=spf1 a:no1.fabrikam.com a:no2.fabrikam.com a:no3.fabrikam.com +all",
        "v=spf1 exists: +all",
    ],
)
def test_permanent_error_means_rewrite(record: str) -> None:
    assert not spared(
        {
            "fabrikam.com": txt(record),
            "loop.fabrikam.com": txt("v=spf1 include:loop2.fabrikam.com"),
            "loop2.fabrikam.com": txt("v=spf1 include:loop.fabrikam.com"),
            "mail.fabrikam.com": {"A": ["192.0.2.11"]},
        }
    )


def test_two_records_mean_rewrite() -> None:
    assert not spared({"fabrikam.com": txt("v=spf1 +all", "v=spf1 ip4:192.0.2.10 -all")})


def test_ten_lookups_are_not_too_many() -> None:
    record = "v=spf1 " + "a:mail.fabrikam.com " * 10 + "+all"
    assert spared({"fabrikam.com": txt(record), "mail.fabrikam.com": {"A": ["192.0.2.11"]}})


def test_strings_of_one_record_are_joined_without_a_space() -> None:
    assert spared({"fabrikam.com": {"TXT": ['"v=spf1 ip4:192." "0.2.10 -all"']}})


def test_txt_that_is_not_utf8_beside_the_record_is_passed_over() -> None:
    assert spared({"fabrikam.com": {"TXT": [r'"\255\254"', '"v=spf1 ip4:192.0.2.10 -all"']}})


def test_record_that_is_not_ascii_means_rewrite() -> None:
    assert not spared({"fabrikam.com": {"TXT": [r'"v=spf1 ip4:192.0.2.10 \255"']}})


def test_record_too_long_for_udp_is_read_over_tcp() -> None:
    record = {"TXT": ['"v=spf1 "' + ' "ip4:198.51.100.1 "' * 200 + ' "ip4:192.0.2.10 -all"']}
    with NameServer({"fabrikam.com": record}) as server:
        assert spf(server).spares("fabrikam.com", NOW)
        assert server.questions == ["fabrikam.com TXT"] * 2


def test_record_of_more_than_4096_octets_means_rewrite() -> None:
    longest = '"v=spf1 +all"' + ' "' + " " * 251 + '"' + ' " "' * (4096 - 11 - 251)
    assert spared({"fabrikam.com": {"TXT": [longest]}})
    assert not spared({"fabrikam.com": {"TXT": [longest + ' " "']}})


def test_explanation_is_not_asked_for() -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 -all exp=explain.fabrikam.com")}) as server:
        spf(server).spares("fabrikam.com", NOW)
        assert server.questions == ["fabrikam.com TXT"]


def test_second_outgoing_address_asks_nothing_again() -> None:
    records = {"fabrikam.com": txt("v=spf1 include:spf.fabrikam.com"), "spf.fabrikam.com": txt("v=spf1 +all")}
    with NameServer(records) as server:
        assert spf(server, addresses=(IP4, IP6)).spares("fabrikam.com", NOW)
        assert server.questions == ["fabrikam.com TXT", "spf.fabrikam.com TXT"]


@pytest.mark.parametrize(
    "domain",
    ["", ".", "localhost", "a..b", "[192.0.2.1]", "192.0.2.1", "fabrikam.com/x", "a" * 64 + ".com", "\udcff.com"],
)
def test_what_is_no_full_domain_name_means_rewrite_and_asks_nothing(domain: str) -> None:
    with NameServer({}) as server:
        decisions = spf(server)
        assert decisions.spares(domain, NOW) is False
        assert decisions.known(domain, NOW) is False
        decisions.refresh(domain, NOW)
        assert server.questions == []


def test_domain_is_one_in_any_spelling() -> None:
    with NameServer({"xn--bcher-kva.example": txt("v=spf1 +all")}) as server:
        decisions = spf(server)
        assert decisions.spares("BÜCHER.example.", NOW)
        assert decisions.known("xn--bcher-kva.example", NOW) is True


# When DNS fails


def test_servfail_means_rewrite() -> None:
    counts = Counts()
    with NameServer({}, failing=["fabrikam.com"]) as server:
        assert not spf(server, count=counts).spares("fabrikam.com", NOW)
    assert counts.words == ["failed"]


def test_servfail_for_an_included_domain_means_rewrite() -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 include:contoso.com +all")}, failing=["contoso.com"]) as server:
        assert not spf(server).spares("fabrikam.com", NOW)


def test_silence_means_rewrite_within_bounded_time() -> None:
    with NameServer({}, silent=["fabrikam.com"]) as server:
        decisions = spf(server, timeout_s=0.5)
        begin = time.monotonic()
        assert not decisions.spares("fabrikam.com", NOW)
        assert time.monotonic() - begin < 1.5


def test_many_silent_lookups_share_one_bound() -> None:
    record = "v=spf1 " + " ".join(f"exists:x{number}.contoso.com" for number in range(10)) + " +all"
    with NameServer({"fabrikam.com": txt(record)}, silent=["contoso.com"]) as server:
        decisions = spf(server, timeout_s=0.5)
        begin = time.monotonic()
        assert not decisions.spares("fabrikam.com", NOW)
        assert time.monotonic() - begin < 1.5


def test_second_nameserver_is_asked_where_the_first_is_silent() -> None:
    records = {"fabrikam.com": txt("v=spf1 +all")}
    with NameServer(records, silent=["fabrikam.com"], host="127.0.0.2") as silent, NameServer(records) as server:
        assert Spf([IP4], None, [silent.address, server.address], timeout_s=4).spares("fabrikam.com", NOW)
        assert silent.questions == ["fabrikam.com TXT"]


@pytest.mark.parametrize("content", [None, "", "search contoso.com\n"])
def test_system_without_nameservers_means_rewrite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: Optional[str]
) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    if content is not None:
        resolv_conf.write_text(content)
    read = dns.resolver.Resolver.read_resolv_conf
    monkeypatch.setattr(dns.resolver.Resolver, "read_resolv_conf", lambda self, _: read(self, str(resolv_conf)))
    assert not Spf([IP4], None).spares("fabrikam.com", NOW)


def test_failure_holds_for_a_minute() -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}, failing=["fabrikam.com"]) as server:
        decisions = spf(server)
        assert not decisions.spares("fabrikam.com", NOW)
        server.failing = []
        asked = len(server.questions)
        assert not decisions.spares("fabrikam.com", NOW + 59)
        assert len(server.questions) == asked
        assert decisions.known("fabrikam.com", NOW + 60) is None
        assert decisions.spares("fabrikam.com", NOW + 60)


# What is remembered


def test_unknown_domain_is_not_known_and_not_asked_for() -> None:
    with NameServer({}) as server:
        assert spf(server).known("fabrikam.com", NOW) is None
        assert server.questions == []


def test_decision_is_asked_for_once_an_hour() -> None:
    counts = Counts()
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server:
        decisions = spf(server, count=counts)
        assert decisions.spares("fabrikam.com", NOW)
        assert decisions.spares("fabrikam.com", NOW + HOUR_S - 1)
        assert decisions.known("fabrikam.com", NOW + HOUR_S - 1) is True
        assert server.questions == ["fabrikam.com TXT"]
    assert counts.words == ["decided", "hit", "hit"]


def test_stale_decision_is_used_at_once_and_decided_anew_behind_it() -> None:
    counts = Counts()
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server:
        decisions = spf(server, count=counts)
        assert decisions.spares("fabrikam.com", NOW)
        assert counts.wait() == "decided"
        server.records = {"fabrikam.com": txt("v=spf1 -all")}
        server.open.clear()
        assert decisions.spares("fabrikam.com", NOW + HOUR_S)
        server.open.set()
        assert counts.wait() == "decided"
        assert not decisions.spares("fabrikam.com", NOW + HOUR_S)


def test_decision_outlives_failures_for_a_day_and_no_longer() -> None:
    counts = Counts()
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server:
        decisions = spf(server, count=counts)
        assert decisions.spares("fabrikam.com", NOW)
        assert counts.wait() == "decided"
        server.failing = ["fabrikam.com"]
        for now in (NOW + HOUR_S, NOW + DAY_S - 1):
            assert decisions.spares("fabrikam.com", now)
            assert counts.wait() == "failed"
            assert decisions.known("fabrikam.com", now) is True
        assert decisions.known("fabrikam.com", NOW + DAY_S) is False
        assert decisions.known("fabrikam.com", NOW + DAY_S + 60) is None


def test_stale_decision_is_tried_anew_once_a_minute_while_dns_fails() -> None:
    counts = Counts()
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server:
        decisions = spf(server, count=counts)
        assert decisions.spares("fabrikam.com", NOW)
        assert counts.wait() == "decided"
        server.failing = ["fabrikam.com"]
        decisions.refresh("fabrikam.com", NOW + HOUR_S)
        assert counts.wait() == "failed"
        asked = len(server.questions)
        decisions.refresh("fabrikam.com", NOW + HOUR_S + 59)
        assert len(server.questions) == asked
        decisions.refresh("fabrikam.com", NOW + HOUR_S + 60)
        server.wait_for_questions(asked + 1)


def test_refresh_does_not_wait_and_makes_the_domain_known() -> None:
    counts = Counts()
    with NameServer({"fabrikam.com": txt("v=spf1 -all")}) as server:
        server.open.clear()
        decisions = spf(server, count=counts)
        decisions.refresh("fabrikam.com", NOW)
        assert decisions.known("fabrikam.com", NOW) is None
        server.open.set()
        assert counts.wait() == "decided"
        assert decisions.known("fabrikam.com", NOW) is False


def test_many_threads_asking_for_one_domain_ask_dns_once() -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server, ThreadPoolExecutor(32) as threads:
        decisions = spf(server)
        server.open.clear()
        together = threading.Barrier(33)

        def ask() -> bool:
            together.wait(LIMIT_S)
            return decisions.spares("fabrikam.com", NOW)

        answers = [threads.submit(ask) for _ in range(32)]
        together.wait(LIMIT_S)
        server.wait_for_questions(1)
        server.open.set()
        assert all(answer.result(LIMIT_S) for answer in answers)
        assert server.questions == ["fabrikam.com TXT"]


def test_no_more_than_four_domains_are_asked_for_at_a_time() -> None:
    counts = Counts()
    with NameServer({}) as server:
        decisions = spf(server, count=counts)
        server.open.clear()
        for number in range(8):
            decisions.refresh(f"fabrikam{number}.com", NOW)
        server.wait_for_questions(4)
        assert len(server.questions) == 4
        server.open.set()
        assert [counts.wait() for _ in range(8)] == ["decided"] * 8
        assert len(server.questions) == 8


def test_who_waits_behind_silent_domains_is_answered_in_time() -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}, silent=["contoso.com"]) as server:
        decisions = spf(server, timeout_s=0.5)
        for number in range(8):
            decisions.refresh(f"x{number}.contoso.com", NOW)
        begin = time.monotonic()
        assert not decisions.spares("fabrikam.com", NOW)
        assert time.monotonic() - begin < 1.5


def test_other_outgoing_addresses_make_it_another_decision(tmp_path: Path) -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 ip4:192.0.2.10 -all")}) as server:
        assert spf(server, path=tmp_path / "spf").spares("fabrikam.com", NOW)
        other = spf(server, path=tmp_path / "spf", addresses=(IP4, IP6))
        assert other.known("fabrikam.com", NOW) is None
        assert not other.spares("fabrikam.com", NOW)


def test_order_and_spelling_of_outgoing_addresses_do_not_matter(tmp_path: Path) -> None:
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server:
        assert spf(server, path=tmp_path / "spf", addresses=(IP4, IP6)).spares("fabrikam.com", NOW)
        assert spf(server, path=tmp_path / "spf", addresses=("2001:DB8:0::10", IP4)).known("fabrikam.com", NOW) is True


def test_processes_share_decisions(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gatepost.service.spf import Spf\n"
        "print(Spf(['192.0.2.10'], Path(sys.argv[1]), [('127.0.0.1', 9)]).spares('fabrikam.com', 1700000000))"
    )
    with NameServer({"fabrikam.com": txt("v=spf1 +all")}) as server:
        assert spf(server, path=tmp_path / "spf").spares("fabrikam.com", NOW)
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "spf")], env=environment, capture_output=True, check=True
    )
    assert done.stdout == b"True\n"


def test_no_outgoing_address_means_rewrite() -> None:
    with NameServer({}) as server:
        assert not spf(server, addresses=()).spares("fabrikam.com", NOW)


def test_table_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Spf([IP4], tmp_path / "missing" / "spf", [("127.0.0.1", 53)])
