# SPDX-License-Identifier: GPL-3.0-or-later
"""Feeds whatever reads octets of others with inputs that are nearly right: tests/fuzz/run [NAME...]."""
