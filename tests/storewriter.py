# SPDX-License-Identifier: GPL-3.0-or-later
"""One of many writers to a store: `storewriter.py URL NAME COUNT` puts COUNT addresses, prints each token when done.

Waits for a line on standard input first, so that all writers start at once.
"""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import Future

from gatepost.service.store import Store

AT_ONCE = 20
EXPIRES_DAY = 20_500


def main(url: str, name: str, count: int) -> None:
    store = Store(url)
    waiting: deque[tuple[str, Future[None]]] = deque()
    sys.stdin.readline()
    for number in range(count):
        token = f"{name}x{number}"
        waiting.append((token, store.put(token, original(token), EXPIRES_DAY)))
        if len(waiting) == AT_ONCE:
            report(*waiting.popleft())
    for token, future in waiting:
        report(token, future)
    store.close()


def report(token: str, future: Future[None]) -> None:
    future.result(30)
    print(token, flush=True)


def original(token: str) -> str:
    """Return the address that *token* stands for."""
    return f"{token}@fabrikam.com"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
