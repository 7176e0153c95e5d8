# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what series files promise: exact sums over threads, processes and lives; nothing lost, nothing twice."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatepost.service import metrics
from gatepost.service.exporter import collect
from gatepost.service.series import CAPACITY_BYTES, LIVES, Series, SeriesError, attached, clear, fold, put_away

CONTOSO = ("contoso", "relay", "p1-accepted")
FABRIKAM = ("fabrikam", "reject", "p1-not-accepted")


def _in_child(work) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def _ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def _decisions(folder: Path) -> dict[tuple[str, ...], float]:
    totals = collect(folder).totals
    return {labels: values[0] for (metric, labels), values in totals.items() if metric is metrics.DECISIONS}


def test_a_reader_sees_what_was_added(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    series.add(metrics.DECISIONS, CONTOSO)
    series.add(metrics.DECISIONS, CONTOSO, 2.0)
    series.add(metrics.DECISIONS, FABRIKAM)
    assert _decisions(tmp_path) == {CONTOSO: 3.0, FABRIKAM: 1.0}


def test_an_attached_reader_sees_what_is_added_later(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    reader = Series.attach(tmp_path / "milter-1.series")
    series.add(metrics.SRS_REWRITES, ("forward",))
    totals: dict = {}
    reader.add_to(totals)
    assert totals[metrics.SRS_REWRITES, ("forward",)] == [1.0]


def test_an_observation_on_a_bound_counts_in_that_bucket_and_one_beyond_all_in_the_last(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    series.observer(metrics.STAGE_DURATION, ("rcpt",))(50e-6)
    series.observer(metrics.STAGE_DURATION, ("rcpt",))(60e-6)
    series.observer(metrics.STAGE_DURATION, ("rcpt",))(2.0)
    values = collect(tmp_path).totals[metrics.STAGE_DURATION, ("rcpt",)]
    assert values == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 50e-6 + 60e-6 + 2.0]


def test_a_gauge_keeps_its_last_value(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "supervisor.run-0.series")
    series.set(metrics.WORKERS, ("milter",), 4)
    series.set(metrics.WORKERS, ("milter",), 3)
    assert collect(tmp_path).gauge(metrics.WORKERS) == {("milter",): 3.0}


def test_four_threads_lose_no_count(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")

    def work() -> None:
        for number in range(30_000):
            series.add(metrics.DECISIONS, CONTOSO)
            series.add(metrics.ERRORS, ("milter", str(number % 100)))
            series.observer(metrics.STAGE_DURATION, ("mail",))(1.0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    totals = collect(tmp_path).totals
    assert totals[metrics.DECISIONS, CONTOSO] == [120_000.0]
    assert [totals[metrics.ERRORS, ("milter", str(kind))] for kind in range(100)] == [[1_200.0]] * 100
    assert totals[metrics.STAGE_DURATION, ("mail",)][-3:] == [120_000.0, 0.0, 120_000.0]


def test_four_processes_at_once_sum_exactly_after_their_end(tmp_path: Path) -> None:
    def work() -> None:
        series = Series.create(tmp_path / f"milter-{os.getpid()}.series")
        for number in range(20_000):
            series.add(metrics.DECISIONS, CONTOSO)
            series.add(metrics.DECISIONS, (f"organization {number % 500}", "reject", "none"))

    assert all(_ended_well(pid) for pid in [_in_child(work) for _ in range(4)])
    totals = _decisions(tmp_path)
    assert totals.pop(CONTOSO) == 80_000.0
    assert totals == {(f"organization {number}", "reject", "none"): 160.0 for number in range(500)}


def test_sums_read_while_workers_live_end_and_are_folded_never_go_backwards(tmp_path: Path) -> None:
    def supervise() -> None:
        for number in range(300):
            path = tmp_path / f"milter-{number}.series"
            series = Series.create(path)
            for _ in range(20):
                series.add(metrics.DECISIONS, CONTOSO)
            fold(tmp_path, "milter", path)

    supervisor = _in_child(supervise)
    seen = [0.0]
    while os.waitpid(supervisor, os.WNOHANG) == (0, 0):
        seen.append(_decisions(tmp_path).get(CONTOSO, 0.0))
    assert seen == sorted(seen)
    assert len(set(seen)) > 20
    assert _decisions(tmp_path) == {CONTOSO: 6_000.0}
    assert [path.name for path in tmp_path.iterdir()] == ["milter-retired.series"]


def test_a_fold_cut_short_before_the_unlink_counts_the_worker_once(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    Series.create(path).add(metrics.DECISIONS, CONTOSO, 7.0)
    os.link(path, tmp_path / "kept")
    fold(tmp_path, "milter", path)
    os.rename(tmp_path / "kept", path)
    assert _decisions(tmp_path) == {CONTOSO: 7.0}
    fold(tmp_path, "milter", path)
    assert _decisions(tmp_path) == {CONTOSO: 7.0}


def test_a_file_name_that_comes_again_counts_as_a_new_worker(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    for _ in range(3):
        Series.create(path).add(metrics.DECISIONS, CONTOSO)
        fold(tmp_path, "milter", path)
    Series.create(path).add(metrics.DECISIONS, CONTOSO)
    assert _decisions(tmp_path) == {CONTOSO: 4.0}


def test_a_fold_keeps_histograms_and_drops_gauges(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    series = Series.create(path)
    series.observer(metrics.STAGE_DURATION, ("rcpt",))(0.5)
    series.set(metrics.WORKERS, ("milter",), 9)
    fold(tmp_path, "milter", path)
    state = collect(tmp_path)
    assert state.totals[metrics.STAGE_DURATION, ("rcpt",)][-3:] == [1.0, 0.0, 0.5]
    assert state.gauge(metrics.WORKERS) == {}
    assert state.processes == ()


def test_a_fold_of_garbage_removes_it_and_keeps_what_was_folded_before(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    Series.create(path).add(metrics.DECISIONS, CONTOSO)
    fold(tmp_path, "milter", path)
    path.write_bytes(b"x" * 1000)
    fold(tmp_path, "milter", path)
    assert _decisions(tmp_path) == {CONTOSO: 1.0}
    assert not path.exists()


def test_label_sets_beyond_the_file_count_in_one_series_and_known_ones_go_on(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    series.add(metrics.DECISIONS, CONTOSO)
    many = CAPACITY_BYTES // 64
    for number in range(many):
        series.add(metrics.DECISIONS, (f"organization {number}", "relay", "p1-accepted"))
    series.add(metrics.DECISIONS, CONTOSO)
    totals = _decisions(tmp_path)
    assert totals[CONTOSO] == 2.0
    assert totals["(other)", "(other)", "(other)"] > 1_000
    assert sum(totals.values()) == many + 2


def test_ten_thousand_organizations_with_four_outcomes_fit_into_a_file(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    for number in range(10_000):
        for verdict in ("relay", "reject", "exempt", "none"):
            series.add(metrics.DECISIONS, (f"organization {number}", verdict, "p1-accepted"))
    totals = _decisions(tmp_path)
    assert len(totals) == 40_000
    assert ("(other)", "(other)", "(other)") not in totals


def test_an_unused_overflow_series_is_not_shown(tmp_path: Path) -> None:
    Series.create(tmp_path / "milter-1.series")
    assert collect(tmp_path).totals == {(metrics.BYPASS, ()): [0.0], (metrics.HEALTHY, ()): [0.0]}


@pytest.mark.parametrize(
    ("given", "shown"),
    [("Müller & Söhne", "Müller & Söhne"), ('a"b\\', 'a"b\\'), ("a\nb\0c", "a b c"), ("\udcff", "?"), ("", "")],
)
def test_any_organization_name_comes_back_or_is_made_readable(tmp_path: Path, given: str, shown: str) -> None:
    Series.create(tmp_path / "milter-1.series").add(metrics.DECISIONS, (given, "relay", given))
    assert _decisions(tmp_path) == {(shown, "relay", shown): 1.0}


def test_label_values_that_are_too_few_are_refused(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    with pytest.raises(ValueError, match="gatepost_relay_decisions_total has labels"):
        series.add(metrics.DECISIONS, ("contoso",))


def test_a_process_is_seen_by_its_pid_heartbeat_and_readiness(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    reader = Series.attach(tmp_path / "milter-1.series")
    assert (reader.pid, reader.ready) == (os.getpid(), False)
    series.ready = True
    series.beat(12.5)
    assert (reader.heartbeat, reader.ready) == (12.5, True)


def test_a_file_made_before_the_fork_shows_the_child_after_its_first_beat(tmp_path: Path) -> None:
    series = Series.create(tmp_path / "milter-1.series")
    child = _in_child(lambda: series.beat(1.0))
    assert _ended_well(child)
    assert series.pid == child


def test_create_leaves_no_count_of_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    Series.create(path).add(metrics.DECISIONS, CONTOSO)
    Series.create(path)
    assert _decisions(tmp_path) == {}


def test_a_file_takes_room_on_the_disk_for_what_is_used_and_one_step(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    Series.create(path)
    assert path.stat().st_size == CAPACITY_BYTES
    assert 64 * 1024 <= path.stat().st_blocks * 512 < 128 * 1024


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 4096, b"not a series file" * 100])
def test_a_foreign_file_is_refused_by_attach_and_left_out_of_sums(tmp_path: Path, content: bytes) -> None:
    Series.create(tmp_path / "milter-1.series").add(metrics.DECISIONS, CONTOSO)
    (tmp_path / "milter-2.series").write_bytes(content)
    with pytest.raises(SeriesError, match=r"milter-2\.series"):
        Series.attach(tmp_path / "milter-2.series")
    assert _decisions(tmp_path) == {CONTOSO: 1.0}


def test_a_file_cut_anywhere_gives_its_sound_beginning(tmp_path: Path) -> None:
    Series.create(tmp_path / "whole").add(metrics.DECISIONS, CONTOSO)
    content = (tmp_path / "whole").read_bytes()[:4096]
    whole = list(attached([tmp_path / "whole"])[0].entries())
    for size in range(48, 4096, 8):
        (tmp_path / "cut").write_bytes(content[:size])
        entries = list(Series.attach(tmp_path / "cut").entries())
        assert entries == whole[: len(entries)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(at=st.integers(8, 2000), junk=st.binary(min_size=1, max_size=64))
def test_a_file_with_junk_anywhere_behind_its_magic_is_read_without_an_error(
    tmp_path: Path, at: int, junk: bytes
) -> None:
    path = tmp_path / "milter-1.series"
    if not path.exists():
        Series.create(path).add(metrics.DECISIONS, CONTOSO)
    content = path.read_bytes()[:4096]
    (tmp_path / "torn").write_bytes(content[:at] + junk + content[at + len(junk) :])
    series = Series.attach(tmp_path / "torn")
    series.add_to({})
    series.folded()


def test_what_a_killed_daemon_left_is_put_away_and_counts_on(tmp_path: Path) -> None:
    for name in ("milter-1", "milter-2", "policyd-1", "supervisor.milter-0"):
        Series.create(tmp_path / f"{name}.series").add(metrics.DECISIONS, CONTOSO)
    put_away(tmp_path, "milter")
    left = ["milter-retired.series", "policyd-1.series", "supervisor.milter-0.series"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert _decisions(tmp_path) == {CONTOSO: 4.0}


def test_of_a_daemon_that_is_put_away_no_process_and_no_gauge_remains(tmp_path: Path) -> None:
    Series.create(tmp_path / "ledger-1.series").set(metrics.LEDGER_BACKLOG, ("ledger",), 9)
    put_away(tmp_path, "ledger")
    state = collect(tmp_path)
    assert (state.processes, state.gauge(metrics.LEDGER_BACKLOG)) == ((), {})


def test_what_cannot_be_put_away_goes(tmp_path: Path) -> None:
    """A disk that is full: the daemon must start, and a file that stays would be a process that is silent."""
    Series.create(tmp_path / "milter-1.series").add(metrics.DECISIONS, CONTOSO)
    (tmp_path / "milter-retired.series-new").mkdir()
    put_away(tmp_path, "milter")
    assert collect(tmp_path).processes == ()


def test_a_retired_file_lists_the_last_lives_only(tmp_path: Path) -> None:
    path = tmp_path / "milter-1.series"
    for _ in range(LIVES + 5):
        path.write_bytes(b"")
        Series.create(path).add(metrics.DECISIONS, CONTOSO)
        fold(tmp_path, "milter", path)
    (retired,) = attached([tmp_path / "milter-retired.series"])
    assert len(retired.folded()) == LIVES
    assert _decisions(tmp_path) == {CONTOSO: LIVES + 5.0}


def test_counts_of_this_boot_outlive_a_start(tmp_path: Path) -> None:
    for _ in range(2):
        Series.create(tmp_path / "milter-1.series").add(metrics.DECISIONS, CONTOSO)
        put_away(tmp_path, "milter")
        clear(tmp_path)
    assert _decisions(tmp_path) == {CONTOSO: 2.0}


def test_counts_of_before_the_last_boot_go_with_the_next_start(tmp_path: Path) -> None:
    """CLOCK_MONOTONIC begins with the boot: what it said before it is in the future."""
    Series.create(tmp_path / "milter-1.series").beat(time.monotonic() + 1e6)
    retired = tmp_path / "policyd-retired.series"
    Series.create(tmp_path / "policyd-1.series").add(metrics.DECISIONS, CONTOSO)
    put_away(tmp_path, "policyd")
    with retired.open("r+b") as file:
        file.seek(40)
        assert 0 < time.monotonic() - struct.unpack("=d", file.read(8))[0] < 60
        file.seek(40)
        file.write(struct.pack("=d", time.monotonic() + 1e6))
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_sums_to_nothing(tmp_path: Path) -> None:
    assert collect(tmp_path / "missing").totals == {}
