# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connections of one policyd process share: the snapshot, the store, SPF, and what must be waited for.

Each wait is bounded in time and holds up its own connection only. The map `egress`, which Postfix asks in series for
all its mail, never waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional, Protocol, TypeVar, Union

from gatepost.policyd import decisions
from gatepost.policyd.accepting import Shares
from gatepost.policyd.attributes import Attributes, text
from gatepost.policyd.decisions import Aids, Entry, Found, Transaction
from gatepost.policyd.presenting import Presenting
from gatepost.service import log, reversal, rewriting, shared
from gatepost.service.addresses import domain_of
from gatepost.service.hops import NOTE_AGE_S, Hop, policyd_key
from gatepost.service.ledger import Bounced, Record
from gatepost.service.ledger import Entry as LedgerEntry
from gatepost.service.metrics import ERRORS, LEDGER_RECORDS, MAP_LOOKUPS, SRS_REVERSALS, SRS_REWRITES, STAGE_DURATION
from gatepost.service.reference import new_reference
from gatepost.service.reversal import Bounce
from gatepost.service.rewriting import Rewritten
from gatepost.service.series import Series
from gatepost.service.snapshot import Snapshot
from gatepost.service.store import Store, StoreError

if TYPE_CHECKING:
    from gatepost.service.spf import Spf

T = TypeVar("T")
HALF_SENT_S = 30.0
"""How long a request may take from its first octet to its last."""
STORE_S = 2.0
"""How long the store may take."""
SPF_S = 2.5
"""How long SPF may take, its own limit of 2 s and the wait for a thread together."""
_COMPLAIN_S = 1.0
_NOBODYS = ".invalid"
"""No mail comes from such a domain (RFC 6761, 6.4): who asks for it, as `gatepost doctor` does, has no bounce."""
_SAME_BOUNCE_S = 10.0
_BOUNCED = 10_000
_TOGETHER = 100
"""How many bounces are written at once, at the latest."""
_WRITING = 10_000
"""How many records may wait for the disk."""


class Client(Protocol):
    """A connection, as its worker sees it."""

    def break_off(self, text: str) -> None: ...

    def close_if_idle(self) -> None: ...

    def abort(self) -> None: ...


class PolicyRequest(NamedTuple):
    """One request of policy delegation."""

    attributes: dict[bytes, bytes]


class LookUp(NamedTuple):
    """One look-up of a socketmap, or of a tcp_table (*coded*: its answers are codes)."""

    map_name: str
    key: str
    coded: bool = False


Request = Union[PolicyRequest, LookUp]


@dataclass(frozen=True)
class Fetched:
    """What was found out before a request is answered.

    token, original: what the store was asked, and what it answered. rewritten: for the map `forward`, None: the sender
    stays. error: the store's.
    """

    token: str = ""
    original: Optional[str] = None
    rewritten: Optional[Rewritten] = None
    error: Optional[StoreError] = None

    def stored(self, token: str) -> Optional[str]:
        """Return the original of a token. Raises StoreError."""
        if self.error is not None:
            raise self.error
        return self.original if token == self.token else None


_NOTHING = Fetched()


class Worker:
    """What the connections of one process share. *half_sent*: since when which connection is owed or owes something."""

    def __init__(
        self, snapshot: Snapshot, series: Series, *, expire: bool = False, shares: Optional[Shares] = None
    ) -> None:
        self.snapshot = snapshot
        self.series = series
        self.policy_took = series.observer(STAGE_DURATION, ("policy",))
        self.map_took = series.observer(STAGE_DURATION, ("map",))
        self.store = Store(snapshot.config.store_url, expire=expire)
        self.guesses = shared.guesses(snapshot.config)
        self._notes = shared.notes(snapshot.config)
        self.aids = Aids(new_reference, _NOTHING.stored, self._guessing, self._noted)
        self.presenting = Presenting(snapshot)
        self._spool = shared.spool(snapshot.config, series)
        self._writer = ThreadPoolExecutor(1, "spool")  # a disk that hangs must not hold up the maps
        self._writing = 0
        self._writing_lock = threading.Lock()
        self._bounced: dict[str, float] = {}
        self._bounces: list[Record] = []
        self.spf = shared.spf(snapshot.config, series)
        self._fcrdns = shared.fcrdns(snapshot.config)
        self.shares = shares or Shares()
        self.connections: set[Client] = set()
        self.half_sent: dict[Client, float] = {}
        self.draining = False
        self._complain_at = 0.0
        self._not_logged = 0

    def joined(self, connection: Client) -> None:
        """Serve one more connection."""
        self.connections.add(connection)

    def not_taken(self, text: str) -> None:
        """Count and log that a connection could not be taken."""
        self.complain("connections", text, closed=False)

    def left(self, connection: Client) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(connection)
        self.half_sent.pop(connection, None)
        self.shares.left(connection)

    def complain(self, kind: str, text: str, *, closed: bool = True) -> None:
        """Count what went wrong with a connection or the store, and log it, at most one a second."""
        self.series.add(ERRORS, ("policyd", kind))
        self._warn(f"{text}{', connection closed' if closed else ''}")

    def _warn(self, text: str) -> None:
        now = time.monotonic()
        if now < self._complain_at:
            self._not_logged += 1
            return
        more = f" ({self._not_logged} more before)" if self._not_logged else ""
        log.warning(f"{text}{more}")
        self._complain_at = now + _COMPLAIN_S
        self._not_logged = 0

    def fault(self, kind: str, text: str, error: Optional[BaseException]) -> None:
        """Count and log a fault of gatepost's own, or of its surroundings."""
        self.series.add(ERRORS, ("policyd", kind))
        if error is None:
            log.error(text)
        else:
            log.fault(text, error)

    def _guessing(self, client: str) -> bool:
        return self.guesses.too_many(client, int(time.time()))

    def note(self, attributes: Attributes, reference: str, now: int) -> None:
        """Note *reference* for the recipient of a request, for the milter and for other workers."""
        if self._notes:
            self._notes.put(_note(attributes), Hop(b"", reference), now)

    def _noted(self, attributes: Attributes) -> str:
        note = self._notes.get(_note(attributes), int(time.time()), NOTE_AGE_S) if self._notes else None
        return note.reference if note else ""

    def record(self, records: Sequence[Record]) -> Optional[Future[bool]]:
        """Have *records* of messages under way written into the ledger; the result is False where they are lost."""
        if self._spool is None or not records:
            return None
        return self._writer.submit(self._spool.add, list(map(self._named, records)))

    def record_refusal(self, record: Record) -> None:
        """Have a refusal written into the ledger. Nobody waits for it."""
        if self._spool is not None:
            self._write_later(self._spool.add_refusal, self._named(record), 1)

    def _named(self, record: Record) -> Record:
        """Return *record* with what DNS has said of the client by now, where Postfix said nothing."""
        if self._fcrdns is None or not isinstance(record, LedgerEntry) or record.fcrdns:
            return record
        name, found = self._fcrdns.known(record.client, int(time.time()))
        return record._replace(reverse_name=name, fcrdns=found)

    def _ask_name(self, attributes: Mapping[bytes, bytes]) -> None:
        """Begin to ask DNS for a client of which Postfix knows no name."""
        unknown = attributes.get(b"reverse_client_name", b"unknown") == b"unknown"
        if self._fcrdns and unknown and attributes.get(b"protocol_state") == b"RCPT":
            self._fcrdns.refresh(text_of(attributes.get(b"client_address", b"")), int(time.time()))

    def record_bounce(self, address: str) -> None:
        """Have it written, with the next tick, that mail came back to an SRS address.

        Postfix asks the maps several times for each. To wake the thread that writes costs more than a look-up.
        """
        if self._spool is None:
            return
        now = time.monotonic()
        if now < self._bounced.get(address, 0.0):
            return
        if len(self._bounced) >= _BOUNCED:
            self._bounced.clear()
        self._bounced[address] = now + _SAME_BOUNCE_S
        self._bounces.append(Bounced(address.lower(), time.time()))
        if len(self._bounces) >= _TOGETHER:
            self._write_bounces()

    def _write_bounces(self) -> None:
        if self._spool is not None and self._bounces:
            bounces, self._bounces = self._bounces, []
            self._write_later(self._spool.add, bounces, len(bounces))

    def _write_later(self, write: Callable[[T], bool], what: T, count: int) -> None:
        """Have *what*, *count* records, written, unless too many wait already."""
        with self._writing_lock:
            full = self._writing + count > _WRITING
            self._writing += 0 if full else count
        if full:
            self.series.add(LEDGER_RECORDS, ("lost",), count)
            return
        self._writer.submit(write, what).add_done_callback(lambda _: self._written(count))

    def _written(self, count: int) -> None:
        with self._writing_lock:
            self._writing -= count

    def store_failed(self, error: StoreError) -> None:
        """Count a failure of the store, and log it, at most one a second."""
        self.complain("store", str(error), closed=False)

    def fetch(self, request: Request, before: Transaction) -> Union[Fetched, Awaitable[Fetched]]:
        """Return what is needed to answer *request*, or what to wait for to get it."""
        if isinstance(request, PolicyRequest):
            attributes = request.attributes
            self._ask_name(attributes)
            at_data = attributes.get(b"protocol_state") == b"DATA"
            rcpt = decisions.rcpt_at_data(attributes, before) if at_data else text_of(attributes.get(b"recipient", b""))
        elif request.map_name == "forward":
            return self._fetch_sender(request.key)
        else:
            rcpt = request.key if request.map_name == "reverse" else ""
        token = reversal.token(self.snapshot, rcpt)
        return self._find(token) if token else _NOTHING

    async def _find(self, token: str) -> Fetched:
        try:
            return Fetched(token, await _in_time(self.store.get(token)))
        except StoreError as error:
            return Fetched(error=error)

    def _fetch_sender(self, key: str) -> Union[Fetched, Awaitable[Fetched]]:
        rewritten = decisions.forward(self.snapshot, key, int(time.time()))
        if rewritten is None:
            return _NOTHING
        if not (self.spf or rewritten.token):
            return Fetched(rewritten=rewritten)
        return self._settle(domain_of(key) or "", rewritten)

    async def _settle(self, domain: str, rewritten: Rewritten) -> Fetched:
        """Wait for SPF's decision on the sender's *domain*, and until the store knows a token."""
        if self.spf:
            known = _known(self.spf, domain)
            if known or (known is None and await _spared(self.spf, domain)):
                return _NOTHING
        if rewritten.token:
            try:
                await _in_time(self.store.put(rewritten.token, rewritten.original, rewritten.expires_day))
            except StoreError as error:
                return Fetched(rewritten=rewriting.without_store(rewritten), error=error)
        return Fetched(rewritten=rewritten)

    def look_up(self, request: LookUp, fetched: Fetched) -> Entry:
        """Answer a look-up and count it."""
        try:
            if request.map_name == "forward":
                entry = self._forward(request.key, fetched)
            else:
                now = int(time.time())
                entry = decisions.look_up(self.snapshot, request.map_name, request.key, now, fetched.stored)
        except StoreError as error:
            self.store_failed(error)
            entry = Entry(Found.TEMP, "gatepost: its store cannot be asked now")
        if self.spf and request.map_name == "egress" and entry.found is Found.OK:
            entry = self._unless_spared(self.spf, request.key, entry)
        known = entry.found is not Found.PERM
        itself = fetched.rewritten is not None and fetched.rewritten.form == decisions.NONE
        result = "unrewritable" if itself and entry.found is Found.OK else entry.found.label
        self.series.add(MAP_LOOKUPS, (request.map_name if known else "other", result))
        if entry.bounce is not None and not entry.text.endswith(_NOBODYS):
            self.series.add(SRS_REVERSALS, entry.bounce.labels)
            if entry.bounce is Bounce.ORIGINAL:
                self.record_bounce(request.key)
        return entry

    def _forward(self, key: str, fetched: Fetched) -> Entry:
        if fetched.error is not None:
            if fetched.rewritten is None:
                raise fetched.error
            self.store_failed(fetched.error)
        if fetched.rewritten is None:
            return decisions.NOTFOUND
        if fetched.rewritten.form == decisions.NONE:
            self._warn(f"map forward: {log.address(key)} cannot be rewritten with SRS, so the answer is itself")
        else:
            self.series.add(SRS_REWRITES, (fetched.rewritten.form,))
        return Entry(Found.OK, fetched.rewritten.address)

    def _unless_spared(self, spf: Spf, key: str, entry: Entry) -> Entry:
        """Answer the map `egress` where SPF decides, from what is known so far."""
        spared = _known(spf, domain_of(key) or "")
        if spared:
            return decisions.NOTFOUND
        # The hop can't mend this one, and to bounce it would be too early.
        return entry._replace(text=decisions.LATER) if spared is None and entry.text.startswith("error:") else entry

    def tick(self, now: float) -> None:
        """Show that this process is alive; cut off what has been half sent for too long."""
        self.series.beat(now)
        self._write_bounces()
        if self._spool is not None:
            self._spool.tick()
        for connection in [item for item, since in self.half_sent.items() if now - since > HALF_SENT_S]:
            connection.break_off(f"request unfinished after {HALF_SENT_S:.0f} s")

    def drain(self) -> None:
        """Close every connection that waits for nothing; the others close after their answer."""
        for connection in list(self.connections):
            connection.close_if_idle()

    def cut_off(self) -> None:
        """Close all that is left, complete or not; what is to be recorded is written."""
        for connection in list(self.connections):
            connection.abort()
        self._write_bounces()
        self._writer.shutdown()


def _known(spf: Spf, domain: str) -> Optional[bool]:
    """Return SPF's decision where it is known; where it is due it is made in the background."""
    now = int(time.time())
    known = spf.known(domain, now)
    spf.refresh(domain, now)
    return known


async def _spared(spf: Spf, domain: str) -> bool:
    """Wait for SPF's decision. Where it, or a thread to wait for it, takes too long, the sender is not spared."""
    asked = asyncio.get_running_loop().run_in_executor(None, spf.spares, domain, int(time.time()))
    try:
        return await asyncio.wait_for(asked, SPF_S)
    except asyncio.TimeoutError:
        return False


def _note(attributes: Attributes) -> str:
    """Return the key under which the milter finds what was noted for a recipient."""
    client, port = text(attributes, b"client_address"), text(attributes, b"client_port")
    return policyd_key(client, port, text(attributes, b"sender"), text(attributes, b"recipient"))


async def _in_time(future: Future[T]) -> T:
    """Wait for the store. Raises StoreError, also where it takes too long."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), STORE_S)
    except asyncio.TimeoutError:
        raise StoreError(f"no answer within {STORE_S:.0f} s") from None


def text_of(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def octets_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
