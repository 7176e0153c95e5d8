# SPDX-License-Identifier: GPL-3.0-or-later
"""Long runs of gatepost beside real Postfixes under trouble of every kind; see `run` in this folder."""
