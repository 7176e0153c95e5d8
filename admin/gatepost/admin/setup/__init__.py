# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost setup`: what an MTA needs to work with gatepost."""
