# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's lookup tables asked by postmap(1): those that are silent are asked once, gatepost's own not at all."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from doctorpostfix import Looked, postfix_programs

from gatepost.admin.postfix.config import PostfixConfig, PostfixError
from gatepost.admin.postfix.tables import Tables, domain_list
from gatepost.admin.sandbox import temporary_root


@pytest.fixture(scope="module")
def config() -> Iterator[PostfixConfig]:
    with pytest.MonkeyPatch.context() as patch, temporary_root() as root:
        postfix_programs(patch)
        yield Looked("relay-hub", root / "x").circumstances().postfix


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_table_is_asked_once(config: PostfixConfig, silent: str) -> None:
    tables = Tables(replace(config), query_s=0.5)
    for _ in range(10):
        with pytest.raises(PostfixError, match="no answer within"):
            tables.query(f"tcp:{silent}", "contoso.com")
    assert len(tables.config.failed_tables) == 1


def test_a_table_whose_server_is_away_is_asked_once(config: PostfixConfig, tmp_path: Path) -> None:
    tables = Tables(replace(config))
    for _ in range(2):
        with pytest.raises(PostfixError, match="fatal:"):
            tables.query(f"hash:{tmp_path}/none", "contoso.com")
    assert list(tables.config.failed_tables) == [f"hash:{tmp_path}/none"]


def test_what_a_table_does_not_have_is_no_failure(config: PostfixConfig) -> None:
    tables = Tables(replace(config))
    assert tables.query("inline:{contoso.com=x}", "fabrikam.com") is None
    assert tables.config.failed_tables == {}


def test_gateposts_own_map_is_not_asked_for_domains(config: PostfixConfig, silent: str) -> None:
    expansions = {**config.expansions, "virtual_alias_domains": f"socketmap:inet:{silent}:reverse"}
    began = time.monotonic()
    assert domain_list(Tables(replace(config, expansions=expansions)), "fabrikam.com") is None
    assert time.monotonic() - began < 4
