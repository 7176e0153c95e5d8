# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's own sendmail.mc with the example's lines at its end, and with other filters before them."""

from __future__ import annotations

import re
import subprocess

import pytest
from peers import _overlaid, tree
from sendmaildaemon import EXAMPLE, sendmail_root

OPENDKIM = "INPUT_MAIL_FILTER(`opendkim', `S=local:/run/opendkim/opendkim.sock')dnl\n"
RSPAMD = "INPUT_MAIL_FILTER(`rspamd', `S=inet:11332@127.0.0.1')dnl\n"
INCLUDE = "include(`/etc/mail/gatepost.m4')dnl\n"


@pytest.mark.parametrize(
    ("filters", "order"),
    [("", "gatepost"), (OPENDKIM, "gatepost, opendkim"), (OPENDKIM + RSPAMD, "gatepost, opendkim, rspamd")],
)
def test_stock_configuration_takes_the_lines_and_asks_gatepost_first(filters: str, order: str) -> None:
    stock = (tree() / "usr/share/sendmail/cf/debian/sendmail.mc").read_text()
    with sendmail_root() as root:
        mail = root / "etc/mail"
        (mail / "m4").mkdir(parents=True)
        for name in ("m4/dialup.m4", "m4/provider.m4", "local-host-names", "relay-domains", "trusted-users", "access"):
            (mail / name).write_text("")
        (mail / "gatepost.m4").write_text((EXAMPLE / "gatepost.m4").read_text())
        (mail / "sendmail.mc").write_text(f"{stock}{filters}{INCLUDE}")
        script = f"""
            hostname mail.contoso.com
            m4 /etc/mail/sendmail.mc >{root}/sendmail.cf
            echo /quit | /usr/libexec/sendmail/sendmail -C {root}/sendmail.cf -bt"""
        command = ["unshare", "--uts", *_overlaid(["sh", "-ec", script], usr=[tree() / "usr"], etc=[root / "etc"])]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
        )
        made = (root / "sendmail.cf").read_text()
    assert f"\nO InputMailFilters={order}\n" in made
    assert re.findall("(?m)^Xgatepost, .*$", made) == [
        "Xgatepost, S=local:/run/gatepost/milter.sock, F=T, T=C:30s;S:30s;R:30s;E:1m"
    ]
    complaints = [line for line in done.stdout.splitlines() if "unknown user smmta" not in line]  # it is not installed
    assert complaints[0] == "WARNING: Ruleset EnvFromSMTP has multiple definitions"
    assert "WARNING" not in "".join(complaints[1:])
