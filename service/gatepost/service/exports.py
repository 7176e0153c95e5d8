# SPDX-License-Identifier: GPL-3.0-or-later
"""exchange_export of the configuration file: reads the exports of an organisation, and puts in words what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from gatepost.relay import AcceptedDomain, Connector, enumeration
from gatepost.service.regular import read_regular
from gatepost.service.tables import Table

# What reads exports loads csv and json: only where there is one.
if TYPE_CHECKING:
    from gatepost.relay.exchange_export import Export, Exported


@dataclass(frozen=True)
class ExchangeExport:
    """The files of an organisation and what is in them. names: as messages call them. usable: none has a problem."""

    paths: tuple[Path, ...] = ()
    records: tuple[Exported, ...] = ()
    usable: bool = True
    names: tuple[str, ...] = ()

    def accepted_domains(self) -> dict[str, AcceptedDomain]:
        return {item.item.domain: item.item for item in self.records if isinstance(item.item, AcceptedDomain)}

    def connectors(self) -> Iterator[Connector]:
        return (item.item for item in self.records if isinstance(item.item, Connector))


NO_EXPORT = ExchangeExport()


def exchange_export(table: Table, folder: Path) -> ExchangeExport:
    """Return what the key exchange_export names, relative to *folder*."""
    if table.is_absent("exchange_export"):
        return NO_EXPORT
    from gatepost.relay.exchange_export import ExportError, together

    paths = []
    exports: list[Export] = []
    problems = 0
    for index, name in enumerate(table.strings("exchange_export")):
        paths.append(folder / name)
        try:
            exports.append(read_file(folder / name, name))
        except ExportError as error:
            for problem in error.problems:
                table.problem(f"exchange_export[{index}]", problem)
            problems += 1
    try:
        records = together(exports)
    except ExportError as error:
        for problem in error.problems:
            table.problem("exchange_export", problem)
        return ExchangeExport(tuple(paths), usable=False)
    return ExchangeExport(tuple(paths), records, not problems, table.strings("exchange_export"))


def read_file(path: Path, name: Optional[str] = None) -> Export:
    """Return the export in a file, called *name* in messages. Raises ExportError."""
    from gatepost.relay.exchange_export import ExportError, read

    name = name or str(path)
    try:
        octets = read_regular(path)
    except OSError as error:
        raise ExportError([f"{name}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:  # a NUL in the name
        raise ExportError([f"{name}: is no file name"]) from error
    return read(octets, name)


def limited_to_accepted(export: ExchangeExport, accepted: AbstractSet[str]) -> ExchangeExport:
    """Return *export* with each connector limited to domains that its organisation accepts, by hand or by export."""
    if not export.records:
        return export
    from gatepost.relay.exchange_export import limited

    return replace(export, records=limited(export.records, accepted))


def notes(records: Iterable[Exported]) -> Iterator[str]:
    """Yield what is worth knowing of what is taken, a line for all records of a file that have the same note."""
    pairs = ((record, note) for record in records if record.item for note in record.notes)
    for file, names, note in _grouped(pairs):
        yield f"{file}: {names}: {note}"


def left_out(records: Iterable[Exported]) -> Iterator[str]:
    """Yield what is left out, and why."""
    for file, names, why in _grouped((record, record.why) for record in records if record.item is None):
        yield f"{file}: left out {names}: {why}"


def _grouped(pairs: Iterable[tuple[Exported, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield each file, the records of one kind in it that have the same text, and the text."""
    found: dict[tuple[str, bool, str], list[str]] = {}
    for record, text in pairs:
        name = f'"{record.name}"' if record.is_connector else record.name
        found.setdefault((record.file, record.is_connector, text), []).append(name)
    for (file, is_connector, text), names in found.items():
        kind = "connector" if is_connector else "accepted domain"
        yield file, f"{kind}{'' if len(names) == 1 else 's'} {enumeration(names)}", text


def told(name: str, export: ExchangeExport) -> Iterator[str]:
    """Yield what the exports of the organisation *name* give, and what is left out."""
    yield from (f"{name}: {line}" for line in (*taken(export), *left_out(export.records)))


def taken(export: ExchangeExport) -> Iterator[str]:
    """Yield what is taken, a line a file."""
    counts = {name: [0, 0] for name in export.names}
    for record in export.records:
        counts[record.file][record.is_connector] += record.item is not None
    for file, (domains, connectors) in counts.items():
        found = [counted(domains, "accepted domain")] if domains else []
        found += [counted(connectors, "connector")] if connectors else []
        yield f"{file}: taken: {' and '.join(found) or 'nothing'}"


def files_of(records: Iterable[Exported]) -> Mapping[tuple[bool, str], str]:
    """Return the file of each record that is taken, by whether it is a connector and its name."""
    return {(record.is_connector, record.name): record.file for record in records if record.item}


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
