/*
 * floor.c: what no implementation can be faster than. Only the syscalls of the work, in the order
 * in which pyztun does them, with none of its checks, answers to strangers or bookkeeping.
 *
 * Usage: floor listen NETNS_FD...
 *        floor receive SOCKET
 *
 * listen reads lines "kept N" or "opened N" from stdin. Each of N passes makes three listeners in
 * every netns; the answer is N times on one line, in nanoseconds a netns. Closing them is not
 * timed. kept: home was opened once, at the start; opened: it is opened, proven and closed for each
 * netns. Ends with its stdin.
 *
 * receive is the seed form, one connection at a time: 0x01 + fd makes the listeners and is answered
 * "ready", 0x02 + fd closes them and is answered "released". Says "listening" when SOCKET is there.
 * Ends with its parent.
 *
 * The work is done in a thread of its own, for the main thread must never be away: /proc/PID/ns/net
 * is where that one is. So the floor too pays what a second thread costs: the kernel then counts
 * each use of a descriptor with an atomic operation (2 to 3 % of the listeners).
 *
 * Any failure ends the program with a line on stderr.
 */
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

static void must(int ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    exit(1);
}

static int open_home(void)
{
    return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
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

static void listen_in(int pod, int home, int made[LISTENERS])
{
    must(setns(pod, CLONE_NEWNET) == 0, "setns");
    for (int i = 0; i < LISTENERS; i++) {
        made[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        must(made[i] >= 0, "socket");
    }
    must(setns(home, CLONE_NEWNET) == 0, "setns(home)");
    for (int i = 0; i < LISTENERS; i++)
        make_listening(made[i], PORTS[i]);
}

static void listen_in_from_unknown_home(int pod, int made[LISTENERS])
{
    int home = open_home();

    must(home >= 0, "open home");
    must(setns(home, CLONE_NEWNET) == 0, "setns(home)");
    listen_in(pod, home, made);
    close(home);
}

static long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* One pass over all pods; nanoseconds a pod. */
static long timed_pass(const int *pods, int npods, int home, int opened)
{
    static int made[MAX_NETNS][LISTENERS];
    long begin = now_ns();

    for (int i = 0; i < npods; i++) {
        if (opened)
            listen_in_from_unknown_home(pods[i], made[i]);
        else
            listen_in(pods[i], home, made[i]);
    }
    long took = now_ns() - begin;
    for (int i = 0; i < npods; i++)
        for (int k = 0; k < LISTENERS; k++)
            close(made[i][k]);
    return took / npods;
}

static void *serve_listen(void *words)
{
    int pods[MAX_NETNS];
    int npods = 0;
    int home = open_home();
    char how[16];
    int passes;

    must(home >= 0, "open home");
    for (char **word = words; *word != NULL && npods < MAX_NETNS; word++)
        pods[npods++] = atoi(*word);
    while (scanf("%15s %d", how, &passes) == 2) {
        for (int i = 0; i < passes; i++)
            printf("%ld ", timed_pass(pods, npods, home, strcmp(how, "opened") == 0));
        puts("");
        fflush(stdout);
    }
    return NULL;
}

/* Receives a request. Returns its byte and the descriptor that came with it. */
static int receive(int peer, int *fd)
{
    char byte = 0;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };

    must(recvmsg(peer, &message, MSG_CMSG_CLOEXEC) == 1, "recvmsg");
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    must(rights != NULL && rights->cmsg_type == SCM_RIGHTS, "no descriptor");
    memcpy(fd, CMSG_DATA(rights), sizeof *fd);
    return byte;
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
        listen_in(pod, home, made);
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
    /* Nobody may be left of a benchmark that was killed. */
    must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
    puts("listening");
    fflush(stdout);
    for (;;)
        serve_one(listener, home, made);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t worker;
    int error = EINVAL;

    if (argc >= 3 && strcmp(argv[1], "listen") == 0)
        error = pthread_create(&worker, NULL, serve_listen, argv + 2);
    else if (argc == 3 && strcmp(argv[1], "receive") == 0)
        error = pthread_create(&worker, NULL, serve_receive, argv[2]);
    if (error != 0) {
        fprintf(stderr, "usage: floor listen NETNS_FD... | floor receive SOCKET\n");
        return 2;
    }
    pthread_join(worker, NULL);
    return 0;
}
