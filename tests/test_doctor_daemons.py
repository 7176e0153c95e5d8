# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` beside real daemons: what runs, with which configuration, and what they say of themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest
from daemonprocess import Gatepost, free_port, poll
from doctors import found, no_postfix, texts

from gatepost.admin.configuration import snapshot_with_placeholder
from gatepost.admin.doctor.daemons import judged_release
from gatepost.admin.doctor.model import Circumstances
from gatepost.admin.run import last_errors_file
from gatepost.admin.status import Running
from gatepost.service import last_errors
from gatepost.service.version import __version__


def looking(gatepost: Gatepost, now: float = 0.0) -> Circumstances:
    snapshot, missing = snapshot_with_placeholder(gatepost.configuration)
    return Circumstances(snapshot, now or time.time(), no_postfix, missing_secret=missing)


@pytest.fixture(scope="module")
def gatepost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatepost]:
    with Gatepost(tmp_path_factory.mktemp("daemons"), command="run", metrics=True) as running:
        yield running


# What runs


def test_daemons_that_run_are_well(gatepost: Gatepost) -> None:
    assert texts(looking(gatepost), "daemons") == [f"ok: running: milter+policyd (process {gatepost.pid})"]


def test_no_daemon_is_an_error(tmp_path: Path) -> None:
    (finding,) = found(looking(Gatepost(tmp_path)), "daemons")
    assert finding.what == "no daemon of gatepost runs"
    assert finding.remedy[0] == "systemctl start gatepost.target"


def test_a_missing_policyd_is_a_warning(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="milter") as running:
        assert texts(looking(running), "daemons") == [
            "warning: no policyd runs, and the configuration is for one",
            f"ok: running: milter (process {running.pid})",
        ]


def test_a_silent_worker_is_an_error(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="run") as running:
        os.kill(running.pid, signal.SIGSTOP)  # replaces no worker then
        (worker,) = running.workers("policyd")
        os.kill(worker, signal.SIGKILL)
        try:
            poll(lambda: len(texts(looking(running), "daemons")) > 2, "the daemons have fallen silent")
            findings = found(looking(running), "daemons")
        finally:
            os.kill(running.pid, signal.SIGCONT)
    lines = [f"{item.severity.value}: {item.what}" for item in findings]
    assert any(line.startswith(f"error: policyd: process {worker} is silent for ") for line in lines)
    (supervisor,) = [item for item in findings if item.what.startswith("supervisor.")]
    assert supervisor.remedy[0] == "systemctl restart gatepost.target"
    assert "error: policyd: 0 of 1 workers are ready" in lines


# Loaded


def test_the_configuration_on_disk_is_the_one_that_is_loaded(gatepost: Gatepost) -> None:
    assert texts(looking(gatepost), "daemons-up-to-date") == [
        f"ok: milter+policyd has loaded {gatepost.configuration} as it is"
    ]


def test_a_configuration_that_was_changed_since_is_a_warning(gatepost: Gatepost) -> None:
    before = gatepost.configuration.read_text()
    gatepost.configuration.write_text(f"{before}\n# more\n")
    os.utime(gatepost.configuration, (0, 0))
    (finding,) = found(looking(gatepost), "daemons-up-to-date")
    gatepost.configuration.write_text(before)
    assert finding.what == f"{gatepost.configuration} was changed after milter+policyd had loaded it"
    assert finding.remedy == (f"gatepost -c {gatepost.configuration} config check && systemctl reload gatepost.target",)


def test_a_release_that_was_installed_since_is_a_warning() -> None:
    running = Running("milter", 77, since=1000.0, loaded=1001.0, reload_ok=True)
    (finding,) = judged_release(running, 1002.0)
    assert finding.what == f"milter was started before gatepost {__version__} was installed"
    assert finding.remedy == ("systemctl restart gatepost.target",)
    assert list(judged_release(running, 999.0)) == []


# Errors


def test_no_errors_are_well(gatepost: Gatepost) -> None:
    assert texts(looking(gatepost), "daemon-errors") == ["ok: no errors in the last hour"]


def test_errors_of_the_last_hour_are_a_warning(gatepost: Gatepost) -> None:
    looked_at = looking(gatepost, now=time.time() + 3600)
    file = last_errors_file(looked_at.config)
    for minutes, line in ((90, "long ago"), (5, "c"), (4, "the store is away"), (3, "b"), (2, "b"), (1, "d")):
        last_errors.keep(file, line, looked_at.now - 60 * minutes)
    assert texts(looked_at, "daemon-errors") == [
        "warning: errors of the last hour: d; b (2 times); the store is away and 1 more"
    ]
    file.unlink()


def test_errors_of_before_the_daemons_were_started_are_mentioned(gatepost: Gatepost) -> None:
    looked_at = looking(gatepost)
    file = last_errors_file(looked_at.config)
    last_errors.keep(file, "the store is away", looked_at.now - 600)
    assert texts(looked_at, "daemon-errors") == [
        "info: errors of the last hour, none since the daemons were started or reloaded: the store is away"
    ]
    file.unlink()


def test_a_worker_that_died_is_mentioned(tmp_path: Path) -> None:
    with Gatepost(tmp_path, command="run") as running:
        (worker,) = running.workers("policyd")
        os.kill(worker, signal.SIGKILL)
        running.wait_for_log(r"policyd worker .* died")
        poll(lambda: running.workers("policyd") not in ([], [worker]), "another one is there")
        lines = texts(looking(running), "daemon-errors")
    assert lines[0].startswith("warning: errors of the last hour: ")
    assert lines[1:] == ["info: 1 worker of policyd died or fell silent since its start"]


# Metrics


def test_metrics_that_are_answered_are_well(gatepost: Gatepost) -> None:
    assert texts(looking(gatepost), "metrics") == [f"ok: http://127.0.0.1:{gatepost.metrics_port}/metrics answers"]


def test_metrics_that_nobody_answers_are_a_warning(gatepost: Gatepost) -> None:
    port = free_port()
    text = gatepost.configuration.read_text()
    other = gatepost.folder / "other.toml"
    other.write_text(text.replace(f":{gatepost.metrics_port}", f":{port}"))
    snapshot, _ = snapshot_with_placeholder(other)
    (line,) = texts(Circumstances(snapshot, time.time(), no_postfix), "metrics")
    assert line.startswith(f"warning: http://127.0.0.1:{port}/metrics does not answer: ")
    assert "Connection refused" in line


def test_metrics_that_another_program_answers_are_a_warning(gatepost: Gatepost, tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        (tmp_path / "metrics").write_text("go_goroutines 7\n")
        Thread(target=server.handle_request, daemon=True).start()
        other = gatepost.folder / "another.toml"
        text = gatepost.configuration.read_text()
        other.write_text(text.replace(f":{gatepost.metrics_port}", f":{server.server_port}"))
        snapshot, _ = snapshot_with_placeholder(other)
        assert texts(Circumstances(snapshot, time.time(), no_postfix), "metrics") == [
            f"warning: http://127.0.0.1:{server.server_port}/metrics is answered by another program"
        ]


def test_without_metrics_nobody_is_asked(tmp_path: Path) -> None:
    assert texts(looking(Gatepost(tmp_path)), "metrics") == []
