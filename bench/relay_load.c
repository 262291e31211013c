/*
 * relay_load.c: both ends of the connections that go through a relay, the same for each contender.
 *
 * Usage: relay_load server NETNS_FD PORT
 *        relay_load client NETNS_FD ADDRESS PORT
 *
 * Each enters the netns at its start and stays. The server says "listening". A client reads lines
 * from stdin and answers each with one line of numbers:
 *
 *   stream MS       one connection, one direction. "BYTES NS": what the server had read when it saw
 *                   the end, and the time from connect() to its word for that; what a relay still
 *                   holds when the client stops is thus no gift to it.
 *   short N WIDTH   N connections by WIDTH threads: connect, 64 bytes there and back, close.
 *                   "NS STALLED": the time of all, and how many took 0.9 s or more, which is what
 *                   a lost SYN costs.
 *   ping N          64 bytes there and back, N times on one connection: N times, nanoseconds.
 *   hold N          N more connections that have answered once and stay open: "N", all held.
 *   drop            closes all that are held: "0".
 *
 * The client closes first, as one does: TIME_WAIT and the port stay in its netns.
 *
 * The server has blocking threads: one stream needs nothing else, and eight connections at a time
 * never find them all taken. A first byte 's' is a stream, 'h' a connection to hold, which no
 * thread waits for and which ends with the process; anything else is sent back.
 *
 * Any failure ends the program with a line on stderr.
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PING = 64, CHUNK = 256 * 1024, WORKERS = 32, BACKLOG = 4096, MAX_HELD = 16384, WARM = 50 };
static const long STALL_NS = 900000000;

static struct sockaddr_in server_address = {.sin_family = AF_INET};

static void set_nodelay(int sock)
{
    static const int on = 1;

    must(setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
}

static void send_all(int sock, const void *bytes, size_t size)
{
    must(send(sock, bytes, size, MSG_NOSIGNAL) == (ssize_t)size, "send");
}

static void receive_all(int sock, void *bytes, size_t size)
{
    ssize_t got = recv(sock, bytes, size, MSG_WAITALL);

    must(got >= 0, "recv");
    if ((size_t)got == size)
        return;
    fprintf(stderr, "the connection ended after %zd of %zu bytes\n", got, size);
    exit(1);
}

/* ---- the server ---- */

static void count_stream(int sock, char *buffer, ssize_t got)
{
    uint64_t bytes = 0;

    while (got > 0) {
        bytes += (uint64_t)got;
        got = recv(sock, buffer, CHUNK, 0);
    }
    must(got == 0, "recv of a stream");
    send_all(sock, &bytes, sizeof bytes);
    /* Not to be the one who closes first. */
    while (recv(sock, buffer, CHUNK, 0) > 0)
        continue;
}

static void serve(int sock, char *buffer)
{
    ssize_t got = recv(sock, buffer, CHUNK, 0);

    if (got > 0 && buffer[0] == 'h') {
        send_all(sock, buffer, 1);
        return; /* held until this process ends */
    }
    if (got > 0 && buffer[0] == 's') {
        count_stream(sock, buffer, got);
    } else {
        while (got > 0) {
            send_all(sock, buffer, (size_t)got);
            got = recv(sock, buffer, CHUNK, 0);
        }
    }
    close(sock);
}

static void *work(void *argument)
{
    int listener = *(const int *)argument;
    char *buffer = malloc(CHUNK);

    must(buffer != NULL, "malloc");
    for (;;) {
        int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        must(sock >= 0, "accept");
        set_nodelay(sock);
        serve(sock, buffer);
    }
    return NULL;
}

static int be_server(void)
{
    static const int on = 1;
    static int listener;
    pthread_t thread;

    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(listener >= 0, "socket");
    must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0, "SO_REUSEADDR");
    must(bind(listener, (struct sockaddr *)&server_address, sizeof server_address) == 0, "bind");
    must(listen(listener, BACKLOG) == 0, "listen");
    for (int i = 1; i < WORKERS; i++)
        must(pthread_create(&thread, NULL, work, &listener) == 0, "pthread_create");
    puts("listening");
    fflush(stdout);
    work(&listener);
    return 1;
}

/* ---- the client ---- */

static int open_connection(void)
{
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(sock >= 0, "socket");
    set_nodelay(sock);
    must(connect(sock, (struct sockaddr *)&server_address, sizeof server_address) == 0, "connect");
    return sock;
}

static void ping(int sock)
{
    char bytes[PING] = "ping";

    send_all(sock, bytes, sizeof bytes);
    receive_all(sock, bytes, sizeof bytes);
}

static void stream(long ms)
{
    static char buffer[CHUNK];
    uint64_t bytes;
    long begin = now_ns();
    int sock = open_connection();

    memset(buffer, 's', sizeof buffer);
    do
        send_all(sock, buffer, sizeof buffer);
    while (now_ns() - begin < ms * 1000000);
    must(shutdown(sock, SHUT_WR) == 0, "shutdown");
    receive_all(sock, &bytes, sizeof bytes);
    printf("%llu %ld\n", (unsigned long long)bytes, now_ns() - begin);
    close(sock);
}

struct share {
    pthread_t thread;
    long connections;
    long stalled;
};

static void *open_short_ones(void *argument)
{
    struct share *share = argument;

    for (long i = 0; i < share->connections; i++) {
        long begin = now_ns();
        int sock = open_connection();
        ping(sock);
        close(sock);
        share->stalled += now_ns() - begin >= STALL_NS;
    }
    return NULL;
}

static void short_ones(long n, long width)
{
    struct share shares[WORKERS] = {{0}};
    long stalled = 0, begin = now_ns();

    must(width > 0 && width <= WORKERS, "width");
    for (long i = 0; i < width; i++) {
        shares[i].connections = n / width + (i < n % width);
        must(pthread_create(&shares[i].thread, NULL, open_short_ones, &shares[i]) == 0,
             "pthread_create");
    }
    for (long i = 0; i < width; i++) {
        must(pthread_join(shares[i].thread, NULL) == 0, "pthread_join");
        stalled += shares[i].stalled;
    }
    printf("%ld %ld\n", now_ns() - begin, stalled);
}

static void pings(long n)
{
    int sock = open_connection();

    for (int i = 0; i < WARM; i++)
        ping(sock);
    for (long i = 0; i < n; i++) {
        long begin = now_ns();
        ping(sock);
        printf("%ld ", now_ns() - begin);
    }
    puts("");
    close(sock);
}

static int held[MAX_HELD];
static long holding;

static void hold(long n)
{
    must(n >= 0 && holding + n <= MAX_HELD, "too many to hold");
    for (long end = holding + n; holding < end; holding++) {
        char byte = 'h';
        held[holding] = open_connection();
        send_all(held[holding], &byte, 1);
        receive_all(held[holding], &byte, 1);
    }
    printf("%ld\n", holding);
}

static void drop(void)
{
    while (holding > 0)
        close(held[--holding]);
    puts("0");
}

static int be_client(void)
{
    char line[128];
    long n, width;

    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "stream %ld", &n) == 1)
            stream(n);
        else if (sscanf(line, "short %ld %ld", &n, &width) == 2)
            short_ones(n, width);
        else if (sscanf(line, "ping %ld", &n) == 1)
            pings(n);
        else if (sscanf(line, "hold %ld", &n) == 1)
            hold(n);
        else if (strcmp(line, "drop\n") == 0)
            drop();
        else
            must(0, line);
        fflush(stdout);
    }
    return 0;
}

static void raise_fd_limit(void)
{
    struct rlimit limit;

    must(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

int main(int argc, char **argv)
{
    int is_server = argc == 4 && strcmp(argv[1], "server") == 0;
    int is_client = argc == 5 && strcmp(argv[1], "client") == 0;

    if (!is_server && !is_client) {
        fprintf(stderr, "usage: relay_load server NETNS_FD PORT\n"
                        "       relay_load client NETNS_FD ADDRESS PORT\n");
        return 2;
    }
    must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
    raise_fd_limit();
    must(setns(atoi(argv[2]), CLONE_NEWNET) == 0, "setns");
    server_address.sin_port = htons((uint16_t)atoi(argv[argc - 1]));
    if (is_client)
        must(inet_pton(AF_INET, argv[3], &server_address.sin_addr) == 1, "ADDRESS");
    return is_server ? be_server() : be_client();
}
