# SPDX-License-Identifier: GPL-3.0-or-later
"""Read exports of Exchange Online, and say what they would make of the configuration: `gatepost import exchange`.

Nothing is written: the daemons read the exports themselves (exchange_export).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.config_commands import connector_values, domain_values, toml
from gatepost.admin.configuration import complain, printable
from gatepost.admin.exchange_difference import Change, difference
from gatepost.relay import AcceptedDomain, Connector, Organization, enumeration
from gatepost.relay.exchange_export import Export, Exported, ExportError
from gatepost.service import exports
from gatepost.service.config import Config, load, parse, read
from gatepost.service.tables import ConfigError
from gatepost.service.upstream_config import own_connectors

Document = dict[str, object]
Given = Mapping[str, object]


@dataclass(frozen=True)
class _Import:
    """What is known in the end.

    before: the organisation in force, None where there is none or, *unknown*, where that can't be told. own: the
    connectors that are this host's own, as [upstream] has it. replaced: the tables by hand that the files take the
    place of, in words.
    """

    files: Sequence[Path]
    exported: Sequence[Export]
    path: Path
    before: Optional[Organization]
    unknown: bool
    after: Config
    name: str
    own: Sequence[Connector]
    replaced: Sequence[str]

    @property
    def organization(self) -> Organization:
        return self.after.organizations[self.name]

    @property
    def records(self) -> list[Exported]:
        """The records of the files at hand, not of those that the configuration has besides."""
        mine = {str(file.absolute()) for file in self.files}
        return [item for item in self.after.settings[self.name].exchange_export.records if item.file in mine]

    def changes(self) -> list[Change]:
        return list(difference(self.before, self.organization)) if self.before else []


def run(path: Path, files: Sequence[Path], name: Optional[str], *, as_toml: bool, as_json: bool) -> int:
    """Print what *files* hold for the organisation *name*; return the exit status.

    path: the configuration to compare with, which need not be there. name: by default the organisation that has one of
    the exported domains, or a new one.
    """
    exported, status = _read(files)
    if status != os.EX_OK:
        return status
    raw, before = _in_force(path)
    unknown = bool(raw) and before is None
    found = name or _organization(raw, before, exported)
    if found is None:
        complain("whose exports are these? Name it: --organization NAME")
        return os.EX_USAGE
    lost = _lost(_listed(_mine(raw, found), path), exported)
    if lost:
        complain(f"{lost} too, and they would be lost: name a new export of these as well")
        return os.EX_CONFIG
    try:
        after = parse(_document(raw, path, found, files, exported), path)
    except ConfigError as error:
        complain("the configuration with these files could not be used:")
        for problem in error.problems:
            complain(problem)
        return os.EX_CONFIG
    old = before.organizations.get(found) if before else None
    own = _own(after, found)
    replaced = list(_replaced(_mine(raw, found), path, _kinds_of(exported) - ({True} if own else set())))
    result = _Import(files, exported, path, old, unknown, after, found, own, replaced)
    if as_json:
        click.echo(json.dumps(_json(result), indent=2))
        return os.EX_OK
    for line in _words(result):
        click.echo(printable(line), err=as_toml)
    lines = _tables(result) if as_toml else _line(result)
    click.echo("\n".join(lines if as_toml else (f"    {line}" for line in lines)))
    return os.EX_OK


def _read(files: Sequence[Path]) -> tuple[list[Export], int]:
    """Return the exports, and the exit status that the problems with them give, which are told."""
    found, status = [], os.EX_OK
    for file in files:
        try:
            found.append(exports.read_file(file))
        except ExportError as error:
            for problem in error.problems:
                complain(problem)
            unread = isinstance(error.__cause__, OSError)
            status = os.EX_NOINPUT if unread else os.EX_DATAERR
    return found, status


def _in_force(path: Path) -> tuple[Document, Optional[Config]]:
    """Return the document in *path* and the configuration; what can't be had is told, and {} or None."""
    if not path.exists():
        complain(f"note: {path} is not there, so there is nothing to compare with")
        return {}, None
    raw: Document = {}
    try:
        raw = read(path)
        return raw, load(path)
    except ConfigError as error:
        complain("note: there is nothing to compare with, for the configuration as it stands can't be used:")
        for problem in error.problems:
            complain(problem)
        return raw, None


def _organization(raw: Document, before: Optional[Config], exported: Sequence[Export]) -> Optional[str]:
    """Return whose exports these are: by their domains, or the only one there is; a new one has its domain's name."""
    records = [record for export in exported for record in export.records]
    domains = {record.name for record in records if not record.is_connector}
    declared = before.organizations.values() if before else ()
    owners = {item.name for item in declared for accepted in item.accepted_domains if accepted.domain in domains}
    if not domains:
        owners = {str(item.get("name")) for item in _list(raw, "organization")}
    if owners:
        return owners.pop() if len(owners) == 1 else None
    taken = [record.item for record in records if isinstance(record.item, AcceptedDomain)]
    default = next((item for item in taken if item.default), taken[0] if taken else None)
    return default.domain.partition(".")[0] if default else None


def _document(raw: Document, path: Path, name: str, files: Sequence[Path], exported: Sequence[Export]) -> Document:
    """Return the document in force with these files in place of what it has of their kind for the organisation."""
    kinds = _kinds_of(exported)
    mine = dict(_mine(raw, name) or {"name": name})
    organizations = [mine if item.get("name") == name else item for item in _list(raw, "organization")]
    if mine not in organizations:
        organizations.append(mine)
    listed = _listed(mine, path)
    kept = [item for item in listed if not kinds & _kinds(item, broken={False, True})]  # that is replaced
    if not listed:
        if False in kinds:  # what exports do not have stays
            entries = ({key: item[key] for key in ("domain", "srs_domain") if key in item} for item in _srs(mine))
            mine["accepted_domain"] = list(entries)
        if True in kinds:
            mine["connector"] = []
    mine["exchange_export"] = [*dict.fromkeys(str(item.absolute()) for item in (*kept, *files))]
    return {**raw, "organization": organizations}


def _mine(raw: Document, name: str) -> Given:
    return next((item for item in _list(raw, "organization") if item.get("name") == name), {})


def _listed(organization: Given, path: Path) -> list[Path]:
    there = organization.get("exchange_export", [])
    return [path.parent / item for item in (there if isinstance(there, list) else [there]) if isinstance(item, str)]


def _own(after: Config, name: str) -> list[Connector]:
    there = after.upstream
    if there is None or there.organization != name:
        return []
    return own_connectors(there.connector, after.organizations[name])


def _replaced(organization: Given, path: Path, kinds: set[bool]) -> Iterator[str]:
    """Yield each table by hand that the comparison took for gone, and that counts as long as it is in the file."""
    if _listed(organization, path):
        return
    if False in kinds:
        for item in _list(organization, "accepted_domain"):
            kept = " (but its srs_domain)" if "srs_domain" in item else ""
            yield f"[[organization.accepted_domain]] {item.get('domain')}{kept}"
    if True in kinds:
        for item in _list(organization, "connector"):
            yield f'[[organization.connector]] "{item.get("name")}"'


def _lost(listed: Sequence[Path], exported: Sequence[Export]) -> str:
    """Return what a file in force has that no file takes the place of, "" for nothing."""
    kinds = _kinds_of(exported)
    for path in listed:
        there = _kinds(path, broken=set())
        if kinds & there and there - kinds:
            return f"{path} has {'connectors' if True in there - kinds else 'accepted domains'}"
    return ""


def _srs(organization: Given) -> list[Given]:
    return [item for item in _list(organization, "accepted_domain") if "srs_domain" in item]


def _kinds(path: Path, broken: set[bool]) -> set[bool]:
    """Return whether a file has connectors, accepted domains, both; *broken* where that can't be told."""
    try:
        return _kinds_of([exports.read_file(path)])
    except ExportError:
        return broken


def _kinds_of(exported: Sequence[Export]) -> set[bool]:
    return {record.is_connector for export in exported for record in export.records}


def _list(raw: Given, name: str) -> list[Given]:
    found = raw.get(name, [])
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _words(result: _Import) -> Iterator[str]:
    yield f"Organization {result.name}:"
    for export in result.exported:
        yield from _file(result, export)
    if result.before is None and result.unknown:
        yield ""
    elif result.before is None:
        yield f"Nothing of it is in {result.path} yet."
        yield ""
    else:
        changes = result.changes()
        yield f"Compared with {result.path}: " + _count(len(changes))
        yield from (f"  {change}" for change in changes)
        yield ""
    yield from _advice(result)
    yield f"In {result.path}, with the files beside it (they are loaded by themselves when they change):"
    yield ""


def _advice(result: _Import) -> Iterator[str]:
    """Yield what the lines alone do not tell."""
    if result.replaced:
        yield f"Take these out of {result.path}, or they go on to count beside the files:"
        yield from (f"  {item}" for item in result.replaced)
        yield ""
    connectors = any(isinstance(item.item, Connector) for item in result.records)
    if result.own or (connectors and result.after.upstream is None):
        yield "A connector here is for hosts that send to this one. Where this one sends on to Exchange Online, the"
        yield "connector for it there goes into [upstream]: take the file of the accepted domains alone, and declare"
        yield "your hosts with [[organization.connector]]."
        yield ""


def _count(number: int) -> str:
    return f"{number or 'no'} difference{'' if number in (0, 1) else 's'}"


def _file(result: _Import, export: Export) -> Iterator[str]:
    yield f"  {export.file}:"
    for record in result.records:
        if record.file != str(Path(export.file).absolute()):
            continue
        if record.item is None:
            yield f"    left out {record}: {record.why}"
            continue
        changed = f" (last changed {record.changed:%Y-%m-%d})" if record.changed else ""
        disabled = ", disabled" if isinstance(record.item, Connector) and not record.item.enabled else ""
        yield f"    taken {record}{disabled}{changed}"
        yield from (f"      note: {note}" for note in record.notes)
        if record.item in result.own:
            yield "      note: this host's own, as [upstream] has it: it lets none of your clients relay"
    if not export.records:
        yield "    no record in it"
    if export.ignored:
        yield f"    not looked at for the relay rule: {enumeration(export.ignored)}"


def _line(result: _Import) -> Iterator[str]:
    """Yield what stands in gatepost.toml where the daemons are to read the files."""
    yield "[[organization]]"
    yield f"name = {toml(result.name)}"
    folder = result.path.absolute().parent
    paths = result.after.settings[result.name].exchange_export.paths
    beside = (str(path.relative_to(folder)) if folder in path.parents else path.name for path in paths)
    yield f"exchange_export = {toml(tuple(beside))}"


def _tables(result: _Import) -> Iterator[str]:
    """Yield the organisation written out, for who does not want the daemons to read the files."""
    settings = result.after.settings[result.name]
    yield "[[organization]]"
    yield f"name = {toml(result.name)}"
    if settings.srs_domain:
        yield f"srs_domain = {toml(settings.srs_domain)}"
    for accepted in result.organization.accepted_domains:
        values = domain_values(accepted)
        if accepted.domain in settings.srs_domains:
            values["srs_domain"] = settings.srs_domains[accepted.domain]
        yield from ("", "[[organization.accepted_domain]]", *(f"{key} = {toml(item)}" for key, item in values.items()))
    for connector in result.organization.connectors:
        values = {key: item for key, item in connector_values(connector).items() if item != ()}
        yield from ("", "[[organization.connector]]", *(f"{key} = {toml(item)}" for key, item in values.items()))


def _json(result: _Import) -> Document:
    return {
        "organization": result.name,
        "records": [
            {
                "file": record.file,
                "kind": "connector" if record.is_connector else "accepted domain",
                "name": record.name,
                "taken": record.item is not None,
                "why": record.why or None,
                "notes": record.notes,
                "changed": record.changed.isoformat() if record.changed else None,
                "values": _values(record),
            }
            for record in result.records
        ],
        "ignored_fields": {export.file: export.ignored for export in result.exported},
        "compared_with": str(result.path) if result.before else None,
        "differences": [
            {
                "change": change.what,
                "kind": change.kind,
                "name": change.name,
                "keys": {key: {"before": before, "after": after} for key, (before, after) in change.keys.items()},
            }
            for change in result.changes()
        ],
        "toml": "\n".join(_line(result)) + "\n",
    }


def _values(record: Exported) -> Optional[Mapping[str, object]]:
    if record.item is None:
        return None
    return domain_values(record.item) if isinstance(record.item, AcceptedDomain) else connector_values(record.item)
