# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures gatepost against its peers, each pair in turn in the same run: `benchmarks/run`."""
