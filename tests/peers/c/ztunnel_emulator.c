/*
 * ztunnel_emulator.c: the receiver of the walk-through, as any stranger would write it from that
 * text, for hosts without Go: removes whatever lies at SOCKET, listens there, accepts ONE
 * connection, receives one netns descriptor, enters that netns, makes listeners on
 * 127.0.0.1:15008, 15006 and 15001, comes home, prints "listeners ready" and never answers. It
 * serves "ok\n" on the three ports until it is killed. The connection is closed once the
 * listeners are up; with -hold it stays open. "listening" on stdout says that SOCKET is ready.
 *
 * Usage: ztunnel_emulator [-hold] SOCKET
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LISTENERS = 3 };
static const unsigned short ports[LISTENERS] = {15008, 15006, 15001};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (sock < 0)
        die("socket");
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "%s: too long for a Unix socket\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    unlink(path);
    if (bind(sock, (struct sockaddr *)&address, sizeof address) < 0 || listen(sock, 1) < 0)
        die(path);
    return sock;
}

static int receive_fd(int sock)
{
    char byte;
    int fd;
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
    struct cmsghdr *header;

    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) != 1)
        die("recvmsg");
    header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len < CMSG_LEN(sizeof fd)) {
        fprintf(stderr, "no descriptor in the message\n");
        exit(1);
    }
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static int listen_tcp(unsigned short port)
{
    int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        die("socket");
    if (bind(sock, (struct sockaddr *)&address, sizeof address) < 0 || listen(sock, 4096) < 0)
        die("bind");
    return sock;
}

static void serve(struct pollfd *listeners)
{
    for (;;) {
        if (poll(listeners, LISTENERS, -1) < 0)
            die("poll");
        for (int i = 0; i < LISTENERS; i++) {
            int peer;

            if (!(listeners[i].revents & POLLIN))
                continue;
            peer = accept4(listeners[i].fd, NULL, NULL, SOCK_CLOEXEC);
            if (peer < 0)
                continue;
            (void)send(peer, "ok\n", 3, MSG_NOSIGNAL);
            close(peer);
        }
    }
}

int main(int argc, char **argv)
{
    struct pollfd listeners[LISTENERS];
    int home, server, peer, netns;
    int hold = argc == 3 && strcmp(argv[1], "-hold") == 0;

    if (argc != 2 + hold) {
        fprintf(stderr, "usage: ztunnel_emulator [-hold] SOCKET\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (home < 0)
        die("/proc/self/ns/net");
    server = listen_unix(argv[argc - 1]);
    puts("listening");
    peer = accept4(server, NULL, NULL, SOCK_CLOEXEC);
    if (peer < 0)
        die("accept");
    netns = receive_fd(peer);
    if (setns(netns, CLONE_NEWNET) < 0)
        die("setns");
    for (int i = 0; i < LISTENERS; i++)
        listeners[i] = (struct pollfd){.fd = listen_tcp(ports[i]), .events = POLLIN};
    if (setns(home, CLONE_NEWNET) < 0)
        die("setns home");
    close(netns);
    puts("listeners ready");
    if (!hold)
        close(peer);
    serve(listeners);
}
