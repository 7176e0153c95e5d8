# SPDX-License-Identifier: GPL-3.0-or-later
"""Characters that are no control characters, and yet change what a terminal or a reader of log lines shows."""

from __future__ import annotations

import pytest

from gatepost.service import log


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"),
        ("\u2028", r"\u2028"),
        ("\u2029", r"\u2029"),
        ("\u200b", r"\u200b"),
        ("\ufeff", r"\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("\x1b", "?"),
        ("\x9b", "?"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_no_terminal_can_show_is_escaped(character: str, shown: str, capfd: pytest.CaptureFixture[str]) -> None:
    log.info(f"NOQUEUE: action=reject, from=<a{character}b@evil.example>, é")
    (line,) = capfd.readouterr().err.split("\n")[:-1]
    assert line.endswith(f"from=<a{shown}b@evil.example>, é")
