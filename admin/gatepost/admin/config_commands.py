# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file for people: `gatepost config init`, `check` and `show`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Optional, Union

import click

from gatepost.admin.configuration import (
    closed_to_owner,
    complain,
    fingerprint,
    in_words,
    open_store,
    printable,
    problems_reported,
    secret_missing,
)
from gatepost.relay import AcceptedDomain, Connector, Organization
from gatepost.service import ambiguity, certificates, exports
from gatepost.service.config import Config, RelayConfig, load, read
from gatepost.service.organizations import Mode, OrganizationConfig
from gatepost.service.reversal import day
from gatepost.service.secret import iso_day, read_secret
from gatepost.service.snapshot import enforces
from gatepost.service.srs_config import COMPACT
from gatepost.service.store import StoreError
from gatepost.service.tables import ConfigError, without_password
from gatepost.service.upstream import UpstreamConfig

Value = Union[str, bool, int, datetime, tuple[str, ...]]
Given = Mapping[str, object]

SAFE_OCTETS = 16
_LINES = 40
"""So many lines on exports are printed."""
_CLOSED = 20
"""So many files that the daemons may not read are named."""


def init(path: Optional[Path]) -> None:
    """Write the configuration to start from to *path*, or print it."""
    text = starting_text()
    if path is None:
        click.echo(text, nl=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        complain(f"{path}: exists, and is never overwritten; gatepost config init --stdout prints what it would hold")
        sys.exit(os.EX_CANTCREAT)
    except OSError as error:
        complain(f"{path}: cannot be written: {error.strerror}")
        sys.exit(os.EX_NOPERM if isinstance(error, PermissionError) else os.EX_CANTCREAT)
    click.echo(f"Wrote {path}. Put your own organization into it, then run: gatepost -c {path} config check")


def starting_text() -> str:
    """Return the configuration to start from, which packages install, too."""
    return Path(__file__).with_name("starting.toml").read_text(encoding="utf-8")


def check(path: Path) -> None:
    """Print whether the configuration in *path* can be used; end with status 78 if not."""
    with problems_reported():
        config = load(path)
        notes = list(config.warnings)
        if not config.organizations:
            notes.append("no organization is declared, so nothing is refused and nothing is rewritten")
        secret, warnings = _secret(config)
        clients = certificates.read(config.relay.certificate_folder)
        notes += _closed(config)
    notes += warnings
    notes += map(printable, clients.warnings)
    notes += _store(config)
    notes += ambiguity.findings(config.organizations, config.settings)
    organizations = config.organizations.values()
    counts = ", ".join(
        (
            exports.counted(len(organizations), "organization"),
            exports.counted(sum(len(item.accepted_domains) for item in organizations), "accepted domain"),
            exports.counted(sum(len(item.connectors) for item in organizations), "connector"),
        )
    )
    click.echo(f"{path}: OK, {counts}")
    for name, settings in config.settings.items():
        if settings.enforce_from:
            moment = in_words(settings.enforce_from)
            text = f"in force since {moment}" if enforces(settings, time.time()) else f"from {moment} on"
            click.echo(printable(f"{name}: mode enforce {text}"))
    lines = list(_exported(config))
    for line in lines[:_LINES]:
        click.echo(printable(line))
    if len(lines) > _LINES:
        click.echo(f"and {len(lines) - _LINES} more lines on exports; of one: gatepost import exchange FILE")
    if len(clients):
        click.echo(f"{config.relay.certificate_folder}: {exports.counted(len(clients), 'certificate')}")
    for note in notes:
        click.echo(f"warning: {note}")
    click.echo(secret)


def _exported(config: Config) -> Iterator[str]:
    """Yield what exchange_export gives, and what is left out."""
    for name, settings in config.settings.items():
        yield from exports.told(name, settings.exchange_export)


def _secret(config: Config) -> tuple[str, list[str]]:
    """Return what to say of the SRS secret, and warnings. Raises ConfigError where it is there and can't be used."""
    file = config.srs.secret_file
    try:
        keys = read_secret(file)
    except ConfigError as error:
        if not secret_missing(error):
            raise
        return f"SRS secret: {file} is not there yet, the first start makes it", []
    today = day(int(time.time()))
    signing = next((key for key in keys if key.signs_from <= today), keys[-1])
    parts = []
    for key in keys:
        waits = f"signs from {iso_day(key.signs_from)}" if key.signs_from > today else "verifies"
        parts.append(f"{fingerprint(key)} {'signs' if key is signing else waits}")
    warnings = [
        f"{file}: the key {fingerprint(key)} has {exports.counted(len(key.secret), 'octet')}; "
        f"safe are {SAFE_OCTETS} and more"
        for key in keys
        if len(key.secret) < SAFE_OCTETS
    ]
    return f"SRS secret: {file}: {exports.counted(len(keys), 'key')}; {', '.join(parts)}", warnings


def _closed(config: Config) -> list[str]:
    """Return warnings of certificates and exports that the daemons could not read, where root can tell."""
    folder = config.relay.certificate_folder
    paths = [*certificates.files(folder), *config.exchange_exports]
    user, closed = closed_to_owner(config, [folder, *paths] if folder.is_dir() else paths)
    if folder in closed:
        closed = [path for path in closed if folder not in path.parents]
    more = [f"and {len(closed) - _CLOSED} files more"] if len(closed) > _CLOSED else []
    return [printable(f"{path}: the user of the daemons ({user}) may not read it") for path in closed[:_CLOSED]] + more


def _store(config: Config) -> list[str]:
    """Return a warning where the store is needed and can't be asked."""
    if not config.srs.reverses(COMPACT) or not config.state_directory.is_dir():  # the first start makes that
        return []
    try:
        open_store(config).found("")
    except StoreError as error:
        return [f"the store cannot be asked: {error}"]
    return []


def show(path: Path) -> None:
    """Print the configuration in force as TOML: what comes from the file, and the defaults."""
    with problems_reported():
        config = load(path)
        raw = read(path)
    click.echo("\n".join(_document(config, raw)))


def _document(config: Config, raw: Given) -> Iterator[str]:
    yield f"# The configuration in force, of {config.path}. A value marked # default is not set there."
    yield from _keys({"state_directory": str(config.state_directory)}, raw)
    entries = _tables(raw, "organization")
    for given, organization in zip(entries, config.organizations.values()):
        yield from _organization(organization, config.settings[organization.name], given)
    for name, values in _sections(config).items():
        yield ""
        if values is None:
            yield f"# [{name}] is not set."
            continue
        yield f"[{name}]"
        outer, _, inner = name.partition(".")
        given = _table(_table(raw, outer), inner) if inner else _table(raw, outer)
        yield from _keys(values, given, notes=_switched(config.relay) if name == "relay" else None)


def _sections(config: Config) -> dict[str, Optional[dict[str, Value]]]:
    relay, srs, milter, policyd, egress = config.relay, config.srs, config.milter, config.policyd, config.egress
    ledger = config.ledger
    return {
        "relay": {
            "requirements": relay.requirements.value,
            "mode": relay.mode.value,
            **({"enforce_from": relay.enforce_from} if relay.enforce_from else {}),
            "action": relay.action.value,
            "enforced_by": relay.enforced_by,
            "local_domains": relay.local_domains,
            "subdomains_relay": relay.subdomains_relay,
            "exempt": relay.exempt,
            "certificate_folder": str(relay.certificate_folder),
        },
        "srs": {
            "secret_file": str(srs.secret_file),
            "format": srs.format.value,
            "also_reverse": srs.also_reverse,
            "form": srs.form.value,
            "hash_length": srs.hash_length,
            "validity_days": srs.validity_days,
            "reverse": srs.reverse.value,
            "accept_from": srs.accept_from,
            "failures_per_hour": srs.failures_per_hour,
            "exclude": srs.exclude[: srs.exclude_listed],
            "include": srs.include[: srs.include_listed],
            **_files({"exclude_file": srs.exclude_file, "include_file": srs.include_file}),
            "only_spf": srs.only_spf,
            "outgoing_addresses": srs.outgoing_addresses,
        },
        "srs.srs0": {
            "separator": srs.srs0.separator,
            "hash_length": srs.srs0.hash_length,
            "hash_minimum": srs.srs0.hash_minimum,
            "base64url": srs.srs0.base64url,
        },
        "milter": {"listen": str(milter.listen), "workers": milter.workers},
        "policyd": {
            "listen": tuple(map(str, policyd.listen)),
            "tcp_table_forward": tuple(map(str, policyd.tcp_table_forward)),
            "tcp_table_reverse": tuple(map(str, policyd.tcp_table_reverse)),
            "workers": policyd.workers,
        },
        "egress": {"transport": egress.transport, "daemon_name": egress.daemon_name} if egress else None,
        "upstream": _upstream(config.upstream),
        "metrics": {"listen": config.metrics.host_and_port if config.metrics else ""},
        "ledger": {
            "days": ledger.days,
            "rows": ledger.rows,
            "subjects": ledger.subjects,
            "required": ledger.required,
            "spool_megabytes": ledger.spool_bytes >> 20,
        },
        "store": {"url": without_password(config.store_url)},
        "dns": {
            "nameservers": tuple(item.host_and_port for item in config.nameservers),
            "fcrdns": config.fcrdns,
        },
    }


def _upstream(upstream: Optional[UpstreamConfig]) -> Optional[dict[str, Value]]:
    if upstream is None:
        return None
    connector, name = upstream.connector, upstream.connector.tls_sender_certificate_name
    return {
        "organization": upstream.organization,
        "sender_ip_addresses": tuple(map(str, connector.sender_ip_addresses)),
        **({"tls_sender_certificate_name": name} if name else {}),
        "certificate_names": upstream.certificate_names,
        "associated_accepted_domains": connector.associated_accepted_domains,
        "refuse": upstream.refuse,
    }


def _files(paths: Mapping[str, Optional[Path]]) -> dict[str, Value]:
    return {name: str(path.absolute()) for name, path in paths.items() if path}


def _organization(organization: Organization, settings: OrganizationConfig, given: Given) -> Iterator[str]:
    yield from ("", "[[organization]]")
    values: dict[str, Value] = {"name": organization.name, "mode": settings.mode.value}
    if settings.enforce_from:
        values["enforce_from"] = settings.enforce_from
    values["action"] = settings.action.value
    values["notify_addresses"] = settings.notify_addresses
    if settings.srs_domain:
        values["srs_domain"] = settings.srs_domain
    values["exchange_export"] = tuple(str(path.absolute()) for path in settings.exchange_export.paths)
    yield from _keys(values, given, notes=_switched(settings))
    files = exports.files_of(settings.exchange_export.records)
    domains, connectors = _tables(given, "accepted_domain"), _tables(given, "connector")
    for accepted, entry in zip_longest(organization.accepted_domains, domains):
        yield ""
        file = files.get((False, accepted.domain), "")
        values = domain_values(accepted)
        if accepted.domain in settings.srs_domains:
            values["srs_domain"] = settings.srs_domains[accepted.domain]
        lines = ["[[organization.accepted_domain]]", *_keys(values, entry or {}, file or "default")]
        yield from lines if entry is not None else map(_commented, lines)
    for connector, entry in zip_longest(organization.connectors, connectors):
        yield ""
        file = files.get((True, connector.name), "")
        lines = ["[[organization.connector]]", *_keys(connector_values(connector), entry or {}, file or "default")]
        yield from lines if entry is not None else map(_commented, lines)


def domain_values(accepted: AcceptedDomain) -> dict[str, Value]:
    """Return an accepted domain by the keys of its table."""
    return {
        "domain": accepted.domain,
        "default": accepted.default,
        "type": accepted.type.value,
        "match_subdomains": accepted.match_subdomains,
    }


def connector_values(connector: Connector) -> dict[str, Value]:
    """Return a connector by the keys of its table."""
    name = connector.tls_sender_certificate_name
    return {
        "name": connector.name,
        "sender_ip_addresses": tuple(map(str, connector.sender_ip_addresses)),
        **({"tls_sender_certificate_name": name} if name else {}),
        "enabled": connector.enabled,
        "associated_accepted_domains": connector.associated_accepted_domains,
    }


def _commented(line: str) -> str:
    return f"#{line}"


def _switched(item: Union[RelayConfig, OrganizationConfig]) -> dict[str, str]:
    """Return what is to be said of the mode of *item*: it is another one once its enforce_from has come."""
    switched = item.mode is Mode.MONITOR and enforces(item, time.time())
    return {"mode": "enforce_from has come: enforce"} if switched else {}


def _keys(
    values: Mapping[str, Value], given: Given, source: str = "default", notes: Optional[Mapping[str, str]] = None
) -> Iterator[str]:
    """Yield a line for each key; those with no note that are not in the file say what they come from."""
    for name, value in values.items():
        comment = (notes or {}).get(name) or ("" if name in given else source)
        yield f"{name} = {toml(value)}" + (printable(f"  # {comment}") if comment else "")


def toml(value: Value) -> str:
    """Return *value* as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    return f"[{', '.join(map(toml, value))}]"


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _tables(raw: Given, name: str) -> list[Given]:
    found = raw.get(name, [])
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _table(raw: Given, name: str) -> Given:
    found = raw.get(name, {})
    return found if isinstance(found, dict) else {}
