/*
 * floor_zds.c: the floor of the ZDS form.
 *
 * Dials the agent's SOCKET and says Hello. An Add makes the three listeners of a workload in its
 * netns and is answered with an ACK; a Del closes those that were made last; SnapshotSent is only
 * answered. No message is read beyond its first byte, no uid is known, nobody is refused. The agent
 * that measures (client_zds.c) asks for nothing that would need more.
 *
 * The listeners are those of pyztun/ztunnel/inpod.py, made by the same system calls. The options
 * that need CAP_NET_ADMIN or CAP_NET_RAW at home are left out where they are refused there, as
 * pyztun-ztunnel does. Home is kept. The fd table is as large as it may be: a snapshot needs three
 * descriptors a workload.
 */
#include "common.h"
#include "floor.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    LISTENERS = 3,
    BACKLOG = 128,
    MARK = 0x539,
    MAX_WORKLOADS = 4096,
    MAX_MESSAGE = 1024,
    ADD = 0x0a,
    DEL = 0x12,
};

static const unsigned short PORTS[LISTENERS] = {15008, 15006, 15001};

static struct {
    int made[MAX_WORKLOADS][LISTENERS];
    int n;
    int home;
    int privileged;
} held;

static int may_mark(void)
{
    static const int mark = MARK;
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(probe >= 0, "socket");
    int may = setsockopt(probe, SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0;
    close(probe);
    return may;
}

static void set(int sock, int level, int name, int value)
{
    must(setsockopt(sock, level, name, &value, sizeof value) == 0, "setsockopt");
}

static void make_listening(int sock, unsigned short port)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

    set(sock, SOL_SOCKET, SO_REUSEPORT, 1);
    set(sock, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    if (held.privileged)
        set(sock, SOL_SOCKET, SO_MARK, MARK);
    must(bind(sock, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(listen(sock, BACKLOG) == 0, "listen");
}

static void add(int pod)
{
    must(held.n < MAX_WORKLOADS, "more workloads than the floor can hold");
    int *made = held.made[held.n++];

    must(setns(pod, CLONE_NEWNET) == 0, "setns");
    for (int i = 0; i < LISTENERS; i++) {
        made[i] = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        must(made[i] >= 0, "socket");
    }
    must(setns(held.home, CLONE_NEWNET) == 0, "setns(home)");
    for (int i = 0; i < LISTENERS; i++)
        make_listening(made[i], PORTS[i]);
}

static void del(void)
{
    must(held.n > 0, "a Del of nothing");
    held.n--;
    for (int i = 0; i < LISTENERS; i++)
        close(held.made[held.n][i]);
}

static int dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    must(sock >= 0, "socket");
    must(strlen(path) < sizeof address.sun_path, "path too long");
    strcpy(address.sun_path, path);
    must(connect(sock, (struct sockaddr *)&address, sizeof address) == 0, path);
    must(send(sock, "\x08\x01", 2, MSG_NOSIGNAL) == 2, "send Hello");
    return sock;
}

static void open_the_fd_table(void)
{
    struct rlimit limit;

    must(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

void *serve_zds(void *path)
{
    unsigned char message[MAX_MESSAGE];
    int pod;

    open_the_fd_table();
    end_with_parent();
    held.home = open_home();
    must(held.home >= 0, "open home");
    held.privileged = may_mark();
    int agent = dial(path);
    while (receive_with_fd(agent, message, sizeof message, &pod) > 0) {
        if (message[0] == ADD)
            add(pod);
        else if (message[0] == DEL)
            del();
        must(send(agent, "\x0a\x00", 2, MSG_NOSIGNAL) == 2, "send ACK");
        if (pod >= 0)
            close(pod);
    }
    return NULL;
}
