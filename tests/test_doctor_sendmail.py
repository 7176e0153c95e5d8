# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of Sendmail, on a sendmail.cf that m4 makes of an administrator's sendmail.mc and the example."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctors import NOW, circumstances, found, no_postfix
from sendmaildaemon import Sendmail, sendmail_root

from gatepost.admin.configuration import snapshot_with_placeholder
from gatepost.admin.doctor.model import Circumstances

CHECKS = ("sendmail-milter", "sendmail-maps", "sendmail-rules", "sendmail-socket-folders")


class Made:
    """The example's sendmail.cf, made and not started."""

    def __init__(self, root: Path) -> None:
        self.sendmail = Sendmail(root)
        self.cf = root / "sendmail.cf"
        done = subprocess.run(
            ["m4", "sendmail.mc"], cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        )
        self.text = done.stdout
        self.sendmail.sockets.mkdir(exist_ok=True)

    def circumstances(self, text: str) -> Circumstances:
        self.cf.write_text(text)
        snapshot, missing = snapshot_with_placeholder(self.sendmail.gatepost.configuration, NOW)
        return Circumstances(snapshot, NOW, no_postfix, missing_secret=missing, sendmail_cf=self.cf)

    def texts(self, check: str, text: str) -> list[str]:
        """Return severity and sentence of each finding where sendmail.cf is *text*."""
        findings = found(self.circumstances(text), check)
        return [f"{item.severity.value}: {item.what}".replace(str(self.sendmail.root), "") for item in findings]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with sendmail_root() as root:
        yield Made(root)


def test_the_example_is_well(made: Made) -> None:
    assert [made.texts(check, made.text) for check in CHECKS] == [
        ["ok: Sendmail hands mail to the milter gatepost, and puts it off while that is away (F=T)"],
        ["ok: Sendmail asks gatepost's maps forward and reverse"],
        ["ok: every map in Sendmail's rules is declared"],
        ["ok: Sendmail trusts /gatepost"],
    ]


def test_beside_postfix_sendmail_is_not_looked_at() -> None:
    assert [found(circumstances(), check) for check in CHECKS] == [[]] * len(CHECKS)


@pytest.mark.parametrize(("flags", "word"), [("F=R", "F=R"), ("", "no F=T")])
def test_without_f_t_the_milters_absence_harms_mail(made: Made, flags: str, word: str) -> None:
    (text,) = made.texts("sendmail-milter", made.text.replace("F=T,", f"{flags},"))
    assert text.startswith("error: ")
    assert text.endswith(f"milter gatepost has {word}")


def test_without_the_milter_nothing_is_judged(made: Made) -> None:
    (text,) = made.texts("sendmail-milter", re.sub(r"(?m)^Xgatepost.*$", "", made.text))
    assert text == "error: /sendmail.cf has no milter at unix:/gatepost/milter.sock"


def test_a_milter_that_is_declared_and_not_used(made: Made) -> None:
    text = re.sub(r"(?m)^O InputMailFilters=.*$", "O InputMailFilters=opendkim", made.text)
    assert made.texts("sendmail-milter", text)[-1] == (
        "error: /sendmail.cf: InputMailFilters is opendkim, without gatepost"
    )


def test_a_map_that_is_not_there(made: Made) -> None:
    assert made.texts("sendmail-maps", re.sub(r"(?m)^Kforward .*$", "", made.text)) == [
        "warning: /sendmail.cf has no map forward at unix:/gatepost/policyd.sock"
    ]


@pytest.mark.parametrize("option", ["-f", "-q"])
def test_a_map_that_lacks_an_option(made: Made, option: str) -> None:
    text = re.sub(rf"(?m)^(Kreverse .*){option} ", r"\1", made.text)
    assert made.texts("sendmail-maps", text)[0] == f"warning: /sendmail.cf: map reverse lacks {option}"


def test_a_map_whose_failure_is_no_answer(made: Made) -> None:
    text = made.text.replace("Kreverse socket ", "Kreverse socket -t ")
    assert made.texts("sendmail-maps", text)[0] == "error: /sendmail.cf: map reverse has -t"


def test_a_map_that_gatepost_does_not_have(made: Made) -> None:
    text = made.text.replace("Kforward ", "Kforwards ")
    assert made.texts("sendmail-maps", text)[:2] == [
        "warning: /sendmail.cf has no map forward at unix:/gatepost/policyd.sock",
        "error: /sendmail.cf: gatepost is asked for a map forwards, and has forward, reverse",
    ]


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_a_map_that_no_rule_asks(made: Made, name: str) -> None:
    text = re.sub(rf"(?m)^R.*\$\({name} .*$", "", made.text)
    assert made.texts("sendmail-maps", text) == [f"error: /sendmail.cf: no rule asks the map {name}"]


def test_a_map_that_is_asked_by_way_of_a_sequence_is_well(made: Made) -> None:
    text = re.sub(r"(?m)^(R.*)\$\(forward ", r"\1$(both ", made.text)
    text = text.replace("Kreverse ", "Kboth sequence other forward\nKreverse ")
    assert made.texts("sendmail-maps", text) == ["ok: Sendmail asks gatepost's maps forward and reverse"]


def test_f_4_has_the_client_come_back(made: Made) -> None:
    (text,) = made.texts("sendmail-milter", made.text.replace("F=T,", "F=4,"))
    assert text.startswith("ok: ")


def test_a_misspelt_map_in_a_rule(made: Made) -> None:
    text = made.text.replace("$(forward ", "$(foward ")
    assert made.texts("sendmail-rules", text) == ["error: /sendmail.cf: rules ask maps that no K line declares: foward"]


def test_a_folder_that_others_may_write_to(made: Made) -> None:
    made.sendmail.sockets.chmod(0o775)
    try:
        assert made.texts("sendmail-socket-folders", made.text) == [
            "error: /gatepost may be written by its group or others"
        ]
    finally:
        made.sendmail.sockets.chmod(0o755)
