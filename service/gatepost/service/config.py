# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: TOML in, frozen dataclasses out, or every error of it at once."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Optional

from gatepost.relay import Organization, RuleSet
from gatepost.service import fields, organizations, srs_config, upstream_config
from gatepost.service.certificates import DEFAULT_FOLDER
from gatepost.service.fields import Listen
from gatepost.service.organizations import Kept, Mode, OrganizationConfig, RefusalAction
from gatepost.service.paths import DEFAULT_STATE_DIRECTORY
from gatepost.service.regular import read_regular
from gatepost.service.srs_config import SrsConfig
from gatepost.service.tables import ConfigError, Notes, Table
from gatepost.service.upstream import UpstreamConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SOCKETS = "/var/spool/postfix/gatepost"
_MILTER_SOCKET = Listen(path=f"{_SOCKETS}/milter.sock")
_NONE_KEPT: Mapping[int, Kept] = {}


@dataclass(frozen=True)
class RelayConfig:
    """[relay]: *exempt* names the clients that the rule leaves alone; *enforced_by* the daemon that applies it.

    enforce_from: until then mode is MONITOR, from then on ENFORCE. certificate_folder: it need not be there.
    """

    requirements: RuleSet = RuleSet.CURRENT
    mode: Mode = Mode.MONITOR
    enforce_from: Optional[datetime] = None
    action: RefusalAction = RefusalAction.REJECT
    enforced_by: str = "milter"
    local_domains: tuple[str, ...] = ()
    subdomains_relay: bool = True
    exempt: tuple[str, ...] = ("authenticated", "local")
    certificate_folder: Path = Path(DEFAULT_FOLDER)


@dataclass(frozen=True)
class MilterConfig:
    listen: Listen = _MILTER_SOCKET
    workers: int = 2


@dataclass(frozen=True)
class PolicydConfig:
    """[policyd]: policy service and socketmaps at each of *listen*, tcp_table(5) at the others."""

    listen: tuple[Listen, ...] = (Listen(path=f"{_SOCKETS}/policyd.sock"),)
    workers: int = 2
    tcp_table_forward: tuple[Listen, ...] = ()
    tcp_table_reverse: tuple[Listen, ...] = ()


@dataclass(frozen=True)
class EgressConfig:
    """[egress]: *transport* is what the map answers, *daemon_name* how the milter knows the hop's smtpd."""

    transport: str
    daemon_name: str = "gatepost-egress"


@dataclass(frozen=True)
class LedgerConfig:
    """[ledger]: what is kept, for how many *days* (0: nothing is recorded) and in how many *rows* at most.

    required: mail whose record can't be written is put off. spool_bytes: how much may wait while the store is away.
    """

    days: int = 90
    rows: int = 5_000_000
    subjects: bool = False
    required: bool = False
    spool_bytes: int = 1 << 30


@dataclass(frozen=True)
class Config:
    """A whole valid configuration. *organizations* and *settings* have the same keys, in the file's order."""

    path: Path
    state_directory: Path
    organizations: Mapping[str, Organization]
    settings: Mapping[str, OrganizationConfig]
    relay: RelayConfig
    srs: SrsConfig
    milter: MilterConfig
    policyd: PolicydConfig
    egress: Optional[EgressConfig]
    metrics: Optional[Listen]
    ledger: LedgerConfig = LedgerConfig()
    store_url: str = field(default="", repr=False)  # may hold a password
    nameservers: tuple[Listen, ...] = ()
    fcrdns: bool = False
    upstream: Optional[UpstreamConfig] = None
    warnings: tuple[str, ...] = field(default=(), compare=False)
    unchanged: Mapping[bytes, str] = field(default_factory=dict, compare=False, repr=False)
    """What `unchanged.load` knows organizations by."""

    @cached_property  # of thousands of organizations: a look at each once, and not in every second
    def exchange_exports(self) -> tuple[Path, ...]:
        """The files of all organisations' exchange_export."""
        return tuple(path for item in self.settings.values() for path in item.exchange_export.paths)

    @property
    def ledger_folder(self) -> Path:
        """The folder in which records wait for the store."""
        return self.state_directory / "ledger"


def load(path: Path) -> Config:
    """Return the configuration in *path*. Raises ConfigError with every problem found."""
    with uncollected():
        return parse(read(path), path)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking, again and again, for garbage in what is being made to stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read(path: Path) -> dict[str, object]:
    """Return the TOML document in *path*, its keys unchecked. Raises ConfigError."""
    try:
        return document(text(path))
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error.__cause__


def text(path: Path) -> str:
    """Return what is in *path*. Raises ConfigError."""
    try:
        return io.TextIOWrapper(io.BytesIO(read_regular(path)), encoding="utf-8-sig").read()
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"is not UTF-8 (octet {error.start})"]) from error


def document(text: str) -> dict[str, object]:
    """Return a TOML document. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError is one; so is what Python says of a number of 4,300 digits
        raise ConfigError([f"is not TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["is nested too deeply"]) from error


def parse(raw: Mapping[str, object], path: Path, kept: Mapping[int, Kept] = _NONE_KEPT) -> Config:
    """Return the configuration for a parsed document; *path* stands in messages, and relative files are beside it.

    kept: organizations whose tables need not be read, by their index in the document.
    """
    notes = Notes(path.name)
    top = Table(raw, "", notes)
    state = Path(top.string("state_directory", os.environ.get("STATE_DIRECTORY", DEFAULT_STATE_DIRECTORY)))
    if not state.is_absolute():
        top.problem("state_directory", f'"{state}" is not an absolute path')
    relay = _relay(top.table("relay"), path.parent)
    declared, settings = organizations.organizations(
        top, (relay.mode, relay.enforce_from), relay.action, path.parent, kept
    )
    dns = top.table("dns")
    config = Config(
        path=path,
        state_directory=state,
        organizations=declared,
        settings=settings,
        relay=relay,
        srs=srs_config.srs(top.table("srs"), state, path.parent),
        milter=_milter(top.table("milter")),
        policyd=_policyd(top.table("policyd")),
        egress=_egress(top.optional_table("egress")),
        metrics=_metrics(top.table("metrics")),
        ledger=_ledger(top.table("ledger")),
        store_url=srs_config.store_url(top.table("store"), state),
        nameservers=srs_config.nameservers(dns),
        fcrdns=dns.boolean("fcrdns", default=False),
        upstream=upstream_config.read(top.optional_table("upstream"), declared),
    )
    dns.close()
    top.close()
    _check_together(config, notes)
    if config.upstream and not notes.problems:
        upstream_config.check(
            config.upstream,
            declared,
            settings,
            config.srs,
            notes,
            subdomains_relay=config.relay.subdomains_relay,
            rewrites=config.relay.enforced_by == "milter" or config.egress is not None,
        )
    if notes.problems:
        raise ConfigError(notes.problems)
    if config.upstream:
        config = replace(config, organizations=upstream_config.marked(config.upstream, declared))
    return replace(config, warnings=tuple(notes.warnings))


def _relay(table: Table, folder: Path) -> RelayConfig:
    default = RelayConfig()
    mode, enforce_from = organizations.mode_of(table, (default.mode, None))
    config = RelayConfig(
        requirements=RuleSet(
            table.string("requirements", default.requirements.value, allowed=[rules.value for rules in RuleSet])
        ),
        mode=mode,
        enforce_from=enforce_from,
        action=organizations.refusal_action(table, default.action),
        enforced_by=table.string("enforced_by", default.enforced_by, allowed=["milter", "policyd"]),
        local_domains=fields.domains(table, "local_domains"),
        subdomains_relay=table.boolean("subdomains_relay", default=default.subdomains_relay),
        exempt=table.strings("exempt", default.exempt, allowed=["authenticated", "local"]),
        certificate_folder=folder / table.string("certificate_folder", DEFAULT_FOLDER),
    )
    if not (table.is_absent("certificate_folder") or os.path.isdir(config.certificate_folder)):
        table.notes.warn(table.key("certificate_folder"), f"{config.certificate_folder} is no folder")
    table.close()
    return config


def _milter(table: Table) -> MilterConfig:
    default = MilterConfig()
    config = MilterConfig(
        listen=fields.listen(table, "listen", table.string("listen", str(default.listen))),
        workers=table.integer("workers", default.workers, lowest=1, highest=64),
    )
    table.close()
    return config


def _policyd(table: Table) -> PolicydConfig:
    default = PolicydConfig()
    config = PolicydConfig(
        listen=fields.listens(table, "listen", default.listen),
        workers=table.integer("workers", default.workers, lowest=1, highest=64),
        tcp_table_forward=fields.listens(table, "tcp_table_forward"),
        tcp_table_reverse=fields.listens(table, "tcp_table_reverse"),
    )
    if not config.listen:
        table.problem("listen", "[] names no address to listen on")
    for name in ("tcp_table_forward", "tcp_table_reverse"):
        for index, item in enumerate(getattr(config, name)):
            if item.path:
                table.notes.warn(
                    table.key(f"{name}[{index}]"), 'Postfix asks a tcp_table by TCP only (e.g. "inet:127.0.0.1:10001")'
                )
    table.close()
    return config


def _egress(table: Optional[Table]) -> Optional[EgressConfig]:
    if table is None:
        return None
    config = EgressConfig(
        transport=table.string("transport", "gatepost-egress:[127.0.0.1]:10027"),
        daemon_name=table.string("daemon_name", "gatepost-egress"),
    )
    if ":" not in config.transport or any(character.isspace() for character in config.transport):
        table.problem("transport", f'"{config.transport}" is not a Postfix transport:nexthop')
    table.close()
    return config


def _metrics(table: Table) -> Optional[Listen]:
    text = table.string("listen", "127.0.0.1:9797", may_be_empty=True)
    table.close()
    if not text:
        return None
    listen = fields.host_and_port(text)
    if listen is None:
        table.problem("listen", f'"{text}" is no address and port (e.g. "127.0.0.1:9797", "[::1]:9797", "" for none)')
    return listen


def _ledger(table: Table) -> LedgerConfig:
    default = LedgerConfig()
    mebibyte = 1 << 20
    config = LedgerConfig(
        days=table.integer("days", default.days, lowest=0, highest=3650),
        rows=table.integer("rows", default.rows, lowest=1000, highest=1_000_000_000),
        subjects=table.boolean("subjects", default=default.subjects),
        required=table.boolean("required", default=default.required),
        spool_bytes=mebibyte
        * table.integer("spool_megabytes", default.spool_bytes // mebibyte, lowest=8, highest=1_000_000),
    )
    table.close()
    return config


def _check_together(config: Config, notes: Notes) -> None:
    """Note what is right by itself and wrong beside the rest."""
    if config.relay.enforced_by == "policyd" and config.relay.requirements is RuleSet.LEGACY:
        notes.problem(
            "relay.requirements",
            '"legacy" needs the header From, which the policy protocol does not carry; '
            'use enforced_by = "milter" or requirements = "2023-11-01"',
        )
    modes = {(item.mode, item.enforce_from) for item in config.settings.values()}
    if config.egress and len(modes) > 1:
        notes.warn(
            "egress",
            "the hop can't tell organizations apart: what leaves through one in mode monitor is rewritten, too",
        )
    if config.policyd.tcp_table_forward and modes == {(Mode.MONITOR, None)}:
        notes.warn("policyd.tcp_table_forward", "the mode is monitor, in which the map forward rewrites nothing")
    _check_actions(config, notes)
    _check_listens(config, notes)
    if any(item.srs_domain or item.srs_domains for item in config.settings.values()):
        _check_srs_domains(config, notes)


def _check_srs_domains(config: Config, notes: Notes) -> None:
    """Note each srs_domain that another organization has already, as one or as an accepted domain."""
    accepted = {domain.domain: name for name, item in config.organizations.items() for domain in item.accepted_domains}
    taken: dict[str, str] = {}
    for index, (name, settings) in enumerate(config.settings.items()):
        for path, domain in _srs_domains(settings, config.organizations[name]):
            if taken.setdefault(domain, accepted.get(domain, name)) != name:
                notes.problem(f"organization[{index}].{path}", f'"{domain}" belongs to organization "{taken[domain]}"')


def _check_actions(config: Config, notes: Notes) -> None:
    """Note where what is to be done with refused mail can't be done, or reaches other recipients, too."""
    relay = config.relay
    actions = {"relay.action": relay.action}
    for index, item in enumerate(config.settings.values()):
        if item.action is not relay.action:
            actions[f"organization[{index}].action"] = item.action
    for key, action in actions.items():
        if action is RefusalAction.TAG and relay.enforced_by == "policyd":
            notes.problem(
                key, '"tag" needs enforced_by = "milter": policyd cannot remove a header that a client forged'
            )
        if action is RefusalAction.REWRITE and relay.enforced_by == "policyd" and config.egress is None:
            notes.problem(key, '"rewrite" needs enforced_by = "milter" or [egress]: policyd rewrites nothing')
        if action is RefusalAction.REWRITE and config.srs.only_spf:
            notes.problem(key, '"rewrite" goes not with srs.only_spf: what is let through must have an SRS sender')
    others = sorted({action.value for action in actions.values()} - {"reject"})
    if others and "local" not in relay.exempt:
        named = ["tempfail, which rejects it" if action == "tempfail" else action for action in others]
        notes.warn(
            "relay.exempt",
            "mail from sendmail(1) is not exempt and cannot be split, so inside recipients of the same message share "
            f"what becomes of it ({', '.join(named)})",
        )


def _check_listens(config: Config, notes: Notes) -> None:
    """Note each address that is to be listened on twice."""
    policyd = config.policyd
    listens = [("milter.listen", config.milter.listen)]
    for name in ("listen", "tcp_table_forward", "tcp_table_reverse"):
        listens += [(f"policyd.{name}[{index}]", item) for index, item in enumerate(getattr(policyd, name))]
    if config.metrics:
        listens.append(("metrics.listen", config.metrics))
    taken: dict[Listen, str] = {}
    for path, item in listens:
        if item != Listen() and taken.setdefault(item, path) != path:
            notes.problem(path, f'"{item}" is {taken[item]}, too')


def _srs_domains(settings: OrganizationConfig, organization: Organization) -> Iterator[tuple[str, str]]:
    """Yield each srs_domain of an organisation with its key path."""
    if settings.srs_domain:
        yield "srs_domain", settings.srs_domain
    for index, accepted in enumerate(organization.accepted_domains):
        if accepted.domain in settings.srs_domains:
            yield f"accepted_domain[{index}].srs_domain", settings.srs_domains[accepted.domain]
