# SPDX-License-Identifier: GPL-3.0-or-later
"""Organisations as values."""

from __future__ import annotations

from gatepost.relay import AcceptedDomain, Organization


def test_default_domain_is_the_one_marked_default() -> None:
    domains = (AcceptedDomain("contoso.onmicrosoft.com"), AcceptedDomain("contoso.com", default=True))
    assert Organization("contoso", domains).default_domain == "contoso.com"


def test_default_domain_is_the_first_where_none_is_marked() -> None:
    domains = (AcceptedDomain("contoso.com"), AcceptedDomain("contoso.example"))
    assert Organization("contoso", domains).default_domain == "contoso.com"
