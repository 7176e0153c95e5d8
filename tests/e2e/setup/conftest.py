# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots the servers in configurations/, each as its administrator has it, for the tests in this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Optional

import pytest
from realmta_site import CONFIGURATION, DAY, EGRESS, Kind, Site
from stages import logs_reported

from gatepost.admin.sandbox import temporary_root
from gatepost.admin.stage import Stage

CONFIGURATIONS = Path(__file__).parent / "configurations"


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    """What is to be ended with the module."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def root(stack: ExitStack) -> Path:
    return stack.enter_context(temporary_root())


@pytest.fixture(scope="module")
def boot_site(root: Path, stack: ExitStack) -> Callable[..., Site]:
    """Return a function that boots a folder of configurations/ until the module's end.

    replacing: what in its files is another here. prepare: called with the stage before it starts. organization: one
    that is declared before anything is set up, in mode monitor.
    """

    def start(
        name: str,
        topology: str,
        *,
        day: Mapping[str, Kind] = DAY,
        replacing: Optional[Mapping[str, str]] = None,
        prepare: Callable[[Stage], object] = lambda stage: None,
        organization: str = "",
    ) -> Site:
        mode = "monitor" if organization else "enforce"
        configuration = CONFIGURATION.replace('mode = "enforce"', f'mode = "{mode}"') + organization
        stage = Stage(
            CONFIGURATIONS / name,
            root / "s",
            configuration=lambda text: text + configuration,
            refuse={"gone@example.com": "550 5.1.1 No such user"},
            whole=True,
            replacing=replacing,
        )
        if topology == "forwarder":
            stage.configuration.write_text(stage.configuration.read_text() + stage.render(EGRESS))
        _certify(stage)
        prepare(stage)
        stack.enter_context(stage)
        stack.enter_context(logs_reported(stage))
        stage.postfix.sendmail(["-bi"], b"")  # newaliases
        for table in ("virtual", "transport", "relay_recipients", "relay_clientcerts", "sasl_passwd"):
            if (stage.postfix.config_directory / table).exists():
                stage.postfix.postmap(stage.postfix.config_directory / table)
        return Site(stage, topology, day)

    return start


def _certify(stage: Stage) -> None:
    """Put the server's certificate where main.cf says."""
    folder = stage.postfix.config_directory / "tls"
    folder.mkdir()
    server = stage.authority.issue("mail.contoso.com", ["127.0.0.1"])
    for source, name in ((server.certificate, "mail.pem"), (server.key, "mail.key"), (stage.authority.file, "ca.pem")):
        shutil.copy(source, folder / name)
