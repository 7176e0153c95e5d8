# SPDX-License-Identifier: GPL-3.0-or-later
"""The SMTP replies that gatepost refuses with, each in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Reply:
    """SMTP *code*, enhanced status code *status* (RFC 3463), one-line *text*. The text names no configuration."""

    code: int
    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.status} {self.text}"

    def with_reference(self, reference: str) -> Reply:
        """Return the reply with a reference that stands in the log, too."""
        return replace(self, text=f"{self.text} [{reference}]")


RELAY_DENIED = Reply(550, "5.7.64", "TenantAttribution; Relay Access Denied")
"""Exchange Online's own, which relay administrators know by heart."""
RELAY_DEFERRED = Reply(451, "4.7.64", "TenantAttribution; Relay Access Denied")
"""The same under action = "tempfail"."""
UNREWRITABLE = Reply(553, "5.1.7", "Sender address is too long or malformed, so it can't be rewritten for relaying")
SRS_FORGED = Reply(550, "5.1.1", "SRS address with a wrong hash")
SRS_EXPIRED = Reply(550, "5.1.1", "SRS address that has expired")
SRS_UNKNOWN = Reply(550, "5.1.1", "SRS address that is not known here")
SRS_GUESSING = Reply(450, "4.7.1", "Too many SRS addresses with a wrong hash from this client, try again later")
BOUNCES_ONLY = Reply(550, "5.7.1", "This address takes only bounces (null sender)")
SRS_APART = Reply(452, "4.5.3", "An SRS address takes no other recipient beside it, send again for each")
HISTORY_LOST = Reply(451, "4.3.0", "Temporary failure, please send again")
STORE_AWAY = Reply(451, "4.3.0", "gatepost: its store cannot be asked now, please try again later")
LEDGER_AWAY = Reply(451, "4.3.0", "gatepost: its ledger cannot be written now, please try again later")
FAULT = Reply(451, "4.3.0", "gatepost: internal error, please try again later")
ONE_BY_ONE = Reply(452, "4.5.3", "One recipient a message on this hop, please try again")
TRY_APART = Reply(452, "4.5.3", "Inside and outside recipients need a message each, please try again")
TOO_MANY_TAGS = Reply(550, "5.6.0", "Too many X-Gatepost-Relay headers")
BAD_SENDER = Reply(553, "5.1.7", "Sender address has a control character in it")
BAD_RECIPIENT = Reply(553, "5.1.3", "Recipient address has a control character in it")
