# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking setup's changes out of a file that was edited since: the edits stay, or it is not done."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.admin.setup.merge import without

BEFORE = b"""# the hub
myhostname = mail.contoso.com
smtpd_milters = inet:localhost:8891
mynetworks = 127.0.0.0/8
"""
MADE = b"""# the hub
myhostname = mail.contoso.com
smtpd_milters = unix:gatepost/milter.sock, inet:localhost:8891
mynetworks = 127.0.0.0/8
milter_default_action = tempfail
virtual_alias_domains =
"""


@pytest.mark.parametrize(
    ("now", "after"),
    [
        pytest.param(MADE, BEFORE, id="no-edit"),
        pytest.param(MADE + b"relay_domains = a\n", BEFORE + b"relay_domains = a\n", id="behind-what-was-added"),
        pytest.param(
            MADE.replace(b"virtual", b"relay_domains = a\nvirtual"), BEFORE + b"relay_domains = a\n", id="within-it"
        ),
        pytest.param(MADE.replace(b"/8", b"/16"), BEFORE.replace(b"/8", b"/16"), id="beside-what-was-changed"),
        pytest.param(MADE.replace(b"virtual_alias_domains =\n", b""), BEFORE, id="deleted-what-was-added"),
        pytest.param(MADE.replace(b"unix:gatepost/milter.sock, ", b""), BEFORE, id="put-back-what-was-changed"),
        pytest.param(b"# mine\n" + MADE[:-1], b"# mine\n" + BEFORE, id="no-last-line-end"),
        pytest.param(MADE.replace(b"tempfail", b"accept"), None, id="changed-what-was-added"),
        pytest.param(MADE.replace(b"8891\n", b"8891 inet:d:1\n"), None, id="changed-what-was-changed"),
        pytest.param(MADE + b"  contoso.net\n", None, id="continued-what-was-added"),
        pytest.param(MADE + b"# why\n\n  contoso.net\n", None, id="continued-behind-a-comment"),
        pytest.param(MADE.replace(b"mynetworks", b"relay_domains = a\nmynetworks"), None, id="right-behind-a-change"),
    ],
)
def test_edit(now: bytes, after: Optional[bytes]) -> None:
    assert without(MADE, BEFORE, now) == after


ENTRIES = st.lists(
    st.sampled_from([b"a = 1\n", b"b = 2\n", b"c = $a,\n  d\n", b"# e\n", b"\n", b"f = g\n# h\n\n\ti\n"])
).map(b"".join)


@given(ENTRIES, ENTRIES, ENTRIES, ENTRIES)
def test_of_what_was_added_nothing_is_left_and_of_the_edits_nothing_is_lost(
    before: bytes, first: bytes, within: bytes, last: bytes
) -> None:
    made = before + b"gatepost = 1\ngatepost = 2\n"
    now = first + before + b"gatepost = 1\n" + within + b"gatepost = 2\n" + last
    assert without(made, before, now) == first + before + within + last


@given(ENTRIES, ENTRIES)
def test_what_only_one_has_changed_is_as_that_one_has_it(one: bytes, other: bytes) -> None:
    assert without(one, one, other) == other
    assert without(one, other, one) == other
    assert without(one, other, other) == other
