/*
 * client.c: the one client that measures every receiver in the same way. The seed form is here; the
 * agent, which is to a ztunnel of the ZDS form what a client is to a receiver, in client_zds.c.
 *
 * Usage: client NETNS_FD...
 *        client agent SOCKET HELD NETNS_FD...
 *
 * The first reads lines "N PAUSE_US SOCKET" from stdin and does N cycles with the receiver there:
 * take a netns, release it, pause. Answers with N times on one line, in nanoseconds from connect()
 * to the whole answer of take. The netns take turns, because a Go program closes a listener a while
 * after it says so.
 *
 * The release, on a connection of its own, and the pause are not timed. The pause lets the receiver
 * come to rest, as it is between two pods of real life: without it a receiver that answers first
 * and tidies up afterwards would be charged for tidying up after the last pod. It is slept and not
 * spun, for a client that spins on the CPU of its receiver would keep it from coming to rest.
 *
 * Any failure ends the program with a line on stderr.
 */
#include "client.h"
#include "common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PATH = 108, MAX_ANSWER = 512 };

/* Reads one line, which must begin with EXPECTED. */
static void read_answer(int sock, const char *expected)
{
    char line[MAX_ANSWER + 1];
    size_t have = 0;

    do {
        must(have < MAX_ANSWER, "answer too long");
        ssize_t got = recv(sock, line + have, MAX_ANSWER - have, 0);
        must(got > 0, "recv");
        have += (size_t)got;
    } while (line[have - 1] != '\n');
    line[have] = '\0';
    if (strncmp(line, expected, strlen(expected)) == 0)
        return;
    fprintf(stderr, "expected %s, the receiver said: %s", expected, line);
    exit(1);
}

/* One connection, one request. Nanoseconds from connect() to the answer. */
static long ask(const struct sockaddr_un *receiver, char byte, int netns, const char *expected)
{
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(sock >= 0, "socket");
    long begin = now_ns();
    must(connect(sock, (const struct sockaddr *)receiver, sizeof *receiver) == 0, "connect");
    send_with_fd(sock, &byte, 1, netns);
    read_answer(sock, expected);
    long took = now_ns() - begin;
    close(sock);
    return took;
}

void rest(long us)
{
    struct timespec pause = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

    nanosleep(&pause, NULL);
}

int main(int argc, char **argv)
{
    struct sockaddr_un receiver = {.sun_family = AF_UNIX};
    char path[MAX_PATH];
    int cycles, pause_us;

    if (argc < 2) {
        fprintf(stderr, "usage: client NETNS_FD... | client agent SOCKET HELD NETNS_FD...\n");
        return 2;
    }
    if (strcmp(argv[1], "agent") == 0)
        return be_agent(argc - 2, argv + 2);
    while (scanf("%d %d %107s", &cycles, &pause_us, path) == 3) {
        strcpy(receiver.sun_path, path);
        for (int i = 0; i < cycles; i++) {
            int netns = atoi(argv[1 + i % (argc - 1)]);
            printf("%ld ", ask(&receiver, 1, netns, "ready"));
            ask(&receiver, 2, netns, "released");
            rest(pause_us);
        }
        puts("");
        fflush(stdout);
    }
    return 0;
}
