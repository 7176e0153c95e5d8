# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost import postsrsd`: postsrsd's files in, gatepost's configuration and secret out, words of the rest."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import pytest

from gatepost.admin import import_postsrsd, postsrsd_settings
from gatepost.admin.config_commands import starting_text
from gatepost.admin.sandbox import temporary_root
from gatepost.service.config import Config, load
from gatepost.service.organizations import Mode
from gatepost.service.srs_config import Form, Format, Srs0Config

# As Debian's postsrsd 1.10 and 2.4.1 install them, but for the comments.
DEBIAN_1 = """\
# Local domain name. The default value is taken from `postconf -h mydomain` and probably okay, isn't it.
#SRS_DOMAIN=example.com
SRS_DOMAIN=contoso.com
SRS_SEPARATOR==
SRS_SECRET={secret}
SRS_HASHLENGTH=4
SRS_HASHMIN=4
SRS_FORWARD_PORT=10001
SRS_REVERSE_PORT=10002
RUN_AS=postsrsd
SRS_LISTEN_ADDR=127.0.0.1
CHROOT=/var/lib/postsrsd
#SRS_EXTRA_OPTIONS=-A
"""
DEBIAN_2 = """\
domains = { "contoso.com" }
socketmap = unix:/var/spool/postfix/srs
secrets-file = "{secret}"
#separator = "="
"""
NOTHING_LOST = "RUN_AS, CHROOT: no equal here, and nothing that an SRS address depends on"
FORM_AUTO = (
    'form = "auto": long senders get an address whose original this host alone has. Where other hosts have the same'
    ' secret: form = "long", or one PostgreSQL in store.url'
)
BASE64URL = (
    "base64url = true, for postsrsd 2.2.6 and newer write - and _ in hashes. Where an older one on another host has the"
    " same secret, set it to false until that is moved, too"
)


class Host:
    """A folder in place of a host's /etc and /var/lib: postsrsd's settings and secret, gatepost's configuration."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.settings = folder / "postsrsd"
        self.secret = folder / "postsrsd.secret"
        self.configuration = folder / "gatepost.toml"
        self.state = folder / "state"
        self.state.mkdir()
        self.secret.write_bytes(b"tops3cret")
        self.out = self.err = ""
        self._capsys = capsys

    def run(self, text: str, *, output: bool = True, domain: Optional[str] = None) -> int:
        self.settings.write_text(text.replace("{secret}", str(self.secret)))
        status = import_postsrsd.run(
            [self.settings], self.configuration if output else None, domain, state_directory=self.state
        )
        self.out, self.err = self._capsys.readouterr()
        return status

    def moved(self, text: str) -> Config:
        """Return gatepost's configuration after a successful import of *text*."""
        assert self.run(text) == os.EX_OK, self.err
        return load(self.configuration)

    @property
    def notes(self) -> list[str]:
        return [line[len("note: ") :] for line in self.err.splitlines() if line.startswith("note: ")]


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, capsys)


def domains(config: Config) -> list[tuple[str, bool]]:
    return [(item.domain, item.default) for one in config.organizations.values() for item in one.accepted_domains]


# 1.x


def test_settings_of_debian_12_become_a_configuration_that_loads(host: Host) -> None:
    config = host.moved(DEBIAN_1)
    assert domains(config) == [("contoso.com", True)]
    assert config.settings["contoso.com"].mode is Mode.ENFORCE
    assert (config.srs.format, config.srs.also_reverse, config.srs.form) == (Format.SRS0, (), Form.AUTO)
    assert config.srs.srs0 == Srs0Config("=", 4, 4, base64url=False)
    assert config.srs.secret_file == host.state / "srs.secret"
    assert [str(item) for item in config.policyd.tcp_table_forward] == ["inet:127.0.0.1:10001"]
    assert [str(item) for item in config.policyd.tcp_table_reverse] == ["inet:127.0.0.1:10002"]
    assert host.notes == [FORM_AUTO, NOTHING_LOST]


def test_main_cf_of_1_x_stays(host: Host) -> None:
    host.moved(DEBIAN_1)
    assert host.out.splitlines()[-4:] == [
        "main.cf stays as it is: gatepost answers where postsrsd did. Mail waits while neither of them runs:",
        "    systemctl disable --now postsrsd",
        "    systemctl restart gatepost-policyd",
        "Without systemd: runuser -u gatepost -- gatepost policyd, which stays in the foreground.",
    ]


def test_excluded_name_with_a_dot_in_front_becomes_a_pattern_for_subdomains(host: Host) -> None:
    """postsrsd 1.10: .adatum.com matches x@a.adatum.com and not x@adatum.com."""
    config = host.moved(DEBIAN_1 + "SRS_EXCLUDE_DOMAINS=.adatum.com,adatum.com\n")
    assert config.srs.exclude == ("*.adatum.com", "adatum.com")


def test_exclude_list_may_have_commas_semicolons_blanks_and_lines(host: Host) -> None:
    config = host.moved(DEBIAN_1 + 'SRS_EXCLUDE_DOMAINS="a.example, b.example;c.example\n\td.example"\n')
    assert config.srs.exclude == ("a.example", "b.example", "c.example", "d.example")


def test_shell_words_are_read_as_a_shell_would(host: Host) -> None:
    text = (
        "export SRS_DOMAIN='contoso.com' # not 'fabrikam.com\nSRS_SEPARATOR=\\+; SRS_HASHLENGTH=\"6\"\n"
        'SRS_SECRET="{secret}"#\nSRS_SECRET={secret}\nSRS_LISTEN_ADDR=::1\nSRS_FORWARD_PORT=1\\\n1\n'
    )
    config = host.moved(text)
    assert domains(config) == [("contoso.com", True)]
    assert config.srs.srs0 == Srs0Config("+", 6, 4)
    assert [str(item) for item in config.policyd.tcp_table_forward] == ["inet:[::1]:11"]


def test_last_of_two_assignments_counts(host: Host) -> None:
    assert domains(host.moved(DEBIAN_1 + "SRS_DOMAIN=fabrikam.com\n")) == [("fabrikam.com", True)]


def test_missing_srs_domain_is_asked_for(host: Host) -> None:
    assert host.run(DEBIAN_1.replace("SRS_DOMAIN=contoso", "#")) == os.EX_CONFIG
    assert host.err == (
        "SRS_DOMAIN: is not set, so postsrsd took what `postconf -h mydomain` prints; give that as --domain\n"
    )
    assert not host.configuration.exists()


@pytest.mark.parametrize("command", ["$(hostname -d)", "`hostname -d`", '"`hostname -d`"', "$MYDOMAIN"])
def test_command_in_srs_domain_is_not_run_and_gives_way_to_the_option(host: Host, command: str) -> None:
    text = DEBIAN_1.replace("=contoso.com", f"={command}")
    assert host.run(text) == os.EX_CONFIG
    assert host.err == (
        "SRS_DOMAIN: is computed when postsrsd starts; write its value there in plain text, or give --domain\n"
    )
    assert host.run(text, domain="contoso.com") == os.EX_OK


def test_option_that_contradicts_the_srs_domain_is_refused(host: Host) -> None:
    assert host.run(DEBIAN_1, domain="fabrikam.com") == os.EX_CONFIG
    assert host.err == (
        "--domain: postsrsd's SRS domain is contoso.com, and the addresses that it made end in that; leave"
        " --domain out\n"
    )


def test_always_rewrite_of_1_x_is_named_with_what_it_means(host: Host) -> None:
    host.moved(DEBIAN_1 + 'SRS_EXTRA_OPTIONS="-A -t60"\n')
    assert [note.split(" ")[:2] for note in host.notes[:2]] == [
        ["SRS_EXTRA_OPTIONS:", "-A:"],
        ["SRS_EXTRA_OPTIONS:", "-t60"],
    ]
    assert "still brings back" in host.notes[0]


def test_extra_option_is_named_with_its_argument(host: Host) -> None:
    host.moved(DEBIAN_1 + 'SRS_EXTRA_OPTIONS="-4 -t 60 -D"\n')
    assert host.notes[:3] == [
        "SRS_EXTRA_OPTIONS: -4 has no equal here and is not carried over",
        "SRS_EXTRA_OPTIONS: -t 60 has no equal here and is not carried over",
        "SRS_EXTRA_OPTIONS: -D has no equal here and is not carried over",
    ]


@pytest.mark.parametrize("host_name", ["0.0.0.0", "*", "192.0.2.5", "mail.contoso.com"])
def test_address_that_other_hosts_reach_is_noted(host: Host, host_name: str) -> None:
    host.moved(f"{DEBIAN_1}SRS_LISTEN_ADDR={host_name}\n")
    shown = host_name.replace("*", "0.0.0.0")
    assert (
        f"SRS_LISTEN_ADDR: {shown} lets other hosts ask for SRS addresses; where only Postfix on this host does, write"
        " 127.0.0.1" in host.notes
    )


@pytest.mark.parametrize("host_name", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_address_on_loopback_is_not_noted(host: Host, host_name: str) -> None:
    host.moved(f"{DEBIAN_1}SRS_LISTEN_ADDR={host_name}\n")
    assert host.notes == [FORM_AUTO, NOTHING_LOST]


def test_word_that_a_shell_would_run_is_noted_and_not_run(host: Host) -> None:
    """postsrsd's start script sources the file: b.example is no part of the list there."""
    config = host.moved(DEBIAN_1 + "SRS_EXCLUDE_DOMAINS=a.example;b.example\n")
    assert config.srs.exclude == ("a.example",)
    assert host.notes[0] == (
        "b.example: for the shell a command, which is not run and not carried over; put quotes round a list that it"
        " belongs to"
    )


@pytest.mark.parametrize(
    ("length", "minimum", "expected", "said"),
    [
        (6, 4, (6, 4), None),
        (6, 3, (6, 4), "SRS_HASHMIN: 3 becomes 4. Bounces to addresses with a shorter hash"),
        (3, 3, (4, 4), "SRS_HASHLENGTH: 3 becomes 4. So short a hash is soon guessed"),
        (28, 4, (27, 4), "SRS_HASHLENGTH: 28 becomes 27: "),
        (4, 6, (4, 4), "SRS_HASHMIN: 6 becomes 4: no address has a longer hash"),
    ],
)
def test_hash_lengths_out_of_range_are_changed_and_said(
    host: Host, length: int, minimum: int, expected: tuple[int, int], said: Optional[str]
) -> None:
    config = host.moved(f"{DEBIAN_1}SRS_HASHLENGTH={length}\nSRS_HASHMIN={minimum}\n")
    assert (config.srs.srs0.hash_length, config.srs.srs0.hash_minimum) == expected
    others = [note for note in host.notes if note not in (NOTHING_LOST, FORM_AUTO)]
    assert [note[: len(said)] for note in others] == [said] if said else others == []


def test_all_problems_come_at_once(host: Host) -> None:
    text = DEBIAN_1 + "SRS_DOMAIN=contoso..com\nSRS_SEPARATOR=.\nSRS_FORWARD_PORT=srs\nSRS_REVERSE_PORT=70000\n"
    text += "SRS_EXCLUDE_DOMAINS=a..b,*.bar.com\n"
    assert host.run(text) == os.EX_CONFIG
    assert host.err.splitlines() == [
        'SRS_DOMAIN: "contoso..com" is not a domain name',
        'SRS_SEPARATOR: "." is not one of "=", "+", "-"',
        'SRS_EXCLUDE_DOMAINS: "a..b" is not a domain name',
        'SRS_EXCLUDE_DOMAINS: "*.bar.com" is not a domain name (postsrsd writes subdomains as .bar.com)',
        'SRS_FORWARD_PORT: "srs" is not a whole number',
        "SRS_REVERSE_PORT: 70000 is not a port (1 to 65535)",
    ]


# 2.x


def test_settings_of_postsrsd_2_become_a_configuration_that_loads(host: Host) -> None:
    config = host.moved(DEBIAN_2)
    assert domains(config) == [("contoso.com", True)]
    assert config.srs.srs0 == Srs0Config("=", 4, 4, base64url=True)
    assert [str(item) for item in config.policyd.listen] == ["unix:/var/spool/postfix/gatepost/policyd.sock"]
    assert config.policyd.tcp_table_forward == ()
    assert host.notes == [FORM_AUTO, BASE64URL]


def test_main_cf_lines_for_a_unix_socket_are_printed(host: Host) -> None:
    host.moved(DEBIAN_2)
    assert host.out.splitlines()[-9:] == [
        "Start gatepost beside postsrsd; it listens on unix:/var/spool/postfix/gatepost/policyd.sock:",
        "    systemctl restart gatepost-policyd",
        "Without systemd: runuser -u gatepost -- gatepost policyd, which stays in the foreground.",
        "Then these lines of main.cf, and `postfix reload`:",
        "    sender_canonical_maps = socketmap:unix:gatepost/policyd.sock:forward",
        "    sender_canonical_classes = envelope_sender",
        "    recipient_canonical_maps = socketmap:unix:gatepost/policyd.sock:reverse",
        "    recipient_canonical_classes = envelope_recipient, header_recipient",
        "After that: systemctl disable --now postsrsd",
    ]


@pytest.mark.parametrize(
    ("socketmap", "listen"),
    [
        ("inet:localhost:10003", "inet:127.0.0.1:10003"),
        ("inet:10003", "inet:127.0.0.1:10003"),
        ("inet6:localhost:10003", "inet:[::1]:10003"),
        ("inet:[2001:db8::1]:10003", "inet:[2001:db8::1]:10003"),
        ("inet:*:10003", "inet:0.0.0.0:10003"),
    ],
)
def test_tcp_socketmap_is_taken_over_and_main_cf_stays(host: Host, socketmap: str, listen: str) -> None:
    config = host.moved(DEBIAN_2 + f"socketmap = {socketmap}\n")
    assert str(config.policyd.listen[1]) == listen
    assert "main.cf stays as it is" in host.out


def test_tcp_socketmap_that_other_hosts_reach_is_noted(host: Host) -> None:
    host.moved(DEBIAN_2 + "socketmap = inet:*:10003\n")
    assert host.notes[0].startswith("socketmap: 0.0.0.0 lets other hosts ask for SRS addresses; ")


def test_tcp_socketmap_with_a_port_that_is_none_is_refused(host: Host) -> None:
    assert host.run(DEBIAN_2 + "socketmap = inet:localhost:70000\n") == os.EX_CONFIG
    assert host.err == "socketmap: 70000 is not a port (1 to 65535)\n"


def test_srs_domain_is_the_first_of_the_accepted_domains(host: Host) -> None:
    text = (
        "srs-domain = srs.contoso.com secrets-file={secret}\n"
        "domains = {\"contoso.com\", .adatum.com, 'contoso.example' }"
    )
    config = host.moved(text)
    assert domains(config) == [("srs.contoso.com", True), ("contoso.com", False), ("contoso.example", False)]
    assert config.srs.exclude == ("*.adatum.com",)


def test_comments_lists_over_lines_and_additions_are_read_as_libconfuse_does(host: Host) -> None:
    text = (
        '# one\n// two\n/* srs-domain = "x.example"\n*/ domains = {a.example, # three\n "b.example"}\n'
        'domains += { c.example } hash-length=5 separator = "+"\nsecrets-file = "{secret}"\n'
    )
    config = host.moved(text)
    assert domains(config) == [("a.example", True), ("b.example", False), ("c.example", False)]
    assert config.srs.srs0 == Srs0Config("+", 5, 4, base64url=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("srs-domain : a.example", 'line 1: ":" where = or += is due'),
        ("# one\ndomains = {a.example\n b.example}", 'line 3: "b.example" where , is due'),
        ('\nseparator = "', "line 2"),
        ("a = =", 'line 1: "=" where a word is due'),
        ("domains = {\na.example\n\n", 'line 2: "the end" where , is due'),
    ],
)
def test_what_postsrsd_cannot_read_is_refused_with_its_line(host: Host, text: str, why: str) -> None:
    assert host.run(text) == os.EX_DATAERR
    assert host.err == f"{host.settings}: is not in postsrsd's syntax: {why}\n"


def test_domains_file_is_read_on_as_exclude_file(host: Host) -> None:
    file = host.folder / "domains"
    file.write_text("# ours\ncontoso.com\nfabrikam.com  # bought\n")
    config = host.moved(f"domains-file = {file}\nsecrets-file = {{secret}}\n")
    assert domains(config) == [("contoso.com", True)]
    assert config.srs.exclude_file == file
    assert config.srs.exclude == ("contoso.com", "fabrikam.com")


def test_domains_file_with_leading_dots_is_copied_and_that_is_said(host: Host) -> None:
    file = host.folder / "domains"
    file.write_text("contoso.com\n.adatum.com\n")
    config = host.moved(f"domains-file = {file}\nsecrets-file = {{secret}}\n")
    assert (config.srs.exclude_file, config.srs.exclude) == (None, ("*.adatum.com",))
    assert host.notes[-1] == f"domains-file: {file} has names with a leading dot, so its list is copied, not read on"


def test_database_becomes_the_compact_form_and_postsrsd_stays_for_its_own_addresses(host: Host) -> None:
    config = host.moved(DEBIAN_2 + 'original-envelope = database\nenvelope-database = "sqlite:senders.db"\n')
    assert config.srs.form is Form.COMPACT
    assert host.notes[0].startswith("original-envelope: ")
    assert host.notes[1] == FORM_AUTO.replace("auto", "compact").replace("long senders", "senders")
    assert (
        "    recipient_canonical_maps = socketmap:unix:srs:reverse, socketmap:unix:gatepost/policyd.sock:reverse\n"
        in host.out
    )


def test_settings_of_2_x_without_equal_are_named(host: Host) -> None:
    text = (
        'always-rewrite = on\nmilter = inet:localhost:9997\nsyslog = on\nchroot-dir = ""\nfuture = 1\nseccomp = off\n'
    )
    host.moved(DEBIAN_2 + text)
    assert [note.partition(": ")[0] for note in host.notes] == [
        "always-rewrite",
        "milter",
        FORM_AUTO.partition(": ")[0],
        BASE64URL.partition(": ")[0],
        "seccomp, syslog",
        "future",
    ]


def test_value_from_the_environment_is_not_guessed(host: Host) -> None:
    assert host.run('srs-domain = "${DOMAIN}"\nsecrets-file = {secret}\n') == os.EX_CONFIG
    assert host.err.startswith("srs-domain: is computed when postsrsd starts")


# The secret


def test_secret_is_copied_with_mode_0600(host: Host) -> None:
    host.moved(DEBIAN_1)
    copy = host.state / "srs.secret"
    assert copy.read_bytes() == b"tops3cret\n"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_secret_belongs_to_the_owner_of_the_state_directory(host: Host) -> None:
    os.chown(host.state, 12, 34)
    host.moved(DEBIAN_1)
    copy = (host.state / "srs.secret").stat()
    assert (copy.st_uid, copy.st_gid) == (12, 34)


def test_all_secrets_are_copied_in_their_order_without_empty_lines(host: Host) -> None:
    host.secret.write_bytes(b"first\r\n\nsecond with a blank\n\xe4\xff")
    host.moved(DEBIAN_1)
    assert (host.state / "srs.secret").read_bytes() == b"first\nsecond with a blank\n\xe4\xff\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b" blank", "begins or ends with a blank"),
        (b"tab\t", "begins or ends with a blank"),
        (b"#hash", "begins with #, as a comment does"),
        (b"nul\0nul", "has a NUL or CR in it"),
        (b"x" * 1023, "is longer than 1022 octets"),
    ],
)
def test_secret_that_gatepost_would_read_otherwise_is_refused(host: Host, line: bytes, why: str) -> None:
    host.secret.write_bytes(b"good\n" + line + b"\n")
    assert host.run(DEBIAN_1) == os.EX_CONFIG
    assert host.err.startswith(f"{host.secret}: line 2 {why}. ")
    assert not list(host.state.iterdir())
    assert not host.configuration.exists()


def test_empty_secret_is_refused(host: Host) -> None:
    host.secret.write_bytes(b"\n")
    assert host.run(DEBIAN_1) == os.EX_CONFIG
    assert host.err == f"{host.secret}: holds no secret\n"


def test_missing_secret_is_said(host: Host) -> None:
    host.secret.unlink()
    assert host.run(DEBIAN_1) == os.EX_NOINPUT
    assert host.err == f"{host.secret}: the secret cannot be read: No such file or directory\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root takes another user's place")
def test_unreadable_secret_asks_for_root_and_is_a_note_where_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with temporary_root() as root:
        settings, secret = root / "postsrsd", root / "postsrsd.secret"
        settings.write_text(DEBIAN_1.replace("{secret}", str(secret)))
        secret.touch(0o600)
        said = f"{secret}: the secret cannot be read: Permission denied; run this as root\n"
        with nobody():
            assert import_postsrsd.run([settings], root / "gatepost.toml") == os.EX_NOPERM
            assert capsys.readouterr().err == said
            assert import_postsrsd.run([settings], None) == os.EX_OK
            assert f"note: {said}" in capsys.readouterr().err


def test_missing_secret_is_a_note_where_nothing_is_written(host: Host) -> None:
    host.secret.unlink()
    assert host.run(DEBIAN_1, output=False) == os.EX_OK
    assert host.notes[-1] == f"{host.secret}: the secret cannot be read: No such file or directory"
    assert 'format = "srs0"' in host.out


def test_secret_is_never_printed(host: Host) -> None:
    host.secret.write_bytes(b"tops3cret\n tops3cret\n")
    host.run(DEBIAN_1)
    host.secret.write_bytes(b"tops3cret\n")
    shown = host.err + host.out
    host.run(DEBIAN_1)
    assert "tops3cret" not in shown + host.err + host.out + host.configuration.read_text()


# Writing


def test_configuration_that_is_there_is_not_overwritten(host: Host) -> None:
    host.configuration.write_text("mine")
    assert host.run(DEBIAN_1) == os.EX_CANTCREAT
    assert host.err == (
        f"{host.configuration}: exists, and is never overwritten; move it away and run this again, or merge by hand"
        " what --stdout prints\n"
    )
    assert host.configuration.read_text() == "mine"
    assert not list(host.state.iterdir())


def test_configuration_as_the_package_brings_it_is_replaced_with_its_mode(host: Host) -> None:
    host.configuration.write_text(starting_text())
    host.configuration.chmod(0o640)
    config = host.moved(DEBIAN_1)
    assert domains(config) == [("contoso.com", True)]
    assert stat.S_IMODE(host.configuration.stat().st_mode) == 0o640


def test_secret_made_by_the_installation_goes_behind_those_of_postsrsd(host: Host) -> None:
    host.configuration.write_text(starting_text())
    copy = host.state / "srs.secret"
    copy.touch(0o640)
    copy.write_bytes(b"made on install\n")
    host.secret.write_bytes(b"tops3cret\nolder")
    host.moved(DEBIAN_1)
    assert copy.read_bytes() == b"tops3cret\nolder\nmade on install\n"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    assert host.out.startswith(f"Wrote {host.configuration}, and {copy} with the secrets of {host.secret}.\n")


def test_other_secret_that_is_there_is_not_overwritten(host: Host) -> None:
    copy = host.state / "srs.secret"
    copy.touch(0o600)
    copy.write_bytes(b"other\n")
    assert host.run(DEBIAN_1) == os.EX_CANTCREAT
    assert host.err == (
        f"{copy}: exists with other secrets, and is never overwritten. Append postsrsd's and run this again:"
        f" (echo; cat {host.secret}) >>{copy}; or move it away if no address was made with it\n"
    )
    assert copy.read_bytes() == b"other\n"
    assert not host.configuration.exists()


def test_secret_that_has_been_appended_as_told_is_kept(host: Host) -> None:
    host.secret.write_bytes(b"tops3cret\nolder")
    copy = host.state / "srs.secret"
    copy.touch(0o600)
    copy.write_bytes(b"other")
    assert host.run(DEBIAN_1) == os.EX_CANTCREAT
    command = host.err.partition("run this again: ")[2].rpartition("; or ")[0]
    subprocess.run(["sh", "-c", command], check=True)
    before = copy.read_bytes()
    host.moved(DEBIAN_1)
    assert host.out.startswith(
        f"Wrote {host.configuration}; kept {copy}, which has the secrets of {host.secret} already.\n"
    )
    assert copy.read_bytes() == before == b"other\ntops3cret\nolder"


def test_without_output_a_secret_that_is_there_is_not_told_to_be_replaced(host: Host) -> None:
    copy = host.state / "srs.secret"
    copy.write_bytes(b"other\n")
    host.run(DEBIAN_1, output=False)
    assert f"The secret, unless it is there already: (echo; cat {host.secret}) >>{copy}\n" in host.err
    assert "install -m" not in host.err


def test_state_directory_is_that_of_the_environment_as_with_the_daemons(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(host.folder)
    monkeypatch.setenv("STATE_DIRECTORY", "state")
    host.settings.write_text(DEBIAN_1.replace("{secret}", str(host.secret)))
    assert import_postsrsd.run([host.settings], host.configuration) == os.EX_OK
    assert (host.state / "srs.secret").read_bytes() == b"tops3cret\n"
    assert load(host.configuration).state_directory == host.state


def test_import_can_be_run_again_after_its_secret_was_written(host: Host) -> None:
    host.moved(DEBIAN_1)
    host.configuration.unlink()
    host.moved(DEBIAN_1)


def test_missing_state_directory_is_said_with_the_command_that_makes_it(host: Host) -> None:
    host.state.rmdir()
    assert host.run(DEBIAN_1) == os.EX_CANTCREAT
    assert host.err == f"{host.state}: is not there; install -d -m 0700 -o gatepost -g gatepost {host.state}\n"


def test_stdout_has_the_configuration_alone_and_nothing_is_written(host: Host) -> None:
    assert host.run(DEBIAN_1, output=False) == os.EX_OK
    host.configuration.write_text(host.out)
    assert domains(load(host.configuration)) == [("contoso.com", True)]
    assert f"install -m 0600 -o gatepost -g gatepost {host.secret} {host.state}/srs.secret" in host.err
    assert not list(host.state.iterdir())


# Files


def test_missing_file_is_said(host: Host) -> None:
    assert import_postsrsd.run([host.folder / "none"], None, state_directory=host.state) == os.EX_NOINPUT


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file_is_said(host: Host, text: str) -> None:
    assert host.run(text) == os.EX_DATAERR
    assert host.err == f"{host.settings}: is empty\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root takes another user's place")
def test_file_for_root_only_asks_for_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "postsrsd.conf"
    settings.touch(0o600)
    with nobody():
        assert import_postsrsd.run([settings], None) == os.EX_NOPERM
    assert capsys.readouterr().err == f"{settings}: cannot be read: Permission denied; run this as root\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root takes another user's place")
def test_folder_for_root_only_asks_for_root_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_root() as root:
        settings, secret, state = root / "postsrsd", root / "postsrsd.secret", root / "state"
        settings.write_text(DEBIAN_1.replace("{secret}", str(secret)))
        secret.write_bytes(b"tops3cret")
        state.mkdir(0o700)
        with nobody():
            assert import_postsrsd.run([settings], root / "gatepost.toml", state_directory=state) == os.EX_NOPERM
        said = f"{state}/srs.secret: cannot be written: Permission denied; run this as root\n"
        assert capsys.readouterr().err == said
        assert not (root / "gatepost.toml").exists()


def test_later_file_wins(host: Host) -> None:
    first, second = host.folder / "first", host.folder / "second"
    first.write_text(DEBIAN_1.replace("{secret}", str(host.secret)))
    second.write_text("SRS_SEPARATOR=-\n")
    status = import_postsrsd.run([first, second], host.configuration, state_directory=host.state)
    assert status == os.EX_OK
    assert load(host.configuration).srs.srs0.separator == "-"


def test_files_of_1_x_and_2_x_together_are_refused(host: Host) -> None:
    first, second = host.folder / "first", host.folder / "second"
    first.write_text(DEBIAN_1)
    second.write_text(DEBIAN_2)
    assert import_postsrsd.run([first, second], None, state_directory=host.state) == os.EX_USAGE


def test_file_of_2_x_goes_before_the_one_that_1_x_has_left(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    conf, defaults = host.folder / "postsrsd.conf", host.folder / "default"
    monkeypatch.setattr(postsrsd_settings, "CONF", conf)
    monkeypatch.setattr(postsrsd_settings, "DEFAULTS", defaults)
    assert import_postsrsd.run([], None, state_directory=host.state) == os.EX_NOINPUT
    defaults.write_text("SRS_DOMAIN=old.example\n")
    assert postsrsd_settings.default_sources() == [defaults]
    conf.write_text(DEBIAN_2)
    assert postsrsd_settings.default_sources() == [conf]
