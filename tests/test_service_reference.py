# SPDX-License-Identifier: GPL-3.0-or-later
"""References: of one form, unlike each other, near each other where one process makes them."""

from __future__ import annotations

import os
import re

from gatepost.service.reference import new_reference


def test_reference_is_ten_base32_characters() -> None:
    assert re.fullmatch("[A-Z2-7]{10}", new_reference())


def test_references_are_different() -> None:
    assert len({new_reference() for _ in range(10_000)}) == 10_000


def test_references_of_one_process_begin_alike() -> None:
    assert len({new_reference()[:5] for _ in range(1000)}) <= 2


def test_references_after_a_fork_are_not_those_of_the_parent() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_reference().encode("ascii"))
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, encoding="ascii") as pipe:
        assert pipe.read()[:5] != new_reference()[:5]
