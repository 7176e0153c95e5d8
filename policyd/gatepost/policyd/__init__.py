# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy daemon: Postfix's policy delegation and the socketmaps `reverse` and `egress`."""
