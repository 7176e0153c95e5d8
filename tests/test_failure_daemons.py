# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of mail, and what the administrator sees, when something around the daemons fails or hangs.

With tests/test_failure_postfix.py these are the rows of the table in docs/reliability.md that no other file shows.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from daemonprocess import CONTOSO, ROOTS, TIMEOUT_S, Gatepost, gone, poll
from milterclient import MilterClient, MilterError, Outcome

from gatepost.admin.authority import Authority
from gatepost.admin.command import main
from gatepost.admin.sandbox import temporary_root
from gatepost.service import metrics
from gatepost.service.exporter import collect, problems
from gatepost.service.series import Series

OUTSIDE = b"<x@gmail.example>"
PASSED = Outcome(rcpt=["continue"], eoh="continue", eom="continue")
NOTFOUND = b"9:NOTFOUND ,"
KEPT = "error: configuration not reloaded, the one loaded before stays in force$"

WAITER = """
import os, signal
from gatepost.service.signals import wait_for_one
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
print("waiting", flush=True)
found = [wait_for_one({signal.SIGUSR1, signal.SIGHUP}, 0.05) for _ in range(3)]
os.kill(os.getpid(), signal.SIGHUP)
print([*found, wait_for_one({signal.SIGUSR1, signal.SIGHUP}, 5)], flush=True)
"""


def asks_milter(gatepost: Gatepost, reverse_path: bytes = b"<app@contoso.com>") -> Outcome:
    with MilterClient(gatepost.socket) as client:
        return client.open().send(reverse_path, [OUTSIDE])


def asks_policyd(gatepost: Gatepost) -> bytes:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(gatepost.policyd_socket)
        client.sendall(b"25:egress app@vendor.example,")
        return client.recv(100)


def status(gatepost: Gatepost) -> str:
    """What `gatepost status` says, as one line."""
    return " ".join(CliRunner().invoke(main, ["-c", str(gatepost.configuration), "status"]).output.split())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatepost]:
    """Milter and policyd under one supervisor, which each test leaves as it was."""
    with Gatepost(tmp_path_factory.mktemp("both"), command="run", metrics=True) as gatepost:
        yield gatepost


# The supervisor


def test_reload_that_is_asked_for_during_the_start_is_made_after_it(tmp_path: Path) -> None:
    many = "".join(
        f'[[organization]]\nname = "o{number}"\n[[organization.accepted_domain]]\ndomain = "o{number}.example"\n'
        for number in range(1000)
    )
    gatepost = Gatepost(tmp_path, organizations=CONTOSO + many)
    gatepost.start()
    try:
        gatepost.wait_for_log("made a new SRS secret")
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("configuration reloaded$")
        assert asks_milter(gatepost) == PASSED
    finally:
        gatepost.stop()


def test_while_the_supervisor_is_stopped_mail_flows_and_health_says_so(both: Gatepost) -> None:
    both.signal(signal.SIGSTOP)
    try:
        silent = f"supervisor.milter+policyd: process {both.pid} is silent for "
        poll(lambda: silent in both.get("/healthz")[1], "the supervisor's silence is told")
        assert both.get("/healthz")[0] == 503
        assert both.metric("gatepost_healthy") == 0
        assert f"Wrong: {silent}" in status(both)
        assert asks_milter(both) == PASSED
        assert asks_policyd(both) == NOTFOUND
    finally:
        both.signal(signal.SIGCONT)


def test_start_beside_what_a_killed_supervisor_has_left_is_refused_until_that_has_ended(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    with gatepost:
        with MilterClient(gatepost.socket) as client:
            client.open().mail(b"<app@contoso.com>")
            gatepost.signal(signal.SIGKILL)
            poll(lambda: gone([gatepost.pid]), "the end of the supervisor")
            again = Gatepost(tmp_path)
            assert again.run() == os.EX_OSERR
            assert again.log[-1].endswith(f"another process listens there: '{again.socket}'")
            assert client.rcpt(OUTSIDE) == "continue"
        gatepost.wait()
        with again:
            assert asks_milter(again) == PASSED


def test_stopped_process_that_goes_on_has_got_no_signal_but_those_that_were_sent() -> None:
    """Python returns what nobody has filled in where a wait was interrupted and its time is over."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)}
    with subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE, env=environment, text=True) as waiter:
        assert waiter.stdout
        assert waiter.stdout.readline() == "waiting\n"
        os.kill(waiter.pid, signal.SIGSTOP)
        time.sleep(0.2)  # longer than it waits
        os.kill(waiter.pid, signal.SIGCONT)
        assert waiter.stdout.readline() == f"[0, 0, 0, {signal.SIGHUP.value}]\n"


# What mail can do without


def test_start_and_mail_need_no_place_for_the_log(tmp_path: Path) -> None:
    """As on a full disk. `gatepost status` still has the errors."""
    run = f"import sys, runpy; sys.argv[1:] = ['-c', '{tmp_path}/gatepost.toml', 'milter']; "
    program = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 2); " + run
    gatepost = Gatepost(tmp_path, program=["-c", program + "runpy.run_module('gatepost.admin', run_name='__main__')"])
    gatepost.start()
    try:
        poll(lambda: gatepost.workers("milter") and serves(gatepost), "it serves")
        (worker,) = gatepost.workers("milter")
        os.kill(worker, signal.SIGKILL)
        poll(lambda: f"milter worker {worker} died (signal 9)" in status(gatepost), "the error is told")
        poll(lambda: serves(gatepost), "the next worker serves")
        assert gatepost.log == []
    finally:
        gatepost.stop()


def test_log_that_nobody_reads_stops_no_mail_and_says_afterwards_what_it_lacks(both: Gatepost) -> None:
    mark = both.mark()
    with both.unread(), MilterClient(both.socket) as client:
        client.open()
        for _ in range(1500):  # a pipe holds 64 KiB, some 600 lines
            assert client.send(b"<app@contoso.com>", [OUTSIDE]) == PASSED
        assert asks_policyd(both) == NOTFOUND
    poll(lambda: asks_milter(both) == PASSED and "could not be logged" in "".join(both.log[mark:]), "the lack is said")
    (lack,) = both.wait_for_log(r"milter.*: warning: \d+ lines could not be logged$", after=mark)
    written = sum("action=pass" in line for line in both.log[mark:])
    assert written + int(lack.split()[-6]) >= 1501


def serves(gatepost: Gatepost) -> bool:
    try:
        return asks_milter(gatepost) == PASSED
    except (OSError, MilterError):
        return False


def test_without_the_state_directory_mail_flows_and_lost_records_are_said(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="run") as gatepost:
        gatepost.state.rename(tmp_path / "away")
        assert asks_milter(gatepost) == PASSED
        assert asks_milter(gatepost, b"<u@vendor.example>").rcpt[0].startswith("550 5.7.64 ")
        assert asks_policyd(gatepost) == NOTFOUND
        gatepost.wait_for_log(f"error: ledger: {gatepost.state}/ledger: No such file or directory; 1 records are lost$")
        gatepost.wait_for_log("the SRS secret cannot be read: No such file or directory$")
        gatepost.wait_for_log(KEPT)


def test_table_that_somebody_has_cut_short_costs_the_worker_that_looks_and_is_made_anew(both: Gatepost) -> None:
    (worker,) = both.workers("policyd")
    os.truncate(both.state / "presented", 0)
    assert asks_policy(both) == b""  # Postfix asks once more
    both.wait_for_log(rf"error: policyd worker {worker} died \(signal {signal.SIGBUS.value}\)$")
    assert asks_policy(both) == b"action=550 5.1.1 SRS address with a wrong hash\n\n"


def asks_policy(gatepost: Gatepost) -> bytes:
    """The answer to a RCPT, b"" where the connection is closed instead."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(gatepost.policyd_socket)
        client.sendall(
            b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=198.51.100.7\nclient_port=40001\n"
            b"sender=\nrecipient=bounces+SRS=aaaaaaaa=AA=fabrikam.com=bob@contoso.com\n\n"
        )
        return client.recv(1000)


def test_store_that_is_damaged_while_it_is_used_makes_records_wait_until_it_is_gone(both: Gatepost) -> None:
    assert asks_milter(both) == PASSED
    poll(lambda: " passed " in status(both), "the message is in the store")
    for path in both.state.glob("gatepost.db*"):
        path.write_bytes(b"damaged" * 1000)
    assert asks_milter(both) == PASSED
    both.wait_for_log("error: ledger: store .*: file is not a database; [0-9]+ bytes of records wait in ")
    poll(lambda: both.metric('gatepost_ledger_backlog_bytes{daemon="ledger"}') > 0, "records wait")
    assert both.metric('gatepost_errors_total{daemon="ledger",kind="store"}') > 0
    assert "bytes wait for the store" in status(both)
    assert both.get("/healthz") == (200, "ok\n")
    for path in both.state.glob("gatepost.db*"):
        path.unlink()
    poll(lambda: "Ledger all is in the store" in status(both), "what waited is in a store made anew")


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A file system in the folder disk; the function takes "-f" to freeze it, so that writing hangs, and "-u"."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(folder)]):
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")

    def freeze(option: str) -> None:
        subprocess.run(["fsfreeze", option, str(folder)], check=True)

    try:
        yield freeze
    finally:
        subprocess.run(["fsfreeze", "-u", str(folder)], check=False, capture_output=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_of_the_spool_that_hangs_holds_up_one_message_of_a_worker_and_loses_the_records_of_others(
    tmp_path: Path, frozen_disk: Callable[[str], None]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger").symlink_to(tmp_path / "disk")
    with Gatepost(tmp_path, metrics=True) as gatepost, ThreadPoolExecutor(1) as pool:
        assert asks_milter(gatepost) == PASSED
        frozen_disk("-f")
        first = pool.submit(asks_milter, gatepost)
        poll(lambda: hangs(*gatepost.workers("milter")), "it hangs")
        poll(lambda: asks_milter(gatepost) == PASSED, "another message passes")
        gatepost.wait_for_log(f"error: ledger: {tmp_path}/state/ledger: the disk does not answer; 1 records are lost$")
        assert gatepost.metric('gatepost_ledger_records_total{result="lost"}') >= 1
        assert gatepost.metric('gatepost_errors_total{daemon="ledger",kind="spool"}') >= 1
        assert not first.done()
        frozen_disk("-u")
        assert first.result(TIMEOUT_S) == PASSED


def test_disk_of_the_spool_that_hangs_holds_up_a_policy_request_for_two_seconds(
    tmp_path: Path, frozen_disk: Callable[[str], None]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger").symlink_to(tmp_path / "disk")
    policy_only = 'mode = "enforce"\nenforced_by = "policyd"'
    with Gatepost(tmp_path, command="policyd", relay=policy_only, metrics=True) as gatepost:
        frozen_disk("-f")
        began = time.monotonic()
        assert passes_policyd(gatepost) == [b"action=OK\n\n", b"action=DUNNO\n\n"]
        assert time.monotonic() - began < 8
        gatepost.wait_for_log("warning: ledger: its spool has not answered for 2 s$")
        assert gatepost.metric('gatepost_ledger_records_total{result="lost"}') == 1
        frozen_disk("-u")
        assert passes_policyd(gatepost) == [b"action=OK\n\n", b"action=DUNNO\n\n"]


def passes_policyd(gatepost: Gatepost) -> list[bytes]:
    """The answers to RCPT and DATA of a message that may relay."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(gatepost.policyd_socket)
        answers = []
        for state in (b"RCPT", b"DATA"):
            client.sendall(
                b"request=smtpd_access_policy\nprotocol_state=" + state + b"\nclient_address=192.0.2.1\n"
                b"client_port=40001\nsender=app@contoso.com\nrecipient=x@gmail.example\nrecipient_count=1\n"
                b"instance=1.2.3\nqueue_id=4CgSNs5Q9s\n\n"
            )
            answers.append(client.recv(1000))
        return answers


def hangs(process: int) -> bool:
    """Tell whether a thread of *process* waits for a disk, proc(5)."""
    states = (path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{process}/task").glob("*/stat"))
    return "D" in states


@pytest.mark.parametrize(("silent_s", "problems_found"), [(30.0, False), (100.0, True)])
def test_loader_that_waits_for_its_store_is_told_and_makes_the_host_unhealthy_only_after_90_seconds(
    tmp_path: Path, silent_s: float, problems_found: bool
) -> None:
    """A balancer must not take a host out of service for a store that hangs; the loader gives up after 30 s."""
    gatepost = Gatepost(tmp_path)
    folder = gatepost.state / "metrics"
    folder.mkdir(parents=True)
    (gatepost.state / "srs.secret").write_text("key\n")
    supervisor = Series.create(folder / "supervisor.milter-0.series")
    supervisor.set(metrics.CONFIG_LOADED, ("milter",), time.time())
    supervisor.set(metrics.WORKERS_WANTED, ("ledger.milter",), 1)
    loader = Series.create(folder / "ledger.milter-1.series")
    loader.ready = True
    loader.set(metrics.LEDGER_LOADED, ("ledger.milter",), time.time() - silent_s)
    loader.beat(time.monotonic() - silent_s)
    assert bool(problems(collect(folder), time.monotonic())) == problems_found
    assert re.search(f"Ledger the store has not answered for {silent_s:.0f} s", status(gatepost))


# Files that the configuration names


def put(path: Path, octets: bytes, mode: int = 0o600) -> None:
    """Replace a file at once, as administrators' tools do."""
    draft = path.with_name("draft")
    draft.write_bytes(octets)
    draft.chmod(mode)
    draft.replace(path)


@pytest.mark.parametrize(
    ("octets", "mode", "said"),
    [
        pytest.param(b"", 0o600, "holds no SRS secret; one line a key, the first one signs", id="empty"),
        pytest.param(bytes(45), 0o600, "line 1: is no text, so no SRS secret: the file is damaged", id="nul-octets"),
        pytest.param(b"new\n", 0o644, "the SRS secret is open to others \\(mode 0644\\); chmod 0600 .*", id="open"),
    ],
)
def test_secret_that_cannot_be_used_leaves_the_old_one_in_force(
    both: Gatepost, octets: bytes, mode: int, said: str
) -> None:
    mark = both.mark()
    put(both.state / "srs.secret", octets, mode)
    both.signal(signal.SIGHUP)
    both.wait_for_log(f"error: {both.state}/srs.secret: {said}$", after=mark)
    both.wait_for_log(KEPT, after=mark)
    assert both.metric('gatepost_config_last_reload_ok{daemon="milter+policyd"}') == 0
    assert "the last reload failed, the previous configuration is in use" in status(both)


def test_secret_without_any_key_of_before_is_loaded_with_a_warning(both: Gatepost) -> None:
    """A file that was cut short cannot be told from one with another key."""
    secret = both.state / "srs.secret"
    old, mark = secret.read_bytes(), both.mark()
    put(secret, old[:20] + b"\n")
    both.signal(signal.SIGHUP)
    both.wait_for_log(
        f"warning: {secret}: no key of before is in it, so no SRS address of before is brought back; put the old keys "
        "below the new one$",
        after=mark,
    )
    mark = both.mark()
    put(secret, old + old[:20] + b"\n")
    both.signal(signal.SIGHUP)
    both.wait_for_log("configuration reloaded$", after=mark)
    assert not [line for line in both.log[mark:] if "no key of before" in line]


def test_secret_of_nul_octets_ends_the_start(tmp_path: Path) -> None:
    gatepost = Gatepost(tmp_path)
    gatepost.state.mkdir()
    put(gatepost.state / "srs.secret", bytes(45))
    assert gatepost.run() == os.EX_CONFIG
    assert gatepost.log[-1].endswith("/srs.secret: line 1: is no text, so no SRS secret: the file is damaged")


def test_configuration_that_has_gone_leaves_the_old_one_in_force(both: Gatepost) -> None:
    text, mark = both.configuration.read_text(), both.mark()
    both.configuration.unlink()
    both.signal(signal.SIGHUP)
    both.wait_for_log("error: .*/gatepost.toml: cannot be read: No such file or directory$", after=mark)
    both.wait_for_log(KEPT, after=mark)
    assert asks_milter(both) == PASSED
    both.configuration.write_text(text)


def test_folder_of_certificates_that_has_gone_leaves_the_old_ones_in_force(tmp_path: Path) -> None:
    """Clients that are known by a name in their certificate's SAN would be refused for good."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    issued = Authority(tmp_path / "tls").issue("app.example", ["mail.contoso.com"])
    shutil.copy(issued.certificate, folder / "app.pem")
    macros = {"{cert_subject}": b"app.example", "{cert_issuer}": b"Sandbox CA"}

    def relays(gatepost: Gatepost) -> bool:
        with MilterClient(gatepost.socket, macros=macros) as client:
            return client.open(ip="198.51.100.7").send(b"<app@contoso.com>", [OUTSIDE]) == PASSED

    with Gatepost(tmp_path, metrics=True) as gatepost:
        assert relays(gatepost)
        mark = gatepost.mark()
        folder.rename(tmp_path / "away")
        gatepost.signal(signal.SIGHUP)
        gone_with = "is gone, and 1 certificate with it; make it anew, empty where there shall be none"
        gatepost.wait_for_log(f"error: {folder}: {gone_with}$", after=mark)
        gatepost.wait_for_log(KEPT, after=mark)
        assert relays(gatepost)
        assert gatepost.metric('gatepost_certificates{daemon="milter"}') == 1
        mark = gatepost.mark()
        folder.mkdir()
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log("configuration reloaded$", after=mark)
        assert not relays(gatepost)


# The host


def with_limits(tmp_path: Path, limits: str) -> Gatepost:
    """gatepost run under resource limits, Python statements."""
    program = (
        f"import os, resource, runpy, sys; {limits}; sys.argv[1:] = ['-c', '{tmp_path}/gatepost.toml', 'run']; "
        "runpy.run_module('gatepost.admin', run_name='__main__')"
    )
    return Gatepost(tmp_path, command="run", metrics=True, program=["-c", program])


def test_connections_beyond_the_descriptors_wait_and_are_served_later(tmp_path: Path) -> None:
    limited = with_limits(tmp_path, "resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))")
    with limited as gatepost, ExitStack() as stack:
        for path in [gatepost.socket] * 60 + [gatepost.policyd_socket] * 60:
            client = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            client.connect(path)
        gatepost.wait_for_log("policyd.*: warning: no connection can be taken: Too many open files")
        assert gatepost.metric('gatepost_errors_total{daemon="policyd",kind="connections"}') >= 1
        processes = gatepost.workers("milter"), gatepost.workers("policyd")
        stack.close()
        assert asks_policyd(gatepost) == NOTFOUND
        assert asks_milter(gatepost) == PASSED
        assert (gatepost.workers("milter"), gatepost.workers("policyd")) == processes


@pytest.mark.skipif(os.getuid() != 0, reason="the limit is for another user's processes")
def test_worker_that_cannot_be_forked_is_tried_again_each_second() -> None:
    user = 54321  # nobody else's: its processes and threads count
    with temporary_root() as root:
        root.chmod(0o777)
        with with_limits(root, f"os.setgroups([]); os.setgid({user}); os.setuid({user})") as gatepost:
            (worker,) = gatepost.workers("policyd")
            limit = ["prlimit", "--pid", str(gatepost.pid)]
            subprocess.run([*limit, "--nproc=1:"], user=user, group=user, extra_groups=[], check=True)
            os.kill(worker, signal.SIGKILL)
            gatepost.wait_for_log("error: policyd worker not started: .*Resource temporarily unavailable$", count=2)
            assert gatepost.get("/healthz") == (503, "policyd: 0 of 1 workers are ready\n")
            subprocess.run([*limit, "--nproc=100:"], user=user, group=user, extra_groups=[], check=True)
            assert asks_policyd(gatepost) == NOTFOUND
