# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks run: a glance at each, in which nothing is timed."""

from __future__ import annotations

import pytest
from benchmarks import milter
from benchmarks.figures import AT_MOST, Effort, Figure, in_turn

GLANCE = Effort(rounds=1, seconds=0.2)


@pytest.mark.parametrize("headers", [True, False])
def test_c_milter_answers_the_load_generator(headers: bool) -> None:
    found = milter.the_floor(GLANCE, 2, headers=headers)

    assert found["messages"] > 0
    assert (found["refused"], found["chgfrom"]) == (0, 0)


def test_c_milter_on_tcp_changes_the_sender_of_each_message() -> None:
    found = milter.the_floor(GLANCE, 2, tcp=True, change_sender=True)

    assert found["chgfrom"] == found["total"] > 0


def test_each_message_under_load_has_a_new_sender_a_log_line_and_a_ledger_row() -> None:
    assert milter.gatepost(GLANCE, 2)["messages"] > 0  # which looks at all of that


def test_refused_mail_under_load_is_tagged() -> None:
    found = milter.gatepost(GLANCE, 2, action="tag")

    assert found["addheader"] == found["total"] > 0


def test_opendkim_takes_unsigned_mail_under_load() -> None:
    assert milter.opendkim(GLANCE, 2)["messages"] > 0


def test_figure_is_the_median_of_paired_ratios() -> None:
    figure = Figure("x", "msg/s", [10, 90, 30], "peer", [10, 30, 60], target=1)

    assert figure.result == 1.0
    assert figure.met is True
    assert Figure("x", "ms", [2, 5, 4], target=3, bound=AT_MOST).met is False


def test_programs_take_turns_and_the_first_one_changes() -> None:
    calls: list[str] = []

    values = in_turn(2, lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0)

    assert values == [[1.0, 1.0], [2.0, 2.0]]
    assert calls == ["a", "b", "b", "a"]
