# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker process opens beside its snapshot: the tables that all workers share. Without one, mail goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from gatepost.service import log
from gatepost.service.config import Config
from gatepost.service.guesses import Guesses
from gatepost.service.hops import NOTE_SLOTS, Hops
from gatepost.service.metrics import SPF_DECISIONS
from gatepost.service.presented import Presented
from gatepost.service.series import Series
from gatepost.service.spool import Spool
from gatepost.service.store import Store

if TYPE_CHECKING:
    from gatepost.service.fcrdns import Fcrdns
    from gatepost.service.spf import Spf


@dataclass(frozen=True)
class Shared:
    """What the milter's sessions have in common. spf: None unless only_spf is set; spool: None without a ledger.

    notes: what policyd has noted of recipients for the milter, None where the milter decides itself. presented: what
    policyd has reported of clients' certificates. fcrdns: what DNS says of clients, None unless it is asked.
    """

    hops: Hops
    guesses: Guesses
    store: Store
    spf: Optional[Spf] = None
    spool: Optional[Spool] = None
    notes: Optional[Hops] = None
    presented: Optional[Presented] = None
    fcrdns: Optional[Fcrdns] = None


def open_shared(config: Config, series: Series, *, expire: bool) -> Shared:
    """Open all of it for one milter worker; *expire*: it is the one that clears the store of what has expired."""
    store = Store(config.store_url, expire=expire)
    return Shared(
        hops(config),
        guesses(config),
        store,
        spf(config, series),
        spool(config, series),
        notes(config),
        presented(config),
        fcrdns(config),
    )


def fcrdns(config: Config) -> Optional[Fcrdns]:
    """Return the names of clients, None where DNS is not asked for them (fcrdns), or nothing is recorded."""
    if not (config.fcrdns and config.ledger.days):
        return None
    from gatepost.service.fcrdns import Fcrdns  # dnspython takes long to load

    servers = [(item.host, item.port) for item in config.nameservers]
    try:
        return Fcrdns(config.state_directory / "names", servers)
    except OSError as error:
        log.error(f"clients' names are looked up by each process alone: {error}")
        return Fcrdns(None, servers)


def spool(config: Config, series: Series) -> Optional[Spool]:
    """Return the ledger's spool, None where nothing is recorded."""
    return Spool(config.ledger_folder, config.ledger.spool_bytes, series) if config.ledger.days else None


def hops(config: Config) -> Hops:
    """Return what ingress knew of messages."""
    try:
        return Hops(config.state_directory / "hops")
    except OSError as error:  # forwarded mail then leaves as bounces+SRS=, or with luck in its mailbox's name
        log.error(f"the egress hop learns too little of a message's way in: {error}")
        return Hops(None)


def notes(config: Config) -> Optional[Hops]:
    """Return the references that policyd gives recipients, by `hops.policyd_key`; None where the milter decides."""
    if config.relay.enforced_by == "milter":
        return None
    try:
        return Hops(config.state_directory / "notes", NOTE_SLOTS)
    except OSError as error:  # a message is then two rows
        log.error(f"milter and policyd record each message by itself: {error}")
        return None


def presented(config: Config) -> Optional[Presented]:
    """Return policyd's reports of clients' certificates."""
    try:
        return Presented(config.state_directory / "presented")
    except OSError as error:
        log.error(f"the milter knows of certificates what the MTA tells it, and no more: {error}")
        return None


def guesses(config: Config) -> Guesses:
    """Return the count of wrong SRS recipients."""
    limit = config.srs.failures_per_hour
    try:
        return Guesses(config.state_directory / "guesses", limit)
    except OSError as error:
        log.error(f"wrong SRS recipients are counted by each process alone: {error}")
        return Guesses(None, limit)


def spf(config: Config, series: Series) -> Optional[Spf]:
    """Return the decisions on senders' SPF records, None where they are not asked for (only_spf)."""
    if not config.srs.only_spf:
        return None
    from gatepost.service.spf import Spf  # pyspf and dnspython take long to load

    servers = [(item.host, item.port) for item in config.nameservers]
    addresses = config.srs.outgoing_addresses

    def count(word: str) -> None:
        series.add(SPF_DECISIONS, (word,))

    try:
        return Spf(addresses, config.state_directory / "spf", servers, count=count)
    except OSError as error:
        log.error(f"SPF records are looked up by each process alone: {error}")
        return Spf(addresses, None, servers, count=count)
