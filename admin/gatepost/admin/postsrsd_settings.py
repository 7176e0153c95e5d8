# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a host has set for postsrsd: Debian's shell variables of 1.x, or the configuration file of 2.x.

Nothing is run. What postsrsd does with each setting was tried with 1.10 and 2.4.1.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from gatepost.relay import normalize_domain
from gatepost.service.fields import Listen

CONF, DEFAULTS = Path("/etc/postsrsd.conf"), Path("/etc/default/postsrsd")
"""Where Debian's packages of 2.x and 1.x have their settings."""

_QUEUE = "/var/spool/postfix/"
_SECRET = "/etc/postsrsd.secret"
_SRS_DOMAIN = ("SRS_DOMAIN", "srs-domain")
_HASH_LENGTHS = (4, 27)
_LINE_OCTETS = 1023
"""postsrsd 1.x takes what is longer for two secrets."""
_SHELL = re.compile(r"^\s*(?:export\s+)?(?:SRS_\w+|RUN_AS|CHROOT)=", re.MULTILINE)
_ASSIGNMENT = re.compile(r"\w+=")
_SHELL_COMMENT = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*'|\\.)|(?<!\S)#[^\n]*""", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*|//[^\n]*|/\*.*?\*/)|(?P<mark>\+=|[={},])
    |"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<word>[^\s"'={}(),+\#]+)""",
    re.VERBOSE | re.DOTALL,
)
_NO_EQUAL = [
    *("unprivileged-user", "chroot-dir", "keep-alive", "connection-limit", "seccomp", "syslog", "debug", "daemonize"),
    *("pid-file", "domains-file-watch", "milter-rewrite-local", "milter-recipient-limit"),
]

Raw = Mapping[str, Sequence[str]]


class MoveError(Exception):
    """The move cannot be made; *status* is of sysexits.h."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Settings:
    """A postsrsd set-up in gatepost's words.

    exclude: domain patterns; exclude_file: a file of them, "" for none. tcp_forward, tcp_reverse, socketmap: the
    addresses that gatepost takes over. theirs: where postsrsd's socketmaps are, in main.cf's spelling. database: its
    addresses are tokens of a database, which it alone has.
    """

    srs_domain: str
    secret_file: Path
    separator: str
    hash_length: int
    hash_minimum: int
    base64url: bool
    domains: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_file: str = ""
    tcp_forward: str = ""
    tcp_reverse: str = ""
    socketmap: str = ""
    theirs: str = ""
    database: bool = False


@dataclass
class Given:
    """What stands in postsrsd's files. *problems* stop the import, *notes* say what becomes of a setting."""

    raw: Raw
    shell: bool
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def strings(self, name: str) -> tuple[str, ...]:
        self._known.add(name)
        values = tuple(self.raw.get(name, ()))
        if any(sign in value for value in values for sign in "$`\\"):
            instead = ", or give --domain" if name in _SRS_DOMAIN else ""
            self.problems.append(
                f"{name}: is computed when postsrsd starts; write its value there in plain text{instead}"
            )
            return ()
        return values

    def string(self, name: str, default: str = "") -> str:
        values = self.strings(name)
        return values[-1] if values else default

    def integer(self, name: str, default: int) -> int:
        text = self.string(name) or str(default)
        if _is_number(text):
            return int(text)
        self.problems.append(f'{name}: "{text}" is not a whole number')
        return default

    def port(self, name: str, default: int) -> int:
        return self.checked_port(name, self.integer(name, default))

    def checked_port(self, name: str, number: int) -> int:
        if not 0 < number < 65536:
            self.problems.append(f"{name}: {number} is not a port (1 to 65535)")
        return number

    def flag(self, name: str) -> bool:
        return self.string(name).lower() in ("true", "on", "yes")

    def domain(self, name: str, text: str) -> str:
        """Return the pattern for *text*: postsrsd's `.contoso.com`, its subdomains only, is `*.contoso.com` here."""
        bare = text[1:] if text.startswith(".") else text
        normal = normalize_domain(bare)
        if normal is None:
            hint = f" (postsrsd writes subdomains as {text[1:]})" if text.startswith("*.") else ""
            self.problems.append(f'{name}: "{text}" is not a domain name{hint}')
        return ("" if bare == text else "*.") + (normal or "")

    def present(self, names: Sequence[str]) -> list[str]:
        """Return those of *names* that are set to anything."""
        self._known.update(names)
        return [name for name in names if any(self.raw.get(name, ()))]

    def unknown(self) -> list[str]:
        return [name for name in self.raw if name not in self._known]


def default_sources() -> list[Path]:
    """Return the file that the installed postsrsd reads: 2.x leaves that of 1.x lying about."""
    for path in (CONF, DEFAULTS):
        if path.exists():
            return [path]
    raise MoveError(os.EX_NOINPUT, f"neither {CONF} nor {DEFAULTS} is there; --from names postsrsd's file")


def read(files: Sequence[Path]) -> Given:
    """Return the settings in *files*, whose form shows which postsrsd they are of."""
    raw: dict[str, Sequence[str]] = {}
    forms = set()
    commands: list[str] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise unreadable(f"{path}: cannot be read", error) from error
        except UnicodeDecodeError as error:
            raise MoveError(os.EX_DATAERR, f"{path}: is not UTF-8 (octet {error.start})") from error
        if not text.strip():
            raise MoveError(os.EX_DATAERR, f"{path}: is empty")
        shell = bool(_SHELL.search(text))
        forms.add(shell)
        try:
            if shell:
                words = _shell_words(text)
                raw.update((name, (value,)) for name, value in _assignments(words))
                commands += [word for word in words if not _ASSIGNMENT.match(word)]
            else:
                raw.update(_conf_options(text))
        except ValueError as error:
            raise MoveError(os.EX_DATAERR, f"{path}: is not in postsrsd's syntax: {error}") from error
    if len(forms) > 1:
        raise MoveError(os.EX_USAGE, "--from: some files are of postsrsd 1.x and some of 2.x; give those of one")
    given = Given(raw, shell=True in forms)
    if commands:
        given.notes.append(
            f"{' '.join(commands)}: for the shell a command, which is not run and not carried over; put quotes round a"
            " list that it belongs to"
        )
    return given


def unreadable(text: str, error: OSError) -> MoveError:
    """Return what to raise where *error* has kept a file from being read."""
    if isinstance(error, PermissionError):
        return MoveError(os.EX_NOPERM, f"{text}: {error.strerror}; run this as root")
    return MoveError(os.EX_NOINPUT, f"{text}: {error.strerror}")


def _is_number(text: str) -> bool:
    """Tell whether *text* is a whole number that int() takes, which is not so of ² nor of thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) < 10


def _shell_words(text: str) -> list[str]:
    """Return the words that a shell would see, but for `export` and `;`. Raises ValueError."""
    lexer = shlex.shlex(_SHELL_COMMENT.sub(r"\1", text.replace("\\\n", "")), posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    lexer.commenters = ""
    return [word for word in lexer if word != "export" and word.strip(";")]


def _assignments(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        if _ASSIGNMENT.match(word):
            name, _, value = word.partition("=")
            yield name, value


def _conf_options(text: str) -> dict[str, Sequence[str]]:
    """Return the options in libconfuse's form: `name = value`, `name = { value, value }`. Raises ValueError."""
    tokens = list(_conf_tokens(text))
    tokens.reverse()
    found: dict[str, Sequence[str]] = {}
    while len(tokens) > 1:
        name = _expect(tokens)
        sign = _expect(tokens, "=", "+=")
        values = []
        if _next_is(tokens, "{"):
            tokens.pop()
            while not _next_is(tokens, "}"):
                values.append(_expect(tokens))
                if not _next_is(tokens, "}"):
                    _expect(tokens, ",")
            _expect(tokens, "}")
        else:
            values.append(_expect(tokens))
        found[name] = [*found.get(name, ()), *values] if sign == "+=" else values
    return found


@dataclass(frozen=True)
class _Token:
    text: str
    is_mark: bool
    line: int


def _conf_tokens(text: str) -> Iterator[_Token]:
    """Yield the tokens, last the end as a mark. Raises ValueError."""
    at = 0
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"line {line}")
        at = match.end()
        if match["skip"] is None:
            words = (match["double"], match["single"], match["word"], match["mark"])
            yield _Token(next(word for word in words if word is not None), match["mark"] is not None, line)
    yield _Token("the end", True, text.rstrip().count("\n") + 1)


def _next_is(tokens: list[_Token], mark: str) -> bool:
    return tokens[-1].is_mark and tokens[-1].text == mark


def _expect(tokens: list[_Token], *marks: str) -> str:
    """Take the next of the reversed *tokens*: one of *marks*, or a word where there are none. Raises ValueError."""
    token = tokens.pop()
    if token.is_mark != bool(marks) or (marks and token.text not in marks):
        raise ValueError(f'line {token.line}: "{token.text}" where {" or ".join(marks) or "a word"} is due')
    return token.text


def settings_of(given: Given, domain: Optional[str]) -> Settings:
    """Return what *given* says. domain: the SRS domain where it names none, or computes it."""
    computed = [name for name in _SRS_DOMAIN if any(sign in "".join(given.raw.get(name, ())) for sign in "$`")]
    if domain and computed:
        given.raw = {name: values for name, values in given.raw.items() if name not in computed}
    settings = _of_1(given, domain) if given.shell else _of_2(given, domain)
    if domain and settings.srs_domain and normalize_domain(domain) != settings.srs_domain:
        given.problems.append(
            f"--domain: postsrsd's SRS domain is {settings.srs_domain}, and the addresses that it made end in that;"
            " leave --domain out"
        )
    for name in given.unknown():
        given.notes.append(f"{name}: is no setting of postsrsd's that gatepost knows, and is not carried over")
    return settings


def _of_1(given: Given, domain: Optional[str]) -> Settings:
    """Return the settings of postsrsd 1.x; defaults are those of Debian's start script."""
    srs_domain = given.string("SRS_DOMAIN") or domain or ""
    if not srs_domain and not given.problems:
        given.problems.append(
            "SRS_DOMAIN: is not set, so postsrsd took what `postconf -h mydomain` prints; give that as --domain"
        )
    length, minimum = _hash_lengths(given, "SRS_HASHLENGTH", "SRS_HASHMIN")
    host = given.string("SRS_LISTEN_ADDR")
    excluded = re.split(r"[,;\s]+", given.string("SRS_EXCLUDE_DOMAINS"))
    # An option stands before what follows it without a dash: -t 60.
    for option in re.findall(r"\S+(?:\s+[^-\s]\S*)*", given.string("SRS_EXTRA_OPTIONS")):
        if option == "-A":
            given.notes.append(_always("SRS_EXTRA_OPTIONS: -A"))
        else:
            given.notes.append(f"SRS_EXTRA_OPTIONS: {option} has no equal here and is not carried over")
    _note_address(given, "SRS_LISTEN_ADDR", _inet(host, 1).host)
    _note_form(given, database=False)
    _no_equal(given, ["RUN_AS", "CHROOT"])
    return Settings(
        srs_domain=given.domain("SRS_DOMAIN", srs_domain) if srs_domain else "",
        secret_file=Path(given.string("SRS_SECRET") or _SECRET),
        separator=_separator(given, "SRS_SEPARATOR"),
        hash_length=length,
        hash_minimum=minimum,
        base64url=False,
        exclude=tuple(given.domain("SRS_EXCLUDE_DOMAINS", item) for item in excluded if item),
        tcp_forward=str(_inet(host, given.port("SRS_FORWARD_PORT", 10001))),
        tcp_reverse=str(_inet(host, given.port("SRS_REVERSE_PORT", 10002))),
    )


def _of_2(given: Given, domain: Optional[str]) -> Settings:
    """Return the settings of postsrsd 2.x."""
    listed = [given.domain("domains", item) for item in given.strings("domains") if item]
    file = given.string("domains-file")
    filed = _domains_file(given, Path(file)) if file else []
    first = next(iter([*listed, *filed]), "")
    named = given.string("srs-domain")
    srs_domain = given.domain("srs-domain", named.lstrip(".")) if named else first.replace("*.", "") or domain or ""
    if not srs_domain and not given.problems:
        given.problems.append("srs-domain: is not set, nor is domains; give the SRS domain as --domain")
    length, minimum = _hash_lengths(given, "hash-length", "hash-minimum")
    database = given.string("original-envelope").lower() == "database"
    socketmap, theirs = _socketmap(given)
    _notes_of_2(given, database)
    as_file = bool(file) and not any(item.startswith("*.") for item in filed)
    if filed and not as_file:
        given.notes.append(f"domains-file: {file} has names with a leading dot, so its list is copied, not read on")
    listed += [] if as_file else filed
    return Settings(
        srs_domain=srs_domain,
        secret_file=Path(given.string("secrets-file") or _SECRET),
        separator=_separator(given, "separator"),
        hash_length=length,
        hash_minimum=minimum,
        base64url=True,
        domains=tuple(dict.fromkeys(item for item in listed if item[:2] != "*." and item != srs_domain)),
        exclude=tuple(dict.fromkeys(item for item in listed if item[:2] == "*.")),
        exclude_file=str(Path(file).absolute()) if as_file else "",
        socketmap="" if database else socketmap,
        theirs=theirs,
        database=database,
    )


def _domains_file(given: Given, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        given.problems.append(f"domains-file: {path} cannot be read")
        return []
    names = (line.partition("#")[0].strip() for line in lines)
    return [given.domain("domains-file", name) for name in names if name]


def _notes_of_2(given: Given, database: bool) -> None:
    if given.flag("always-rewrite"):
        given.notes.append(_always("always-rewrite"))
    if given.string("milter"):
        given.notes.append(
            "milter: gatepost's is no stand-in for postsrsd's. This configuration serves the canonical maps; set those,"
            " or take the example relay-hub or forwarder, and take postsrsd out of smtpd_milters"
        )
    given.present(["envelope-database"])
    if database:
        given.notes.append(
            'original-envelope: gatepost has tokens of its own (form = "compact"). The originals of those that postsrsd'
            " made are in its database: leave it running for the bounces of 21 days, as below"
        )
    _note_form(given, database=database)
    given.notes.append(
        "base64url = true, for postsrsd 2.2.6 and newer write - and _ in hashes. Where an older one on another host has"
        " the same secret, set it to false until that is moved, too"
    )
    _no_equal(given, _NO_EQUAL)


def _note_form(given: Given, *, database: bool) -> None:
    form, who = ("compact", "senders") if database else ("auto", "long senders")
    given.notes.append(
        f'form = "{form}": {who} get an address whose original this host alone has. Where other hosts have the same'
        ' secret: form = "long", or one PostgreSQL in store.url'
    )


def _note_address(given: Given, name: str, host: str) -> None:
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    given.notes.append(
        f"{name}: {host} lets other hosts ask for SRS addresses; where only Postfix on this host does, write 127.0.0.1"
    )


def _always(name: str) -> str:
    return (
        f"{name}: gatepost never rewrites senders in the SRS domain and addresses that are rewritten already; it"
        " leaves such mail as it is, and still brings back what postsrsd made of it"
    )


def _no_equal(given: Given, names: Sequence[str]) -> None:
    found = given.present(names)
    if found:
        given.notes.append(f"{', '.join(found)}: no equal here, and nothing that an SRS address depends on")


def _separator(given: Given, name: str) -> str:
    separator = given.string(name, "=") or "="
    if separator not in ("=", "+", "-"):
        given.problems.append(f'{name}: "{separator}" is not one of "=", "+", "-"')
    return separator


def _hash_lengths(given: Given, length_name: str, minimum_name: str) -> tuple[int, int]:
    """Return length and minimum within what gatepost takes; say what becomes of addresses that are outside of it."""
    lowest, highest = _HASH_LENGTHS
    asked, asked_minimum = given.integer(length_name, 4), given.integer(minimum_name, 4)
    length = min(max(asked, lowest), highest)
    minimum = min(max(asked_minimum, lowest), length)
    if asked < lowest:
        given.notes.append(
            f"{length_name}: {asked} becomes {length}. So short a hash is soon guessed, and gatepost does not take it:"
            " bounces to addresses that postsrsd made until today are lost"
        )
    elif asked > highest:
        given.notes.append(f"{length_name}: {asked} becomes {highest}: an SHA-1 hash has no more characters than that")
    if asked_minimum < lowest <= asked:
        given.notes.append(
            f"{minimum_name}: {asked_minimum} becomes {minimum}. Bounces to addresses with a shorter hash, which a"
            f" smaller {length_name} made before, are lost"
        )
    elif asked_minimum > length:
        given.notes.append(f"{minimum_name}: {asked_minimum} becomes {minimum}: no address has a longer hash than that")
    return length, minimum


def _socketmap(given: Given) -> tuple[str, str]:
    """Return the address that gatepost takes over, "" for none, and postsrsd's own in main.cf's spelling.

    A Unix socket is not taken over: postsrsd makes it as root, in a folder where gatepost may not.
    """
    text = given.string("socketmap", "unix:/var/spool/postfix/srs")
    kind, _, rest = text.partition(":")
    if not text:
        return "", ""
    if kind in ("unix", "local"):
        return "", f"unix:{rest[len(_QUEUE) :] if rest.startswith(_QUEUE) else rest}"
    host, _, port = rest.rpartition(":")
    if kind not in ("inet", "inet4", "inet6") or not _is_number(port):
        given.problems.append(f'socketmap: "{text}" is no address that gatepost can listen on')
        return "", ""
    listen = _inet(host.strip("[]"), given.checked_port("socketmap", int(port)), version_6=kind == "inet6")
    _note_address(given, "socketmap", listen.host)
    return str(listen), str(listen)


def _inet(host: str, port: int, *, version_6: bool = False) -> Listen:
    if host == "*":
        host = "::" if version_6 else "0.0.0.0"
    elif host in ("", "localhost"):
        host = "::1" if version_6 else "127.0.0.1"
    return Listen(host=host, port=port)


def secrets_in(path: Path, given: Given) -> list[bytes]:
    """Return the secrets in postsrsd's file: it takes each line as it stands, but for CR and LF."""
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise unreadable(f"{path}: the secret cannot be read", error) from error
    found = []
    for number, line in enumerate(octets.split(b"\n"), 1):
        secret = line.strip(b"\r")
        why = _unfit(secret)
        if why:
            given.problems.append(
                f"{path}: line {number} {why}. gatepost would make another secret of it. Put a new one in front there,"
                " let postsrsd sign with that for 21 days, then take this one out and import again"
            )
        elif secret:
            found.append(secret)
    if not found and not given.problems:
        given.problems.append(f"{path}: holds no secret")
    return found


def _unfit(secret: bytes) -> str:
    """Return why gatepost cannot read *secret* from a line as postsrsd does, "" where it can."""
    if secret != secret.strip():
        return "begins or ends with a blank"
    if secret.startswith(b"#"):
        return "begins with #, as a comment does"
    if b"\0" in secret or b"\r" in secret:
        return "has a NUL or CR in it"
    return f"is longer than {_LINE_OCTETS - 1} octets" if len(secret) >= _LINE_OCTETS else ""
