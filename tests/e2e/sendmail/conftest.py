# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots examples/sendmail on a Sendmail that serves contoso.com, for the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Callable

import pytest
from sendmaildaemon import Sendmail, sendmail_root

Boot = Callable[..., "AbstractContextManager[Sendmail]"]


@pytest.fixture(scope="session")
def boot_sendmail() -> Boot:
    """Return a function that boots the example; its options are those of `Sendmail`."""

    @contextmanager
    def booted(**options: Any) -> Iterator[Sendmail]:
        with sendmail_root() as root, Sendmail(root, **options) as sendmail:
            try:
                yield sendmail
            finally:  # shown beside a failure
                print(f"--- log of gatepost\n{chr(10).join(sendmail.gatepost.log[-60:])}")
                print(f"--- log of Sendmail\n{chr(10).join(sendmail.log().splitlines()[-60:])}")

    return booted
