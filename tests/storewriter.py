# SPDX-License-Identifier: GPL-3.0-or-later
"""One of many writers to a store: `storewriter.py URL NAME COUNT` puts COUNT addresses, prints each token when done.

Waits for a line on standard input first, so that all writers start at once. What the store could not take in time is
put again, as an MTA would bring its message again.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from concurrent.futures import Future

from gatepost.service.store import Store, StoreError

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
            report(store, *waiting.popleft())
    for token, future in waiting:
        report(store, token, future)
    store.close()


def report(store: Store, token: str, future: Future[None]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            future.result(30)
            break
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # a store that has failed turns requests away for half a second
            future = store.put(token, original(token), EXPIRES_DAY)
    print(token, flush=True)


def original(token: str) -> str:
    """Return the address that *token* stands for."""
    return f"{token}@fabrikam.com"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
