# SPDX-License-Identifier: GPL-3.0-or-later
"""A reload that takes over unchanged organizations comes to what reading the whole file does."""

from __future__ import annotations

import gc
import json
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.service import config, unchanged
from gatepost.service.config import Config
from gatepost.service.snapshot import build
from gatepost.service.tables import ConfigError
from gatepost.srs import Keys

CONTOSO = """[[organization]]
name = "contoso"
mode = "enforce"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.accepted_domain]]
domain = "contoso.example"
[[organization.connector]]
name = "office"
sender_ip_addresses = ["192.0.2.0/28"]
"""
FABRIKAM = """[[organization]]
name = "fabrikam"
accepted_domain = [{ domain = "fabrikam.com" }]
connector = [{ name = "crm", tls_sender_certificate_name = "*.fabrikam.com" }]
"""
TAIL = """[relay]
mode = "monitor"
[srs]
validity_days = 7
"""


def reloaded(folder: Path, *texts: str) -> Config:
    """Return what is loaded last, where the file has one of *texts* after the other."""
    path, found = folder / "gatepost.toml", None
    for text in texts:
        path.write_text(text)
        found = unchanged.load(path, found)
    assert found
    return found


def whole(folder: Path, text: str) -> Config:
    path = folder / "gatepost.toml"
    path.write_text(text)
    return config.load(path)


def test_unchanged_organization_is_the_one_of_before(tmp_path: Path) -> None:
    first = reloaded(tmp_path, CONTOSO + FABRIKAM)
    path = tmp_path / "gatepost.toml"
    path.write_text(FABRIKAM.replace("crm", "web") + CONTOSO)
    second = unchanged.load(path, first)
    assert second.organizations["contoso"] is first.organizations["contoso"]
    assert second.settings["contoso"] is first.settings["contoso"]
    assert second.organizations["fabrikam"].connectors[0].name == "web"
    assert list(second.organizations) == ["fabrikam", "contoso"]


def test_mode_inherited_from_relay_changes_with_it(tmp_path: Path) -> None:
    texts = FABRIKAM + TAIL, FABRIKAM + TAIL.replace("monitor", "enforce")
    assert reloaded(tmp_path, *texts) == whole(tmp_path, texts[-1])
    assert reloaded(tmp_path, *texts).settings["fabrikam"].mode.value == "enforce"


def test_domain_accepted_by_an_unchanged_organization_is_refused_a_second_time(tmp_path: Path) -> None:
    other = FABRIKAM.replace('"fabrikam.com"', '"contoso.com"')
    with pytest.raises(ConfigError) as caught:
        reloaded(tmp_path, CONTOSO, other + CONTOSO)
    assert caught.value.problems == (
        'gatepost.toml: organization[1].accepted_domain[0].domain: "contoso.com" is an accepted domain at '
        "organization[0].accepted_domain[0] already",
    )


def test_error_below_unchanged_organizations_has_the_line_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not TOML: .*\(at line 12, column 5\)"):
        reloaded(tmp_path, CONTOSO, CONTOSO + "mode?\n")


def test_organization_within_a_string_of_several_lines_is_none(tmp_path: Path) -> None:
    text = f'[[organization]]\nname = """\n{FABRIKAM}"""\n'
    with pytest.raises(ConfigError, match=r"has a character in it that can't be printed"):
        reloaded(tmp_path, FABRIKAM, text)


def test_warning_is_given_again_at_each_load(tmp_path: Path) -> None:
    text = CONTOSO + FABRIKAM.replace("fabrikam.com", "x.example", 1) + TAIL.replace("[relay]", "match = 1\n[relay]")
    wide = CONTOSO.replace("/28", "/20")
    assert reloaded(tmp_path, wide, wide).warnings == whole(tmp_path, wide).warnings != ()
    with pytest.raises(ConfigError, match="unknown key"):
        reloaded(tmp_path, CONTOSO, text)


def test_changed_export_of_an_unchanged_organization_is_read(tmp_path: Path) -> None:
    export = tmp_path / "domains.json"
    text = '[[organization]]\nname = "contoso"\nexchange_export = ["domains.json"]\n'
    record = {"DomainName": "contoso.com", "DomainType": "Authoritative", "Default": True}
    export.write_text(json.dumps([record]))
    first = reloaded(tmp_path, text)
    export.write_text(json.dumps([record, {**record, "DomainName": "contoso.example", "Default": False}]))
    second = unchanged.load(tmp_path / "gatepost.toml", first)
    assert [item.domain for item in second.organizations["contoso"].accepted_domains] == [
        "contoso.com",
        "contoso.example",
    ]


def test_rules_of_before_go_without_the_garbage_collector(tmp_path: Path) -> None:
    upstream = '[upstream]\norganization = "contoso"\nsender_ip_addresses = ["198.51.100.1"]\n'
    contoso = CONTOSO.replace("mode", 'srs_domain = "contoso.example"\nmode')
    keys = Keys([b"key"])
    with config.uncollected():
        old = build(reloaded(tmp_path, contoso + FABRIKAM + upstream), keys, 1.8e9)
        old.rules.client(None, ["web.fabrikam.com"])  # as for the metrics of certificates
        gone = weakref.ref(old.rules)
        changed = reloaded(tmp_path, contoso + FABRIKAM.replace("crm", "web") + upstream)
        new = build(changed, keys, 1.8e9, before=old.rules)
        del old
        assert gone() is None
        assert new.rules.organizations["fabrikam"].connectors[0].name == "web"


def test_garbage_collector_is_on_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        reloaded(tmp_path, CONTOSO, "x = 1\n")
    assert gc.isenabled()


def test_after_a_refused_file_the_next_one_is_read_against_what_is_in_force(tmp_path: Path) -> None:
    path = tmp_path / "gatepost.toml"
    first = reloaded(tmp_path, CONTOSO + FABRIKAM)
    path.write_text(CONTOSO.replace("/28", "/29") + FABRIKAM + "x = 1\n")
    with pytest.raises(ConfigError):
        unchanged.load(path, first)
    path.write_text(CONTOSO.replace("/28", "/30") + FABRIKAM)
    second = unchanged.load(path, first)
    assert second == config.load(path)
    assert second.organizations["fabrikam"] is first.organizations["fabrikam"]


_PIECES = st.sampled_from(
    [
        CONTOSO,
        FABRIKAM,
        CONTOSO.replace("/28", "/20"),
        CONTOSO.replace("contoso", "tailspin"),
        FABRIKAM.replace("fabrikam", "tailspin"),
        FABRIKAM.replace("[[organization]]", "[[ organization ]]  # theirs"),
        FABRIKAM.replace("crm", "web") + "# the end\r\n",
        CONTOSO + 'srs_domain = "srs.contoso.com"\n',
        TAIL,
        TAIL.replace("monitor", "enforce"),
        "[srs.srs0]\nseparator = '='\n",
        "[milter]\nworkers = 3\n",
        '[upstream]\norganization = "contoso"\naddresses = ["198.51.100.1"]\n',
        "x = 1\n",
        'state_directory = "/var/lib/other"\n',
        'state_directory = """\n',
    ]
)


@given(st.lists(st.lists(_PIECES, max_size=5).map("".join), min_size=1, max_size=4))
def test_load_after_load_comes_to_what_reading_the_whole_file_does(texts: list[str]) -> None:
    found: Optional[Config] = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gatepost.toml")
        for text in texts:
            path.write_bytes(text.encode())
            fresh, told = outcome(partial(unchanged.load, path, found))
            assert (fresh, told) == outcome(partial(config.load, path))
            found = fresh or found


def outcome(load: Callable[[], Config]) -> tuple[Optional[Config], tuple[str, ...]]:
    """Return what *load* does, and its warnings, or the problems that it raises."""
    try:
        found = load()
    except ConfigError as error:
        return None, error.problems
    return found, found.warnings
