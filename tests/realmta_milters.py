# SPDX-License-Identifier: GPL-3.0-or-later
"""opendkim and rspamd, which packaging/fetch-peers has unpacked, as milters beside a Postfix of the tests."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Optional

from peers import start, tree, wait_for_port

_OPENDKIM = """
Mode s
Canonicalization relaxed/simple
Domain @DOMAIN@
Selector @SELECTOR@
KeyFile @ROOT@/key.pem
Socket inet:@PORT@@127.0.0.1
ExternalIgnoreList @ROOT@/hosts
InternalHosts @ROOT@/hosts
RequireSafeKeys no
"""

# Debian's configuration less its spam rules. The list of top-level domains is a short one: the whole takes ten seconds.
_RSPAMD = """
options {
    pidfile = "@ROOT@/pid";
    control_socket = "@ROOT@/control mode=0600";
    cache_file = "@ROOT@/symbols.cache";
    hs_cache_dir = "@ROOT@";
    tempdir = "@ROOT@";
    url_tld = "@ROOT@/domains";
    dns { nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }
}
logging { type = "file"; filename = "@ROOT@/log"; level = "notice"; }
actions { reject = 15; add_header = 6; }
worker "rspamd_proxy" {
    bind_socket = "127.0.0.1:@PORT@";
    milter = yes;
    count = 1;
    upstream "local" { default = yes; self_scan = yes; }
}
lua = "@ROOT@/rules.lua";
"""
_RSPAMD_RULES = """
rspamd_config:register_symbol{
  name = 'SEEN',
  type = 'postfilter',
  callback = function(task)
    local from = task:get_from('smtp') or {{addr = ''}}
    task:set_milter_reply({add_headers = {['X-Rspamd-Saw'] = '<' .. from[1].addr .. '>'}})
  end
}
"""


class _Milter:
    """A program that listens on *port* once it is ready. A context manager."""

    def __init__(self, command: list[str], port: int, **environment: str) -> None:
        self.port = port
        self._command = command
        self._environment = environment
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> _Milter:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._process = start(self._command, **self._environment)
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        """End it, if it has not ended yet, at once: opendkim would take five seconds."""
        process, self._process = self._process, None
        if process:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class OpenDkim(_Milter):
    """opendkim, signing what has *domain* in its From header with a key of its own, *key*, kept in *root*."""

    def __init__(self, root: Path, port: int, domain: str, selector: str, key: bytes) -> None:
        root.mkdir(parents=True)
        (root / "key.pem").write_bytes(key)
        (root / "hosts").write_text("0.0.0.0/0\n")
        text = _filled(_OPENDKIM, ROOT=root, PORT=port, DOMAIN=domain, SELECTOR=selector)
        (root / "opendkim.conf").write_text(text)
        program = tree("milters") / "usr/sbin/opendkim"
        super().__init__([str(program), "-f", "-x", str(root / "opendkim.conf")], port)


class Rspamd(_Milter):
    """rspamd's proxy worker, which adds a header that tells the envelope sender that it saw."""

    def __init__(self, root: Path, port: int) -> None:
        root.mkdir(parents=True)
        (root / "domains").write_text("com\nexample\n")
        (root / "rules.lua").write_text(_RSPAMD_RULES)
        (root / "rspamd.conf").write_text(_filled(_RSPAMD, ROOT=root, PORT=port))
        unpacked = tree("milters")
        share = unpacked / "usr/share/rspamd"
        folders = {"RULESDIR": share / "rules", "LUALIBDIR": share / "lualib", "SHAREDIR": share, "DBDIR": root}
        variables = [f"--var={name}={folder}" for name, folder in folders.items()]
        command = [str(unpacked / "usr/bin/rspamd"), "-f", "-i", "-c", str(root / "rspamd.conf"), *variables]
        super().__init__(command, port, LD_LIBRARY_PATH=str(unpacked / "usr/lib/rspamd"))


def _filled(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text
