# SPDX-License-Identifier: GPL-3.0-or-later
"""A loader of its own process: `ledgerloader.py CONFIGURATION` loads all, a line for each batch or two, then ends."""

from __future__ import annotations

import sys
from pathlib import Path

from gatepost.service.config import load
from gatepost.service.loader import Loader


def main(path: str) -> None:
    loader = Loader(load(Path(path)))
    assert loader.lock()
    print("begins", flush=True)
    while not loader.load(0.0):
        print("goes on", flush=True)
    loader.close()


if __name__ == "__main__":
    main(sys.argv[1])
