# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost setup postfix` does to a server, told once, and the tests that hold for every server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Callable

from ledgerrows import Row, rows
from realmta_site import File, Outcome, Site

Day = Mapping[str, Outcome]

REFUSED = "550 5.7.64 TenantAttribution; Relay Access Denied [REFERENCE]"
REWRITTEN = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"


@dataclass(frozen=True)
class Story:
    """A day of mail, four times; and by the moment (before, shown, applied, again, undone) what stands in the files.

    before: as the server was. applied: after --apply, no organisation in mode enforce. enforced: with one that is.
    undone: after --undo. checks: what `postfix check` says. recorded: the enforced day's kind and recipient of each row
    in the ledger. aside: the replies to what else was sent that day.
    """

    shown: CompletedProcess[str]
    before: Day
    applied: Day
    enforced: Day
    undone: Day
    files: Mapping[str, Mapping[str, File]]
    parameters: Mapping[str, Mapping[str, str]]
    checks: Mapping[str, list[str]]
    recorded: Counter[tuple[str, str]]
    aside: Mapping[str, tuple[str, ...]]


def tell(site: Site, aside: Callable[[Site], Mapping[str, tuple[str, ...]]] = lambda site: {}) -> Story:
    """Set gatepost up on the server, and take it out again. aside: what else is sent on the enforced day."""
    files, parameters, checks = {}, {}, {}

    def note(moment: str) -> None:
        files[moment], parameters[moment] = site.files(), site.parameters()
        if moment in ("before", "applied"):
            checks[moment] = site.check()

    note("before")
    before = site.mail()
    shown = site.setup("--topology", site.topology)
    note("shown")
    _succeed(site.setup("--topology", site.topology, "--apply"))
    note("applied")
    applied = site.mail()
    _succeed(site.setup("--topology", site.topology, "--apply"))
    note("again")
    site.enforce()
    earlier = len(rows(site.stage.state_directory))
    enforced = site.mail()
    recorded = Counter(map(_subject_and_recipient, rows(site.stage.state_directory)[earlier:]))
    sent_aside = aside(site)
    _succeed(site.setup("--undo"))
    note("undone")
    return Story(shown, before, applied, enforced, site.mail(), files, parameters, checks, recorded, sent_aside)


def _subject_and_recipient(row: Row) -> tuple[str, str]:
    """The ledger has the recipient in lower case, so here an SRS address has that, too."""
    recipient = re.sub(r"\+srs=\w+=\w+=", "+srs=hash=tt=", str(row["recipient"]))
    return str(row["subject"]), recipient


def _succeed(done: CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.args}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


def transcript(day: Day) -> list[str]:
    """Return a line for each refusal and each copy of a day: `kind: reply`, `kind: where P1 -> recipients`."""
    lines = []
    for kind, outcome in day.items():
        lines += [f"{kind}: {reply}" for reply in outcome.replies if reply[0] not in "23"]
        lines += [f"{kind}: {where} {p1 or '<>'} -> {rcpts}" for where, p1, rcpts in outcome.envelopes]
    return lines


class EveryServer:
    """What holds for each server. The module has the fixture `story`."""

    def test_showing_what_would_change_changes_nothing(self, story: Story) -> None:
        assert story.files["shown"] == story.files["before"]

    def test_what_is_shown_names_every_parameter_that_changes(self, story: Story) -> None:
        before, applied = story.parameters["before"], story.parameters["applied"]
        changed = {name for name in {*before, *applied} if before.get(name) != applied.get(name)}
        assert changed
        assert [name for name in sorted(changed) if name.rpartition("/")[2] not in story.shown.stdout] == []

    def test_mail_is_as_before_until_an_organization_enforces(self, story: Story) -> None:
        for kind, outcome in story.before.items():
            assert story.applied[kind] == outcome, kind

    def test_applying_it_again_changes_no_byte(self, story: Story) -> None:
        assert story.files["again"] == story.files["applied"]

    def test_postfix_check_has_nothing_to_say_of_it(self, story: Story) -> None:
        """Debian 13's, where Postfix is unpacked and not installed, has something to say of that, each time."""
        assert story.checks["applied"] == story.checks["before"]
        assert not any(".cf" in line for line in story.checks["applied"])

    def test_no_message_that_is_delivered_is_changed_but_for_its_envelope(self, story: Story) -> None:
        for kind, outcome in story.enforced.items():
            if kind not in ("refused-later", "bounce-from-outside"):
                contents = {copy.content for copy in story.before[kind].copies}
                assert {copy.content for copy in outcome.copies} <= contents, kind

    def test_each_recipient_of_a_message_is_recorded_once(self, story: Story) -> None:
        assert set(story.recorded.values()) == {1}, story.recorded

    def test_undo_leaves_every_file_as_it_was(self, story: Story) -> None:
        assert story.files["undone"] == story.files["before"]

    def test_mail_is_as_before_once_it_is_undone(self, story: Story) -> None:
        for kind, outcome in story.before.items():
            assert story.undone[kind] == outcome, kind
