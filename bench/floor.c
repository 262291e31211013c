/*
 * floor.c: what no implementation can be faster than. Only the syscalls of the work, in the order
 * in which pyztun does them, with none of its checks, answers to strangers or bookkeeping.
 *
 * Usage: floor listen NETNS_FD...
 *        floor listen-main NETNS_FD...
 *        floor pass FD
 *        floor receive SOCKET
 *        floor zds SOCKET
 *
 * listen reads lines "HOW LISTENERS PASSES" from stdin. Each pass makes LISTENERS (1 to 3) in every
 * netns; the answer is PASSES times on one line, in nanoseconds a netns. Closing them is not timed.
 * HOW is kept: home was opened once, at the start; opened: it is opened, proven and closed for each
 * netns; helper: a thread made for each netns goes there and ends there. Ends with its stdin.
 *
 * pass reads lines "TRIPS": it sends FD over a Unix socket pair to itself, receives it and closes
 * what it received, TRIPS times. The answer is one number, nanoseconds a trip.
 *
 * receive is the seed form, one connection at a time: 0x01 + fd makes the listeners and is answered
 * "ready", 0x02 + fd closes them and is answered "released". Says "listening" when SOCKET is there.
 * Ends with its parent.
 *
 * zds is ztunnel's end of ZDS, in floor_zds.c.
 *
 * All but listen-main work in a thread of their own, for the main thread must never be away:
 * /proc/PID/ns/net is where that one is. So the floor too pays what a second thread costs: the
 * kernel then counts each use of a descriptor with an atomic operation (2 to 3 % of the listeners).
 *
 * Any failure ends the program with a line on stderr.
 */
#include "floor.h"
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LISTENERS = 3, BACKLOG = 4096, MAX_NETNS = 256 };
static const unsigned short PORTS[LISTENERS] = {15008, 15006, 15001};

int open_home(void)
{
    return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

void end_with_parent(void)
{
    must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
}

static void make_listening(int sock, unsigned short port)
{
    static const int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };

    must(setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0, "setsockopt");
    must(bind(sock, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(listen(sock, BACKLOG) == 0, "listen");
}

/* What an excursion into a pod is to bring back: COUNT sockets in MADE. */
struct errand {
    int pod;
    int count;
    int *made;
};

static void go_and_make(const struct errand *errand)
{
    must(setns(errand->pod, CLONE_NEWNET) == 0, "setns");
    for (int i = 0; i < errand->count; i++) {
        errand->made[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        must(errand->made[i] >= 0, "socket");
    }
}

static void listen_on_all(const struct errand *errand)
{
    for (int i = 0; i < errand->count; i++)
        make_listening(errand->made[i], PORTS[i]);
}

static void listen_in(const struct errand *errand, int home)
{
    go_and_make(errand);
    must(setns(home, CLONE_NEWNET) == 0, "setns(home)");
    listen_on_all(errand);
}

static void listen_in_from_unknown_home(const struct errand *errand)
{
    int home = open_home();

    must(home >= 0, "open home");
    must(setns(home, CLONE_NEWNET) == 0, "setns(home)");
    listen_in(errand, home);
    close(home);
}

static void *go_and_end(void *errand)
{
    go_and_make(errand);
    return NULL;
}

/* A new thread inherits the mask of its maker: no signal handler of ours runs in the pod. */
static void listen_in_by_helper(struct errand *errand)
{
    pthread_t helper;
    sigset_t everything, before;

    sigfillset(&everything);
    pthread_sigmask(SIG_SETMASK, &everything, &before);
    errno = pthread_create(&helper, NULL, go_and_end, errand);
    must(errno == 0, "pthread_create");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_join(helper, NULL);
    listen_on_all(errand);
}

/* One pass over all pods; nanoseconds a pod. */
static long timed_pass(const int *pods, int npods, int count, int home, const char *how)
{
    static int made[MAX_NETNS][LISTENERS];
    int by_helper = strcmp(how, "helper") == 0;
    int opened = strcmp(how, "opened") == 0;
    long begin = now_ns();

    for (int i = 0; i < npods; i++) {
        struct errand errand = {pods[i], count, made[i]};
        if (by_helper)
            listen_in_by_helper(&errand);
        else if (opened)
            listen_in_from_unknown_home(&errand);
        else
            listen_in(&errand, home);
    }
    long took = now_ns() - begin;
    for (int i = 0; i < npods; i++)
        for (int k = 0; k < count; k++)
            close(made[i][k]);
    return took / npods;
}

static void *serve_listen(void *words)
{
    int pods[MAX_NETNS];
    int npods = 0;
    int home = open_home();
    char how[16];
    int count, passes;

    must(home >= 0, "open home");
    for (char **word = words; *word != NULL && npods < MAX_NETNS; word++)
        pods[npods++] = atoi(*word);
    while (scanf("%15s %d %d", how, &count, &passes) == 3) {
        errno = EINVAL;
        must(count >= 1 && count <= LISTENERS, "listeners");
        for (int i = 0; i < passes; i++)
            printf("%ld ", timed_pass(pods, npods, count, home, how));
        puts("");
        fflush(stdout);
    }
    return NULL;
}

/* Receives a request. Returns its byte and the descriptor that came with it. */
static int receive(int peer, int *fd)
{
    char byte = 0;

    must(receive_with_fd(peer, &byte, 1, fd) == 1, "recvmsg");
    must(*fd >= 0, "no descriptor");
    return byte;
}

static void *serve_pass(void *word)
{
    int fd = atoi(word);
    int ends[2];
    int trips;

    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    while (scanf("%d", &trips) == 1) {
        long begin = now_ns();
        for (int i = 0; i < trips; i++) {
            int received;
            send_with_fd(ends[0], "\1", 1, fd);
            receive(ends[1], &received);
            close(received);
        }
        printf("%ld\n", (now_ns() - begin) / trips);
        fflush(stdout);
    }
    return NULL;
}

static void answer(int peer, const char *line)
{
    must(send(peer, line, strlen(line), MSG_NOSIGNAL) == (ssize_t)strlen(line), "send");
}

static void serve_one(int listener, int home, int made[LISTENERS])
{
    int pod;
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    must(peer >= 0, "accept");
    if (receive(peer, &pod) == 1) {
        struct errand errand = {pod, LISTENERS, made};
        listen_in(&errand, home);
        answer(peer, "ready\n");
    } else {
        for (int i = 0; i < LISTENERS; i++)
            close(made[i]);
        answer(peer, "released\n");
    }
    close(pod);
    close(peer);
}

static void *serve_receive(void *argument)
{
    const char *path = argument;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int made[LISTENERS] = {-1, -1, -1};
    int home = open_home();
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(home >= 0, "open home");
    must(listener >= 0, "socket");
    must(strlen(path) < sizeof address.sun_path, "path too long");
    strcpy(address.sun_path, path);
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, path);
    must(listen(listener, 16) == 0, path);
    end_with_parent();
    puts("listening");
    fflush(stdout);
    for (;;)
        serve_one(listener, home, made);
    return NULL;
}

static int usage(void)
{
    fprintf(stderr, "usage: floor listen NETNS_FD... | floor listen-main NETNS_FD... |"
                    " floor pass FD | floor receive SOCKET | floor zds SOCKET\n");
    return 2;
}

int main(int argc, char **argv)
{
    void *(*serve)(void *) = NULL;
    void *argument = argc >= 3 ? argv[2] : NULL;
    pthread_t worker;

    if (argc < 3)
        return usage();
    if (strcmp(argv[1], "listen-main") == 0) {
        serve_listen(argv + 2);
        return 0;
    }
    if (strcmp(argv[1], "listen") == 0) {
        serve = serve_listen;
        argument = argv + 2;
    } else if (strcmp(argv[1], "pass") == 0) {
        serve = serve_pass;
    } else if (strcmp(argv[1], "receive") == 0) {
        serve = serve_receive;
    } else if (strcmp(argv[1], "zds") == 0) {
        serve = serve_zds;
    } else {
        return usage();
    }
    errno = pthread_create(&worker, NULL, serve, argument);
    must(errno == 0, "pthread_create");
    pthread_join(worker, NULL);
    return 0;
}
