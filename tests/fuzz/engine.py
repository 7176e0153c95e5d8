# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop: change valid samples at random, give them to a target, and keep what brings out something new.

The same seed gives the same inputs. What a target says of an input is its outcome; an input with an outcome that none
had before is changed further, so that the loop gets ever deeper. Whatever a target raises is a finding.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from zlib import crc32

SLOW_S = 0.5
"""CPU time that an input of up to 64 kB may take at the most."""
MEGABYTE_S = 8.0
USUAL = 8192
"""Octets of an input at the most, but for some that are made to be long."""
KINDS = 3000
FINDINGS = 5
"""So many of different places are enough."""
_SHRINK_S = 5.0
_OUTCOME = 80

TOKENS = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b"\t", b" ", b"\x0b", b"\x1b[2J", b"\x7f", b"\x80", b"\xff", b"\xc0\xaf"),
    *(b"\xed\xa0\x80", "\u2028".encode(), "\u0085".encode(), "\u017f".encode(), "\u212a".encode(), "\u00a0".encode()),
    *("ü".encode(), "İ".encode(), "ß".encode(), "\u202e".encode(), "\U0001f4e7".encode(), "。".encode()),
    *(b'"', b"'", b"\\", b"<", b">", b"@", b"@@", b"%", b"%00", b"%0d%0a", b"%2B", b"!", b"(", b")", b"[", b"]"),
    *(b"{", b"}", b",", b";", b":", b"=", b"+", b"-", b".", b"..", b"#", b"*", b"/", b"|", b"$", b"`", b"&", b"?"),
    *(b"0", b"-1", b"4294967296", b"9" * 30, b"9" * 5000, b"1e999", b"0x" + b"f" * 5000, b"a" * 65, b"a" * 300),
)
"""What parsers trip over, whatever they read."""


SELDOM = 8
"""Of so many inputs one is also given to what takes long."""


def seldom(octets: bytes, times: int = SELDOM) -> bool:
    """Tell whether this input is one of those; the same one always is."""
    return crc32(octets) % times == 0


@dataclass(frozen=True)
class Target:
    """Something that reads octets of others.

    what: where these come from. oracle: what is checked of each input. check: takes an input and returns what became of
    it in a few words; raises where that must not be. samples: valid inputs. tokens: what its syntax is made of.
    longest: the longest input that can reach it, in octets.
    """

    name: str
    what: str
    oracle: str
    check: Callable[[bytes], str]
    samples: Sequence[bytes]
    tokens: Sequence[bytes] = ()
    longest: int = 1 << 16
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Finding:
    """An input that must not have become of it what did: *where* in the code, and *told* in full."""

    octets: bytes
    where: str
    told: str


@dataclass
class Report:
    """What became of the inputs of a target. slowest_s: CPU time of one."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)


def run(
    target: Target, inputs: int, seed: int, *, growth: bool = True, goes_on: Callable[[], bool] = lambda: True
) -> Report:
    """Give *target* so many inputs, and where *growth* some very long ones beside. *goes_on* is asked now and then."""
    random, report, pool = Random(f"{seed} {target.name}"), Report(), list(target.samples)
    tokens = (*TOKENS, *target.tokens, *target.tokens)
    for number in range(inputs):
        octets = pool[number] if number < len(target.samples) else _changed(random, pool, tokens)[:USUAL]
        if number % 256 == 0 and not goes_on():
            return report
        if _fed(target, octets, report, SLOW_S) and len(pool) < KINDS:
            pool.append(octets)
        if len(report.findings) >= FINDINGS:
            break
    for octets in _long(random, target, tokens) if growth else ():
        goes_on()
        _fed(target, octets, report, max(SLOW_S, MEGABYTE_S * len(octets) / (1 << 20)))
    return report


def _fed(target: Target, octets: bytes, report: Report, limit_s: float) -> bool:
    """Give *target* an input; return whether that had an outcome that is new."""
    report.inputs += 1
    began = time.process_time()
    try:
        outcome = target.check(octets)[:_OUTCOME]
        spent = time.process_time() - began
        if spent > limit_s:
            spent = min(spent, _again(target, octets))  # this machine does other things, too
        if spent > limit_s:
            raise AssertionError(f"{spent:.2f} s for {len(octets)} octets")
    except Exception as error:  # noqa: BLE001  whatever it is
        where = _where(error)
        if where not in report.findings:
            told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            report.findings[where] = Finding(_shrunk(target, octets, where), where, told)
        return False
    report.slowest_s = max(report.slowest_s, spent)
    report.outcomes[outcome] += 1
    return report.outcomes[outcome] == 1


def _again(target: Target, octets: bytes) -> float:
    began = time.process_time()
    target.check(octets)
    return time.process_time() - began


def _where(error: Exception) -> str:
    """Return the place that raised *error*."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/gatepost/" in frame.filename]
    last = (frames or traceback.extract_tb(error.__traceback__))[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"


def _shrunk(target: Target, octets: bytes, where: str) -> bytes:
    """Leave out of *octets* what is not needed for the same finding."""
    until, size = time.monotonic() + _SHRINK_S, len(octets)
    while size and time.monotonic() < until:
        for begin in range(0, len(octets), size):
            fewer = octets[:begin] + octets[begin + size :]
            try:
                target.check(fewer)
            except Exception as error:  # noqa: BLE001
                if _where(error) == where:
                    octets = fewer
            if time.monotonic() > until:
                break
        size //= 2
    return octets


def _changed(random: Random, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    octets = pool[int(len(pool) * random.random())]
    for _ in range(1 + int(random.expovariate(0.6))):
        octets = _CHANGES[int(len(_CHANGES) * random.random())](random, octets, pool, tokens)
    return octets


def _place(random: Random, octets: bytes) -> int:
    return int((len(octets) + 1) * random.random())


def _span(random: Random, octets: bytes) -> tuple[int, int]:
    begin = _place(random, octets)
    return begin, min(len(octets), begin + int(random.expovariate(0.1)) + 1)


def _flip(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    if not octets:
        return octets
    at = int(len(octets) * random.random())
    return octets[:at] + bytes([octets[at] ^ 1 << int(8 * random.random())]) + octets[at + 1 :]


def _insert(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(random, octets)
    return octets[:at] + tokens[int(len(tokens) * random.random())] + octets[at:]


def _replace(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(random, octets)
    return octets[:begin] + tokens[int(len(tokens) * random.random())] + octets[end:]


def _delete(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(random, octets)
    return octets[:begin] + octets[end:]


def _repeat(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(random, octets)
    return octets[:end] + octets[begin:end] * random.choice((1, 1, 1, 2, 3, 20)) + octets[end:]


def _move(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(random, octets)
    rest = octets[:begin] + octets[end:]
    at = _place(random, rest)
    return rest[:at] + octets[begin:end] + rest[at:]


def _splice(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    other = random.choice(pool)
    return octets[: _place(random, octets)] + other[_place(random, other) :]


def _borrow(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    other, at = random.choice(pool), _place(random, octets)
    begin, end = _span(random, other)
    return octets[:at] + other[begin:end] + octets[at:]


def _cut(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    return octets[: _place(random, octets)]


def _case(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(random, octets)
    return octets[:begin] + octets[begin:end].swapcase() + octets[end:]


def _noise(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(random, octets)
    return octets[:at] + random.getrandbits(32).to_bytes(4, "big")[: 1 + random.getrandbits(2)] + octets[at:]


def _character(random: Random, octets: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(random, octets)
    return octets[:at] + chr(random.randrange(0x20, 0xD800)).encode() + octets[at:]


_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes], Sequence[bytes]], bytes], ...] = (
    *(_flip, _insert, _insert, _replace, _replace, _delete, _repeat, _move, _splice, _borrow, _cut, _case),
    *(_noise, _character),
)


def _long(random: Random, target: Target, tokens: Sequence[bytes]) -> Iterator[bytes]:
    """Yield inputs of 64 kB, and of 1 MB where such can reach *target*: a piece that comes again and again."""
    for size in (1 << 16, 1 << 20):
        if size > target.longest:
            return
        for piece in tokens if size == 1 << 16 else random.sample(list(tokens), 12):
            sample = random.choice(target.samples)
            at = _place(random, sample)
            count = (size - len(sample)) // len(piece)
            yield (sample[:at] + piece * count + sample[at:])[:size]
        for _ in range(12):
            one = _changed(random, target.samples, tokens) or b"x"
            yield (one * (size // len(one) + 1))[:size]
