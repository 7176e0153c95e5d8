# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that a decision needs, built once from the configuration and never changed after."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Union

from gatepost.relay import Accepted, Organization, Patterns, Rules
from gatepost.service import unchanged, upstream
from gatepost.service.certificates import Certificates
from gatepost.service.certificates import read as read_certificates
from gatepost.service.config import Config, RelayConfig, load, uncollected
from gatepost.service.exports import counted
from gatepost.service.hops import organization_digest
from gatepost.service.organizations import Mode, OrganizationConfig, RefusalAction
from gatepost.service.secret import read_keys
from gatepost.service.srs_config import COMPACT, Format
from gatepost.service.tables import ConfigError
from gatepost.service.upstream import Upstream
from gatepost.srs import Classic, Compact, Exchange, Keys

_NO_CERTIFICATES = Certificates()


@dataclass(frozen=True)
class Snapshot:
    """A configuration with its look-up tables and keys.

    include: None where no such list is given. reversed_forms: those that `SrsConfig.reverses`.
    srs_domains: each declared srs_domain with its organisation's name. enforcing: the names of the organisations that
    enforce; enforces_for_none: so is mail that is attributed to none. actions: of those that enforce. until: the next
    enforce_from in Unix seconds, infinity for none.
    longest_mint_domain: the longest domain that relayed mail may be rewritten to, "" without an organisation.
    organization_by_digest: what `hops.organization_digest` stands for. upstream: None without [upstream].
    """

    config: Config
    rules: Rules
    keys: Keys
    exchange: Exchange
    classic: Classic
    compact: Compact
    exclude: Patterns
    include: Optional[Patterns]
    reversed_forms: frozenset[str]
    srs_domains: dict[str, str]
    enforcing: frozenset[str]
    enforces_for_none: bool
    actions: frozenset[RefusalAction]
    until: float
    longest_mint_domain: str
    organization_by_digest: dict[bytes, Organization]
    bypass_path: str
    upstream: Optional[Upstream] = None
    certificates: Certificates = _NO_CERTIFICATES

    @property
    def upstream_by_p1(self) -> Optional[Upstream]:
        """What this host's mail goes to where that takes it for its P1 only; None elsewhere."""
        return None if self.upstream is None or self.upstream.takes_all else self.upstream

    @property
    def default_organization(self) -> Optional[Organization]:
        """The organisation for rewriting where attribution names none: the first one configured."""
        return next(iter(self.config.organizations.values()), None)

    def enforces(self, organization: Optional[Organization]) -> bool:
        """Tell whether a refusal or a rewrite takes effect for *organization* (None: nobody's mail)."""
        return organization.name in self.enforcing if organization else self.enforces_for_none

    def with_all_enforcing(self) -> Snapshot:
        """Return the snapshot as it is with everybody's mode enforce."""
        names = frozenset(self.config.organizations)
        return replace(self, enforcing=names, enforces_for_none=bool(names))

    @property
    def enforces_at_all(self) -> bool:
        """Tell whether anybody's mail is treated otherwise than in mode monitor, be it nobody's."""
        return bool(self.enforcing) or self.enforces_for_none

    def action(self, organization: Optional[Organization]) -> RefusalAction:
        """Return what is done with mail of *organization* (None: nobody's) that the rule refuses."""
        return (self.config.settings[organization.name] if organization else self.config.relay).action

    def bypassed(self) -> bool:
        """Tell whether `gatepost bypass on` is in force. One access(2)."""
        return os.access(self.bypass_path, os.F_OK)


def bypass_file(config: Config) -> Path:
    """Return the file whose presence means bypass."""
    return config.state_directory / "bypass"


def build(
    config: Config,
    keys: Keys,
    now: float,
    certificates: Certificates = _NO_CERTIFICATES,
    before: Optional[Rules] = None,
) -> Snapshot:
    """Return the snapshot of *config* with *keys*, as it is *now*, in Unix seconds, and until the next enforce_from.

    certificates: those in the folder that *config* names. before: the rules of a snapshot before, see `Rules`.
    """
    with uncollected():
        return _build(config, keys, now, certificates, before)


def _build(config: Config, keys: Keys, now: float, certificates: Certificates, before: Optional[Rules]) -> Snapshot:
    settings = config.settings
    srs = config.srs
    srs_domains = {
        domain: name
        for name, item in settings.items()
        for domain in (item.srs_domain, *item.srs_domains.values())
        if domain
    }
    enforcing = frozenset(name for name, item in settings.items() if enforces(item, now))
    enforces_for_none = enforces(config.relay, now) and bool(settings)
    there = None
    if config.upstream:
        organization = config.organizations[config.upstream.organization]
        there = upstream.build(config.upstream, organization, subdomains_relay=config.relay.subdomains_relay)
    by_p1 = there is not None and not there.takes_all
    minting = [organization] if by_p1 else config.organizations.values()
    return Snapshot(
        config=config,
        upstream=there,
        rules=Rules(
            config.organizations.values(),
            local_domains=(*config.relay.local_domains, *srs_domains),  # bounces come back there
            subdomains_relay=config.relay.subdomains_relay,
            before=before,
        ),
        keys=keys,
        exchange=Exchange(keys, srs.hash_length, srs.validity_days),
        classic=Classic(
            keys, srs.srs0.separator, srs.srs0.hash_length, srs.srs0.hash_minimum, srs.validity_days, srs.srs0.base64url
        ),
        compact=Compact(keys, srs.validity_days),
        exclude=Patterns(srs.exclude),
        include=Patterns(srs.include) if srs.include or srs.include_file else None,
        reversed_forms=frozenset(filter(srs.reverses, (*(item.value for item in Format), COMPACT))),
        srs_domains=srs_domains,
        enforcing=enforcing,
        enforces_for_none=enforces_for_none,
        actions=frozenset(
            (*(settings[name].action for name in enforcing), *((config.relay.action,) if enforces_for_none else ()))
        ),
        until=min((at for at in _switches(config) if at > now), default=math.inf),
        longest_mint_domain=max((mint_domain(config, item) for item in minting), key=len, default=""),
        organization_by_digest={organization_digest(name): item for name, item in config.organizations.items()},
        bypass_path=str(bypass_file(config)),
        certificates=certificates,
    )


def enforces(item: Union[RelayConfig, OrganizationConfig], now: float) -> bool:
    """Tell whether a mode is ENFORCE *now*, in Unix seconds."""
    return item.mode is Mode.ENFORCE or (item.enforce_from is not None and item.enforce_from.timestamp() <= now)


def _switches(config: Config) -> list[float]:
    modes: list[Union[RelayConfig, OrganizationConfig]] = [config.relay, *config.settings.values()]
    return [item.enforce_from.timestamp() for item in modes if item.enforce_from]


def mint_domain(config: Config, organization: Organization) -> str:
    """Return the domain that relayed mail of *organization* is rewritten to (S4)."""
    return srs_domain_of(config, organization, organization.default_domain) or organization.default_domain


def srs_domain_of(config: Config, organization: Organization, accepted_domain: str) -> Optional[str]:
    """Return the srs_domain declared for the mail of one of an organisation's accepted domains."""
    settings = config.settings[organization.name]
    return settings.srs_domains.get(accepted_domain) or settings.srs_domain


def mailbox_domain(config: Config, accepted: Accepted, domain: str) -> str:
    """Return the domain that mail is rewritten to which a mailbox in *domain*, see *accepted*, sends on (S3)."""
    return srs_domain_of(config, accepted.organization, accepted.accepted_domain.domain) or domain


def load_snapshot(path: Path, before: Optional[Snapshot] = None) -> Snapshot:
    """Return the snapshot of the configuration in *path*. Raises ConfigError, also for a missing secret.

    before: what was loaded from there last, which saves the time for what is unchanged.
    """
    config = unchanged.load(path, before.config) if before else load(path)
    keys = read_keys(config.srs.secret_file)
    certificates = read_certificates(config.relay.certificate_folder)
    if before:
        _refuse_lost_certificates(before, config.relay.certificate_folder)
    return build(config, keys, time.time(), certificates, before.rules if before else None)


def _refuse_lost_certificates(before: Snapshot, folder: Path) -> None:
    """Raise ConfigError where the folder that certificates were read from is gone, as when its disk is not mounted.

    Clients that are known by them would be refused for good.
    """
    if len(before.certificates) and before.config.relay.certificate_folder == folder and not folder.exists():
        lost = counted(len(before.certificates), "certificate")
        raise ConfigError([f"{folder}: is gone, and {lost} with it; make it anew, empty where there shall be none"])
