# SPDX-License-Identifier: GPL-3.0-or-later
"""The start of the gatepost command: of `python -m gatepost.admin`, and of the script that an installation makes."""

from __future__ import annotations

from gatepost.admin import garbage


def main() -> None:
    garbage.look_seldom()
    from gatepost.admin.command import main

    main(prog_name="gatepost")


if __name__ == "__main__":
    main()
