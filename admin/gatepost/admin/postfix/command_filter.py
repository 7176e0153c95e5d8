# SPDX-License-Identifier: GPL-3.0-or-later
"""What smtpd_command_filter makes of a client's commands: it is one table, and no list of tables."""

from __future__ import annotations

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service
from gatepost.admin.postfix.tables import Tables

ENCODED = "RCPT TO:<bounces%2BSRS%3DK7XQ4R2A%3DTT%3Dfabrikam.com%3Dbob@contoso.com>"
DECODED = "RCPT TO:<bounces+SRS=K7XQ4R2A=TT=fabrikam.com=bob@contoso.com>"
WITH_ORCPT = "RCPT TO:<bob@contoso.com> NOTIFY=NEVER ORCPT=rfc822;ceo@contoso.com"


def filtered(config: PostfixConfig, value: str, command: str) -> str:
    """Return what smtpd makes of *command* by a command filter's *value*. Raises PostfixError."""
    # In a table given in main.cf itself smtpd sees one $ for two.
    found = Tables(config).query(value.replace("$$", "$"), command) if value else None
    return command if found is None else found


def leaves_orcpt_in(config: PostfixConfig, service: Service) -> bool:
    """Say whether a client of *service* can hand in an ORCPT. A filter that fails lets nothing in."""
    if "DSN" in (word.upper() for word in config.effective_entries(service, "smtpd_discard_ehlo_keywords")):
        return False
    try:
        return "ORCPT" in filtered(config, config.effective(service, "smtpd_command_filter"), WITH_ORCPT)
    except PostfixError:
        return False
