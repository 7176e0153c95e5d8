# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists every metric that gatepost shows to Prometheus: name, kind, help text, label names, buckets.

Label values are words of a closed set or configured names, never addresses. Units are base units (seconds).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Label value of the one series that takes the counts of all label sets for which a series file has no room.
OTHER = "(other)"


# eq=False: a metric is a dictionary key on the way of every message, and identity hashes fastest.
@dataclass(frozen=True, eq=False)
class Metric:
    """One metric of the catalogue."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers one label set takes in a series file."""
        return 1

    @property
    def other(self) -> tuple[str, ...]:
        """The label values of the overflow series."""
        return (OTHER,) * len(self.labels)


@dataclass(frozen=True, eq=False)
class Counter(Metric):
    """A count that only grows; its name ends in ``_total``."""


@dataclass(frozen=True, eq=False)
class Gauge(Metric):
    """A value that comes and goes; NaN: there is none. Only supervisors set gauges, each for its own daemons, and the
    ledger's loader; those without labels are the exporter's.
    """


@dataclass(frozen=True, eq=False)
class Histogram(Metric):
    """A distribution; *buckets* are the upper bounds, ascending, without +Inf."""

    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """One number a bucket, one for +Inf, one for the sum."""
        return len(self.buckets) + 2


DECISIONS = Counter(
    "gatepost_relay_decisions_total",
    "Relay verdicts, one per recipient that is subject to the rule.",
    ("organization", "verdict", "reason"),
)
UPSTREAM_DECISIONS = Counter(
    "gatepost_upstream_decisions_total",
    "What Exchange Online will say of mail as it leaves here ([upstream]), one per recipient, by its relay rule.",
    ("verdict", "reason"),
)
SRS_REWRITES = Counter(
    "gatepost_srs_rewrites_total",
    "Envelope senders rewritten to an SRS address. form: forward (<mailbox>+SRS=), bounces, compact; long (the store "
    "could not be written).",
    ("form",),
)
SRS_REVERSALS = Counter(
    "gatepost_srs_reversals_total",
    "SRS recipients judged. result: original (brought back), forged, expired, unknown, foreign.",
    ("result",),
)
SPF_DECISIONS = Counter(
    "gatepost_spf_decisions_total",
    "Senders' domains asked about (only_spf). result: hit (was known), decided, failed (DNS; mail is rewritten).",
    ("result",),
)
SRS_KEY_SINCE = Gauge(
    "gatepost_srs_signing_key_timestamp_seconds",
    "Unix time from which the key that signs SRS addresses has done so, or was put into its file.",
    ("daemon",),
)
CERTIFICATES = Gauge("gatepost_certificates", "Clients' certificates that are known from files.", ("daemon",))
CERTIFICATE_END = Gauge(
    "gatepost_certificate_not_after_timestamp_seconds",
    "Unix time at which the first of an organization's certificates ends that no newer one of these names replaces.",
    ("daemon", "organization"),
)
SRS_KEYS = Gauge("gatepost_srs_keys", "SRS keys that are known, the signing one included.", ("daemon",))
MESSAGES = Counter(
    "gatepost_messages_total", "Messages that reached their end, by what was done.", ("daemon", "action")
)
STAGE_DURATION = Histogram(
    "gatepost_stage_duration_seconds",
    "Time that gatepost took for one SMTP stage, one policy request or one map look-up.",
    ("stage",),
    buckets=(50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 250e-3, 1.0),
)
POLICY_REQUESTS = Counter(
    "gatepost_policy_requests_total",
    "Policy delegation requests, by protocol state and the action answered.",
    ("state", "action"),
)
MAP_LOOKUPS = Counter(
    "gatepost_map_lookups_total", "Map look-ups answered (reverse, forward, egress), by result.", ("map", "result")
)
ERRORS = Counter("gatepost_errors_total", "Faults inside gatepost or in its surroundings, by kind.", ("daemon", "kind"))
LEDGER_RECORDS = Counter(
    "gatepost_ledger_records_total",
    "Records of the ledger. result: spooled, loaded (into the store), omitted (refusals beyond the rate), lost (the "
    "spool could not be written), damaged (unreadable in the spool), trimmed (older than the ledger keeps).",
    ("result",),
)
LEDGER_LOADED = Gauge(
    "gatepost_ledger_loaded_timestamp_seconds",
    "Unix time up to which everything recorded on this host is in the store.",
    ("daemon",),
)
LEDGER_BACKLOG = Gauge("gatepost_ledger_backlog_bytes", "What waits in the spool to get into the store.", ("daemon",))
RELOADS = Counter("gatepost_reloads_total", "Configuration reloads. result: loaded, kept.", ("daemon", "result"))
WORKER_RESTARTS = Counter(
    "gatepost_worker_restarts_total", "Workers replaced unasked. cause: died, silent.", ("daemon", "cause")
)
WORKERS = Gauge("gatepost_workers", "Worker processes that are ready.", ("daemon",))
WORKERS_WANTED = Gauge("gatepost_workers_wanted", "Worker processes that should be running.", ("daemon",))
CONFIG_LOADED = Gauge(
    "gatepost_config_loaded_timestamp_seconds",
    "Unix time at which the configuration in use was loaded.",
    ("daemon",),
)
LAST_RELOAD_OK = Gauge(
    "gatepost_config_last_reload_ok",
    "1 if the last reload took effect, 0 if it was refused and the previous configuration stays in use.",
    ("daemon",),
)
BYPASS = Gauge("gatepost_bypass", "1 while gatepost is switched out of the way of mail (gatepost bypass on).")
HEALTHY = Gauge(
    "gatepost_healthy",
    "1 while /healthz says ok: all processes alive, all workers there, the last reload took effect.",
)

CATALOGUE: tuple[Metric, ...] = (
    DECISIONS,
    UPSTREAM_DECISIONS,
    SRS_REWRITES,
    SRS_REVERSALS,
    SPF_DECISIONS,
    SRS_KEY_SINCE,
    SRS_KEYS,
    CERTIFICATES,
    CERTIFICATE_END,
    MESSAGES,
    STAGE_DURATION,
    POLICY_REQUESTS,
    MAP_LOOKUPS,
    ERRORS,
    LEDGER_RECORDS,
    LEDGER_LOADED,
    LEDGER_BACKLOG,
    RELOADS,
    WORKER_RESTARTS,
    WORKERS,
    WORKERS_WANTED,
    CONFIG_LOADED,
    LAST_RELOAD_OK,
    BYPASS,
    HEALTHY,
)
BY_NAME = {metric.name: metric for metric in CATALOGUE}

ERROR_KINDS = {
    "milter": ("internal", "store", "egress", "proxy-filter"),
    "policyd": ("internal", "store", "policy", "socketmap", "loop", "connections", "protocol"),
    "ledger": ("store", "spool"),
}
"""What ERRORS has for kind, by daemon."""


def shown_at_zero(daemon: str) -> Iterator[tuple[Counter, tuple[str, ...]]]:
    """Yield the counters of troubles that *daemon* shows from the start on.

    Prometheus sees no increase in a series that comes into being with its first count.
    """
    kind_of_daemon = daemon.partition(".")[0]
    for kind in ERROR_KINDS.get(kind_of_daemon, ()):
        yield ERRORS, (kind_of_daemon, kind)
    for cause in ("died", "silent"):
        yield WORKER_RESTARTS, (daemon, cause)
    if kind_of_daemon in ("milter", "policyd"):
        for result in ("forged", "expired", "unknown"):
            yield SRS_REVERSALS, (result,)
    if kind_of_daemon == "ledger":
        for result in ("lost", "damaged"):
            yield LEDGER_RECORDS, (result,)
