# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of setup and doctor and the files in examples/postfix say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepost.admin.postfix.config import split
from gatepost.admin.postfix.hop import hop_services
from gatepost.admin.postfix.wiring import DECIDED_BY_HAND, Hop, Kind, Sockets, Topology, Wire, filter_files, main_cf
from gatepost.service.config import load

EXAMPLES = Path(__file__).parent.parent / "examples/postfix"


def logical_lines(path: Path) -> Iterator[str]:
    """Yield the entries of a main.cf or master.cf, each on one line, without comments."""
    text = re.sub(r"(?m)^\s*(#.*)?\n", "", path.read_text())
    yield from re.sub(r"\n\s+", " ", text).splitlines()


def parameters(path: Path) -> dict[str, str]:
    entries = (line.partition("=") for line in logical_lines(path))
    return {name.strip(): value.strip() for name, _, value in entries}


def wires(topology: Topology) -> dict[str, Wire]:
    return {wire.parameter: wire for wire in main_cf(topology, Sockets(), Hop())}


@pytest.mark.parametrize("topology", list(Topology), ids=lambda topology: topology.value)
def test_example_sets_what_the_table_has_and_what_only_a_person_can_decide(topology: Topology) -> None:
    given = set(parameters(EXAMPLES / topology.value / "main.cf")) - {"gatepost_decode"}
    by_hand = set(DECIDED_BY_HAND.get(topology, ()))
    table = wires(topology)
    missing = {
        name for name in set(table) - given if not (topology is Topology.FORWARDER and table[name].for_certificates)
    }
    assert (given - by_hand - set(table), missing) == (set(), set())


@pytest.mark.parametrize("topology", list(Topology), ids=lambda topology: topology.value)
def test_example_has_the_values_of_the_table(topology: Topology) -> None:
    given = parameters(EXAMPLES / topology.value / "main.cf")
    for wire in wires(topology).values():
        value = given.get(wire.parameter, wire.value)
        if wire.parameter == "smtpd_command_filter":
            continue
        if wire.kind in (Kind.POLICY, Kind.RELAY):
            assert split(value)[:2] == ["check_policy_service", wire.value]
        elif wire.kind in (Kind.MAP, Kind.MILTER):
            assert split(value, ",")[0] == wire.value
        elif wire.kind is not Kind.ALIAS_DOMAINS:
            assert value == wire.value


def test_rules_of_the_command_filter_are_those_of_the_examples() -> None:
    for topology in (Topology.RELAY_HUB, Topology.FORWARDER, Topology.EXCHANGE_ONLINE):
        inline = parameters(EXAMPLES / topology.value / "main.cf")["smtpd_command_filter"]
        (rules,) = filter_files(topology).values()
        assert inline == "regexp:{ " + " ".join("{" + rule.replace("$", "$$") + "}" for rule in rules) + " }"


def test_rules_of_postsrsds_command_filter_are_those_of_the_example() -> None:
    given = parameters(EXAMPLES / "postsrsd-replacement/main.cf")
    any_percent, any_srs, decode = (
        " ".join("{" + rule.replace("$", "$$") + "}" for rule in rules)
        for rules in filter_files(Topology.POSTSRSD_REPLACEMENT).values()
    )
    assert given["gatepost_decode"] == f"regexp:{{ {decode} }}"
    stages = f"regexp:{{{any_percent}}} regexp:{{{any_srs}}} " + " ".join(["$gatepost_decode"] * 10)
    assert given["smtpd_command_filter"] == f"pipemap:{{ {stages} }}"
    wire = wires(Topology.POSTSRSD_REPLACEMENT)["smtpd_command_filter"]
    files = [f"regexp:$config_directory/gatepost_command_filter_{number}" for number in (1, 2, *[3] * 10)]
    assert wire.value == f"pipemap:{{{', '.join(files)}}}"


def test_example_of_the_egress_hop_is_the_table() -> None:
    given = {}
    for line in logical_lines(EXAMPLES / "forwarder/master.cf"):
        columns = line.split(None, 8)
        given[" ".join(columns[:8])] = re.split(r"\s*-o ", columns[8])[1:]
    assert given == {
        f"{item.name} {item.type} {item.private} - y - {item.process_limit} {item.command}": [
            f"{override.name}={override.value}" for override in item.overrides
        ]
        for item in hop_services(Sockets(), Hop())
    }


def test_hop_is_where_the_configuration_says() -> None:
    egress = load(EXAMPLES / "forwarder/gatepost.toml").egress
    assert egress is not None
    assert Hop.of(egress.transport, egress.daemon_name) == Hop()
    assert Hop.of("out:[::1]:2526", "hop") == Hop("out", "[::1]:2526", "hop")
