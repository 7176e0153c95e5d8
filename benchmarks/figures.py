# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark finds, and how it measures two programs in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional

AT_LEAST, AT_MOST = "at least", "at most"


@dataclass(frozen=True)
class Effort:
    """How long to measure: each program *seconds* at a time, *rounds* times."""

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Figure:
    """One line of the table: *ours* in *unit*, a value a round, beside those of *peer* in the same rounds, if any.

    target: of the ratio to the peer, or of the value itself without one; None: shown for the record. bound: AT_LEAST
    or AT_MOST. note: what else there is to know, in a few words.
    """

    what: str
    unit: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    target: Optional[float] = None
    bound: str = AT_LEAST
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours to the peer's, round by round; the values themselves without a peer."""
        return [one / other for one, other in zip(self.ours, self.theirs)] if self.theirs else list(self.ours)

    @property
    def result(self) -> float:
        """The median of `ratios`: what the target is about."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> Optional[bool]:
        """Tell whether the target is met; None: there is none."""
        if self.target is None:
            return None
        return self.result >= self.target if self.bound == AT_LEAST else self.result <= self.target


def in_turn(rounds: int, *programs: Callable[[], float]) -> list[list[float]]:
    """Run *programs* one after the other, *rounds* times; return the values of each.

    Who comes first changes with each round, so that none always finds the machine warm.
    """
    values: list[list[float]] = [[] for _ in programs]
    for number in range(rounds):
        order = list(range(len(programs)))
        for index in order if number % 2 == 0 else reversed(order):
            values[index].append(programs[index]())
    return values
