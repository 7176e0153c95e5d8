# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that a decision needs, built once from the configuration and never changed after."""

from __future__ import annotations

import base64
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from gatepost.relay import Organization, Rules
from gatepost.service.config import Config, Mode, load
from gatepost.service.hops import organization_digest
from gatepost.service.tables import ConfigError
from gatepost.srs import Exchange, Keys


@dataclass(frozen=True)
class Snapshot:
    """A configuration with its look-up tables and keys.

    srs_domains: each declared srs_domain with its organisation's name. enforcing: at least one organisation enforces.
    longest_mint_domain: the longest domain that relayed mail may be rewritten to, "" without an organisation.
    organization_by_digest: what `hops.organization_digest` stands for.
    """

    config: Config
    rules: Rules
    exchange: Exchange
    srs_domains: dict[str, str]
    enforcing: bool
    longest_mint_domain: str
    organization_by_digest: dict[bytes, Organization]
    bypass_path: str

    @property
    def default_organization(self) -> Optional[Organization]:
        """The organisation for rewriting where attribution names none: the first one configured."""
        return next(iter(self.config.organizations.values()), None)

    def enforces(self, organization: Optional[Organization]) -> bool:
        """Tell whether a refusal or a rewrite takes effect for *organization* (None: nobody's mail)."""
        if organization is None:
            return self.config.relay.mode is Mode.ENFORCE and bool(self.config.organizations)
        return self.config.settings[organization.name].mode is Mode.ENFORCE

    def bypassed(self) -> bool:
        """Tell whether `gatepost bypass on` is in force. One stat(2)."""
        return os.path.exists(self.bypass_path)


def bypass_file(config: Config) -> Path:
    """Return the file whose presence means bypass."""
    return config.state_directory / "bypass"


def build(config: Config, keys: Keys) -> Snapshot:
    """Return the snapshot of *config* with *keys*."""
    settings = config.settings
    srs_domains = {item.srs_domain: name for name, item in settings.items() if item.srs_domain}
    return Snapshot(
        config=config,
        rules=Rules(
            config.organizations.values(),
            local_domains=(*config.relay.local_domains, *srs_domains),  # bounces come back there
            subdomains_relay=config.relay.subdomains_relay,
        ),
        exchange=Exchange(keys, config.srs.hash_length, config.srs.validity_days),
        srs_domains=srs_domains,
        enforcing=any(item.mode is Mode.ENFORCE for item in settings.values()),
        longest_mint_domain=max(
            (mint_domain(config, item) for item in config.organizations.values()), key=len, default=""
        ),
        organization_by_digest={organization_digest(name): item for name, item in config.organizations.items()},
        bypass_path=str(bypass_file(config)),
    )


def mint_domain(config: Config, organization: Organization) -> str:
    """Return the domain that relayed mail of *organization* is rewritten to (S4)."""
    return config.settings[organization.name].srs_domain or organization.default_domain


def load_snapshot(path: Path) -> Snapshot:
    """Return the snapshot of the configuration in *path*. Raises ConfigError, also for a missing secret."""
    config = load(path)
    return build(config, read_keys(config.srs.secret_file))


def read_keys(path: Path) -> Keys:
    """Return the keys in *path*: one a line, the first one signs. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = [line.strip() for line in file.read().splitlines()]
    except OSError as error:
        raise ConfigError([f"{path}: the SRS secret cannot be read: {error.strerror}"]) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError([f"{path}: the SRS secret is open to others (mode {mode & 0o777:04o}); chmod 0600 {path}"])
    found = [line for line in lines if line and not line.startswith(b"#")]
    if not found:
        raise ConfigError([f"{path}: holds no SRS secret; one line a key, the first one signs"])
    return Keys(found)


def ensure_secret(path: Path) -> bool:
    """Make an SRS secret in *path* (0600) unless there is one; return whether it was made. Raises ConfigError."""
    line = base64.b64encode(secrets.token_bytes(32)) + b"\n"
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
            os.link(draft, path)  # unlike rename(2), fails where another daemon was first
        finally:
            os.close(descriptor)
            os.unlink(draft)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError([f"{path}: the SRS secret cannot be made: {error.strerror}"]) from error
    return True
