# SPDX-License-Identifier: GPL-3.0-or-later
"""An example's real Postfix configuration, and gatepost.toml beside it, for the doctor's checks; nothing runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest
from doctors import NOW, found

from gatepost.admin.configuration import snapshot_with_placeholder
from gatepost.admin.doctor.model import Circumstances, Finding
from gatepost.admin.postfix.config import PostfixConfig
from gatepost.admin.sandbox import find_programs
from gatepost.admin.stage import Stage

EXAMPLES = Path(__file__).parents[1] / "examples/postfix"


def postfix_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process run Postfix's programs as the system's own, where they are only unpacked."""
    programs = find_programs()
    monkeypatch.setenv("PATH", f"{programs.commands}:{os.environ['PATH']}")
    if programs.libraries:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(programs.libraries))


class Looked:
    """The example *name* below *root*, as it would be on a host. main_cf: lines that win over the example's.

    gatepost: edits the text of gatepost.toml. master_cf: further services.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        main_cf: str = "",
        master_cf: str = "",
        gatepost: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.stage = Stage(EXAMPLES / name, root, after=main_cf, master_before=master_cf, configuration=gatepost)
        self.stage.postfix.prepare()
        self._found: dict[str, list[Finding]] = {}
        self.directory = self.stage.postfix.config_directory

    def postconf(self, *arguments: str) -> Looked:
        """Change the configuration as an administrator does."""
        self.stage.postfix.postconf(*arguments)
        return self._settled()

    def _settled(self) -> Looked:
        """Set main.cf's time back: every program waits for a file changed within two seconds to settle."""
        self._found.clear()
        minute_ago = time.time() - 60
        os.utime(self.directory / "main.cf", (minute_ago, minute_ago))
        return self

    def circumstances(self) -> Circumstances:
        snapshot, missing = snapshot_with_placeholder(self.stage.configuration, NOW)
        return Circumstances(
            snapshot, NOW, lambda: PostfixConfig.read(self.directory), missing_secret=missing, sendmail_cf=Path("/no")
        )

    def find(self, check: str) -> list[Finding]:
        if check not in self._found:
            self._found[check] = found(self.circumstances(), check)
        return self._found[check]

    def texts(self, check: str) -> list[str]:
        """Return severity and sentence of each finding, folders and ports as in the example."""
        return [f"{finding.severity.value}: {self.plain(finding.what)}" for finding in self.find(check)]

    def commands(self, check: str) -> list[str]:
        """Return what to paste, of all findings."""
        return [self.plain(command) for finding in self.find(check) for command in finding.remedy]

    def paste(self, check: str) -> None:
        """Run the commands of *check* that change the configuration, as a person would."""
        for finding in self.find(check):
            for command in finding.remedy:
                if command.startswith("postconf"):
                    subprocess.run(["sh", "-c", command], check=True, timeout=30)
                elif command.startswith("gatepost "):
                    program = shlex.quote(str(Path(sys.executable).with_name("gatepost")))
                    subprocess.run(["sh", "-c", command.replace("gatepost", program, 1)], check=True, timeout=60)
                self._settled()

    def plain(self, text: str) -> str:
        text = text.replace(f"127.0.0.1:{self.stage.postfix.smtp[1]}/inet", "smtp/inet")
        for port, here in self.stage.ports.items():
            text = text.replace(here, port)
        for option in ("-c", "--config-directory"):
            text = text.replace(f" {option} {self.directory}", "")
        text = text.replace(str(self.directory), "/etc/postfix")
        text = text.replace(str(self.stage.configuration), "gatepost.toml")
        return text.replace(str(self.stage.postfix.queue_directory), "/var/spool/postfix")
