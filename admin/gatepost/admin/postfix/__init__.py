# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's configuration: what it says, and what gatepost needs of it."""
