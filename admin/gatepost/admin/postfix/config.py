# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a Postfix instance is configured to do, through postconf(1). Nothing is written here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Optional

_TIMEOUT_S = 60


class PostfixError(Exception):
    """Postfix's own programs are missing or cannot read the configuration; the text says which and why."""


class NoPostfixError(PostfixError):
    """There is no Postfix."""


@dataclass(frozen=True)
class Service:
    """An entry of master.cf. *overrides*: its `-o name=value`, raw, the last of a name; *arguments*: all the rest.

    chroot: as written, `-` being the default, which PostfixConfig.is_chrooted knows.
    """

    name: str
    type: str
    private: str
    unprivileged: str
    chroot: str
    wakeup: str
    process_limit: str
    command: str
    arguments: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`name/type`, which is what postconf -M and -P call it."""
        return f"{self.name}/{self.type}"

    @property
    def is_smtpd(self) -> bool:
        """Whether it takes mail by SMTP; behind postscreen it is of type `pass`."""
        return self.command == "smtpd"


@dataclass(frozen=True)
class Instance:
    """A Postfix instance of this host (postmulti(1)). name: `-` for one that has none."""

    name: str
    directory: Path


def find_postconf() -> str:
    """Return postconf's path. Raises NoPostfixError."""
    found = shutil.which("postconf") or shutil.which("postconf", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if found is None:
        raise NoPostfixError("no postconf: is Postfix installed on this host?")
    return found


def split(value: str, separators: str = ", \t\r\n") -> list[str]:
    """Return the entries of a list, `{ … }` being one as it stands."""
    entries, entry, depth = [], "", 0
    for character in value:
        depth += (character == "{") - (character == "}")
        if depth <= 0 and character in separators:
            entries.append(entry)
            entry, depth = "", 0
        else:
            entry += character
    return [entry for entry in [*entries, entry] if entry]


@dataclass(frozen=True)
class PostfixConfig:
    """The configuration of one instance, as its programs read it.

    values: every parameter, defaults included, as it is written; names: those that main.cf sets;
    complaints: what postconf warns of (misspelled parameters, duplicates).
    """

    postconf: str
    config_directory: Path
    values: Mapping[str, str]
    names: frozenset[str]
    defaults: Mapping[str, str]
    expansions: Mapping[str, str]
    services: tuple[Service, ...]
    complaints: tuple[str, ...] = ()

    @staticmethod
    def read(config_directory: Optional[Path] = None, postconf: Optional[str] = None) -> PostfixConfig:
        """Return the configuration in *config_directory*, by default Postfix's own. Raises PostfixError."""
        postconf = postconf or find_postconf()
        command = [postconf, *(["-c", str(config_directory.absolute())] if config_directory else [])]
        written, warnings = run([*command, "-n"])
        names = frozenset(_parameters(written))
        values = {**_parameters(run(command)[0]), **_parameters(written)}
        entries, more_warnings = run([*command, "-M"])
        overrides = _overrides(run([*command, "-P"])[0])
        return PostfixConfig(
            postconf,
            config_directory.absolute() if config_directory else Path(values["config_directory"]),
            values,
            # With -c it stands there as if main.cf set it.
            names - {"config_directory"} if config_directory else names,
            _parameters(run([*command, "-d"])[0]),
            _expanded([*command, "-x"]),
            tuple(_service(line, overrides) for line in entries.splitlines()),
            tuple(line.partition(": ")[2] for line in (warnings + more_warnings).splitlines()),
        )

    # Parameters

    def value(self, name: str) -> str:
        """Return the parameter as it is written, or its default as it is written; "" if there is no such one."""
        return self.values.get(name, "")

    def expanded(self, name: str) -> str:
        """Return the parameter as daemons see it, with each $name replaced."""
        return self.expansions.get(name, "")

    def is_set(self, name: str) -> bool:
        """Say whether main.cf sets the parameter."""
        return name in self.names

    def is_known(self, name: str) -> bool:
        """Say whether this version of Postfix has the parameter."""
        return name in self.defaults

    def entries(self, name: str) -> list[str]:
        """Return the entries of a list parameter, expanded."""
        return split(self.expanded(name))

    @property
    def version(self) -> tuple[int, int]:
        """Postfix's version, such as (3, 7)."""
        found = re.match(r"(\d+)\.(\d+)", self.defaults.get("mail_version", ""))
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def queue_directory(self) -> Path:
        """Where chrooted daemons are, and whence relative socket paths count."""
        return Path(self.expanded("queue_directory"))

    # Services

    @property
    def smtpds(self) -> list[Service]:
        """The services that take mail by SMTP."""
        return [service for service in self.services if service.is_smtpd]

    def service(self, name: str, kind: str) -> Optional[Service]:
        """Return the service of that name and type."""
        return next((item for item in self.services if (item.name, item.type) == (name, kind)), None)

    def is_chrooted(self, service: Service) -> bool:
        """Say whether its daemon is confined to the queue directory."""
        if service.chroot != "-":
            return service.chroot == "y"
        # The default changed with Postfix 3.0, for those who said that they have seen it.
        level = re.match(r"\d+", self.expanded("compatibility_level"))
        return self.version < (3, 0) or level is None or int(level[0]) < 1

    def effective(self, service: Service, name: str) -> str:
        """Return the parameter as that service's daemon sees it: its -o override, else main.cf, expanded."""
        if not service.overrides:
            return self.expanded(name)
        if service.key not in self._of_services:
            options = [part for item in service.overrides.items() for part in ("-o", "=".join(item))]
            command = [self.postconf, "-c", str(self.config_directory), *options, "-x"]
            self._of_services[service.key] = _expanded(command)
        return self._of_services[service.key].get(name, "")

    @cached_property
    def failed_tables(self) -> dict[str, str]:
        """Why lookup tables did not answer; each is asked no more."""
        return {}

    @cached_property
    def _of_services(self) -> dict[str, dict[str, str]]:
        return {}

    def expand(self, name: str, value: str, service: Optional[Service] = None) -> str:
        """Return what the parameter would be to daemons, or to one service's, with *value* in its place."""
        options = {**(service.overrides if service else {}), name: value}
        parts = [part for item in options.items() for part in ("-o", "=".join(item))]
        return run([self.postconf, "-c", str(self.config_directory), *parts, "-xh", name])[0].strip()

    def effective_entries(self, service: Service, name: str) -> list[str]:
        """Return the entries of a list parameter as that service's daemon sees them."""
        return split(self.effective(service, name))

    # Instances

    @property
    def name(self) -> str:
        """The instance's name, `-` if it has none."""
        return self.expanded("multi_instance_name") or "-"

    @property
    def instances(self) -> list[Instance]:
        """All instances that this one, if it is the primary one, runs; itself first."""
        found = [Instance(self.name, self.config_directory)]
        for directory in self.entries("multi_instance_directories"):
            name = run([self.postconf, "-c", directory, "-xh", "multi_instance_name"])[0].strip()
            found.append(Instance(name or "-", Path(directory)))
        return found


def run(command: Sequence[str], folder: Optional[Path] = None, timeout_s: float = _TIMEOUT_S) -> tuple[str, str]:
    """Return what a Postfix program prints in *folder*, standard output and error. Raises PostfixError if it fails."""
    # MAIL_CONFIG counts for postconf without -c, as it does for a person who calls it.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, cwd=folder, env=environment, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise PostfixError(f"{' '.join(command)}: no answer within {timeout_s:.0f} s") from error
    except OSError as error:
        raise PostfixError(f"{command[0]}: {error}") from error
    output, errors = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
    if done.returncode:
        raise PostfixError(f"{' '.join(command)}: {errors.strip() or f'exit status {done.returncode}'}")
    return output, errors


def _parameters(text: str) -> dict[str, str]:
    parameters = {}
    for line in text.splitlines():
        name, equals, value = line.partition(" =")
        if equals:
            parameters[name] = value.strip()
    return parameters


def _expanded(command: Sequence[str]) -> dict[str, str]:
    # Without -n postconf leaves out parameters of the administrator's own.
    return {**_parameters(run(command)[0]), **_parameters(run([*command, "-n"])[0])}


def _overrides(text: str) -> dict[str, dict[str, str]]:
    """Return the overrides by service: `name/type/parameter = value` a line, the last of a name counting."""
    services: dict[str, dict[str, str]] = {}
    for path, value in _parameters(text).items():
        service, _, parameter = path.rpartition("/")
        services.setdefault(service, {})[parameter] = value
    return services


def _service(line: str, overrides: Mapping[str, Mapping[str, str]]) -> Service:
    # Eight columns and the arguments, which may hold any spaces.
    columns = line.split(None, 8)
    if len(columns) < 8:
        raise PostfixError(f"master.cf: not a service: {line}")
    name, kind, private, unprivileged, chroot, wakeup, limit, command = columns[:8]
    arguments = columns[8] if len(columns) > 8 else ""
    found = overrides.get(f"{name}/{kind}", {})
    return Service(name, kind, private, unprivileged, chroot, wakeup, limit, command, arguments, found)
