# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of content filters and of clients' certificates, on real configurations of Postfix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from doctorpostfix import Looked

Look = Callable[..., Looked]
FILTER = "content_filter = smtp:[127.0.0.1]:10024\n"
BACK = "127.0.0.1:10025 inet n - y - - smtpd\n  -o content_filter=\n  -o smtpd_milters=\n"
NO_POLICY = (
    "  -o smtpd_relay_restrictions=\n  -o smtpd_recipient_restrictions=permit_mynetworks,reject\n"
    "  -o smtpd_data_restrictions=\n"
)
TLS = "smtpd_tls_security_level = may\nsmtpd_tls_CAfile = /etc/ssl/ca.pem\n"


def test_without_a_filter_nothing_comes_back(look: Look) -> None:
    assert look("relay-hub").texts("content-filter") == []


def test_what_comes_back_from_a_filter_is_left_alone(look: Look) -> None:
    looked = look("relay-hub", main_cf=FILTER, master_cf=BACK + NO_POLICY)
    assert looked.texts("content-filter") == [
        "ok: what a content filter hands back is left alone: 127.0.0.1:10025/inet"
    ]


def test_the_milter_behind_a_filter_is_an_error(look: Look) -> None:
    looked = look("relay-hub", main_cf=FILTER, master_cf=BACK.replace("-o smtpd_milters=\n", "") + NO_POLICY)
    assert looked.texts("content-filter") == [
        "error: 127.0.0.1:10025/inet: takes mail back from a content filter, and has gatepost's milter"
    ]
    looked.paste("content-filter")
    assert [finding.severity.value for finding in looked.find("content-filter")] == ["ok"]


def test_no_milters_does_as_well(look: Look) -> None:
    master_cf = BACK.replace("smtpd_milters=", "receive_override_options=no_milters") + NO_POLICY
    looked = look("relay-hub", main_cf=FILTER, master_cf=master_cf)
    assert [finding.severity.value for finding in looked.find("content-filter")] == ["ok"]


def test_policyd_behind_a_filter_is_an_error(look: Look) -> None:
    looked = look("policy-only", main_cf=FILTER, master_cf=BACK)
    assert looked.texts("content-filter") == [
        f"error: 127.0.0.1:10025/inet: takes mail back from a content filter, and asks policyd in {name}"
        for name in ("smtpd_relay_restrictions", "smtpd_data_restrictions")
    ]
    looked.paste("content-filter")
    assert [finding.severity.value for finding in looked.find("content-filter")] == ["ok"]


def test_behind_a_filter_the_mailbox_of_an_alias_must_not_be_lost(look: Look) -> None:
    looked = look("forwarder", main_cf=FILTER, master_cf=BACK + NO_POLICY)
    assert looked.texts("content-filter") == [
        "error: 127.0.0.1:10025/inet: takes mail back from a content filter, and its smtpd_command_filter takes ORCPT "
        "out"
    ]
    looked.paste("content-filter")
    assert [finding.severity.value for finding in looked.find("content-filter")] == ["ok"]


def test_before_a_proxy_filter_no_sender_is_rewritten(look: Look) -> None:
    looked = look("relay-hub", main_cf="smtpd_proxy_filter = 127.0.0.1:10024\n")
    assert looked.texts("proxy-filter") == ["error: smtp/inet: smtpd_proxy_filter = 127.0.0.1:10024"]


def test_before_a_proxy_filter_the_egress_hop_rewrites(look: Look) -> None:
    looked = look("forwarder", main_cf="smtpd_proxy_filter = 127.0.0.1:10024\n")
    assert looked.texts("proxy-filter") == ["ok: smtp/inet: behind smtpd_proxy_filter the egress hop rewrites"]


def test_before_a_proxy_filter_the_rule_set_legacy_sees_no_header(look: Look) -> None:
    looked = look(
        "forwarder",
        main_cf="smtpd_proxy_filter = 127.0.0.1:10024\n",
        gatepost=lambda text: text.replace("[relay]\n", '[relay]\nrequirements = "legacy"\n'),
    )
    assert looked.texts("proxy-filter")[0] == (
        'error: smtp/inet: smtpd_proxy_filter = 127.0.0.1:10024, and relay.requirements is "legacy"'
    )


def test_before_a_proxy_filter_no_bounce_is_redirected(look: Look) -> None:
    looked = look("policy-only", main_cf="smtpd_proxy_filter = 127.0.0.1:10024\n")
    assert looked.texts("proxy-filter") == [
        'error: smtp/inet: smtpd_proxy_filter = 127.0.0.1:10024, and srs.reverse is "redirect"'
    ]


# Certificates of clients

CERTIFICATES = "client-certificates-asked"


def test_clients_are_asked_for_certificates(look: Look) -> None:
    assert look("relay-hub", main_cf=TLS).texts(CERTIFICATES) == ["ok: clients are asked for certificates: smtp/inet"]


def test_without_certificate_names_nobody_need_be_asked(look: Look) -> None:
    assert look("forwarder").texts(CERTIFICATES) == []


@pytest.mark.parametrize("line", ["smtpd_tls_ask_ccert = no", "smtpd_tls_security_level = none"])
def test_certificate_names_are_in_vain_where_nobody_is_asked(look: Look, line: str) -> None:
    looked = look("relay-hub", main_cf=f"{TLS}{line}\n")
    assert looked.texts(CERTIFICATES) == [
        "error: no smtpd asks for certificates, and connectors are for crm.contoso.com"
    ]
    looked.paste(CERTIFICATES)
    assert [finding.severity.value for finding in looked.find(CERTIFICATES)] == ["ok"]


def test_without_authorities_no_certificate_counts(look: Look) -> None:
    looked = look("relay-hub", main_cf="smtpd_tls_security_level = may\n")
    assert looked.texts(CERTIFICATES) == ["error: smtp/inet: neither smtpd_tls_CAfile nor smtpd_tls_CApath is set"]


@pytest.mark.parametrize("digest", ["md5", "sha1"])
def test_a_weak_digest_of_certificates_is_a_warning(look: Look, digest: str) -> None:
    looked = look("relay-hub", main_cf=f"{TLS}smtpd_tls_fingerprint_digest = {digest}\n")
    assert looked.texts(CERTIFICATES) == [f"warning: smtpd_tls_fingerprint_digest = {digest}"]
    assert looked.commands(CERTIFICATES)[0] == "postconf -e 'smtpd_tls_fingerprint_digest = sha256'"


def test_certificates_need_policyd_for_their_other_names(look: Look) -> None:
    looked = look("relay-hub", main_cf=f"{TLS}smtpd_recipient_restrictions =\n")
    assert looked.texts(CERTIFICATES) == [
        "warning: smtp/inet: clients are asked for certificates, and policyd is not asked"
    ]


def test_a_log_without_certificates_tells_replay_nothing(look: Look) -> None:
    looked = look("relay-hub", main_cf=f"{TLS}smtpd_tls_loglevel = 1\n")
    assert looked.texts(CERTIFICATES) == ["info: smtpd_tls_loglevel = 1"]
    assert looked.commands(CERTIFICATES)[0] == "postconf -e 'smtpd_tls_loglevel = 1,peercert'"


def test_certificates_that_let_nobody_relay_are_told(look: Look) -> None:
    looked = look(
        "relay-hub", main_cf=f"{TLS}smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n"
    )
    assert looked.texts(CERTIFICATES) == ["info: smtpd_relay_restrictions has no permit_tls_clientcerts"]
