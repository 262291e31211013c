/*
 * cni_emulator.c: the sender of the walk-through, as any stranger would write it from that text,
 * for hosts without Go: connects to ztunnel's Unix stream socket, opens the pod's netns file,
 * sends the byte 0x01 with that one descriptor, says so, and closes without reading any answer.
 *
 * Usage: cni_emulator SOCKET NETNS_PATH
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int dial(const char *path)
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
    if (connect(sock, (struct sockaddr *)&address, sizeof address) < 0)
        die(path);
    return sock;
}

static void send_fd(int sock, int fd)
{
    char byte = 1;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(sock, &message, MSG_NOSIGNAL) != 1)
        die("sendmsg");
}

int main(int argc, char **argv)
{
    int sock, netns;

    if (argc != 3) {
        fprintf(stderr, "usage: cni_emulator SOCKET NETNS_PATH\n");
        return 2;
    }
    sock = dial(argv[1]);
    netns = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (netns < 0)
        die(argv[2]);
    send_fd(sock, netns);
    puts("listeners ready");
    return 0;
}
