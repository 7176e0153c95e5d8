# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of compact SRS addresses: which original address a token stands for.

Requests reach one thread of this process by a queue, and only that thread ever sees the database: libmilter calls
from threads that change between the stages of a message and that Python did not make. All that waits is done in one
transaction, so that many messages share one commit.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Optional, TypeVar, Union

if TYPE_CHECKING:
    from gatepost.service.database import Database

TIMEOUT_S = 2.0
WAITING_LIMIT = 10_000
BATCH_LIMIT = 200
RETRY_S = 0.5
EXPIRY_EVERY_S = 3600.0
EXPIRY_CHUNK = 500

T = TypeVar("T")
R = TypeVar("R", "_Put", "_Get")


class StoreError(Exception):
    """The store cannot do what was asked; the text says why, in words for the log."""


class Row(NamedTuple):
    """One token; *expires_day*: the last day, counted from 1970-01-01, on which it is of use."""

    token: str
    original: str
    expires_day: int


@dataclass(frozen=True)
class _Put:
    row: Row
    future: Future[None] = field(default_factory=Future)
    came_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Get:
    token: str
    future: Future[Optional[str]] = field(default_factory=Future)
    came_at: float = field(default_factory=time.monotonic)


_Request = Union[_Put, _Get]


class _Gate:
    """Turns requests away while the store is down, but for one every RETRY_S, which finds out whether it still is."""

    def __init__(self) -> None:
        self._why = ""
        self._failed_at = 0.0
        self._next_try_at = 0.0

    def refusal(self, now: float) -> str:
        """Return why a request that comes *now* is turned away, or "" to let it in."""
        if self._why and now < self._next_try_at:
            return self._why
        self._next_try_at = now + TIMEOUT_S
        return ""

    def overtaken(self, request: _Request) -> str:
        """Return why *request* need not be tried: what it has waited for has failed since it came. Else ""."""
        return self._why if request.came_at <= self._failed_at else ""

    def failed(self, error: Exception) -> None:
        self._failed_at = time.monotonic()
        self._next_try_at = self._failed_at + RETRY_S
        self._why = str(error) or type(error).__name__

    def worked(self) -> None:
        self._why = ""


class Store:
    """The store at *url*, "sqlite:////var/lib/gatepost/gatepost.db" or "postgresql://user@host/gatepost".

    Nothing is opened before the first request; after that a process must not fork and go on using it.
    timeout_s: how long `stored` and `found` wait where they are not told otherwise.
    expire: delete what is of no more use, when no request waits, *expire_after_s* after the first request and every
    hour. today: returns the day, counted from 1970-01-01.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        expire: bool = False,
        expire_after_s: float = 60.0,
        today: Callable[[], int] = lambda: int(time.time()) // 86400,
    ) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._expire_after_s = expire_after_s if expire else None
        self._today = today
        self._requests: queue.SimpleQueue[Optional[_Request]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._puts = _Gate()
        self._gets = _Gate()
        self._busy_since: Optional[float] = None
        self._closed = False
        self._pid = 0
        self._thread: Optional[threading.Thread] = None
        self._database: Optional[Database] = None

    def put(self, token: str, original: str, expires_day: int) -> Future[None]:
        """Keep that *token* stands for *original*, up to *expires_day*; done once it is durable.

        The same token again is no error; the later day counts. The future fails with StoreError; what is to be
        called when it is done is called in the store's thread.
        """
        request = _Put(Row(token, original, expires_day))
        if _is_text(token) and _is_text(original):
            self._submit(request, self._puts)
        else:
            request.future.set_exception(StoreError("an address that is not UTF-8 cannot be stored"))
        return request.future

    def get(self, token: str) -> Future[Optional[str]]:
        """Find what *token* stands for; None: it is not in the store. Sees every put that is done, of any process."""
        request = _Get(token)
        if _is_text(token):
            self._submit(request, self._gets)
        else:
            request.future.set_result(None)
        return request.future

    def stored(self, token: str, original: str, expires_day: int, timeout_s: Optional[float] = None) -> None:
        """Do `put` and wait for it. Raises StoreError, also where it takes longer than *timeout_s*."""
        self._wait(self.put(token, original, expires_day), timeout_s)

    def found(self, token: str, timeout_s: Optional[float] = None) -> Optional[str]:
        """Do `get` and wait for it. Raises StoreError, also where it takes longer than *timeout_s*."""
        return self._wait(self.get(token), timeout_s)

    def close(self) -> None:
        """Do what waits, close the database and end the thread; later requests fail."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._requests.put(None)
            thread.join(TIMEOUT_S)

    def _wait(self, future: Future[T], timeout_s: Optional[float]) -> T:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return future.result(limit_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise StoreError(f"the store has not answered within {limit_s:g} s") from None

    def _submit(self, request: _Request, gate: _Gate) -> None:
        with self._lock:
            why = self._refusal(request.came_at) or gate.refusal(request.came_at)
            if not why:
                self._start()
                self._requests.put(request)
        if why:
            request.future.set_exception(StoreError(why))

    def _refusal(self, now: float) -> str:
        if self._closed:
            return "the store is closed"
        if self._requests.qsize() >= WAITING_LIMIT:
            return f"{WAITING_LIMIT} requests wait for the store already"
        busy_since = self._busy_since
        if busy_since is not None and now - busy_since > TIMEOUT_S:
            return f"the store has been silent for {now - busy_since:.0f} s"
        return ""

    def _start(self) -> None:
        if self._thread is None:
            self._pid = os.getpid()
            self._thread = threading.Thread(target=self._run, name="store", daemon=True)
            self._thread.start()
        elif self._pid != os.getpid():
            raise RuntimeError("this store was used before the process forked")

    # What follows is run by the thread.

    def _run(self) -> None:
        expiry_at = None if self._expire_after_s is None else time.monotonic() + self._expire_after_s
        closing = False
        while not closing:
            batch, closing = self._next_batch(expiry_at)
            self._busy_since = time.monotonic()
            if batch:
                self._serve(batch)
            elif not closing:
                expiry_at = time.monotonic() + self._expire()
            self._busy_since = None
        if self._database is not None:
            self._database.close()

    def _next_batch(self, expiry_at: Optional[float]) -> tuple[list[_Request], bool]:
        """Wait for requests, return those that wait and whether to close. None and False: it is time to expire."""
        batch: list[_Request] = []
        timeout_s = None if expiry_at is None else max(0.0, expiry_at - time.monotonic())
        try:
            request = self._requests.get(timeout=timeout_s)
            while request is not None:
                batch.append(request)
                if len(batch) == BATCH_LIMIT:
                    return batch, False
                request = self._requests.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _serve(self, batch: Sequence[_Request]) -> None:
        wanted = [request for request in batch if request.future.set_running_or_notify_cancel()]
        try:
            self._open()
        except Exception as error:  # noqa: BLE001  the outermost shell
            self._gets.failed(error)
            self._puts.failed(error)
        # Reading first: a writer may have to wait for those of other processes.
        _serve_kind(self._gets, [request for request in wanted if isinstance(request, _Get)], self._answer_gets)
        _serve_kind(self._puts, [request for request in wanted if isinstance(request, _Put)], self._answer_puts)

    def _open(self) -> Database:
        if self._database is None:
            # Here, for it takes 0.2 s: only a process that uses the store pays for it.
            from gatepost.service.database import Database

            self._database = Database(self._url)
        self._database.open()
        return self._database

    def _answer_gets(self, gets: Sequence[_Get]) -> None:
        from gatepost.service import tokens

        originals = tokens.find(self._open(), [get.token for get in gets])
        for get in gets:
            get.future.set_result(originals.get(get.token))

    def _answer_puts(self, puts: Sequence[_Put]) -> None:
        from gatepost.service import tokens

        originals = tokens.keep(self._open(), [put.row for put in puts])
        for put in puts:
            if originals.get(put.row.token) == put.row.original:
                put.future.set_result(None)
            else:
                put.future.set_exception(StoreError(f"the store has another address for the token {put.row.token}"))

    def _expire(self) -> float:
        """Delete a chunk of what has expired and return after how many seconds to go on."""
        try:
            from gatepost.service import tokens

            deleted = tokens.expire(self._open(), self._today(), EXPIRY_CHUNK)
        except Exception:  # noqa: BLE001  nobody waits for it; a store that is down is reported by those who do
            deleted = 0
        return 0.0 if deleted == EXPIRY_CHUNK else EXPIRY_EVERY_S


def _serve_kind(gate: _Gate, requests: Sequence[R], answer: Callable[[Sequence[R]], None]) -> None:
    """Have *requests* answered; all that cannot be fail, each with an error that refers to nothing of this thread."""
    timely = [request for request in requests if not gate.overtaken(request)]
    if timely:
        try:
            answer(timely)
            gate.worked()
        except Exception as error:  # noqa: BLE001  the outermost shell
            gate.failed(error)
    for request in requests:
        if not request.future.done():
            request.future.set_exception(StoreError(gate.overtaken(request)))


def _is_text(text: str) -> bool:
    """Tell whether both databases can hold *text*: no octets that are not UTF-8, no NUL."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)
