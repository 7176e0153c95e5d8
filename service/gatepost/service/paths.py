# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are unless the configuration or an option says otherwise. Plain text: `gatepost --help` reads it."""

DEFAULT_PATH = "/etc/gatepost/gatepost.toml"
DEFAULT_STATE_DIRECTORY = "/var/lib/gatepost"
