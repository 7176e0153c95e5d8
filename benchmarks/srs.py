# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS in one process: a sender's address to the SRS address and back, as text, against pysrs and Mail::SRS.

Like against like: format srs0, which both peers have, with the same secrets, senders and hash length; all three must
make the same addresses. Each call is for another sender, of whom there are 20,000 in 500 domains. The peers check no
address; neither do `forward_text` and `reverse_text`, which the targets are about. The rows "checked" are what the
daemons do, which take and give nothing but mail addresses. Format exchange, which no peer has, is for the record.
"""

from __future__ import annotations

import base64
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Callable

from benchmarks.figures import Effort, Figure, in_turn
from benchmarks.programs import cache
from gatepost.srs import Address, Classic, Exchange, Keys

PYSRS = "pysrs==1.0.3"
SRS_DOMAIN = "contoso.com"
SECRETS = ("the newest of the secrets, 32 octets", "the one before it, of 32 octets", "the oldest of them all")
SENDERS = [f"app{number:05}.notices@mail{number % 500}.vendor.example" for number in range(20_000)]
BLOCK = 1000
"""So many calls between two looks at the clock."""

PERL = """
use Mail::SRS;
use Time::HiRes qw(time);
my ($way, $seconds, $srs_domain, @secrets) = @ARGV;
my $srs = Mail::SRS->new(Secret => \\@secrets, Separator => "=", HashLength => 4);
chomp(my @addresses = <STDIN>);
if ($way eq "show") {
    print $srs->forward($_, $srs_domain), "\\n" for @addresses;
    exit;
}
my ($calls, $next, $start) = (0, 0, time);
while (time - $start < $seconds) {
    for (1 .. 1000) {
        my $address = $addresses[$next++ % @addresses];
        $way eq "forward" ? $srs->forward($address, $srs_domain) : $srs->reverse($address);
    }
    $calls += 1000;
}
print $calls / (time - $start), "\\n";
"""

Call = Callable[[str], object]


def run(effort: Effort) -> Iterable[Figure]:
    """Yield addresses a second, forward and in reverse, with one secret and with three."""
    pysrs = _pysrs()
    for secrets in (SECRETS[:1], SECRETS):
        yield from _against_peers(effort, pysrs, secrets)
        yield from _for_the_record(effort, secrets)


def rate(call: Call, addresses: Sequence[str], seconds: float) -> float:
    """Return how many calls a second are done, over and over all of *addresses*, for *seconds*."""
    calls, start = 0, time.perf_counter()
    while True:
        for first in range(0, len(addresses), BLOCK):
            for address in addresses[first : first + BLOCK]:
                call(address)
            calls += BLOCK
            spent = time.perf_counter() - start
            if spent >= seconds:
                return calls / spent


def _against_peers(effort: Effort, pysrs: Any, secrets: Sequence[str]) -> Iterable[Figure]:
    calls, peer = _calls(secrets), pysrs.new(secret=secrets, hashlength=4)
    # The worst case of several secrets: the address was made with the one that is tried last.
    returned = [str(_calls(secrets[-1:])["srs0 forward"](sender)) for sender in SENDERS]
    _agree(pysrs, secrets[-1], returned)
    ways: list[tuple[str, list[str], Call]] = [
        ("forward", SENDERS, lambda sender: peer.forward(sender, SRS_DOMAIN)),
        ("reverse", returned, peer.reverse),
    ]
    for way, addresses, theirs in ways:
        text, checked, python, perl = in_turn(
            effort.rounds,
            partial(rate, calls[f"srs0 {way}"], addresses, effort.seconds),
            partial(rate, calls[f"srs0 {way}, checked"], addresses, effort.seconds),
            partial(rate, theirs, addresses, effort.seconds),
            partial(_rate_of_perl, way, addresses, secrets, effort.seconds),
        )
        number = _number(secrets)
        yield Figure(f"srs0 {way}, {number}", "/s", text, "pysrs", python, target=2.0)
        yield Figure(f"srs0 {way}, {number}", "/s", text, "Mail::SRS", perl, target=2.0)
        yield Figure(f"srs0 {way}, checked, {number}", "/s", checked, "pysrs", python)
        yield Figure(f"srs0 {way}, checked, {number}", "/s", checked, "Mail::SRS", perl)


def _for_the_record(effort: Effort, secrets: Sequence[str]) -> Iterable[Figure]:
    calls, oldest = _calls(secrets), _calls(secrets[-1:])
    returned = [str(oldest["exchange forward"](sender)) for sender in SENDERS]
    for way, addresses in (("forward", SENDERS), ("reverse", returned)):
        name = f"exchange {way}"
        (rates,) = in_turn(effort.rounds, partial(rate, calls[name], addresses, effort.seconds))
        yield Figure(f"{name}, checked, {_number(secrets)}", "/s", rates)


def _calls(secrets: Sequence[str]) -> dict[str, Call]:
    """Return what is timed of gatepost, from text to text, the day of the clock included, as in the peers."""
    keys = Keys([secret.encode() for secret in secrets])
    classic, exchange, parse = Classic(keys), Exchange(keys), Address.parse

    def forward_text(sender: str) -> str:
        local, _, domain = sender.rpartition("@")
        return f"{classic.forward_text(local, domain, SRS_DOMAIN, _today())}@{SRS_DOMAIN}"

    def reverse_text(address: str) -> str:
        return "@".join(classic.reverse_text(address.rpartition("@")[0], _today()))

    return {
        "srs0 forward, checked": lambda sender: str(classic.forward(parse(sender), SRS_DOMAIN, _today())),
        "srs0 reverse, checked": lambda address: str(classic.reverse(parse(address), _today())),
        "srs0 forward": forward_text,
        "srs0 reverse": reverse_text,
        "exchange forward": lambda sender: str(exchange.forward(parse(sender), "bounces", SRS_DOMAIN, _today())),
        "exchange reverse": lambda address: str(exchange.reverse(parse(address), _today())),
    }


def _today() -> int:
    return int(time.time()) // 86400


def _number(secrets: Sequence[str]) -> str:
    return "1 secret" if len(secrets) == 1 else f"{len(secrets)} secrets"


def _agree(pysrs: Any, secret: str, made: Sequence[str]) -> None:
    """Check that the peers make the same addresses. Raises RuntimeError."""
    peer = pysrs.new(secret=[secret], hashlength=4)
    python = [peer.forward(sender, SRS_DOMAIN) for sender in SENDERS]
    perl = _perl("show", SENDERS, [secret], 0).split()
    if not made == python == perl:
        raise RuntimeError("the peers make other SRS0 addresses (or a day has just begun)")


def _rate_of_perl(way: str, addresses: Sequence[str], secrets: Sequence[str], seconds: float) -> float:
    return float(_perl(way, addresses, secrets, seconds))


def _perl(way: str, addresses: Sequence[str], secrets: Sequence[str], seconds: float) -> str:
    command = ["perl", "-e", PERL, way, str(seconds), SRS_DOMAIN, *secrets]
    return subprocess.run(command, input="\n".join(addresses), stdout=subprocess.PIPE, text=True, check=True).stdout


def _pysrs() -> Any:
    """Return pysrs' module SRS, which pip puts into the cache folder unless it is there."""
    folder = cache() / "benchmarks" / PYSRS.replace("==", "-")
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        options = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", draft, PYSRS], check=True)
        draft.rename(folder)
    base64.encodestring = base64.encodebytes  # type: ignore[attr-defined]  # its old name, gone since Python 3.9
    sys.path.append(str(folder))
    return importlib.import_module("SRS")
