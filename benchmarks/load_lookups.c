/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Ask a look-up server as many questions as it answers, in Postfix's three protocols.
 *
 * One thread holds some connections, each with one request outstanding, as Postfix's processes do.
 * The requests come from a file, just as they go over the wire, and are asked in their order, again
 * and again: the next connection that is free takes the next one, or the next few that belong
 * together. Each latency is kept, so that the percentiles are exact.
 *
 * When the warm-up is over, the line "measuring" is written, and at the end the result; then the
 * connections stay open until standard input ends, so that whoever started this can look at the
 * server's CPU time both times.
 *
 * Exit status: 0, 1 where an answer was not as expected or a connection was closed, 2 for wrong
 * usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LARGEST_ANSWER = 16384, EVENTS = 64 };
static const uint64_t SECOND = 1000000000;

/* Return the length of the first message in *text*, a request or an answer; 0: not all is there. */
typedef size_t framing(const char *text, size_t length);

struct protocol {
    const char *name;
    framing *message;
    const char *prefix_end; /* what stands before the answer's own text ends with this */
};

struct request {
    const char *text;
    size_t length;
};

struct connection {
    int fd;
    size_t next, left; /* of the requests that it has taken */
    uint64_t asked_at;
    size_t received;
    char answer[LARGEST_ANSWER];
};

struct latencies {
    uint32_t *ns;
    size_t count, room;
};

static struct {
    const struct protocol *protocol;
    struct sockaddr_storage address;
    socklen_t address_length;
    const char *expected;
    struct request *requests;
    size_t request_count, next_request, together;
    struct connection *connections;
    bool reconnect;
    int epoll;
    uint64_t wrong;
} load = { .together = 1 };

static size_t line_message(const char *text, size_t length)
{
    const char *end = memchr(text, '\n', length);
    return end ? (size_t)(end - text) + 1 : 0;
}

static size_t paragraph_message(const char *text, size_t length)
{
    const char *end = memmem(text, length, "\n\n", 2);
    return end ? (size_t)(end - text) + 2 : 0;
}

static size_t netstring_message(const char *text, size_t length)
{
    size_t size = 0, at = 0;

    while (at < length && text[at] >= '0' && text[at] <= '9')
        size = size * 10 + (size_t)(text[at++] - '0');
    return at < length && length > at + 1 + size ? at + 1 + size + 1 : 0;
}

static const struct protocol PROTOCOLS[] = {
    { "tcp_table", line_message, "" },
    { "socketmap", netstring_message, ":" },
    { "policy", paragraph_message, "" },
};

static void fail(const char *what)
{
    perror(what);
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Set the server's address: the path of a Unix socket, or IPv4 address and port. */
static void set_address(const char *text)
{
    struct sockaddr_un *local = (struct sockaddr_un *)&load.address;
    struct sockaddr_in *internet = (struct sockaddr_in *)&load.address;
    const char *colon = strrchr(text, ':');
    char host[INET_ADDRSTRLEN] = "";

    if (text[0] == '/' && strlen(text) < sizeof local->sun_path) {
        local->sun_family = AF_UNIX;
        strcpy(local->sun_path, text);
        load.address_length = sizeof *local;
        return;
    }
    if (colon && colon - text < (long)sizeof host)
        memcpy(host, text, (size_t)(colon - text));
    if (!colon || inet_pton(AF_INET, host, &internet->sin_addr) != 1) {
        fprintf(stderr, "%s is neither a path nor IPv4 address and port\n", text);
        exit(2);
    }
    internet->sin_family = AF_INET;
    internet->sin_port = htons((uint16_t)atoi(colon + 1));
    load.address_length = sizeof *internet;
}

static void read_requests(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    size_t size, at = 0, room = 0;
    char *text;

    if (fd < 0 || fstat(fd, &status) < 0)
        fail(path);
    size = (size_t)status.st_size;
    text = malloc(size + 1);
    if (!text || read(fd, text, size) != (ssize_t)size)
        fail(path);
    close(fd);
    while (at < size) {
        size_t length = load.protocol->message(text + at, size - at);

        if (length == 0)
            break;
        if (load.request_count == room) {
            room = room ? room * 2 : 1024;
            load.requests = realloc(load.requests, room * sizeof *load.requests);
            if (!load.requests)
                fail("requests");
        }
        load.requests[load.request_count++] = (struct request){ text + at, length };
        at += length;
    }
    if (at < size || !load.request_count || load.request_count % load.together) {
        fprintf(stderr, "%s: not some %zu whole requests of the protocol %s\n", path,
            load.together, load.protocol->name);
        exit(2);
    }
}

static void open_connection(struct connection *connection)
{
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = connection };
    int on = 1;

    connection->fd = socket(load.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        fail("socket");
    if (connect(connection->fd, (void *)&load.address, load.address_length) < 0)
        fail("connect");
    if (load.address.ss_family != AF_UNIX)
        setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(load.epoll, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        fail("epoll_ctl");
}

static void ask(struct connection *connection)
{
    const struct request *request;

    if (connection->left == 0) {
        connection->next = load.next_request;
        connection->left = load.together;
        load.next_request = (load.next_request + load.together) % load.request_count;
    }
    request = &load.requests[connection->next++];
    connection->left--;
    connection->received = 0;
    connection->asked_at = now_ns();
    if (write(connection->fd, request->text, request->length) != (ssize_t)request->length)
        fail("write");
}

static void note_wrong(const char *answer, size_t length)
{
    if (load.wrong++ == 0)
        fprintf(stderr, "unexpected: %.*s\n", (int)length, answer);
}

static void check(const char *answer, size_t length)
{
    const char *end = strstr(answer, load.protocol->prefix_end);
    const char *body = end ? end + strlen(load.protocol->prefix_end) : answer;

    if (strncmp(body, load.expected, strlen(load.expected)))
        note_wrong(answer, length);
}

static void keep(struct latencies *latencies, uint64_t ns)
{
    if (latencies->count == latencies->room) {
        latencies->room = latencies->room ? latencies->room * 2 : 1 << 20;
        latencies->ns = realloc(latencies->ns, latencies->room * sizeof *latencies->ns);
        if (!latencies->ns)
            fail("latencies");
    }
    latencies->ns[latencies->count++] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

/* Take what has come on a connection; once the answer is there, ask the next question. */
static void receive(struct connection *connection, struct latencies *latencies)
{
    ssize_t got = read(connection->fd, connection->answer + connection->received,
        sizeof connection->answer - 1 - connection->received);
    bool closed = got <= 0;

    if (closed) {
        note_wrong("the connection was closed", 25);
    } else {
        connection->received += (size_t)got;
        connection->answer[connection->received] = '\0';
        if (!load.protocol->message(connection->answer, connection->received))
            return;
        keep(latencies, now_ns() - connection->asked_at);
        check(connection->answer, connection->received);
    }
    if (closed || load.reconnect) {
        close(connection->fd);
        open_connection(connection);
    }
    ask(connection);
}

static void run_until(uint64_t end, struct latencies *latencies)
{
    struct epoll_event events[EVENTS];

    while (now_ns() < end) {
        int count = epoll_wait(load.epoll, events, EVENTS, 100);

        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int i = 0; i < count; i++)
            receive(events[i].data.ptr, latencies);
    }
}

static int compare(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;

    return a < b ? -1 : a > b;
}

static double percentile_us(const struct latencies *latencies, double share)
{
    if (!latencies->count)
        return 0;
    return latencies->ns[(size_t)(share * (double)(latencies->count - 1))] / 1e3;
}

static void print_result(
    struct latencies *latencies, double seconds, double cpu_s, bool as_json)
{
    const char *format = as_json
        ? "{\"answers\": %zu, \"seconds\": %.4f, \"per_second\": %.1f, \"p50_us\": %.1f, "
          "\"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"load_cpu_s\": %.4f, "
          "\"wrong\": %llu}\n"
        : "%zu answers in %.2f s: %.0f a second; p50 %.1f us, p99 %.1f us, p99.9 %.1f us, "
          "max %.1f us; %.2f s of CPU time here; %llu wrong\n";

    qsort(latencies->ns, latencies->count, sizeof *latencies->ns, compare);
    printf(format, latencies->count, seconds, (double)latencies->count / seconds,
        percentile_us(latencies, 0.5), percentile_us(latencies, 0.99),
        percentile_us(latencies, 0.999), percentile_us(latencies, 1), cpu_s,
        (unsigned long long)load.wrong);
    fflush(stdout);
}

static void usage(void)
{
    fprintf(stderr,
        "usage: load_lookups --protocol tcp_table|socketmap|policy --address PATH|IPV4:PORT\n"
        "           --requests FILE --expect PREFIX [--together N] [--connections N]\n"
        "           [--seconds S] [--warm-up S] [--reconnect] [--json]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = { { "protocol", 1, 0, 'p' }, { "address", 1, 0, 'a' },
        { "requests", 1, 0, 'f' }, { "expect", 1, 0, 'e' }, { "together", 1, 0, 't' },
        { "connections", 1, 0, 'c' }, { "seconds", 1, 0, 's' }, { "warm-up", 1, 0, 'w' },
        { "reconnect", 0, 0, 'r' }, { "json", 0, 0, 'j' }, { 0 } };
    const char *requests = NULL;
    int connections = 1, option;
    double seconds = 3, warm_up_s = 0.5, cpu_s;
    bool as_json = false;
    struct latencies latencies = { 0 };
    uint64_t began;
    char rest[64];

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'p':
            for (size_t i = 0; i < sizeof PROTOCOLS / sizeof *PROTOCOLS; i++)
                if (!strcmp(optarg, PROTOCOLS[i].name))
                    load.protocol = &PROTOCOLS[i];
            break;
        case 'a': set_address(optarg); break;
        case 'f': requests = optarg; break;
        case 'e': load.expected = optarg; break;
        case 't': load.together = (size_t)atol(optarg); break;
        case 'c': connections = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'w': warm_up_s = atof(optarg); break;
        case 'r': load.reconnect = true; break;
        case 'j': as_json = true; break;
        default: usage();
        }
    }
    if (!load.protocol || !load.address_length || !requests || !load.expected)
        usage();
    if (connections < 1 || load.together < 1)
        usage();
    signal(SIGPIPE, SIG_IGN);
    read_requests(requests);
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    load.connections = calloc((size_t)connections, sizeof *load.connections);
    if (load.epoll < 0 || !load.connections)
        fail("connections");
    for (int i = 0; i < connections; i++) {
        open_connection(&load.connections[i]);
        ask(&load.connections[i]);
    }
    run_until(now_ns() + (uint64_t)(warm_up_s * 1e9), &latencies);
    latencies.count = 0;
    puts("measuring");
    fflush(stdout);
    cpu_s = cpu_seconds();
    began = now_ns();
    run_until(began + (uint64_t)(seconds * 1e9), &latencies);
    seconds = (double)(now_ns() - began) / 1e9;
    print_result(&latencies, seconds, cpu_seconds() - cpu_s, as_json);
    while (read(STDIN_FILENO, rest, sizeof rest) > 0)
        ;
    return load.wrong ? 1 : 0;
}
