# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests share: examples booted once a module, and their logs beside a failure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from stages import logs_of_running, logs_reported

from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage

EXAMPLES = Path(__file__).parents[2] / "examples/postfix"


@pytest.fixture(scope="session", autouse=True)
def _root_only() -> None:
    if os.getuid() != 0:
        pytest.skip("a chrooted Postfix can only be run by root")


@pytest.fixture(scope="module")
def boot() -> Iterator[Callable[..., Stage]]:
    """Return a function that boots an example until the module's end: its folder's name and the options of Stage.

    prepare: called with the stage before it starts.
    """
    with ExitStack() as stack:
        root = stack.enter_context(temporary_root())
        numbers = itertools.count(1)

        def start(name: str, *, prepare: Optional[Callable[[Stage], object]] = None, **options: Any) -> Stage:
            stage = Stage(EXAMPLES / name, root / str(next(numbers)), **options)
            if prepare:
                prepare(stage)
            stack.enter_context(stage)
            stack.enter_context(logs_reported(stage))
            return stage

        yield start


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.extend(logs_of_running())
