# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of a relay hub on a real Postfix have in common."""

from __future__ import annotations

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x} }
local_header_rewrite_clients =
"""


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')
