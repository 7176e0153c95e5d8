# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets: files, of operators, of Exchange Online, of other programs, and the ledger's spool."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Union

import click

from gatepost.admin import check_batch, check_message, config_commands, postsrsd_settings
from gatepost.admin.check_batch import BatchError
from gatepost.admin.check_command import QuestionError, check_question
from gatepost.admin.check_model import Question
from gatepost.relay import AcceptedDomain
from gatepost.relay.exchange_export import Export, ExportError, limited, read, together
from gatepost.relay.names import is_normal
from gatepost.service import certificates, unchanged
from gatepost.service import config as configuration
from gatepost.service.config import Config, load
from gatepost.service.ledger import TEXT_LIMIT, Bounced, Entry, line, merged, newer, record
from gatepost.service.loader import Loader
from gatepost.service.secret import read_secret, write_secret
from gatepost.service.snapshot import build
from gatepost.service.tables import ConfigError
from gatepost.srs import Key, Keys

from .engine import Target, seldom

_TOP = Path(__file__).parent.parent.parent
_MEGABYTE = 1 << 20
ORGANIZATION = b"""[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "office"
sender_ip_addresses = ["192.0.2.0/28", "2001:db8::/64"]
tls_sender_certificate_name = "*.contoso.com"
"""


def _line(text: str) -> None:
    """Fail where *text* is not one line that a terminal may show."""
    assert text.isprintable(), f"not one line: {text!r}"


def _examples() -> Iterator[bytes]:
    for path in sorted((_TOP / "examples").rglob("gatepost.toml")):
        text = re.sub(r"(?m)#.*$\n?", "", path.read_text())
        yield text.encode()
        yield from (piece.encode() + b"\n" for piece in re.split(r"\n(?=\[\w)", text))


def config(folder: Path) -> Target:
    path, before = folder / "gatepost.toml", folder / "before.toml"
    path.write_bytes(ORGANIZATION)
    known = unchanged.load(path)
    samples = [
        *(ORGANIZATION, *_examples(), b'[relay]\nmode = "monitor"\nenforce_from = 2026-12-01T09:00:00Z\n'),
        *(b'[upstream]\norganization = "contoso"\nsender_ip_addresses = ["203.0.113.5"]\n' + ORGANIZATION,),
        *(
            b'[srs]\nexclude = ["*.example"]\nvalidity_days = 30\n[srs.srs0]\nhash_length = 4\n',
            b"[ledger]\ndays = 0\n",
        ),
        *(
            b'[store]\nurl = "postgresql://u:p@db/gatepost"\n',
            b'[dns]\nnameservers = ["127.0.0.1:53"]\nfcrdns = true\n',
        ),
        *(
            b"[milter]\nworkers = 4\n" + ORGANIZATION * 2,
            b"[egress]\n[metrics]\nlisten = '[::1]:9797'\n" + ORGANIZATION,
        ),
    ]
    tokens = [
        *(
            b"\n[relay]\n",
            b"\n[[organization]]\n",
            b" = true\n",
            b" = 1\n",
            b" = []\n",
            b' = ""\n',
            b" = {}\n",
            b'"""',
            b"'''",
        ),
        *(
            b"0001-01-01T00:00:00+23:59",
            b"9999-12-31T23:59:59-23:59",
            b"inf",
            b"-nan",
            b"0b1",
            b"srs_domain",
            b"mode",
            b"a.b",
        ),
    ]
    oracle = (
        "a configuration, or errors that each are one printable line with the file's name; a reload takes the same; "
        "what `config show` prints is the same configuration"
    )

    def check(octets: bytes) -> str:
        if re.search(rb"(?:\.[^.\n]*){500}", octets):  # such a key takes tomllib gigabytes; the file is root's
            return "a key of hundreds of parts"
        path.write_bytes(octets)
        found = _read(load, path)
        if seldom(octets):
            assert _read(partial(unchanged.load, before=known), path) == found, "a reload makes something else of it"
        if not isinstance(found, Config):
            assert 1 <= len(found) <= len(octets) + 3
            for problem in found:
                _line(problem)
                assert problem.startswith((path.name, str(path))), f"no file in it: {problem}"
            return re.sub(r'"[^"]*"|\d+|[:(].*', "", found[0].partition(": ")[2])
        for warning in found.warnings:
            _line(warning)
        build(found, Keys([b"key"]), 0.0)
        if seldom(octets):
            _shown(found, before, path)
        return f"{len(found.organizations)} {found.relay.mode} {bool(found.egress)} {len(found.warnings)}"

    return Target("config", "gatepost.toml", oracle, check, samples, tokens, longest=_MEGABYTE)


def _read(how: Callable[[Path], Config], path: Path) -> Union[Config, tuple[str, ...]]:
    """Return the configuration, or the problems with it."""
    try:
        return how(path)
    except ConfigError as error:
        return error.problems


def _shown(found: Config, path: Path, written: Path) -> None:
    text = "\n".join(config_commands._document(found, configuration.read(written)))
    for shown in text.split("\n"):
        _line(shown)
    path.write_text(text)
    again = load(path)
    assert (again.organizations, again.relay.mode, again.milter) == (
        found.organizations,
        found.relay.mode,
        found.milter,
    )


def secret(folder: Path) -> Target:
    path = folder / "srs.secret"
    path.touch(0o600)
    path.write_bytes(b"a\n")
    path.chmod(0o600)
    samples = [
        b"secret\n",
        b"# signs from 2026-11-23\nnew\nold\n",
        b"\nA comment\n# signs from tomorrow\nx\n",
        b"a\r\nb\rc",
    ]
    oracle = "keys that are written and read again as they are, or one line of error without any octet of a key"

    def check(octets: bytes) -> str:
        path.write_bytes(octets)
        try:
            keys = read_secret(path)
        except ConfigError as error:
            (problem,) = error.problems
            _line(problem)
            assert problem.startswith(f"{path}: ")
            return problem[len(str(path)) :][:30]
        Keys(keys).sign(b"x", 20_000)
        assert all(isinstance(key, Key) and key.secret == key.secret.strip() != b"" for key in keys)
        write_secret(path, keys)
        assert read_secret(path) == keys
        return f"{min(len(keys), 3)} {sum(bool(key.signs_from) for key in keys[:3])}"

    tokens = [b"# signs from ", b"2026-11-23", b"9999-12-31", b"0000-00-00", b"\n#", b"# SIGNS  FROM\t"]
    return Target("secret", "the file of SRS secrets", oracle, check, samples, tokens)


_DOMAINS = b"""[{"DomainName":"contoso.com","DomainType":"Authoritative","Default":true,"InitialDomain":false,
"MatchSubDomains":false,"OutboundOnly":false,"PendingRemoval":false,"Name":"contoso.com","WhenChangedUTC":"/Date(1)/"},
{"DomainName":"corp.contoso.com","DomainType":2,"Default":false,"MatchSubDomains":true,"Name":"Corp"}]"""
_CONNECTORS = b"""[{"Enabled":true,"ConnectorType":"OnPremises","SenderIPAddresses":[],"SenderDomains":["smtp:*;1"],
"AssociatedAcceptedDomains":["contoso.com"],"RequireTls":true,"TlsSenderCertificateName":"*.contoso.com","Name":"cert",
"WhenChangedUTC":"2026-07-23T22:55:13.0000000Z","IsValid":true},{"Enabled":true,"ConnectorType":{"value":1,
"Value":"OnPremises"},"SenderIPAddresses":{"value":["203.0.113.0/28",{"Expression":"192.0.2.1"}],"Count":2},
"SenderDomains":["smtp:*;1"],"TlsSenderCertificateName":null,"Name":"ip-relay","Identity":"ip-relay"}]"""
_CSV = b"""#TYPE Selected
"DomainName","DomainType","Default","MatchSubDomains"\n"contoso.com","Authoritative","True","False"
"corp.contoso.com","InternalRelay","False","True"\n"""
_CSV_CONNECTORS = b"""Name;Enabled;ConnectorType;SenderIPAddresses;TlsSenderCertificateName;SenderDomains
office;True;OnPremises;"{192.0.2.0/28, 203.0.113.7}";;{smtp:*;1}\n"""


def exchange(folder: Path) -> Target:
    path = folder / "gatepost.toml"
    path.write_bytes(b'[[organization]]\nname = "contoso"\nexchange_export = ["export"]\n')
    texts = (
        _DOMAINS,
        _CONNECTORS,
        _CSV,
        _CSV_CONNECTORS,
        _DOMAINS[:-1] + b"," + _CONNECTORS[1:],
        b'{"value":[],"Count":0}',
    )
    samples = [*texts, *(text.decode().encode("utf-16") for text in texts), b"\xef\xbb\xbf" + _DOMAINS]
    tokens = [
        *(
            b"null",
            b"true",
            b"[",
            b"{}",
            b'""',
            b'"\\ud800"',
            b'"\\u0000"',
            b"1e400",
            b"NaN",
            b"-1",
            b'"Default":',
            b"/Date(",
        ),
        *(
            b"System.Collections",
            b'"value":',
            b'"Count":',
            b"OnPremises",
            b"\xff\xfe",
            b"\xfe\xff",
            b'","',
            b'"*.x.example"',
        ),
    ]
    oracle = (
        "records of normal domains and real networks, or errors with the file's name; UTF-8 and UTF-16 read alike; the "
        "configuration that names it loads, or tells in single lines why not"
    )

    def check(octets: bytes) -> str:
        if seldom(octets):
            (folder / "export").write_bytes(octets)
            loaded = _read(load, path)
            for problem in () if isinstance(loaded, Config) else loaded:
                _line(problem)
                assert problem.startswith("gatepost.toml: organization[0]")
        try:
            found = read(octets, "export")
        except ExportError as error:
            safe = all(problem.startswith("export") for problem in error.problems)
            return re.sub(r'"[^"]*"|[0-9]+|[(].*', "", error.problems[0] if safe else _unsafe(error.problems))
        _exported(found)
        if octets[:2] not in (b"\xff\xfe", b"\xfe\xff") and octets[:1] != b"\0" and octets[1:2] != b"\0":
            assert read(octets.decode("utf-8-sig").encode("utf-16"), "export") == found, "UTF-16 reads otherwise"
        return str([(item.is_connector, item.item is None, item.why[:20]) for item in found.records[:4]])

    return Target("exchange", "exports of Exchange Online", oracle, check, samples, tokens, longest=_MEGABYTE)


def _unsafe(problems: Sequence[str]) -> str:
    raise AssertionError(f"a problem without its file: {problems}")


def _exported(found: Export) -> None:
    for item in found.records:
        if isinstance(item.item, AcceptedDomain):
            assert is_normal(item.item.domain)
        elif item.item is not None:
            name = item.item.tls_sender_certificate_name
            assert name is None or is_normal(name.replace("*.", "", 1))
            assert name or item.item.sender_ip_addresses
            assert item.item.name.isprintable()
    try:
        for item in limited(together([found]), ["contoso.com"]):
            if item.item is not None and not isinstance(item.item, AcceptedDomain):
                assert set(item.item.associated_accepted_domains) <= {"contoso.com", "corp.contoso.com"}
    except ExportError:
        pass


_ENTRY = Entry(
    reference="ABCDEFGHIJ",
    recipient="x@example.com",
    time=1.7e9,
    queue_id="4CgSNs5Q9s",
    client="192.0.2.5",
    helo="app",
    certificate_names="mail.contoso.com",
    reverse_path="bob@fabrikam.com",
    sender_domain="fabrikam.com",
    rewritten="bounces+srs=x=aa=fabrikam.com=bob@contoso.com",
    header_from="bob@fabrikam.com",
    organization="contoso",
    connector="office",
    requirements="2023-11-01",
    verdict_current="refuse",
    verdict_legacy="relay",
    reason="nothing-accepted",
    action="reject",
    size_bytes=4711,
    message_id="<1@x>",
    subject="Subject \udcff",
    fcrdns="none",
    upstream="relay",
)
_SPOOLED = [
    *(line(_ENTRY), line(Bounced("bounces+srs=x@contoso.com", 1.7e9)), line(_ENTRY._replace(subject="ü" * 990))),
    *(line(Entry("R", "y", 0)), line(_ENTRY).replace(b"[2,", b"[1,"), b'[1,"Bounced","a@b",1.0]\n'),
]
_JSON = [
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"1e999",
    b"-1",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"Entry"',
    b'"Bounced"',
    b"[2,",
    b"NaN",
]


def ledger(folder: Path) -> Target:
    oracle = "refused, or a record that every database takes and that reads back as it is; entries merge in any order"

    def check(octets: bytes) -> str:
        try:
            found = record(octets)
        except (ValueError, TypeError) as error:
            return re.sub(r"[0-9]+|:.*", "", str(error))[:50]
        assert line(found).count(b"\n") == 1
        assert record(line(found)) == found
        for value in found:
            if isinstance(value, str):
                assert len(value.encode()) <= TEXT_LIMIT
                assert "\0" not in value
        if isinstance(found, Entry):
            assert merged(found, _ENTRY) == merged(_ENTRY, found)
            assert merged(found, found)._replace(forwarded_to="") == found._replace(forwarded_to="")
        return f"{type(found).__name__} {found.time}"[:12]

    return Target("ledger", "lines of the ledger's spool", oracle, check, _SPOOLED, _JSON, longest=_MEGABYTE)


def spool(folder: Path) -> Target:
    (folder / "gatepost.toml").write_text(f'state_directory = "{folder}"\n')
    loader = Loader(load(folder / "gatepost.toml"))
    assert loader.lock()
    loader.load()
    database = sqlite3.connect(folder / "gatepost.db", isolation_level=None)
    oracle = "each good line is in the store, every other one is left out, and the file is gone"
    number = 0

    def check(octets: bytes) -> str:
        nonlocal number
        number += 1
        good = line(_ENTRY._replace(reference=f"GOOD{number}"))
        file = loader.folder / f"{number:020}-1.spool"
        file.write_bytes(octets + b"\n" + good)
        if newer(octets):  # it waits for the release that has written it
            with contextlib.suppress(OSError):
                loader.load()
            file.unlink()
            return "newer"
        while not loader.load():
            pass
        assert not list(loader.folder.glob("*.spool")), "the file stays"
        statement = "select count(*) from ledger where reference = ?"
        assert database.execute(statement, (f"GOOD{number}",)).fetchone() == (1,), "a good line is lost"
        if number % 500 == 0:
            database.execute("delete from ledger")
        return str(sum(piece.startswith((b'[2,"Entry"', b'[2,"Bounced"')) for piece in octets.splitlines()))

    def close() -> None:
        database.close()
        loader.close()

    samples = [*_SPOOLED, b"".join(_SPOOLED), b"\n" * 10, _SPOOLED[0][:-20]]
    return Target("spool", "files of the ledger's spool", oracle, check, samples, _JSON, longest=_MEGABYTE, close=close)


_CERTIFICATE = b"""-----BEGIN CERTIFICATE-----
MIIB4TCCAYegAwIBAgIUSmU7ohIr1xWlHdjHz376FleP3QwwCgYIKoZIzj0EAwIw
MDETMBEGA1UECgwKQ29udG9zbyBDQTEZMBcGA1UEAwwQbWFpbC5jb250b3NvLmNv
bTAeFw0yNjExMjIxNzA1MThaFw0zNjExMTkxNzA1MThaMDAxEzARBgNVBAoMCkNv
bnRvc28gQ0ExGTAXBgNVBAMMEG1haWwuY29udG9zby5jb20wWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAARiWjC2WpcE92dZFfdRzM9tlp3y+RCRUEnF1faziHjdVdCi
+dNOcH19TaF9iDmEiPZZEt/4Hvp8gbysMrAe6Lmgo38wfTAdBgNVHQ4EFgQUo7JO
uZx4k85U/LLlfyI/nU3ArzUwHwYDVR0jBBgwFoAUo7JOuZx4k85U/LLlfyI/nU3A
rzUwMAYDVR0RBCkwJ4IQbWFpbC5jb250b3NvLmNvbYINKi5jb250b3NvLmNvbYcE
wAACATAJBgNVHRMEAjAAMAoGCCqGSM49BAMCA0gAMEUCIGAtmjZTD76RPCbXO9gm
sGBPapg/YcTyHitwgjZVZ5SYAiEAg/Gu0tA9W5vUSdtWEZ4BlKGE0DHsvqHqfCfs
RFfNKPo=
-----END CERTIFICATE-----
"""


def certificate(folder: Path) -> Target:
    path = folder / "client.pem"
    der = certificates._decoded(_CERTIFICATE.split(b"-----")[2])
    samples = [_CERTIFICATE, _CERTIFICATE * 2, b"Subject: x\n" + _CERTIFICATE, der, b"-----BEGIN PRIVATE KEY-----\n"]
    tokens = [
        b"-----BEGIN CERTIFICATE-----",
        b"-----END CERTIFICATE-----",
        b"\x13\x10",
        b"\x82\x10*.contoso.com",
        b"\0",
    ]
    oracle = "certificates with names that are printable, or what is wrong with the file"

    def check(octets: bytes) -> str:
        path.write_bytes(octets)
        found, problems = certificates.read_file(path)
        assert len(certificates.Certificates(found)) <= len(found)
        for item in found:
            assert item.cn.isprintable()
            assert item.issuer.isprintable()
            assert all(name.isprintable() for name in item.names)
        return f"{min(len(found), 3)} {[problem[:25] for problem in problems[:2]]}"

    return Target("certificate", "clients' certificates", oracle, check, samples, tokens, longest=_MEGABYTE)


_BATCH = b"""ip,helo,certificate,authenticated,mail_from,header_from,rcpt
192.0.2.5,app,mail.contoso.com,no,app@vendor.example,"App <app@contoso.com>",x@example.com y@example.com
"""
_BATCH_JSON = b'{"ip":"192.0.2.5","mail_from":"a@b.example","header_from":["a@b"],"rcpt":["x@example.com"]}\n'


def batch(folder: Path) -> Target:
    oracle = "questions, or an error that says in which line"

    def check(octets: bytes) -> str:
        asked, wrong = 0, ""
        stream = io.TextIOWrapper(io.BytesIO(octets), encoding="utf-8-sig", errors="replace", newline="")
        try:
            for number, values in check_batch._lines(stream):
                assert number > 0
                try:
                    check_question(check_batch._question(values))
                    asked += 1
                except QuestionError as error:
                    wrong = error.name
        except BatchError as error:
            _line(str(error))
            return re.sub(r'"[^"]*"|[0-9]+', "", str(error))[:60]
        return f"{min(asked, 3)} {wrong}"

    samples = [_BATCH, _BATCH_JSON, _BATCH.replace(b",", b";"), _BATCH + b",,,,,,\n", b"\n" + _BATCH_JSON * 2]
    return Target("batch", "questions of check --batch", oracle, check, samples, _JSON, longest=_MEGABYTE)


_MESSAGE = b"""Return-Path: <bob@fabrikam.com>
X-Original-To: x@example.com
Received: from app.contoso.com (app.contoso.com [192.0.2.5])
 (Client CN "mail.contoso.com", Issuer "CA" (verified OK))
 by mail.contoso.com (Postfix) with ESMTPSA id 4CgSNs5Q9s for <x@example.com>
Received: from [IPv6:2001:db8::1] (helo=x) by y.example with esmtp
From: Bob <bob@contoso.com>
To: x@example.com, Y <y@example.com>

body
"""


def message(folder: Path) -> Target:
    path = folder / "message.eml"
    oracle = "a question, or what the message lacks"

    def check(octets: bytes) -> str:
        path.write_bytes(octets)
        try:
            found = check_message.completed(Question(), str(path), ["mail.contoso.com"], mail_from_given=False)
        except click.UsageError as error:
            return str(error).rpartition(": ")[2][:60]
        return (
            f"{found.ip is None} {found.local} {found.authenticated} {bool(found.certificate_names)} {len(found.taken)}"
        )

    tokens = [
        b"Received: ",
        b"From: ",
        b"Return-Path: ",
        b"\n ",
        b"\n\n",
        b" by ",
        b" with ESMTPA ",
        b"[192.0.2.1]",
        b"(",
        b"=",
    ]
    tokens += [b"=?utf-8?b?", b"?=", b"Content-Type: multipart/mixed; boundary=x\n", b"(Postfix, from userid 0)"]
    return Target("message", "messages for check", oracle, check, [_MESSAGE], tokens)


def postsrsd(folder: Path) -> Target:
    path = folder / "postsrsd"
    one = b"""SRS_DOMAIN=contoso.com\nSRS_EXCLUDE_DOMAINS=.example,fabrikam.com # not\nSRS_SEPARATOR==
SRS_SECRET="/etc/postsrsd.secret"\nSRS_HASHLENGTH=4\nexport SRS_FORWARD_PORT=10001\nRUN_AS=postsrsd; CHROOT=/var\n"""
    two = b"""domains = { "contoso.com", ".example" }\nsocketmap = unix:/var/spool/postfix/srs # x\nseparator = "="
/* c */ hash-length = 4\nsrs-domain = contoso.com\noriginal-envelope = embedded\nsecrets-file = "/etc/secret"\n"""
    oracle = "settings, or why there are none"

    def check(octets: bytes) -> str:
        path.write_bytes(octets)
        try:
            given = postsrsd_settings.read([path])
            postsrsd_settings.settings_of(given, None)
        except postsrsd_settings.MoveError as error:
            return re.sub(r'"[^"]*"|[0-9]+', "", str(error)[len(str(path)) :])[:40]
        return f"{given.shell} {[re.sub(r'[^a-z ]', '', problem)[:20] for problem in given.problems[:2]]}"

    tokens = [b"SRS_DOMAIN=", b"$(", b"`", b"={", b"}", b"+=", b"/*", b"*/", b"//", b"# ", b"\\\n", b"'", b'"', b";"]
    return Target("postsrsd", "postsrsd's settings", oracle, check, [one, two], tokens, longest=1 << 13)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "config": config,
    "secret": secret,
    "exchange": exchange,
    "ledger": ledger,
    "spool": spool,
    "certificate": certificate,
    "batch": batch,
    "message": message,
    "postsrsd": postsrsd,
}
