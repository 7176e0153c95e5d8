# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of domains with wildcards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.relay import Patterns


@pytest.mark.parametrize(
    ("domain", "listed"),
    [
        ("fabrikam.com", True),
        ("mail.fabrikam.com", False),
        ("contoso.com", False),
        ("mail.contoso.com", True),
        ("a.b.contoso.com", True),
        ("xcontoso.com", False),
        ("x.brikam.com", False),
        ("com", False),
        ("", False),
    ],
)
def test_wildcard_is_every_subdomain_and_not_the_domain_itself(domain: str, listed: bool) -> None:
    assert Patterns(["fabrikam.com", "*.contoso.com"]).match(domain) is listed


def test_list_without_patterns_is_false_and_matches_nothing() -> None:
    assert not Patterns([])
    assert not Patterns([]).match("contoso.com")
    assert Patterns(["*.contoso.com"])


LABELS = st.lists(st.sampled_from(["a", "b", "com"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(st.tuples(st.sampled_from(["", "*."]), LABELS).map("".join), max_size=6), LABELS)
def test_look_up_agrees_with_a_walk_through_the_list(patterns: list[str], domain: str) -> None:
    walked = any(domain.endswith(item[1:]) if item.startswith("*.") else domain == item for item in patterns)
    assert Patterns(patterns).match(domain) is walked
