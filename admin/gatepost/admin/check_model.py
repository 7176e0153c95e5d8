# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost check` is asked, and what it answers.

Named tuples: making a frozen dataclass takes ten times as long, which a command of a tenth of a second would feel.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from gatepost.relay import Explanation, Mail, RuleSet
from gatepost.service import upstream
from gatepost.service.flow import Judgement
from gatepost.service.ledger import DEFER, LEFT_TO_MTA, MEND, PASS, QUARANTINE, REJECT, RETURN, REWRITE, TAG
from gatepost.service.organizations import RefusalAction

MONITOR = "monitor"
SRS_BOUNCE, NOT_A_BOUNCE, UNREWRITABLE = "srs-bounce", "srs-not-a-bounce", "sender-unrewritable"
"""Reasons beside those of the relay rule and of `flow.srs_refusal`; the first is of mail that goes back to an original
sender."""
_TAKING = {RefusalAction.QUARANTINE: QUARANTINE, RefusalAction.TAG: TAG}


class Question(NamedTuple):
    """A client and its message.

    local: it came by sendmail(1). mail_from: "" or `<>` is the null sender. header_from: the values of From headers.
    taken: what was read from a message, in sentences.
    """

    ip: Optional[str] = None
    helo: Optional[str] = None
    certificate_names: tuple[str, ...] = ()
    authenticated: bool = False
    local: bool = False
    mail_from: str = ""
    header_from: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


class Envelope(NamedTuple):
    """The addresses of a message after gatepost."""

    mail_from: str
    rcpt: str


class Answer(NamedTuple):
    """What becomes of the message for one recipient.

    if_enforced: the judgement in mode enforce. refused: the rules refuse it, by relay rule, SRS or [upstream]. mended:
    the relay rule refuses it, and an SRS sender lets it through (action = "rewrite"); it is not refused then. reason:
    why, as the log has it. action: what is done about what the relay rule refuses, None where that is not gatepost's.
    reply: the SMTP reply then, "" where there is none. effective: what is refused or rewritten really is; else the mode
    is monitor. remedies, also: as an Explanation has them. upstream_remedies: what to change for Exchange Online, which
    would refuse it. before: the envelope that came; envelope: what the MTA goes on with, None for nothing; enforced:
    that in mode enforce.
    """

    before: Envelope
    judgement: Judgement
    if_enforced: Judgement
    explanation: Explanation
    decision: str
    reason: str
    refused: bool = False
    mended: bool = False
    action: Optional[RefusalAction] = None
    effective: bool = True
    failed: str = ""
    reply: str = ""
    remedies: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    upstream_remedies: tuple[str, ...] = ()
    envelope: Optional[Envelope] = None
    enforced: Optional[Envelope] = None

    @property
    def outcome(self) -> str:
        """What is done, in the words of log and ledger; `monitor`: the rules refuse it, and it passes."""
        if self.reason == LEFT_TO_MTA:
            return LEFT_TO_MTA
        if (self.refused or self.mended) and not self.effective:
            return MONITOR
        if self.mended:
            return MEND
        if self.refused:
            taken = _TAKING.get(self.action) if self.action else None
            return taken or (DEFER if self.reply.startswith("4") else REJECT)
        if self.reason == SRS_BOUNCE:
            return RETURN
        return REWRITE if self.envelope and self.envelope.mail_from != self.before.mail_from else PASS

    @property
    def upstream(self) -> str:
        """What Exchange Online will say, in the ledger's words."""
        verdict = self.judgement.upstream
        return upstream.outcome(verdict) if verdict else ""


class Report(NamedTuple):
    """The whole answer. notes: what is not about one recipient."""

    question: Question
    mail: Mail
    requirements: RuleSet
    bypassed: bool
    notes: tuple[str, ...]
    answers: tuple[Answer, ...]
