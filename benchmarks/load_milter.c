/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Sends messages to a milter the way Postfix does, as fast as it answers, and says how fast that is.
 *
 * N connections in one thread, each a closed loop: connect, negotiate, some messages, quit, again. Like Postfix:
 * macros, be it none, go before their event, even where that is not wanted itself; what needs no answer
 * (SMFIP_NR_*) waits in the buffer for the next event that does; SMFIC_ABORT follows each message; TCP_NODELAY is
 * not set. When the time is up, messages under way are finished, so that what the milter has recorded can be
 * compared with "total".
 *
 * Prints one line of JSON. Exit status 1 with a word on standard error where the milter breaks the protocol, hangs
 * up, or is silent for ten seconds.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <libmilter/mfdef.h>

#define ALL_ACTIONS 0x1ffu
#define ALL_PROTOCOL 0x1fffffu
#define BODY_CHUNK 65535
#define SILENCE_MS 10000
#define MACRO_CLASSES 7

enum stage { NEGOTIATE, CONNECT, HELO, MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM };

static const struct {
    const char *name;
    char command;
    uint32_t not_wanted;    /* the flags by which a milter says so */
    uint32_t no_reply;
    int macro_class;        /* in the milter's lists; -1: none go with it */
    const char *macros;     /* what Postfix sends where the milter has no list */
} STAGES[] = {
    [NEGOTIATE] = {"negotiate", SMFIC_OPTNEG, 0, 0, -1, ""},
    [CONNECT] = {"connect", SMFIC_CONNECT, SMFIP_NOCONNECT, SMFIP_NR_CONN, 0,
                 "j {daemon_name} {daemon_addr} v _"},
    [HELO] = {"helo", SMFIC_HELO, SMFIP_NOHELO, SMFIP_NR_HELO, 1,
              "{tls_version} {cipher} {cipher_bits} {cert_subject} {cert_issuer}"},
    [MAIL] = {"mail", SMFIC_MAIL, SMFIP_NOMAIL, SMFIP_NR_MAIL, 2,
              "i {auth_type} {auth_authen} {auth_author} {mail_addr} {mail_host} {mail_mailer}"},
    [RCPT] = {"rcpt", SMFIC_RCPT, SMFIP_NORCPT, SMFIP_NR_RCPT, 3,
              "i {rcpt_addr} {rcpt_host} {rcpt_mailer}"},
    [DATA] = {"data", SMFIC_DATA, SMFIP_NODATA, SMFIP_NR_DATA, 4, "i"},
    [HEADER] = {"header", SMFIC_HEADER, SMFIP_NOHDRS, SMFIP_NR_HDR, -1, ""},
    [EOH] = {"eoh", SMFIC_EOH, SMFIP_NOEOH, SMFIP_NR_EOH, 6, "i"},
    [BODY] = {"body", SMFIC_BODY, SMFIP_NOBODY, SMFIP_NR_BODY, -1, ""},
    [EOM] = {"eom", SMFIC_BODYEOB, 0, 0, 5, "i"},
};

static const struct {
    char reply;
    const char *name;
} MODIFICATIONS[] = {
    {SMFIR_CHGFROM, "chgfrom"},     {SMFIR_ADDHEADER, "addheader"}, {SMFIR_INSHEADER, "insheader"},
    {SMFIR_CHGHEADER, "chgheader"}, {SMFIR_ADDRCPT, "addrcpt"},     {SMFIR_ADDRCPT_PAR, "addrcpt"},
    {SMFIR_DELRCPT, "delrcpt"},     {SMFIR_REPLBODY, "replbody"},   {SMFIR_QUARANTINE, "quarantine"},
};
#define MODIFICATION_COUNT (sizeof MODIFICATIONS / sizeof *MODIFICATIONS)

static const char *const HEADERS[][2] = {
    {"Received", "from app.vendor.example (app.vendor.example [192.0.2.5])\n\tby mail.contoso.com (Postfix) "
                 "with ESMTPS id 4ZLoad1x2y\n\tfor <x@example.com>; Sun, 22 Nov 2026 10:00:00 +0000 (UTC)"},
    {"From", "=?utf-8?q?B=C3=BCro?= <app@vendor.example>"},
    {"To", "Someone <x@example.com>"},
    {"Subject", "=?utf-8?q?Your_order_of_today?="},
    {"Date", "Sun, 22 Nov 2026 10:00:00 +0000"},
    {"Message-ID", "<20261122100000.4711@app.vendor.example>"},
    {"MIME-Version", "1.0"},
    {"Content-Type", "text/plain; charset=utf-8"},
    {"Content-Transfer-Encoding", "8bit"},
    {"Reply-To", "support@vendor.example"},
    {"User-Agent", "Mailer 7.1"},
    {"List-Unsubscribe", "<mailto:leave@vendor.example?subject=leave>,\n\t<https://vendor.example/leave>"},
};
#define HEADER_COUNT (sizeof HEADERS / sizeof *HEADERS)

struct buffer {
    char *octets;
    size_t begin, end, room;
};

struct connection {
    int fd;
    enum stage stage;       /* the one that was sent last */
    int waiting;            /* for the answer to it */
    int recipients_sent;
    int headers_sent;
    size_t body_sent;
    int skip_body;
    int messages;
    unsigned long number;   /* of the message under way, among all of them */
    uint32_t protocol;
    char *macros[MACRO_CLASSES];    /* the milter's lists; NULL: Postfix's own */
    double opened, began;
    struct buffer in, out;
};

/* Options. */
static struct sockaddr_storage address;
static socklen_t address_length;
static int connection_count = 8, messages_each = 5, recipient_count = 1, header_count = 12;
static double seconds = 3, warmup = 0.5, body_kb = 4;
static const char *client = "192.0.2.5", *certificate = "";
static const char *sender = "app%d@vendor.example", *recipient = "x%d@example.com";

/* What was found. Times in milliseconds. */
struct times {
    float *values;
    size_t count, room;
};
static struct times message_times, session_times;
static unsigned long begun, total, refused, changes[MODIFICATION_COUNT], measured_total;

static int poller;
static double measure_from, measure_to;
static char *body;
static size_t body_length;

static void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("load_milter: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *grown(void *old, size_t size)
{
    void *new = realloc(old, size);

    if (new == NULL)
        die("out of memory");
    return new;
}

static void append(struct buffer *buffer, const void *octets, size_t length)
{
    if (buffer->end + length > buffer->room) {
        buffer->room = 2 * (buffer->end + length);
        buffer->octets = grown(buffer->octets, buffer->room);
    }
    memcpy(buffer->octets + buffer->end, octets, length);
    buffer->end += length;
}

static void append_string(struct buffer *buffer, const char *string)
{
    append(buffer, string, strlen(string) + 1);
}

/* Begin a packet; return where its length belongs. */
static size_t begin_packet(struct buffer *buffer, char command)
{
    size_t start = buffer->end;

    append(buffer, "\0\0\0\0", 4);
    append(buffer, &command, 1);
    return start;
}

static void end_packet(struct buffer *buffer, size_t start)
{
    uint32_t length = htonl((uint32_t)(buffer->end - start - 4));

    memcpy(buffer->octets + start, &length, sizeof length);
}

/* Write a pattern with a number in the place of %d. */
static void expand(char *into, size_t size, const char *pattern, unsigned long number)
{
    const char *mark = strstr(pattern, "%d");

    if (mark == NULL)
        snprintf(into, size, "%s", pattern);
    else
        snprintf(into, size, "%.*s%lu%s", (int)(mark - pattern), pattern, number, mark + 2);
}

/* Write the address that this MAIL or RCPT names. */
static void expand_address(char *into, size_t size, const struct connection *c, enum stage stage)
{
    if (stage == MAIL)
        expand(into, size, sender, c->number);
    else
        expand(into, size, recipient, c->number * (unsigned long)recipient_count + (unsigned long)c->recipients_sent);
}

/* Return the value that Postfix gives a macro at this stage, or NULL. */
static const char *macro_value(const struct connection *c, enum stage stage, const char *name)
{
    static const char *const FIXED[][2] = {
        {"j", "mail.contoso.com"},         {"{daemon_name}", "mail.contoso.com"},
        {"{daemon_addr}", "192.0.2.1"},    {"{daemon_port}", "25"},
        {"v", "Postfix 3.7.11"},           {"_", "app.vendor.example [192.0.2.5]"},
        {"{client_ptr}", "app.vendor.example"}, {"{client_resolve}", "OK"},
        {"{mail_host}", "vendor.example"}, {"{mail_mailer}", "smtp"},
        {"{rcpt_host}", "example.com"},    {"{rcpt_mailer}", "smtp"},
    };
    static char value[512];

    if (strcmp(name, "i") == 0) { /* not before the first recipient is taken */
        snprintf(value, sizeof value, "4Z%08lX", c->number);
        return stage > RCPT ? value : NULL;
    }
    if (strcmp(name, "{mail_addr}") == 0 || strcmp(name, "{rcpt_addr}") == 0) {
        expand_address(value, sizeof value, c, name[1] == 'm' ? MAIL : RCPT);
        return value;
    }
    if (*certificate) {
        if (strcmp(name, "{cert_subject}") == 0)
            return certificate;
        if (strcmp(name, "{cert_issuer}") == 0)
            return "Example Authority";
        if (strcmp(name, "{tls_version}") == 0)
            return "TLSv1.3";
    }
    for (size_t i = 0; i < sizeof FIXED / sizeof *FIXED; i++)
        if (strcmp(name, FIXED[i][0]) == 0)
            return FIXED[i][1];
    return NULL;
}

static void send_macros(struct connection *c, enum stage stage)
{
    const char *wanted;
    char list[1024], *name, *rest;
    size_t start;

    if (STAGES[stage].macro_class < 0)
        return;
    wanted = c->macros[STAGES[stage].macro_class];
    if (wanted == NULL || *wanted == '\0') /* Postfix takes a list of no macros for none */
        wanted = STAGES[stage].macros;
    snprintf(list, sizeof list, "%s", wanted);
    start = begin_packet(&c->out, SMFIC_MACRO);
    append(&c->out, &STAGES[stage].command, 1);
    for (name = strtok_r(list, " ", &rest); name; name = strtok_r(NULL, " ", &rest)) {
        const char *value = macro_value(c, stage, name);
        if (value) {
            append_string(&c->out, name);
            append_string(&c->out, value);
        }
    }
    end_packet(&c->out, start);
}

static void send_arguments(struct connection *c, enum stage stage)
{
    static const uint32_t OFFER[] = {6, ALL_ACTIONS, ALL_PROTOCOL};
    char path[600], bare[512], size[32];
    uint16_t port = htons(40000);
    size_t length;

    switch (stage) {
    case NEGOTIATE:
        for (int i = 0; i < 3; i++) {
            uint32_t number = htonl(OFFER[i]);
            append(&c->out, &number, sizeof number);
        }
        break;
    case CONNECT:
        append_string(&c->out, "app.vendor.example");
        append(&c->out, "4", 1);
        append(&c->out, &port, sizeof port);
        append_string(&c->out, client);
        break;
    case HELO:
        append_string(&c->out, "app.vendor.example");
        break;
    case MAIL:
    case RCPT:
        expand_address(bare, sizeof bare, c, stage);
        snprintf(path, sizeof path, "<%s>", bare);
        append_string(&c->out, path);
        if (stage == MAIL) {
            snprintf(size, sizeof size, "SIZE=%zu", body_length + 800);
            append_string(&c->out, size);
            append_string(&c->out, "BODY=8BITMIME");
        }
        break;
    case HEADER:
        append_string(&c->out, HEADERS[c->headers_sent % (int)HEADER_COUNT][0]);
        append_string(&c->out, HEADERS[c->headers_sent % (int)HEADER_COUNT][1]);
        break;
    case BODY:
        length = body_length - c->body_sent;
        if (length > BODY_CHUNK)
            length = BODY_CHUNK;
        append(&c->out, body + c->body_sent, length);
        c->body_sent += length;
        break;
    default:
        break;
    }
}

static void send_event(struct connection *c, enum stage stage)
{
    size_t start;

    c->stage = stage;
    send_macros(c, stage);
    if (c->protocol & STAGES[stage].not_wanted)
        return;
    start = begin_packet(&c->out, STAGES[stage].command);
    send_arguments(c, stage);
    end_packet(&c->out, start);
    c->waiting = !(c->protocol & STAGES[stage].no_reply);
}

static void send_command(struct connection *c, char command)
{
    end_packet(&c->out, begin_packet(&c->out, command));
}

/* Write what waits. It may have to wait itself, which is no matter: a milter reads while its answers are unread. */
static void flush(struct connection *c)
{
    while (c->out.begin < c->out.end) {
        ssize_t written = send(c->fd, c->out.octets + c->out.begin, c->out.end - c->out.begin, MSG_NOSIGNAL);
        if (written < 0)
            die("%s: %s", STAGES[c->stage].name, strerror(errno));
        c->out.begin += (size_t)written;
    }
    c->out.begin = c->out.end = 0;
}

static void open_connection(struct connection *c)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

    c->opened = now();
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, address_length) < 0)
        die("connect: %s", strerror(errno));
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    c->messages = 0;
    c->protocol = 0;
    for (int i = 0; i < MACRO_CLASSES; i++) {
        free(c->macros[i]);
        c->macros[i] = NULL;
    }
    c->in.begin = c->in.end = c->out.begin = c->out.end = 0;
    send_event(c, NEGOTIATE);
}

static void note(struct times *times, double from, double to)
{
    if (to < measure_from || to > measure_to)
        return;
    if (times->count == times->room) {
        times->room = times->room ? 2 * times->room : 65536;
        times->values = grown(times->values, times->room * sizeof *times->values);
    }
    times->values[times->count++] = (float)(1000 * (to - from));
}

/* Begin a message, or quit and connect anew; quit for good when the time is up. */
static void begin_message(struct connection *c)
{
    double time = now();

    if (c->messages == messages_each || time >= measure_to) {
        send_command(c, SMFIC_QUIT);
        flush(c);
        note(&session_times, c->opened, time);
        close(c->fd);
        c->fd = -1;
        if (time >= measure_to)
            return;
        open_connection(c);
        return;
    }
    c->messages++;
    c->number = ++begun;
    c->recipients_sent = 0;
    c->headers_sent = 0;
    c->body_sent = 0;
    c->skip_body = 0;
    c->began = time;
    send_event(c, MAIL);
}

/* The milter has decided on the message. */
static void end_message(struct connection *c, int taken)
{
    double time = now();

    total++;
    refused += !taken;
    measured_total += time >= measure_from && time <= measure_to;
    note(&message_times, c->began, time);
    send_command(c, SMFIC_ABORT);
    begin_message(c);
}

/* Send what comes next, up to an event that wants an answer. */
static void proceed(struct connection *c)
{
    while (c->fd >= 0 && !c->waiting) {
        switch (c->stage) {
        case HELO:
            begin_message(c);
            break;
        case MAIL:
        case RCPT:
            if (c->recipients_sent == recipient_count) {
                send_event(c, DATA);
            } else {
                send_event(c, RCPT);
                c->recipients_sent++;
            }
            break;
        case DATA:
        case HEADER:
            if (c->headers_sent == header_count) {
                send_event(c, EOH);
            } else {
                send_event(c, HEADER);
                c->headers_sent++;
            }
            break;
        case EOH:
        case BODY:
            if (c->body_sent == body_length || c->skip_body || c->protocol & SMFIP_NOBODY)
                send_event(c, EOM);
            else
                send_event(c, BODY);
            break;
        default:
            send_event(c, c->stage + 1);
        }
    }
    if (c->fd >= 0)
        flush(c);
}

static uint32_t number_at(const char *octets)
{
    uint32_t number;

    memcpy(&number, octets, sizeof number);
    return ntohl(number);
}

static void negotiated(struct connection *c, const char *data, size_t length)
{
    size_t at = 12;

    if (length < at)
        die("negotiate: the answer is too short");
    c->protocol = number_at(data + 8);
    while (at + 5 <= length) { /* the macros that it wants, stage by stage */
        uint32_t class = number_at(data + at);
        size_t list_length = strnlen(data + at + 4, length - at - 4);
        if (class < MACRO_CLASSES) {
            free(c->macros[class]);
            c->macros[class] = strndup(data + at + 4, list_length);
        }
        at += 4 + list_length + 1;
    }
}

static int is_modification(char reply)
{
    for (size_t i = 0; i < MODIFICATION_COUNT; i++)
        if (MODIFICATIONS[i].reply == reply) {
            changes[i]++;
            return 1;
        }
    return 0;
}

static void answered(struct connection *c, char reply, const char *data, size_t length)
{
    if (!c->waiting)
        die("%s: an answer '%c' to nothing", STAGES[c->stage].name, reply);
    if (reply == SMFIR_PROGRESS || (c->stage == EOM && is_modification(reply)))
        return;
    c->waiting = 0;
    switch (reply) {
    case SMFIC_OPTNEG:
        negotiated(c, data, length);
        break;
    case SMFIR_CONTINUE:
        if (c->stage == EOM)
            end_message(c, 1);
        break;
    case SMFIR_SKIP:
        c->skip_body = 1;
        break;
    case SMFIR_ACCEPT:
    case SMFIR_DISCARD:
    case SMFIR_REJECT:
    case SMFIR_TEMPFAIL:
    case SMFIR_REPLYCODE:
        if (c->stage < MAIL)
            die("%s: '%c' to the client itself", STAGES[c->stage].name, reply);
        end_message(c, reply == SMFIR_ACCEPT);
        break;
    default:
        die("%s: unknown answer '%c'", STAGES[c->stage].name, reply);
    }
    proceed(c);
}

static void readable(struct connection *c)
{
    static char octets[65536];
    ssize_t got = recv(c->fd, octets, sizeof octets, 0);

    if (got <= 0)
        die("%s: the milter hangs up", STAGES[c->stage].name);
    append(&c->in, octets, (size_t)got);
    while (c->in.end - c->in.begin >= 5) {
        char *packet = c->in.octets + c->in.begin;
        uint32_t length = number_at(packet);
        if (length == 0 || length > 1 << 20)
            die("%s: a packet of %u octets", STAGES[c->stage].name, length);
        if (c->in.end - c->in.begin < 4 + (size_t)length)
            break;
        c->in.begin += 4 + (size_t)length;
        if (c->in.begin == c->in.end) /* the octets stay until more are read */
            c->in.begin = c->in.end = 0;
        answered(c, packet[4], packet + 5, length - 1);
    }
}

static int by_size(const void *one, const void *other)
{
    float a = *(const float *)one, b = *(const float *)other;

    return (a > b) - (a < b);
}

static void print_times(const char *name, struct times *times)
{
    size_t last = times->count ? times->count - 1 : 0;

    qsort(times->values, times->count, sizeof *times->values, by_size);
    printf(", \"%s\": {", name);
    if (times->count)
        printf("\"p50\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f", times->values[last / 2],
               times->values[last * 99 / 100], times->values[last * 999 / 1000], times->values[last]);
    printf("}");
}

static void print_result(void)
{
    printf("{\"connections\": %d, \"seconds\": %.3f, \"messages\": %lu, \"messages_s\": %.1f, \"total\": %lu, "
           "\"refused\": %lu",
           connection_count, seconds, measured_total, (double)measured_total / seconds, total, refused);
    print_times("message_ms", &message_times);
    print_times("session_ms", &session_times);
    for (size_t i = 0; i < MODIFICATION_COUNT; i++)
        if (i == 0 || strcmp(MODIFICATIONS[i].name, MODIFICATIONS[i - 1].name))
            printf(", \"%s\": %lu", MODIFICATIONS[i].name,
                   changes[i] + (MODIFICATIONS[i].reply == SMFIR_ADDRCPT ? changes[i + 1] : 0));
    printf("}\n");
}

static void parse_address(const char *text)
{
    struct sockaddr_un *unix_address = (struct sockaddr_un *)&address;
    struct sockaddr_in *inet_address = (struct sockaddr_in *)&address;
    char host[64];
    unsigned short port;

    if (strncmp(text, "unix:", 5) == 0 && strlen(text + 5) < sizeof unix_address->sun_path) {
        unix_address->sun_family = AF_UNIX;
        strcpy(unix_address->sun_path, text + 5);
        address_length = sizeof *unix_address;
    } else if (sscanf(text, "inet:%63[^:]:%hu", host, &port) == 2
               && inet_pton(AF_INET, host, &inet_address->sin_addr) == 1) {
        inet_address->sin_family = AF_INET;
        inet_address->sin_port = htons(port);
        address_length = sizeof *inet_address;
    } else {
        die("%s: is neither unix:PATH nor inet:ADDRESS:PORT", text);
    }
}

static void parse_options(int count, char **words)
{
    static const struct option OPTIONS[] = {
        {"address", required_argument, NULL, 'a'},  {"connections", required_argument, NULL, 'c'},
        {"seconds", required_argument, NULL, 's'},  {"warmup", required_argument, NULL, 'w'},
        {"messages", required_argument, NULL, 'm'}, {"headers", required_argument, NULL, 'h'},
        {"body-kb", required_argument, NULL, 'b'},  {"client", required_argument, NULL, 'i'},
        {"sender", required_argument, NULL, 'f'},   {"rcpt", required_argument, NULL, 't'},
        {"certificate", required_argument, NULL, 'C'}, {"rcpts", required_argument, NULL, 'r'}, {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(count, words, "", OPTIONS, NULL)) != -1)
        switch (option) {
        case 'a': parse_address(optarg); break;
        case 'c': connection_count = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 'm': messages_each = atoi(optarg); break;
        case 'h': header_count = atoi(optarg); break;
        case 'b': body_kb = atof(optarg); break;
        case 'i': client = optarg; break;
        case 'f': sender = optarg; break;
        case 't': recipient = optarg; break;
        case 'C': certificate = optarg; break;
        case 'r': recipient_count = atoi(optarg); break;
        default: exit(64);
        }
    if (!address_length || connection_count < 1 || messages_each < 1 || recipient_count < 1)
        die("usage: load_milter --address unix:PATH|inet:ADDRESS:PORT [--connections N] [--messages N (a connection)]\n"
            "  [--seconds S] [--warmup S] [--headers N] [--body-kb N] [--client IP] [--certificate CN]\n"
            "  [--sender ADDRESS] [--rcpt ADDRESS] [--rcpts N]; %%d in them is a running number");
}

int main(int count, char **words)
{
    struct connection *connections;
    struct epoll_event events[64];
    int open = 0;

    parse_options(count, words);
    body_length = (size_t)(body_kb * 1024);
    body = grown(NULL, body_length + 1);
    for (size_t i = 0; i < body_length; i++)
        body[i] = i % 72 == 71 ? '\n' : i % 72 == 70 ? '\r' : 'a' + (char)(i % 26);
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)connection_count, sizeof *connections);
    measure_from = now() + warmup;
    measure_to = measure_from + seconds;
    for (int i = 0; i < connection_count; i++) {
        open_connection(&connections[i]);
        proceed(&connections[i]);
    }
    do {
        int ready = epoll_wait(poller, events, 64, SILENCE_MS);
        if (ready == 0)
            die("no answer within %d ms", SILENCE_MS);
        for (int i = 0; i < ready; i++)
            readable(events[i].data.ptr);
        open = 0;
        for (int i = 0; i < connection_count; i++)
            open += connections[i].fd >= 0;
    } while (open);
    print_result();
    return 0;
}
