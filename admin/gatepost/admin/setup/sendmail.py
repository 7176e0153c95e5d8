# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost setup sendmail`: the lines that gatepost needs in sendmail.mc, each with its reason.

Sendmail is not touched. examples/sendmail/gatepost.m4 is what this prints for the configuration beside it.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import complain, problems_reported
from gatepost.service.config import Config, load
from gatepost.service.fields import Listen
from gatepost.service.srs_config import ReverseBy
from gatepost.service.tables import ConfigError

FIRST_LINE = "dnl gatepost: what Sendmail needs to work with it, as `gatepost setup sendmail' prints it.\n"
# Rules have tabs between their sides. What m4 is not to see stands behind dnl, for LOCAL_CONFIG would copy a # comment.
_LINES = """\
dnl
dnl 1. Save it as /etc/mail/gatepost.m4 (gatepost setup sendmail --output /etc/mail/gatepost.m4).
dnl 2. Make this the last line of sendmail.mc, behind its MAILER lines:
dnl        include(`/etc/mail/gatepost.m4')dnl
dnl 3. In mailertable, MAIL_HUB, LOCAL_RELAY: the mailer inside: for each server that is yours, see the end.
dnl 4. make -C /etc/mail, or m4 sendmail.mc >sendmail.cf; then restart Sendmail.


dnl The milter applies the relay rule and rewrites the envelope sender of relayed mail. First of the filters: what it
dnl refuses need not be scanned. F=T: while it is away clients are told 451; without it mail would pass unjudged. It
dnl names the macros that it wants itself, so confMILTER_MACROS_* stay as they are. Where DAEMON_OPTIONS has
dnl InputMailFilters=, gatepost must stand there too.
MAIL_FILTER(`gatepost', `S=@MILTER@, F=T, T=C:30s;S:30s;R:30s;E:1m')dnl
define(`confINPUT_MAIL_FILTERS',
	`gatepost'ifelse(defn(`confINPUT_MAIL_FILTERS'), `', `', ``, 'defn(`confINPUT_MAIL_FILTERS')'))dnl

dnl By this a client's certificate is found among those in certificate_folder, for its names beside the CN.
define(`confCERT_FINGERPRINT_ALGORITHM', `sha256')dnl


dnl The maps of gatepost's policy daemon; each is asked for by the name that it has here. -f: as the address is written,
dnl not in lower case. -q: with its quotes. -T: so that a rule sees a failure.
LOCAL_CONFIG
Kforward socket -f -q -T<TMPF> @MAP@
Kreverse socket -f -q -T<TMPF> @MAP@
Kgatepost_srs regex -a<SRS> ([+]|%2B)SRS(=|%3D)|^"?SRS[01]([-=+]|%2B|%2D|%3D)
Kgatepost_note macro
C{gatepost_outside}smtp esmtp smtp8 dsmtp relay


dnl Bounces: a recipient that is an SRS address of ours becomes the original sender, whoever sends to it, this Sendmail
dnl itself too, which asks no milter about a bounce that it makes. Only what looks like such an address is looked up.
LOCAL_RULE_0
R$+ < @ $+ . >		$: $(gatepost_srs $1 @ $2 $: $) $| $1 < @ $2 . >
R<SRS> $| $+ < @ $+ . >	$: < $(reverse $1 @ $2 $: $) > $| $1 < @ $2 . >
R< $+ <TMPF> > $| $*	$#error $@ 4.4.3 $: "451 gatepost cannot be asked now, please try again later"
R< $+ > $| $*		$@ $>Parse0 $>canonify $1
R$* $| $*		$: $2

dnl A ruleset for senders can't put a message off, and check_compat bounces it where another recipient has failed
dnl before. So the map is asked here, once a recipient turns out to lead outside, and the sender's ruleset, further on,
dnl goes by that answer as long as the sender is the same. What goes to the sender itself is a bounce, as a rule, which
dnl Sendmail parses as if it came from there.
R$*			$: < $&{addr_type} > $1
R< e s > $*		$: < $(gatepost_note {gatepost_sender} $@ NONE $) > $1
R< e r > $+ < @ $+ . >	$: < = $1 @ $2 > $1 < @ $2 . >
R< e r > $*		$: < = > $1
R< = $&f > $*		$@ $1
R< = $* > $*		$: < > $| $>Parse1 $2
R< > $| $#$={gatepost_outside} $*	$: < $1 $2 > $| $>GatepostAsk $&f
R< > $| $#$*		$#$1
R< $* > $| $#$*		$#$2
R< $+ > $| < $* >	$#$1
R< > $| $*		$@ $1
R< $* > $*		$: $2


dnl Forwarded mail: aliases and .forward files lead outside behind the milter, so the envelope sender is rewritten as
dnl the message leaves. gatepost has no answer for senders that leave as they are: yours, its own, and none at all. For
dnl one that it cannot rewrite the answer is the sender itself. A macro is never deleted, for a bounce would see that of
dnl the message that it is about. $n: Sendmail's own bounces.
LOCAL_RULESETS
SGatepostForward
R$*			$: $(gatepost_note {gatepost_forward} $@ OK $) $1
R$* < @ > $*		$@ $1 < @ > $2
R$n < @ $=w . >		$@ $n < @ $1 . >
R$n < @ $M >		$@ $n < @ $M >
R$+ < @ $+ . >		$: $1 < @ $2 >
R$+ < @ $+ >		$: $(gatepost_note {gatepost_asked} $@ $1 @ $2 $) $1 @ $2
R$&{gatepost_sender}	$@ $&{gatepost_answer}
R$+			$: < $(forward $1 $: $) > $| $1
R< $+ <TMPF> > $| $*	$@ $(gatepost_note {gatepost_forward} $@ TMPF $) $2
R< $&{gatepost_asked} > $| $*	$@ $(gatepost_note {gatepost_forward} $@ NEVER $) $1
R< > $| $*		$: < $1 > $| $1
R< $+ > $| $*		$@ $(gatepost_note {gatepost_sender} $@ $2 $) $(gatepost_note {gatepost_answer} $@ $1 $) $1

SGatepostAsk
R$*			$: $>EnvFromSMTP $>canonify $1
R$*			$: < $&{gatepost_forward} > $(gatepost_note {gatepost_forward} $@ OK $)
R$*			$@ $>GatepostFailed $1

SGatepostFailed
R< TMPF >		$#error $@ 4.4.3 $: "451 gatepost cannot be asked now, please try again later"
R< NEVER >		$#error $@ 5.1.7 $: "553 Sender address is too long or malformed, so it can't be rewritten for relaying"
R$*			$@ < >

dnl Where it is asked as the message leaves all the same, check_compat comes right behind that; local mailers, without a
dnl host, have not asked. With FEATURE(`compat_check'), which ends check_compat, these lines must stand above it.
Scheck_compat
R$*			$: $1 $| $&h $| $>GatepostFailed < $&{gatepost_forward} >
R$* $| $* $| $+ $| $#$*	$#$4
R$* $| $* $| $* $| $*	$: $1 $| $2

dnl Behind what EnvFromSMTP does already: it is the ruleset of smtp, esmtp, smtp8, dsmtp and relay.
MAILER_DEFINITIONS
SEnvFromSMTP
R$*			$: $>GatepostForward $1

dnl For servers of yours, which get every sender as it is: as esmtp, without that. A ruleset for senders can't tell who
dnl the recipient is, so the mailer must. In mailertable: contoso.com inside:[mailbox.contoso.com], or, to go by
dnl its MX, contoso.com inside:contoso.com. For a hub: define(`MAIL_HUB', `inside:[mailbox.contoso.com]')
Minside,	P=[IPC], F=mDFMuXa, S=EnvFromInside/HdrFromSMTP, R=EnvToSMTP, E=\\r\\n, L=990,
		T=DNS/RFC822/SMTP,
		A=ESMTP_MAILER_ARGS

SEnvFromInside
R$*			$: $(gatepost_note {gatepost_forward} $@ OK $) $1
R$+			$: $>PseudoToReal $1
R$* :; <@>		$@
R$*			$: $>MasqSMTP $1
R$+			$: $>MasqEnv $1
"""


def run(configuration: Path, output: Optional[Path]) -> int:
    """Print the lines for *configuration*, or write them to *output*; return the exit status."""
    with problems_reported():
        config = load(configuration)
        problems = [f"{configuration.name}: {problem}" for problem in beyond_sendmail(config)]
        if problems:
            raise ConfigError(problems)
    text = lines(config)
    for note in notes(config):
        complain(f"note: {note}")
    if output is None:
        sys.stdout.write(text)
        return os.EX_OK
    try:
        if output.exists() and not output.read_text(encoding="utf-8").startswith(FIRST_LINE):
            complain(f"{output}: is there already and is none of these files; nothing was written")
            return os.EX_CANTCREAT
        output.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        complain(f"{output}: {getattr(error, 'strerror', None) or error}")
        return os.EX_CANTCREAT
    click.echo(f"{output}: written. The steps stand at its top.")
    return os.EX_OK


def lines(config: Config) -> str:
    """Return the file."""
    text = _LINES.replace("@MILTER@", address(config.milter.listen))
    return FIRST_LINE + text.replace("@MAP@", address(config.policyd.listen[0]))


def beyond_sendmail(config: Config) -> Iterator[str]:
    """Yield what the configuration asks for and Sendmail can't do."""
    if config.relay.enforced_by != "milter":
        yield 'relay.enforced_by: Sendmail asks no policy daemon, so it must be "milter"'
    if config.srs.reverse is ReverseBy.REDIRECT:
        yield 'srs.reverse: Sendmail knows no REDIRECT, so it must be "milter"'


def address(listen: Listen) -> str:
    """Return where gatepost listens in Sendmail's spelling, for a filter and for a map of class socket."""
    if listen.path:
        return f"local:{listen.path}"
    return f"{'inet6' if ':' in listen.host else 'inet'}:{listen.port}@{listen.host}"


def notes(config: Config) -> Iterator[str]:
    """Yield what an administrator should change in gatepost.toml, or must know."""
    if config.srs.reverse is not ReverseBy.MILTER:
        yield (
            'srs.reverse = "milter" in gatepost.toml lets the milter refuse SRS recipients that are forged or '
            "expired, and mail to them that is no bounce; nothing else here does"
        )
    if config.egress is not None:
        yield "[egress] in gatepost.toml is for Postfix: with it the milter leaves the sender of relayed mail alone"
    if config.milter.listen.path.startswith("/var/spool/postfix/"):
        yield f"milter.listen, {config.milter.listen}, is in Postfix's folder; for Sendmail take /run/gatepost"
    if not any(_covers_loopback(config)):
        yield (
            "no connector has 127.0.0.1 in sender_ip_addresses: what programs on this host give to sendmail(1) "
            "comes to the milter from there, and is refused to outside"
        )
    for organization in config.organizations.values():
        for accepted in organization.accepted_domains:
            yield f"if a server of yours has {accepted.domain}: in mailertable, {accepted.domain} inside:[SERVER]"


def _covers_loopback(config: Config) -> Iterator[bool]:
    loopback = ipaddress.ip_address("127.0.0.1")
    for organization in config.organizations.values():
        for connector in organization.connectors:
            yield any(loopback in network for network in connector.sender_ip_addresses)
