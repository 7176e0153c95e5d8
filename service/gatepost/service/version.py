# SPDX-License-Identifier: GPL-3.0-or-later
"""The version, in one place: pyproject.toml reads it here, so that a clone that is not installed knows it too."""

__version__ = "0.1.0"
