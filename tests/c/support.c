/*
 * support.c: see support.h.
 */
#include "support.h"

#include "harness.h"
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 5000 };

void unix_pair(int type, int ends[2])
{
    CHECK_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
}

int unix_listener(const char *name, int type, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t size = sizeof address.sun_family;
    int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    if (name != NULL) {
        snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", test_dir(), name);
        size = sizeof address;
    }
    CHECK_EQ(bind(sock, (const struct sockaddr *)&address, size), 0);
    CHECK_EQ(listen(sock, backlog), 0);
    return sock;
}

int dial(int listener)
{
    struct sockaddr_un address;
    socklen_t size = sizeof address;
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    CHECK_EQ(connect(sock, (const struct sockaddr *)&address, size), 0);
    return sock;
}

int tcp_listener(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    CHECK_EQ(bind(sock, (const struct sockaddr *)&address, sizeof address), 0);
    CHECK_EQ(listen(sock, 128), 0);
    return sock;
}

int dial_tcp(int listener)
{
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    /* Interrupted, it goes on; to call it again is to wait on. */
    CHECK_EQ(PZ_RETRY(connect(sock, (const struct sockaddr *)&address, size)), 0);
    return sock;
}

void say(int sock, const void *data, size_t size, const int *fds, size_t nfds)
{
    const uint8_t *rest = data;

    while (size > 0) {
        int sent = pz_send(sock, rest, size, fds, nfds, PATIENCE_MS);
        CHECK(sent > 0);
        rest += sent;
        size -= (size_t)sent;
        nfds = 0;
    }
}

short await(int fd, short events)
{
    struct pollfd waited = {.fd = fd, .events = events};
    int ready;

    do
        ready = poll(&waited, 1, PATIENCE_MS);
    while (ready == -1 && errno == EINTR);
    return ready == 1 ? waited.revents : 0;
}

size_t hear(int sock, void *buffer, size_t size, int *error)
{
    size_t length = 0;

    *error = 0;
    while (length < size) {
        if (await(sock, POLLIN) == 0) {
            *error = ETIMEDOUT;
            break;
        }
        ssize_t got = recv(sock, (char *)buffer + length, size - length, MSG_DONTWAIT);
        if (got == 0)
            break;
        if (got == -1) {
            *error = errno;
            break;
        }
        length += (size_t)got;
    }
    return length;
}

bool is_cloexec(int fd)
{
    return fcntl(fd, F_GETFD) == FD_CLOEXEC;
}

bool is_same_file(int one, int other)
{
    struct stat a, b;

    CHECK_EQ(fstat(one, &a), 0);
    CHECK_EQ(fstat(other, &b), 0);
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

int new_pod(void)
{
    struct pz_failure failure = {0};
    int pod = pz_netns_create(&failure);

    CHECK(pod >= 0);
    return pod;
}

uint64_t netns_of(int fd)
{
    struct stat file;

    CHECK_EQ(fstat(fd, &file), 0);
    return file.st_ino;
}

static uint64_t inode_at(const char *path)
{
    struct stat file;

    CHECK_EQ(stat(path, &file), 0);
    return file.st_ino;
}

uint64_t netns_here(void)
{
    return inode_at("/proc/thread-self/ns/net");
}

uint64_t netns_of_main(void)
{
    return inode_at("/proc/self/ns/net");
}

uint64_t netns_of_socket(int sock)
{
    int netns = ioctl(sock, SIOCGSKNS);

    CHECK(netns >= 0);
    uint64_t inode = netns_of(netns);
    close(netns);
    return inode;
}

struct visit {
    int netns;
    void (*body)(void *);
    void *argument;
};

static void go(void *argument)
{
    const struct visit *visit = argument;

    CHECK_EQ(setns(visit->netns, CLONE_NEWNET), 0);
    visit->body(visit->argument);
}

void visit(int netns, void (*body)(void *), void *argument)
{
    struct visit visit = {netns, body, argument};

    in_worker(go, &visit);
}

struct pz_listener on_loopback(uint16_t port)
{
    return (struct pz_listener){
        .address = {127, 0, 0, 1}, .backlog = 16, .port = port, .family = 4};
}

struct pz_listener on_loopback6(uint16_t port)
{
    return (struct pz_listener){.address = {[15] = 1}, .backlog = 16, .port = port, .family = 6};
}

uint16_t port_of(int sock)
{
    struct sockaddr_in6 address;
    socklen_t size = sizeof address;

    CHECK_EQ(getsockname(sock, (struct sockaddr *)&address, &size), 0);
    return ntohs(address.sin6_port);
}

int64_t clock_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void keep_copies(void *argument)
{
    const struct copies *copies = argument;
    char byte;

    close(copies->client);
    close(copies->gate[1]);
    CHECK_EQ(read(copies->gate[0], &byte, 1), 0);
}
