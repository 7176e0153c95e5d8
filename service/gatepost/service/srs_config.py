# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables [srs], [store] and [dns] of the configuration file."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from gatepost.service import fields
from gatepost.service.fields import Listen
from gatepost.service.paths import DEFAULT_STATE_DIRECTORY
from gatepost.service.tables import Table, without_password


class Format(Enum):
    """A format of SRS addresses: Exchange Online's (S3, S4), or the classic SRS0 and SRS1."""

    EXCHANGE = "exchange"
    SRS0 = "srs0"


class Form(Enum):
    """What new addresses hold: the original, a token that the store knows it by, or what fits into 64 octets (S5)."""

    AUTO = "auto"
    LONG = "long"
    COMPACT = "compact"


class ReverseBy(Enum):
    """What gives bounces back to the original sender: a map of Postfix, REDIRECT at DATA, or the milter."""

    MAP = "map"
    REDIRECT = "redirect"
    MILTER = "milter"


COMPACT = "compact"
"""In also_reverse: the compact form where no new address has it."""


@dataclass(frozen=True)
class Srs0Config:
    """[srs.srs0]: *hash_length* of new addresses and *hash_minimum* of old ones in base64 characters."""

    separator: str = "="
    hash_length: int = 4
    hash_minimum: int = 4
    base64url: bool = False


@dataclass(frozen=True)
class SrsConfig:
    """[srs]: *hash_length* in base32 characters, *validity_days* in days.

    exclude, include: domain patterns of lists and files together. exclude_listed, include_listed: how many of them, the
    first ones, stand in the configuration itself.
    """

    secret_file: Path = Path(DEFAULT_STATE_DIRECTORY) / "srs.secret"
    format: Format = Format.EXCHANGE
    also_reverse: tuple[str, ...] = ()
    form: Form = Form.AUTO
    hash_length: int = 8
    validity_days: int = 21
    reverse: ReverseBy = ReverseBy.MAP
    accept_from: str = "bounces"
    failures_per_hour: int = 100
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude_file: Optional[Path] = None
    include_file: Optional[Path] = None
    exclude_listed: int = 0
    include_listed: int = 0
    only_spf: bool = False
    outgoing_addresses: tuple[str, ...] = ()
    srs0: Srs0Config = field(default_factory=Srs0Config)

    def reverses(self, form: str) -> bool:
        """Tell whether addresses of *form*, a format's name or `compact`, are brought back."""
        made = self.form is not Form.LONG if form == COMPACT else self.format.value == form
        return made or form in self.also_reverse

    @property
    def watched(self) -> tuple[Path, ...]:
        """The files a change of which loads the configuration anew."""
        return tuple(filter(None, (self.exclude_file, self.include_file)))


def forgotten(before: SrsConfig, after: SrsConfig) -> Iterator[str]:
    """Yield, in words, which addresses that were brought back *before* no longer are."""
    for form in (Format.EXCHANGE.value, Format.SRS0.value, COMPACT):
        if before.reverses(form) and not after.reverses(form):
            yield f'addresses of the form {form} are no longer brought back; srs.also_reverse = ["{form}"] would'
    kept = {form.value for form in Format if before.reverses(form.value) and after.reverses(form.value)}
    if Format.EXCHANGE.value in kept and before.hash_length != after.hash_length:
        yield f"srs.hash_length: addresses with a hash of {before.hash_length} characters are no longer brought back"
    if Format.SRS0.value in kept and before.srs0.hash_minimum < after.srs0.hash_minimum:
        yield "srs.srs0.hash_minimum: addresses with a shorter hash are no longer brought back"


def srs(table: Table, state: Path, folder: Path) -> SrsConfig:
    """Return [srs]; *state*: the state directory, *folder*: of the configuration file."""
    default = SrsConfig()
    formats = [item.value for item in Format]
    exclude_file, excluded = fields.pattern_file(table, "exclude_file", folder)
    include_file, included = fields.pattern_file(table, "include_file", folder)
    excluded_here, included_here = fields.patterns(table, "exclude"), fields.patterns(table, "include")
    srs0_table = table.table("srs0")
    config = SrsConfig(
        secret_file=state / table.string("secret_file", "srs.secret"),
        format=Format(table.string("format", default.format.value, allowed=formats)),
        also_reverse=table.strings("also_reverse", default.also_reverse, allowed=[*formats, COMPACT]),
        form=Form(table.string("form", default.form.value, allowed=[item.value for item in Form])),
        hash_length=table.integer("hash_length", default.hash_length, lowest=5, highest=52),
        validity_days=table.integer("validity_days", default.validity_days, lowest=1, highest=1000),
        reverse=ReverseBy(table.string("reverse", default.reverse.value, allowed=[item.value for item in ReverseBy])),
        accept_from=table.string("accept_from", default.accept_from, allowed=["bounces", "everyone"]),
        failures_per_hour=table.integer("failures_per_hour", default.failures_per_hour, lowest=0, highest=1_000_000),
        exclude=(*excluded_here, *excluded),
        include=(*included_here, *included),
        exclude_file=exclude_file,
        include_file=include_file,
        exclude_listed=len(excluded_here),
        include_listed=len(included_here),
        only_spf=table.boolean("only_spf", default=default.only_spf),
        outgoing_addresses=_ip_addresses(table, "outgoing_addresses"),
        srs0=_srs0(srs0_table),
    )
    if config.only_spf and table.is_empty("outgoing_addresses"):
        table.problem("outgoing_addresses", "missing: only_spf needs the IP addresses from which mail leaves")
    _warn_of_the_other_format(table, srs0_table, config)
    table.close()
    return config


def _warn_of_the_other_format(table: Table, srs0: Table, config: SrsConfig) -> None:
    """Note what is set for a format that is neither made nor brought back: the two have a hash_length each."""
    without_effect = 'has no effect: srs.format is "{}", and srs.also_reverse has no "{}"'
    if not config.reverses(Format.EXCHANGE.value) and not table.is_empty("hash_length"):
        text = without_effect.format(config.format.value, Format.EXCHANGE.value)
        table.notes.warn(table.key("hash_length"), f"{text}; that of SRS0 is srs.srs0.hash_length")
    if not config.reverses(Format.SRS0.value) and not all(map(srs0.is_empty, vars(Srs0Config()))):
        table.notes.warn(srs0.path, without_effect.format(config.format.value, Format.SRS0.value))


def _srs0(table: Table) -> Srs0Config:
    default = Srs0Config()
    config = Srs0Config(
        separator=table.string("separator", default.separator, allowed=["=", "+", "-"]),
        hash_length=table.integer("hash_length", default.hash_length, lowest=4, highest=27),
        hash_minimum=table.integer("hash_minimum", default.hash_minimum, lowest=4, highest=27),
        base64url=table.boolean("base64url", default=default.base64url),
    )
    if config.hash_minimum > config.hash_length:
        table.problem("hash_minimum", f"{config.hash_minimum} is more than hash_length, {config.hash_length}")
    table.close()
    return config


def _ip_addresses(table: Table, name: str) -> tuple[str, ...]:
    found = []
    for index, text in enumerate(table.strings(name)):
        try:
            found.append(str(ipaddress.ip_address(text)))
        except ValueError:
            fitting = "networks are not taken, list each address" if "/" in text else 'e.g. "192.0.2.1"'
            table.problem(f"{name}[{index}]", f'"{text}" is no IP address ({fitting})')
    return tuple(found)


def store_url(table: Table, state: Path) -> str:
    """Return [store] url, a database of SQLite or PostgreSQL."""
    default = f"sqlite:///{state}/gatepost.db"
    url = table.string("url", default)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    file = parts.path[1:]
    postgresql = url.startswith("postgresql://") and len(parts.path) > 1
    sqlite = parts.scheme == "sqlite" and not parts.netloc and file.startswith("/")
    if not (postgresql or sqlite or url == default):  # a relative state_directory is a problem already
        table.problem(
            "url",
            f'"{without_password(url)}" is no database'
            ' (e.g. "sqlite:////var/lib/gatepost/gatepost.db", "postgresql://gatepost@db.contoso.com/gatepost")',
        )
    table.close()
    return url


def nameservers(table: Table) -> tuple[Listen, ...]:
    """Return [dns] nameservers: addresses, with the port 53 where none is given."""
    found = []
    for index, text in enumerate(table.strings("nameservers")):
        bare = text.strip("[]")
        server = Listen(host=bare, port=53) if _is_ip(bare) else fields.host_and_port(text)
        if server is None or not _is_ip(server.host):
            table.problem(f"nameservers[{index}]", f'"{text}" is no IP address (e.g. "192.0.2.53", "127.0.0.1:5353")')
        else:
            found.append(server)
    return tuple(found)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
