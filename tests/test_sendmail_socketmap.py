# SPDX-License-Identifier: GPL-3.0-or-later
"""Sendmail's own socket maps ask policyd, on a Unix socket and by TCP.

K lines as they must be written for Sendmail: `-f`, or it asks in lower case; `-q`, or it takes the quotes off; `-T`,
so that a ruleset sees a failure; the K line's name is the map's. Its Unix socket must lie below folders that nobody
else may write to.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import Gatepost, free_port
from peers import Sendmail

UNAVAILABLE, TEMPFAIL, NOT_FOUND = 69, 75, 68
"""Of sysexits.h; the last is EX_NOHOST."""

# As in the envelope-sender rulesets of Sendmail's mailers, where an address comes as user<@domain.>.
RULESETS = """SForward
R$* < @ $+ . >	$1 < @ $2 >
R$* < @ $+ >	$1 @ $2
R$+ @ $+	$: $(forward $1@$2 $: $1@$2 $)

SReverse
R$+ @ $+	$: $(reverse $1@$2 $: $1@$2 $)

SMisspelled
R$+	$: $(misspelled $1 $: $1 $)
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("Sendmail wants its sockets below folders that only root can write to")
    path = Path(tempfile.mkdtemp(dir="/run", prefix="gatepost-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def policyd(folder: Path, port: int) -> Iterator[Gatepost]:
    addresses = f'unix:{folder}/policyd.sock", "inet:127.0.0.1:{port}'
    with Gatepost(folder, command="policyd", policyd=addresses) as process:
        yield process


@pytest.fixture(scope="module", params=["unix", "inet"])
def address(request: pytest.FixtureRequest, policyd: Gatepost, port: int) -> str:
    return f"local:{policyd.policyd_socket}" if request.param == "unix" else f"inet:{port}@127.0.0.1"


def maps(address: str) -> str:
    """Return the K lines for policyd at *address*."""
    return "".join(f"K{name} socket -f -q -T.TEMPFAIL {address}\n" for name in ("forward", "reverse", "misspelled"))


@pytest.fixture
def sendmail(folder: Path, address: str) -> Iterator[Sendmail]:
    root = folder / "sendmail"
    root.mkdir()
    with Sendmail(root, maps(address), RULESETS) as process:
        yield process
    shutil.rmtree(root)


def shape(text: str) -> str:
    """Return *text* with HASH and TT for the hash and the timestamp of an SRS address."""
    return re.sub(r"\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=", "+SRS=HASH=TT=", text)


def test_foreign_sender_is_rewritten(sendmail: Sendmail) -> None:
    written = shape(sendmail.look_up("forward", "bob@fabrikam.com"))
    assert written == "returns bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com (0)"


def test_sender_is_rewritten_in_a_ruleset(sendmail: Sendmail) -> None:
    written, status = sendmail.rewrite("Forward", "bob<@fabrikam.com.>")
    assert (shape(written), status) == ("bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com", 0)


def test_case_of_the_sender_survives(sendmail: Sendmail) -> None:
    written, _ = sendmail.rewrite("Forward", "Bob.Smith<@fabrikam.com>")
    assert shape(written) == "bounces+SRS=HASH=TT=fabrikam.com=Bob.Smith@contoso.com"


def test_quoted_sender_comes_back_as_it_was(sendmail: Sendmail) -> None:
    written, _ = sendmail.rewrite("Forward", '"john doe"<@fabrikam.com>')
    assert shape(written) == '"bounces+SRS=HASH=TT=fabrikam.com=john doe"@contoso.com'
    assert sendmail.rewrite("Reverse", written) == ('"john doe"@fabrikam.com', 0)


@pytest.mark.parametrize("sender", ["mary@contoso.com", "bob", "<>"])
def test_own_sender_null_sender_and_no_address_are_not_found(sendmail: Sendmail, sender: str) -> None:
    assert sendmail.look_up("forward", sender) == f"no match ({NOT_FOUND})"


def test_own_sender_stays_as_it_is_in_a_ruleset(sendmail: Sendmail) -> None:
    assert sendmail.rewrite("Forward", "mary<@contoso.com.>") == ("mary@contoso.com", 0)


def test_address_that_was_made_is_brought_back_and_not_rewritten_again(sendmail: Sendmail) -> None:
    written, _ = sendmail.rewrite("Forward", "Bob<@fabrikam.com>")
    assert sendmail.look_up("forward", written) == f"no match ({NOT_FOUND})"
    assert sendmail.look_up("reverse", written) == "returns Bob@fabrikam.com (0)"
    assert sendmail.rewrite("Reverse", written) == ("Bob@fabrikam.com", 0)


@pytest.mark.parametrize(
    "rcpt", ["mary@contoso.com", "bounces+SRS=aaaaaaaa=JK=fabrikam.com=bob@contoso.com", "SRS0=a=b=c=d@fabrikam.com"]
)
def test_recipient_that_is_no_srs_address_of_ours_is_not_found(sendmail: Sendmail, rcpt: str) -> None:
    assert sendmail.look_up("reverse", rcpt) == f"no match ({NOT_FOUND})"
    assert sendmail.rewrite("Reverse", rcpt) == (rcpt, 0)


def test_long_lived_connection_answers_a_thousand_look_ups(sendmail: Sendmail) -> None:
    senders = [f"bob{number}@fabrikam.com" for number in range(1000)]
    written = [sendmail.rewrite("Forward", sender.replace("@", "<@") + ">")[0] for sender in senders]
    assert [sendmail.rewrite("Reverse", address) for address in written] == [(sender, 0) for sender in senders]


# What Sendmail makes of the rest: facts that the set-up must heed.


def test_map_that_policyd_does_not_have_is_an_error_that_a_ruleset_does_not_see(sendmail: Sendmail) -> None:
    assert sendmail.look_up("misspelled", "bob@fabrikam.com") == f"no match ({UNAVAILABLE})"
    assert sendmail.rewrite("Misspelled", "bob@fabrikam.com") == ("bob@fabrikam.com", 0)


def test_map_without_option_f_asks_in_lower_case(folder: Path, address: str) -> None:
    root = folder / "folding"
    root.mkdir()
    with Sendmail(root, maps(address).replace(" -f ", " "), RULESETS) as sendmail:
        written, _ = sendmail.rewrite("Forward", "Bob<@fabrikam.com>")
    shutil.rmtree(root)
    assert shape(written) == "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"


def test_policyd_that_has_been_restarted_is_a_temporary_failure_once(sendmail: Sendmail, policyd: Gatepost) -> None:
    assert sendmail.rewrite("Forward", "bob<@fabrikam.com>")[1] == 0
    policyd.stop()
    policyd.start()
    policyd.wait_for_log(r" ready$")
    assert sendmail.rewrite("Forward", "bob<@fabrikam.com>") == ("bob@fabrikam.com.TEMPFAIL", TEMPFAIL)
    written, status = sendmail.rewrite("Forward", "bob<@fabrikam.com>")
    assert (shape(written), status) == ("bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com", 0)


def test_policyd_that_is_away_is_a_temporary_failure(sendmail: Sendmail, policyd: Gatepost) -> None:
    policyd.stop()
    try:
        assert sendmail.rewrite("Forward", "bob<@fabrikam.com>") == ("bob@fabrikam.com.TEMPFAIL", TEMPFAIL)
        assert sendmail.look_up("reverse", "bob@fabrikam.com") == f"no match ({TEMPFAIL})"
    finally:
        policyd.start()
        policyd.wait_for_log(r" ready$")
