# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of the daemons as real processes: start, reload, drain, and workers that die or fall silent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from daemonprocess import CONTOSO, TIMEOUT_S, Gatepost, gone, poll
from milterclient import MilterClient, MilterError, Outcome

from gatepost.service import supervisor
from gatepost.service.config import load
from gatepost.service.srs_config import forgotten

OUTSIDE = b"<x@gmail.example>"
PASSED = Outcome(rcpt=["continue"], eoh="continue", eom="continue")

ODD_WORKERS = """
import os, signal, sys, time
from pathlib import Path
from gatepost.service import log, supervisor

class Odd:
    # Workers that with validity_days = 20 never get ready, and with 19 die before the file `go` is there.
    name = "odd"
    silence_s = 5.0
    def workers(self, config): return 2
    def open(self): pass
    def release(self): pass
    def close(self): pass
    def serve(self, snapshot, series, index):
        days = snapshot.config.srs.validity_days
        if days == 19 and not path.with_name("go").exists():
            raise RuntimeError("not yet")
        series.ready = days != 20
        log.info(f"worker {index} with {days} days")
        while not signal.sigtimedwait({signal.SIGUSR1}, 0.1):
            series.beat(time.monotonic())

if os.fork() == 0:
    os._exit(0)  # a child that the supervisor did not make
supervisor.RELOAD_S = 0.5
path = Path(sys.argv[1])
supervisor.Supervisor(path, supervisor.first_snapshot(path), [Odd()], "odd").run(lambda state: None)
"""


def asks_milter(gatepost: Gatepost, reverse_path: bytes = b"<app@contoso.com>") -> Outcome:
    with MilterClient(gatepost.socket) as client:
        outcome = client.open().send(reverse_path, [OUTSIDE])
        client.quit()
    return outcome


def asks_policyd(gatepost: Gatepost) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(gatepost.policyd_socket)
        client.sendall(b"25:egress app@vendor.example,")
        return client.recv(100)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Gatepost]:
    with Gatepost(tmp_path, command="run", metrics=True) as gatepost:
        yield gatepost


@pytest.fixture
def milter(tmp_path: Path) -> Iterator[Gatepost]:
    with Gatepost(tmp_path, metrics=True) as gatepost:
        yield gatepost


@contextlib.contextmanager
def steady_mail(gatepost: Gatepost) -> Iterator[list[object]]:
    """Keep sending messages, a session each, inside the block; yield what came of each of them, also errors."""
    results: list[object] = []
    enough = threading.Event()

    def send() -> None:
        while not enough.is_set():
            try:
                results.append(asks_milter(gatepost))
            except (OSError, MilterError) as error:
                results.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield results
    finally:
        enough.set()
        thread.join()


# Start


def test_systemd_is_told_ready_once_everything_serves_then_reloading_then_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(TIMEOUT_S)
        gatepost = Gatepost(tmp_path, command="run", workers=2)
        gatepost.start({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        try:
            assert systemd.recv(1000) == b"READY=1"
            assert len(gatepost.workers("milter")) == 2
            assert asks_milter(gatepost) == PASSED
            assert asks_policyd(gatepost) == b"9:NOTFOUND ,"
            gatepost.signal(signal.SIGHUP)
            reloading = systemd.recv(1000).split(b"\n")
            assert reloading[0] == b"RELOADING=1"
            assert reloading[1].startswith(b"MONOTONIC_USEC=")
            assert systemd.recv(1000) == b"READY=1"
            gatepost.signal(signal.SIGTERM)
            assert systemd.recv(1000) == b"STOPPING=1"
            assert gatepost.wait() == 0
        finally:
            gatepost.stop()


def test_systemd_is_told_at_an_abstract_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"gatepost-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        supervisor.notify("READY=1")
        assert systemd.recv(1000) == b"READY=1"


def test_daemon_whose_workers_die_is_not_called_ready_until_they_live(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, program=["-c", ODD_WORKERS, str(tmp_path / "gatepost.toml")])
    gatepost.configure(more="[srs]\nvalidity_days = 19\n")
    gatepost.start()
    try:
        gatepost.wait_for_log(r"error: odd worker \d+ died \(exit status 1\)$", count=3)
        assert not any(line.endswith("ready") for line in gatepost.log)
        (tmp_path / "go").touch()
        gatepost.wait_for_log("odd ready$")
    finally:
        gatepost.stop()


def test_missing_secret_is_made_for_the_owner_only_and_said_so(tmp_path: Path) -> None:
    with Gatepost(tmp_path) as gatepost:
        secret = gatepost.state / "srs.secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert len(secret.read_bytes()) == 45
        assert gatepost.log[0] == (f"made a new SRS secret in {secret}; keep it: bounces of rewritten mail need it")


def test_second_start_keeps_the_secret(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    with gatepost:
        secret = (gatepost.state / "srs.secret").read_bytes()
    with gatepost:
        assert (gatepost.state / "srs.secret").read_bytes() == secret
        assert not any("secret" in line for line in gatepost.log)


def test_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.state.mkdir()
    secret = gatepost.state / "srs.secret"
    secret.write_bytes(b"secret\n")
    secret.chmod(0o644)
    assert gatepost.run() == os.EX_CONFIG
    assert gatepost.log == [f"error: {secret}: the SRS secret is open to others (mode 0644); chmod 0600 {secret}"]


def test_missing_configuration_is_refused_by_name(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.configuration.unlink()
    assert gatepost.run() == os.EX_CONFIG
    assert gatepost.log == [f"error: {gatepost.configuration}: cannot be read: No such file or directory"]


def test_every_problem_of_a_configuration_is_named(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, relay='mode = "loud"\nrequirments = "legacy"')
    assert gatepost.run() == os.EX_CONFIG
    problems = [line.split(": ")[2] for line in gatepost.log]
    assert problems == ["relay.mode", "relay.requirments"]


def test_missing_socket_folder_is_refused_by_name(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, milter=f"unix:{tmp_path}/none/milter.sock")
    assert gatepost.run() == os.EX_CANTCREAT
    assert gatepost.log[-1] == f"error: unix:{tmp_path}/none/milter.sock: the folder {tmp_path}/none does not exist"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_socket_at_the_socket_path_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    gatepost = Gatepost(tmp_path)
    path = Path(gatepost.socket)
    if kind == "file":
        path.write_text("keep me")
    else:
        path.symlink_to(tmp_path / "keep me")
    assert gatepost.run() == os.EX_OSERR
    assert gatepost.log[-1] == f"error: [Errno 17] exists and is no socket: '{path}'"
    assert path.is_symlink() if kind == "link" else path.read_text() == "keep me"


def test_second_start_on_the_same_unix_socket_is_refused_and_the_first_goes_on_unharmed(tmp_path: Path) -> None:
    with Gatepost(tmp_path, metrics=True) as first:
        asks_milter(first)
        second = Gatepost(tmp_path)
        second.configuration.write_text(
            second.configuration.read_text().replace('listen = ""', f'listen = "127.0.0.1:{first.metrics_port}"')
        )
        assert second.run() == os.EX_OSERR
        assert second.log[-1] == f"error: [Errno 98] another process listens there: '{first.socket}'"
        assert asks_milter(first) == PASSED
        assert first.get("/healthz") == (200, "ok\n")
        assert first.metric('gatepost_messages_total{action="pass",daemon="milter"}') == 2


def test_second_start_on_the_same_tcp_port_is_refused_by_name(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"inet:127.0.0.1:{other.getsockname()[1]}"
        gatepost = Gatepost(tmp_path, milter=address)
        assert gatepost.run() == os.EX_OSERR
        assert gatepost.log[-1].startswith(f"error: {address}: cannot listen")


def test_policyd_port_that_another_program_has_is_refused_by_name_and_the_milter_socket_goes(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"inet:127.0.0.1:{other.getsockname()[1]}"
        gatepost = Gatepost(tmp_path, command="run", policyd=address)
        assert gatepost.run() == os.EX_OSERR
        assert gatepost.log[-1] == f"error: policyd.listen: {address}: another program listens there"
        assert not Path(gatepost.socket).exists()


@pytest.mark.parametrize("table", ["forward", "reverse"])
def test_port_that_postsrsd_may_have_is_refused_with_that_question(tmp_path: Path, table: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"inet:127.0.0.1:{other.getsockname()[1]}"
        gatepost = Gatepost(tmp_path, command="policyd")
        listen = f'[policyd]\ntcp_table_{table} = ["{address}"]\n'
        gatepost.configuration.write_text(gatepost.configuration.read_text().replace("[policyd]\n", listen))
        assert gatepost.run() == os.EX_OSERR
        assert gatepost.log[-1] == (
            f"error: policyd.tcp_table_{table}: {address}: another program listens there; is postsrsd still running?"
        )


@pytest.mark.skipif(os.getuid() != 0, reason="for root only")
def test_start_as_root_is_warned_of(milter: Gatepost) -> None:
    text = "warning: running as root: its files will be root's; start it as the user gatepost"
    assert milter.log.count(text) == 1


def test_start_as_another_user_is_not_warned_of(tmp_path: Path) -> None:
    code = (
        "import os; os.geteuid = lambda: 1000; from pathlib import Path; from gatepost.admin.run import run;"
        f"run(Path({str(tmp_path / 'gatepost.toml')!r}), ['milter'])"
    )
    with Gatepost(tmp_path, program=["-c", code]) as gatepost:
        assert not any("running as root" in line for line in gatepost.log)


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])  # Postfix sets both
def test_metrics_port_that_another_program_has_is_refused_by_name(tmp_path: Path, option: int) -> None:
    gatepost = Gatepost(tmp_path, metrics=True)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", gatepost.metrics_port))
        other.listen()
        assert gatepost.run() == os.EX_OSERR
        address = f"127.0.0.1:{gatepost.metrics_port}"
        assert gatepost.log[-1] == f"error: metrics.listen: {address}: another program listens there"
        assert not Path(gatepost.socket).exists()


# Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_ends_all_workers_and_leaves_nothing_but_the_state(both: Gatepost, number: signal.Signals) -> None:
    workers = [*both.workers("milter"), *both.workers("policyd"), *both.workers("metrics")]
    assert len(workers) == 3
    both.signal(number)
    assert both.wait() == 0
    assert gone(workers)
    assert not Path(both.socket).exists()
    assert not Path(both.policyd_socket).exists()
    left = {path.name for path in (both.state / "metrics").iterdir()}
    retired = {f"{name}-retired.series" for name in ("milter", "policyd", "ledger", "metrics")}
    assert left == retired


def test_policyd_still_answers_while_a_message_is_in_the_milter_that_stops(both: Gatepost) -> None:
    with MilterClient(both.socket) as client:
        client.open()
        client.mail(b"<app@contoso.com>")
        both.signal(signal.SIGTERM)
        both.wait_for_log("draining")
        assert asks_policyd(both) == b"9:NOTFOUND ,"
        assert client.rcpt(OUTSIDE) == "continue"
        assert client.data() == "continue"
        assert client.end_of_headers() == "continue"
        assert client.end_of_message() == "continue"
        client.quit()
    assert both.wait() == 0


# Reload


def test_good_configuration_is_taken_by_new_workers_while_mail_flows(milter: Gatepost) -> None:
    before = milter.workers("milter")
    milter.configure(organizations=CONTOSO.replace('name = "crm"', 'name = "crm 2"'), workers=2)
    with steady_mail(milter) as results:
        poll(lambda: len(results) > 10, "mail before the reload")
        milter.signal(signal.SIGHUP)
        milter.wait_for_log("configuration reloaded$")
        poll(lambda: gone(before), "the end of the old worker")
        sent = len(results)
        poll(lambda: len(results) > sent + 10, "mail after the reload")
    assert [result for result in results if result != PASSED] == []
    assert len(milter.workers("milter")) == 2
    assert milter.metric('gatepost_reloads_total{daemon="milter",result="loaded"}') == 1
    assert milter.metric('gatepost_messages_total{action="pass",daemon="milter"}') == len(results)
    assert milter.metric('gatepost_worker_restarts_total{cause="died",daemon="milter"}') == 0


def test_session_under_way_ends_under_the_configuration_that_it_began_with(milter: Gatepost) -> None:
    before = milter.workers("milter")
    with MilterClient(milter.socket) as client:
        client.open()
        milter.configure(relay='mode = "monitor"')
        milter.signal(signal.SIGHUP)
        milter.wait_for_log("configuration reloaded$")
        poll(lambda: asks_milter(milter, b"<app@vendor.example>") == PASSED, "the new configuration")
        assert client.send(b"<app@vendor.example>", [OUTSIDE]).rcpt[0].startswith("550 5.7.64 ")
        assert not gone(before)
        client.quit()
    poll(lambda: gone(before), "the end of the old worker")


def test_broken_configuration_is_refused_with_every_problem_and_the_old_one_stays(milter: Gatepost) -> None:
    before = milter.workers("milter")
    milter.configure(relay='mode = "loud"\nrequirments = "legacy"')
    milter.signal(signal.SIGHUP)
    milter.wait_for_log("error: configuration not reloaded, the one loaded before stays in force$")
    problems = [line for line in milter.log if line.startswith("error: gatepost.toml: ")]
    assert [problem.split(": ")[2] for problem in problems] == ["relay.mode", "relay.requirments"]
    assert asks_milter(milter, b"<app@vendor.example>").rcpt[0].startswith("550 5.7.64 ")
    assert milter.workers("milter") == before
    assert milter.metric('gatepost_reloads_total{daemon="milter",result="kept"}') == 1
    assert milter.metric('gatepost_config_last_reload_ok{daemon="milter"}') == 0
    assert milter.get("/healthz")[0] == 503


def test_reload_after_the_configuration_was_mended_makes_all_well_again(milter: Gatepost) -> None:
    milter.configure(relay='mode = "loud"')
    milter.signal(signal.SIGHUP)
    milter.wait_for_log("not reloaded")
    milter.configure()
    milter.signal(signal.SIGHUP)
    milter.wait_for_log("configuration reloaded$")
    poll(lambda: milter.get("/healthz") == (200, "ok\n"), "health")


def test_change_that_needs_a_restart_is_refused_by_name(milter: Gatepost) -> None:
    milter.configure(milter=f"unix:{milter.folder}/other.sock")
    milter.signal(signal.SIGHUP)
    milter.wait_for_log("error: gatepost.toml: milter.listen: a change needs a restart of gatepost$")
    milter.wait_for_log("configuration not reloaded")
    assert asks_milter(milter) == PASSED


def test_secret_that_went_missing_is_refused_at_reload_and_not_made_anew(milter: Gatepost) -> None:
    (milter.state / "srs.secret").unlink()
    milter.signal(signal.SIGHUP)
    milter.wait_for_log("the SRS secret cannot be read: No such file or directory$")
    assert not (milter.state / "srs.secret").exists()
    assert asks_milter(milter) == PASSED


def test_reloads_in_quick_succession_end_with_one_set_of_workers(milter: Gatepost) -> None:
    with steady_mail(milter) as results:
        for _ in range(5):
            mark = milter.mark()
            milter.signal(signal.SIGHUP)
            milter.wait_for_log("configuration reloaded$", after=mark)
        poll(lambda: len(milter.workers("milter")) == 1, "the end of the old workers")
        sent = len(results)
        poll(lambda: len(results) > sent + 5, "mail afterwards")
    assert [result for result in results if result != PASSED] == []


def test_mode_is_enforce_from_its_moment_on_without_a_signal(tmp_path: Path) -> None:
    moment = datetime.fromtimestamp(time.time() + 3, timezone.utc).isoformat()
    with Gatepost(tmp_path, relay=f"enforce_from = {moment}") as gatepost:
        assert refused(gatepost) == ["continue"]
        gatepost.configuration.write_text("broken")  # what was announced comes all the same
        gatepost.wait_for_log("enforce_from has come; taking it up$")
        gatepost.wait_for_log("configuration reloaded$")
        (reply,) = refused(gatepost)
        assert reply.startswith("550 5.7.64 TenantAttribution; Relay Access Denied")


def refused(gatepost: Gatepost) -> list[str]:
    """Return what RCPT is answered for mail that the relay rule refuses."""
    with MilterClient(gatepost.socket) as client:
        return client.open().send(b"<app@vendor.example>", [OUTSIDE]).rcpt


def test_reload_whose_workers_do_not_get_ready_is_taken_back(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, program=["-c", ODD_WORKERS, str(tmp_path / "gatepost.toml")])
    with gatepost:
        gatepost.configure(more="[srs]\nvalidity_days = 20\n")
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("error: the workers with the new configuration did not get ready$")
        gatepost.wait_for_log("error: configuration not reloaded, the one loaded before stays in force$")
        mark = gatepost.mark()
        gatepost.configure(more="[srs]\nvalidity_days = 22\n")
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("with 22 days$", after=mark, count=2)
        gatepost.wait_for_log("configuration reloaded$", after=mark)
        gatepost.signal(signal.SIGTERM)
        assert gatepost.wait() == 0


def test_reload_asked_for_during_a_reload_is_made_after_it(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path, program=["-c", ODD_WORKERS, str(tmp_path / "gatepost.toml")])
    with gatepost:
        gatepost.configure(more="[srs]\nvalidity_days = 20\n")
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("with 20 days$", count=2)
        gatepost.configure(more="[srs]\nvalidity_days = 22\n")
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("error: configuration not reloaded")
        gatepost.wait_for_log("configuration reloaded$")
        gatepost.wait_for_log("with 22 days$", count=2)


# Workers that go away


def test_killed_worker_is_replaced_and_counted(milter: Gatepost) -> None:
    (worker,) = milter.workers("milter")
    asks_milter(milter)
    os.kill(worker, signal.SIGKILL)
    milter.wait_for_log(rf"error: milter worker {worker} died \(signal 9\)$")
    poll(lambda: worker not in (found := milter.workers("milter")) and len(found) == 1, "the new worker")
    assert asks_milter(milter) == PASSED
    assert milter.metric('gatepost_worker_restarts_total{cause="died",daemon="milter"}') == 1
    assert milter.metric('gatepost_messages_total{action="pass",daemon="milter"}') == 2


def test_worker_is_replaced_without_metrics_where_their_folder_is_gone(milter: Gatepost) -> None:
    (worker,) = milter.workers("milter")
    shutil.rmtree(milter.state / "metrics")
    (milter.state / "metrics").touch()
    os.kill(worker, signal.SIGKILL)
    milter.wait_for_log("error: milter worker: its metrics are not shown: ")
    assert asks_milter(milter) == PASSED


def test_new_worker_makes_no_state_directory_in_the_place_of_one_that_was_taken_away(milter: Gatepost) -> None:
    """In it the worker would begin an empty store, and refuse bounces to compact addresses of the right one."""
    (worker,) = milter.workers("milter")
    milter.state.rename(milter.folder / "away")
    os.kill(worker, signal.SIGKILL)
    milter.wait_for_log("error: milter worker: its metrics are not shown: ")
    assert asks_milter(milter) == PASSED
    assert not milter.state.exists()
    (milter.folder / "away").rename(milter.state)


@pytest.mark.parametrize("daemon", ["milter", "policyd"])
def test_stopped_worker_is_killed_and_replaced(both: Gatepost, daemon: str) -> None:
    (worker,) = both.workers(daemon)
    os.kill(worker, signal.SIGSTOP)
    both.wait_for_log(rf"error: {daemon} worker {worker} silent \(signal 9\)$")
    assert asks_policyd(both) == b"9:NOTFOUND ,"
    assert asks_milter(both) == PASSED
    assert both.metric(f'gatepost_worker_restarts_total{{cause="silent",daemon="{daemon}"}}') == 1


def test_milter_and_policyd_apart_share_one_metrics_address_and_either_shows_both(tmp_path: Path) -> None:
    milter = Gatepost(tmp_path, command="milter", metrics=True)
    policyd = Gatepost(tmp_path, command="policyd")
    policyd.metrics_port = milter.metrics_port
    policyd.configure()
    with milter:
        with policyd:
            assert asks_milter(milter) == PASSED
            assert asks_policyd(policyd) == b"9:NOTFOUND ,"
            for _ in range(10):  # the kernel picks one of the two listeners for each connection
                assert milter.get("/healthz") == (200, "ok\n")
                assert milter.metric('gatepost_messages_total{action="pass",daemon="milter"}') == 1
                assert milter.metric('gatepost_map_lookups_total{map="egress",result="notfound"}') == 1
        assert milter.get("/healthz") == (200, "ok\n")


def test_sums_of_milter_and_policyd_never_fall_when_one_stops_starts_or_is_killed(tmp_path: Path) -> None:
    """To Prometheus a sum that falls is a counter that began anew: it takes all that is left for new."""
    milter = Gatepost(tmp_path, command="milter", metrics=True)
    policyd = Gatepost(tmp_path, command="policyd")
    policyd.metrics_port = milter.metrics_port
    policyd.configure()
    judged = 'gatepost_stage_duration_seconds_count{stage="map"}'
    with milter:
        with policyd:
            assert asks_policyd(policyd) == b"9:NOTFOUND ,"
        assert milter.metric(judged) == 1
        assert "policyd" not in milter.get("/metrics?name[]=gatepost_workers&name[]=gatepost_workers_wanted")[1]
        with policyd:
            assert milter.metric(judged) == 1
            assert asks_policyd(policyd) == b"9:NOTFOUND ,"
            policyd.signal(signal.SIGKILL)
            policyd.wait()
        with policyd:
            assert milter.metric(judged) == 2
            assert milter.get("/healthz") == (200, "ok\n")


def test_workers_end_by_themselves_when_the_supervisor_is_killed_and_the_next_start_takes_over(
    tmp_path: Path,
) -> None:
    gatepost = Gatepost(tmp_path, command="run", metrics=True)
    with gatepost:
        workers = [*gatepost.workers("milter"), *gatepost.workers("policyd"), *gatepost.workers("metrics")]
        gatepost.signal(signal.SIGKILL)
        assert gatepost.wait() == -signal.SIGKILL
        assert len(workers) == 3
        poll(lambda: gone(workers), "the end of the workers")
    assert stat.S_ISSOCK(os.stat(gatepost.socket).st_mode)
    with gatepost:
        assert asks_milter(gatepost) == PASSED
        assert asks_policyd(gatepost) == b"9:NOTFOUND ,"
        assert gatepost.get("/healthz") == (200, "ok\n")


def test_session_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with Gatepost(tmp_path) as gatepost, MilterClient(gatepost.socket) as client:
        client.open()
        gatepost.signal(signal.SIGKILL)
        assert client.send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        client.quit()
        gatepost.wait()


# Files that the configuration names


def test_changed_list_is_loaded_by_itself_once(tmp_path: Path) -> None:
    listed = tmp_path / "exclude"
    listed.write_text("fabrikam.com\n")
    with Gatepost(tmp_path, more='[srs]\nexclude_file = "exclude"\n', metrics=True) as gatepost:
        mark = gatepost.mark()
        listed.with_name("other").write_text("vendor.example\n")
        listed.with_name("other").rename(listed)
        gatepost.wait_for_log(f"changed: {listed}; loading the configuration anew", after=mark)
        gatepost.wait_for_log("configuration reloaded", after=mark)
        with MilterClient(gatepost.socket) as client:
            outcome = client.open().send(b"<app@vendor.example>", [b"<ann@contoso.com>"])
        assert outcome.eom == "continue"
        assert gatepost.metric('gatepost_reloads_total{daemon="milter",result="loaded"}') == 1


def test_list_that_cannot_be_used_leaves_the_old_one_in_force_until_it_is_mended(tmp_path: Path) -> None:
    listed = tmp_path / "exclude"
    listed.write_text("fabrikam.com\n")
    with Gatepost(tmp_path, more='[srs]\nexclude_file = "exclude"\n') as gatepost:
        mark = gatepost.mark()
        listed.write_text("fabrikam.com\nno domain\n")
        gatepost.wait_for_log(rf'srs\.exclude_file: {listed} line 2: "no domain" is no domain', after=mark)
        gatepost.wait_for_log("configuration not reloaded", after=mark)
        assert asks_milter(gatepost) == PASSED
        listed.write_text("fabrikam.com\n*.fabrikam.com\n")
        gatepost.wait_for_log("configuration reloaded", after=mark)


def test_list_that_is_still_being_written_is_loaded_once_two_looks_have_seen_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_S", 0.0)
    monkeypatch.setattr(supervisor, "LOOK_SHARE", 0)
    gatepost = Gatepost(tmp_path, more='[srs]\nexclude_file = "exclude"\n')
    listed = tmp_path / "exclude"
    listed.write_text("fabrikam.com\n")
    states: list[str] = []
    looker = supervisor.Supervisor(
        gatepost.configuration, supervisor.first_snapshot(gatepost.configuration), [], "nothing"
    )
    looker._look(states.append)
    for text in ("fabrikam.com\nven", "fabrikam.com\nvendor.example\n", "", "vendor.example\n"):
        listed.write_text(text)
        looker._look(states.append)
    assert states == []
    looker._look(states.append)
    assert [state.partition("=")[0] for state in states] == ["RELOADING"]
    looker._look(states.append)
    assert len(states) == 1


def test_change_of_the_secrets_mode_alone_is_noticed(milter: Gatepost) -> None:
    secret = milter.state / "srs.secret"
    mark = milter.mark()
    secret.chmod(0o640)
    milter.wait_for_log(f"changed: {secret}; loading the configuration anew$", after=mark)
    milter.wait_for_log("configuration reloaded$", after=mark)
    secret.chmod(0o644)
    milter.wait_for_log(rf"{secret}: the SRS secret is open to others \(mode 0644\)", after=mark)
    milter.wait_for_log("configuration not reloaded", after=mark)
    mark = milter.mark()
    secret.chmod(0o600)
    milter.wait_for_log("configuration reloaded$", after=mark)


# Addresses that a reload forgets


@pytest.mark.parametrize(
    ("before", "after", "warnings"),
    [
        ("", "", []),
        ("", "validity_days = 7", []),
        ("", 'form = "long"', ["addresses of the form compact are no longer brought back"]),
        ("", 'form = "long"\nalso_reverse = ["compact"]', []),
        ("", 'format = "srs0"', ["addresses of the form exchange are no longer brought back"]),
        ("", 'format = "srs0"\nalso_reverse = ["exchange"]', []),
        ('also_reverse = ["srs0"]', "", ["addresses of the form srs0 are no longer brought back"]),
        ("", "hash_length = 10", ["srs.hash_length: addresses with a hash of 8 characters are no longer brought back"]),
        (
            'format = "srs0"\nsrs0 = {hash_length = 6}',
            'format = "srs0"\nsrs0 = {hash_length = 6, hash_minimum = 5}',
            ["srs.srs0.hash_minimum: addresses with a shorter hash are no longer brought back"],
        ),
        (
            'format = "srs0"\nsrs0 = {hash_length = 6, hash_minimum = 5}',
            'format = "srs0"\nsrs0 = {hash_length = 6}',
            [],
        ),
        (
            'format = "srs0"',
            "hash_length = 10",
            ["addresses of the form srs0 are no longer brought back"],
        ),
    ],
)
def test_what_a_change_of_configuration_forgets(tmp_path: Path, before: str, after: str, warnings: list[str]) -> None:
    settings = []
    for text in (before, after):
        Gatepost(tmp_path, more=f"[srs]\n{text}\n")
        settings.append(load(tmp_path / "gatepost.toml").srs)
    assert [warning.partition(";")[0] for warning in forgotten(*settings)] == warnings


def test_reload_that_drops_a_form_warns_of_it_once(milter: Gatepost) -> None:
    warning = 'warning: addresses of the form compact are no longer brought back; srs.also_reverse = ["compact"] would'
    milter.configure(more='[srs]\nform = "long"\n')
    for _ in range(2):
        mark = milter.mark()
        milter.signal(signal.SIGHUP)
        milter.wait_for_log("configuration reloaded$", after=mark)
    assert milter.log.count(warning) == 1


def test_age_of_the_signing_key_is_shown(tmp_path: Path) -> None:
    secret = tmp_path / "state/srs.secret"
    secret.parent.mkdir()
    secret.write_text("# signs from 2999-01-01\nthe next one\n# signs from 2026-08-01\nthis one\nan old one\n")
    secret.chmod(0o600)
    with Gatepost(tmp_path, metrics=True) as gatepost:
        poll(lambda: gatepost.metric('gatepost_srs_keys{daemon="milter"}') == 3, "the keys are counted")
        since = gatepost.metric('gatepost_srs_signing_key_timestamp_seconds{daemon="milter"}')
        assert since == datetime(2026, 8, 1, tzinfo=timezone.utc).timestamp()
