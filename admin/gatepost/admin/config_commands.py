# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file for people: `gatepost config init`, `check` and `show`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Optional, Union

import click

from gatepost.admin.configuration import (
    complain,
    fingerprint,
    in_words,
    open_store,
    printable,
    problems_reported,
    secret_missing,
)
from gatepost.relay import Organization
from gatepost.service.config import Config, OrganizationConfig, load, read
from gatepost.service.reversal import day
from gatepost.service.secret import iso_day, read_secret
from gatepost.service.srs_config import COMPACT, without_password
from gatepost.service.store import StoreError
from gatepost.service.tables import ConfigError

Value = Union[str, bool, int, datetime, tuple[str, ...]]
Given = Mapping[str, object]

_SAFE_OCTETS = 16


def init(path: Optional[Path]) -> None:
    """Write the configuration to start from to *path*, or print it."""
    text = Path(__file__).with_name("starting.toml").read_text(encoding="utf-8")
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


def check(path: Path) -> None:
    """Print whether the configuration in *path* can be used; end with status 78 if not."""
    with problems_reported():
        config = load(path)
        notes = list(config.warnings)
        if not config.organizations:
            notes.append("no organization is declared, so nothing is refused and nothing is rewritten")
        secret, warnings = _secret(config)
    notes += warnings
    notes += _store(config)
    organizations = config.organizations.values()
    counts = ", ".join(
        (
            _count(len(organizations), "organization"),
            _count(sum(len(item.accepted_domains) for item in organizations), "accepted domain"),
            _count(sum(len(item.connectors) for item in organizations), "connector"),
        )
    )
    click.echo(f"{path}: OK, {counts}")
    for name, settings in config.settings.items():
        if settings.enforce_from:
            click.echo(printable(f"{name}: mode enforce from {in_words(settings.enforce_from)} on"))
    for note in notes:
        click.echo(f"warning: {note}")
    click.echo(secret)


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
        f"{file}: the key {fingerprint(key)} has {_count(len(key.secret), 'octet')}; safe are {_SAFE_OCTETS} and more"
        for key in keys
        if len(key.secret) < _SAFE_OCTETS
    ]
    return f"SRS secret: {file}: {_count(len(keys), 'key')}; {', '.join(parts)}", warnings


def _store(config: Config) -> list[str]:
    """Return a warning where the store is needed and can't be asked."""
    if not config.srs.reverses(COMPACT) or not config.state_directory.is_dir():  # the first start makes that
        return []
    try:
        open_store(config).found("")
    except StoreError as error:
        return [f"the store cannot be asked: {error}"]
    return []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
        yield from _keys(values, _table(_table(raw, outer), inner) if inner else _table(raw, outer))


def _sections(config: Config) -> dict[str, Optional[dict[str, Value]]]:
    relay, srs, milter, policyd, egress = config.relay, config.srs, config.milter, config.policyd, config.egress
    ledger = config.ledger
    return {
        "relay": {
            "requirements": relay.requirements.value,
            "mode": relay.mode.value,
            **({"enforce_from": relay.enforce_from} if relay.enforce_from else {}),
            "enforced_by": relay.enforced_by,
            "local_domains": relay.local_domains,
            "subdomains_relay": relay.subdomains_relay,
            "exempt": relay.exempt,
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
        "metrics": {"listen": config.metrics.host_and_port if config.metrics else ""},
        "ledger": {
            "days": ledger.days,
            "rows": ledger.rows,
            "subjects": ledger.subjects,
            "required": ledger.required,
            "spool_megabytes": ledger.spool_bytes >> 20,
        },
        "store": {"url": without_password(config.store_url)},
        "dns": {"nameservers": tuple(item.host_and_port for item in config.nameservers)},
    }


def _files(paths: Mapping[str, Optional[Path]]) -> dict[str, Value]:
    return {name: str(path.absolute()) for name, path in paths.items() if path}


def _organization(organization: Organization, settings: OrganizationConfig, given: Given) -> Iterator[str]:
    yield from ("", "[[organization]]")
    values: dict[str, Value] = {"name": organization.name, "mode": settings.mode.value}
    if settings.enforce_from:
        values["enforce_from"] = settings.enforce_from
    values["notify_addresses"] = settings.notify_addresses
    if settings.srs_domain:
        values["srs_domain"] = settings.srs_domain
    yield from _keys(values, given)
    for accepted, entry in zip(organization.accepted_domains, _tables(given, "accepted_domain")):
        yield from ("", "[[organization.accepted_domain]]")
        values = {
            "domain": accepted.domain,
            "default": accepted.default,
            "type": accepted.type.value,
            "match_subdomains": accepted.match_subdomains,
        }
        if accepted.domain in settings.srs_domains:
            values["srs_domain"] = settings.srs_domains[accepted.domain]
        yield from _keys(values, entry)
    for connector, entry in zip(organization.connectors, _tables(given, "connector")):
        yield from ("", "[[organization.connector]]")
        values = {"name": connector.name, "sender_ip_addresses": tuple(map(str, connector.sender_ip_addresses))}
        if connector.tls_sender_certificate_name:
            values["tls_sender_certificate_name"] = connector.tls_sender_certificate_name
        values["enabled"] = connector.enabled
        values["associated_accepted_domains"] = connector.associated_accepted_domains
        yield from _keys(values, entry)


def _keys(values: Mapping[str, Value], given: Given) -> Iterator[str]:
    for name, value in values.items():
        yield f"{name} = {_toml(value)}" + ("" if name in given else "  # default")


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    return f"[{', '.join(map(_toml, value))}]"


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
