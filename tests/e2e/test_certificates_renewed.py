# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of certificates changes while mail flows: files added, replaced, half written, removed.

See tlsclients.py for who is who. Both daemons have two workers.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import pytest
from tlsclients import HUB, enforcing, folder, send

from gatepost.admin.authority import Credentials
from gatepost.admin.stage import Stage


@pytest.fixture(scope="module")
def changing(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, configuration=enforcing, tls=True)


@contextmanager
def reloaded(stage: Stage) -> Iterator[None]:
    """Return once gatepost has taken up what is done inside."""
    start = len(stage.log())
    yield
    stage.wait_for_log(r"changed: \S+/certificates; loading the configuration anew", start=start)
    stage.wait_for_log("configuration reloaded", start=start)


def test_file_counts_from_when_it_is_there_until_it_is_not(changing: Stage) -> None:
    """The folder is not there at first; then a file is added, replaced in place, and removed."""
    first, second = (changing.authority.issue(None, ["crm.contoso.com"]) for _ in range(2))
    path = folder(changing) / "crm.pem"
    for certificates, expected in ((first, [False, False]), (first, [True, False]), (second, [False, True])):
        if expected != [False, False]:
            with reloaded(changing):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(certificates.certificate.read_bytes())
        assert [send(changing, item).accepted for item in (first, second)] == expected
    with reloaded(changing):
        path.unlink()
    assert not send(changing, second).accepted


def test_half_written_file_is_a_warning_and_counts_once_it_is_whole(changing: Stage) -> None:
    client = changing.authority.issue(None, ["crm.contoso.com"])
    octets = client.certificate.read_bytes()
    folder(changing).mkdir(exist_ok=True)
    start = len(changing.log())
    with (folder(changing) / "slow.pem").open("wb") as file:
        with reloaded(changing):
            file.write(octets[:200])
            file.flush()
        changing.wait_for_log(r"warning: \S+/certificates/slow\.pem: ends within a certificate", start=start)
        assert not send(changing, client).accepted
        with reloaded(changing):
            file.write(octets[200:])
            file.flush()
    assert send(changing, client).accepted


class Sender(threading.Thread):
    """A client that sends one message after the other, each on a connection of its own. *accepted*: of each."""

    def __init__(self, stage: Stage, certificate: Credentials) -> None:
        super().__init__()
        self.accepted: list[bool] = []
        self._stage = stage
        self._certificate = certificate
        self._news = threading.Condition()
        self._ends = False

    def run(self) -> None:
        while not self._ends:
            accepted = send(self._stage, self._certificate).accepted
            with self._news:
                self.accepted.append(accepted)
                self._news.notify_all()

    def more(self, count: int = 5) -> int:
        """Return how many messages there were, once there are *count* more, the last ones begun after this call."""
        with self._news:
            before = len(self.accepted)
            assert self._news.wait_for(lambda: len(self.accepted) > before + count, 30)
            return before

    def stop(self) -> None:
        self._ends = True
        self.join(30)


def test_certificate_renewed_under_load_loses_nothing_and_lets_in_nothing_else(changing: Stage) -> None:
    """The old file stays until the new certificate is in use, as the manual says."""
    issued = [changing.authority.issue(None, ["crm.contoso.com"]) for _ in range(3)]
    with reloaded(changing):
        folder(changing).mkdir(exist_ok=True)
        shutil.copy(issued[0].certificate, folder(changing) / "old.pem")
    old, new, stranger = senders = [Sender(changing, item) for item in issued]
    for sender in senders:
        sender.start()
    try:
        new.more()
        assert not any(new.accepted)
        with reloaded(changing):
            shutil.copy(issued[1].certificate, folder(changing) / "new.pem")
        since_new = new.more() + 1
        old.more()
        assert all(old.accepted)
        with reloaded(changing):
            (folder(changing) / "old.pem").unlink()
        since_removed = old.more() + 1
        new.more()
    finally:
        for sender in senders:
            sender.stop()
    assert not any(old.accepted[since_removed:])
    assert all(new.accepted[since_new:])
    assert not any(stranger.accepted)
    assert len(stranger.accepted) > 10
