# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m gatepost.admin` is the gatepost command."""

from gatepost.admin.command import main

main(prog_name="gatepost")
