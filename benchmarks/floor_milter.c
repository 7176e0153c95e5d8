/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A milter on libmilter that does nothing: what is left of gatepost's milter without Python and without a decision.
 *
 * It gets the callbacks and macros that gatepost gets, and answers, with SMFIS_CONTINUE, the stages that gatepost
 * answers: RCPT, the end of the message, and, on TCP only, DATA.
 *
 * -p SOCKET  where to listen, as libmilter has it
 * -H         take no headers, nor their end
 * -s         change the sender at the end of each message
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libmilter/mfapi.h>

static int no_headers, change_sender, has_data;

static sfsistat at_negotiation(SMFICTX *context, unsigned long f0, unsigned long f1, unsigned long f2,
                               unsigned long f3, unsigned long *actions, unsigned long *protocol,
                               unsigned long *unused2, unsigned long *unused3)
{
    unsigned long wanted = SMFIP_NR_CONN | SMFIP_NR_HELO | SMFIP_NR_MAIL | SMFIP_NR_HDR | SMFIP_NR_EOH
                           | SMFIP_NOBODY | SMFIP_NOUNKNOWN;

    (void)f2, (void)f3;
    if (!has_data)
        wanted |= SMFIP_NODATA;
    if (no_headers)
        wanted |= SMFIP_NOHDRS | SMFIP_NOEOH;
    *actions = f0 & SMFIF_CHGFROM;
    *protocol = f1 & wanted;
    *unused2 = *unused3 = 0;
    smfi_setsymlist(context, SMFIM_CONNECT,
                    "j {daemon_name} {daemon_addr} {daemon_port} {client_resolve} {client_ptr}");
    smfi_setsymlist(context, SMFIM_HELO, "");
    smfi_setsymlist(context, SMFIM_ENVFROM,
                    "i {auth_authen} {mail_addr} {cert_issuer} {cert_subject} {verify} {cn_subject} {cn_issuer} "
                    "{cert_fp} {cert_md5}");
    smfi_setsymlist(context, SMFIM_ENVRCPT, "i {rcpt_addr}");
    smfi_setsymlist(context, SMFIM_DATA, "i");
    smfi_setsymlist(context, SMFIM_EOH, "");
    smfi_setsymlist(context, SMFIM_EOM, "i");
    return SMFIS_CONTINUE;
}

static sfsistat at_connect(SMFICTX *context, char *name, struct sockaddr *peer)
{
    (void)context, (void)name, (void)peer;
    return SMFIS_NOREPLY;
}

static sfsistat at_helo(SMFICTX *context, char *name)
{
    (void)context, (void)name;
    return SMFIS_NOREPLY;
}

static sfsistat at_mail(SMFICTX *context, char **arguments)
{
    (void)context, (void)arguments;
    return SMFIS_NOREPLY;
}

static sfsistat at_rcpt(SMFICTX *context, char **arguments)
{
    (void)context, (void)arguments;
    return SMFIS_CONTINUE;
}

static sfsistat at_data(SMFICTX *context)
{
    (void)context;
    return SMFIS_CONTINUE;
}

static sfsistat at_header(SMFICTX *context, char *name, char *value)
{
    (void)context, (void)name, (void)value;
    return SMFIS_NOREPLY;
}

static sfsistat at_end_of_headers(SMFICTX *context)
{
    (void)context;
    return SMFIS_NOREPLY;
}

static sfsistat at_end(SMFICTX *context)
{
    static char sender[] = "<bounces+SRS=xxxxxxxx=XX=vendor.example=app@contoso.com>";

    if (change_sender && smfi_chgfrom(context, sender, NULL) != MI_SUCCESS)
        return SMFIS_TEMPFAIL;
    return SMFIS_CONTINUE;
}

static sfsistat at_abort(SMFICTX *context)
{
    (void)context;
    return SMFIS_CONTINUE;
}

static sfsistat at_close(SMFICTX *context)
{
    (void)context;
    return SMFIS_CONTINUE;
}

static struct smfiDesc milter = {
    .xxfi_name = "floor",
    .xxfi_version = SMFI_VERSION,
    .xxfi_flags = SMFIF_CHGFROM,
    .xxfi_connect = at_connect,
    .xxfi_helo = at_helo,
    .xxfi_envfrom = at_mail,
    .xxfi_envrcpt = at_rcpt,
    .xxfi_header = at_header,
    .xxfi_eoh = at_end_of_headers,
    .xxfi_eom = at_end,
    .xxfi_abort = at_abort,
    .xxfi_close = at_close,
    .xxfi_data = at_data,
    .xxfi_negotiate = at_negotiation,
};

int main(int count, char **words)
{
    char *listen = NULL;
    int option, one = 1;

    while ((option = getopt(count, words, "p:Hs")) != -1)
        switch (option) {
        case 'p': listen = optarg; break;
        case 'H': no_headers = 1; break;
        case 's': change_sender = 1; break;
        default: return 64;
        }
    if (listen == NULL || smfi_register(milter) != MI_SUCCESS || smfi_setconn(listen) != MI_SUCCESS
        || smfi_opensocket(1) != MI_SUCCESS) {
        fprintf(stderr, "usage: floor_milter -p SOCKET [-H] [-s]\n");
        return 64;
    }
    has_data = strncmp(listen, "inet", 4) == 0;
    for (int fd = 3; fd < 16; fd++) /* libmilter does not tell which; it fails for all others, and a Unix socket */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return smfi_main() == MI_SUCCESS ? 0 : 1;
}
