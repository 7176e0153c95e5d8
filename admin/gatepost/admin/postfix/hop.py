# SPDX-License-Identifier: GPL-3.0-or-later
"""What master.cf needs: the egress hop of topology forwarder, and the smtpd behind a content filter.

examples/postfix/forwarder/master.cf says the same, as a test insists.
"""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.admin.postfix.wiring import Hop, Sockets


@dataclass(frozen=True)
class Override:
    """A `-o name=value` of the egress hop."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class HopService:
    """One service of the egress hop in master.cf; process_limit as there."""

    name: str
    type: str
    command: str
    overrides: tuple[Override, ...]
    private: str = "-"
    process_limit: str = "-"


# The egress hop. All of it inherits main.cf, so everything is set here that could stop mail on the hop or change it.


def _overrides(why: str, *pairs: str) -> tuple[Override, ...]:
    return tuple(Override(name, value, why) for name, _, value in (pair.partition("=") for pair in pairs))


_SENDING = (
    *_overrides(
        "Nowhere but to the other half: a fallback would send the mail out unrewritten.",
        "smtp_fallback_relay=",
    ),
    *_overrides(
        "Loopback has no TLS and no SASL.",
        "smtp_tls_security_level=none",
        "smtp_tls_policy_maps=",
        "smtp_tls_wrappermode=no",
        "smtp_sasl_auth_enable=no",
    ),
    *_overrides(
        "From loopback, too: with a single address in inet_interfaces it would come from that.",
        "smtp_bind_address=127.0.0.1",
    ),
    *_overrides(
        "Addresses, headers and body are changed, if at all, on the way out behind the hop.",
        "smtp_generic_maps=",
        "smtp_header_checks=",
        "smtp_mime_header_checks=",
        "smtp_nested_header_checks=",
        "smtp_body_checks=",
        "smtp_line_length_limit=0",
    ),
    *_overrides(
        "It must see ORCPT, 8BITMIME and SMTPUTF8 offered, and take the other half's answers as they are.",
        "smtp_always_send_ehlo=yes",
        "smtp_never_send_ehlo=no",
        "smtp_discard_ehlo_keywords=",
        "smtp_discard_ehlo_keyword_address_maps=",
        "smtp_reply_filter=",
        "smtp_delivery_status_filter=",
    ),
)
_RECEIVING = (
    *_overrides(
        "This host's loopback and nobody else, with no other condition.",
        "mynetworks=127.0.0.0/8",
        "smtpd_client_restrictions=permit_mynetworks,reject",
        "smtpd_helo_restrictions=",
        "smtpd_sender_restrictions=",
        "smtpd_relay_restrictions=permit_mynetworks,reject",
        "smtpd_recipient_restrictions=permit_mynetworks,reject",
        "smtpd_data_restrictions=",
        "smtpd_end_of_data_restrictions=",
        "smtpd_client_event_limit_exceptions=127.0.0.0/8",
        "smtpd_tls_security_level=none",
        "smtpd_sasl_auth_enable=no",
        "smtpd_authorized_xclient_hosts=",
        "smtpd_upstream_proxy_protocol=",
    ),
    *_overrides(
        "What ingress has done is not done again: filters, aliases, BCC copies, checks.",
        "content_filter=",
        "smtpd_proxy_filter=",
        "receive_override_options=no_address_mappings,no_unknown_recipient_checks,no_header_body_checks",
        "smtpd_command_filter=",
        "smtpd_discard_ehlo_keywords=",
        "smtpd_discard_ehlo_keyword_address_maps=",
    ),
    *_overrides(
        "Add no Date, no Message-Id and no domain to a bare address: this client is no local one.",
        "local_header_rewrite_clients=",
    ),
    *_overrides(
        "Ingress has checked the size; the hop adds a Received line, and 0 is no limit.",
        "message_size_limit=0",
    ),
)


def hop_services(sockets: Sockets, hop: Hop) -> tuple[HopService, ...]:
    """Return the egress hop's three services: its sending half, its receiving half, and the cleanup of that."""
    log_name = Override("syslog_name", f"postfix/{hop.transport}", "Its lines are told from ingress' in the log.")
    receiving = (
        log_name,
        Override(
            "milter_macro_daemon_name",
            hop.daemon_name,
            "The milter knows by this name that it is to rewrite ([egress]).",
        ),
        Override("smtpd_milters", sockets.milter, "gatepost alone: other milters have seen the message at ingress."),
        Override("smtpd_milter_maps", "", "It would turn the milter off for some clients."),
        Override("milter_default_action", "tempfail", "Without gatepost nothing passes: it would leave unrewritten."),
        *_RECEIVING,
        Override(
            "cleanup_service_name", hop.cleanup, "cleanup(8) checks the size again, so the hop has one of its own."
        ),
    )
    return (
        HopService(hop.transport, "unix", "smtp", _for_version(hop, _SENDING)),
        HopService(hop.listen, "inet", "smtpd", _for_version(hop, receiving), private="n"),
        HopService(
            hop.cleanup,
            "unix",
            "cleanup",
            (log_name, Override("message_size_limit", "0", "Ingress has checked the size.")),
            private="n",
            process_limit="0",
        ),
    )


def _for_version(hop: Hop, overrides: tuple[Override, ...]) -> tuple[Override, ...]:
    """Return *overrides* for the address that the hop is at: they are written for IPv4."""
    if not hop.listen.startswith("["):
        return overrides
    names = {"smtp_bind_address": "smtp_bind_address6"}
    values = {"127.0.0.1": "::1", "127.0.0.0/8": "[::1]/128"}
    return tuple(
        Override(names.get(item.name, item.name), values.get(item.value, item.value), item.why) for item in overrides
    )


BEHIND_FILTER = (
    Override(
        "smtpd_milters",
        "",
        "It takes mail back from your content filter: judged again its client would be 127.0.0.1, which no connector"
        " covers.",
    ),
    Override(
        "smtpd_command_filter", "", "ORCPT tells the egress hop the mailbox, where ingress has expanded an alias."
    ),
)
"""What the smtpd needs that takes mail back from a content filter; it asks no policy service of ours either."""
