/*
 * common.h: what the programs of the bench share: to fail, to read the clock, to pass a descriptor.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static inline void must(int ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    exit(1);
}

static inline long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* One message with FD. */
static inline void send_with_fd(int sock, const void *bytes, size_t size, int fd)
{
    struct iovec data = {.iov_base = (void *)bytes, .iov_len = size};
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

    control.align.cmsg_level = SOL_SOCKET;
    control.align.cmsg_type = SCM_RIGHTS;
    control.align.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.align), &fd, sizeof fd);
    must(sendmsg(sock, &message, MSG_NOSIGNAL) == (ssize_t)size, "sendmsg");
}

/* Receives one message and the descriptor that may have come with it, else -1. Its size. */
static inline size_t receive_with_fd(int sock, void *bytes, size_t room, int *fd)
{
    struct iovec data = {.iov_base = bytes, .iov_len = room};
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

    ssize_t got = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    must(got >= 0, "recvmsg");
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *fd = -1;
    if (rights != NULL && rights->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(rights), sizeof *fd);
    return (size_t)got;
}

#endif
