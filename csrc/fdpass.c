/*
 * fdpass.c: one message with 0..PZ_MAX_FDS descriptors, in both directions.
 *
 * Theory of operation
 *
 * Sending: the descriptors ride on the first byte of the message (unix(7)). A stream may take only
 * a part of the bytes; the descriptors are gone with that part, so the caller continues with the
 * rest alone.
 *
 * Receiving: the control buffer has room for the 253 descriptors that the kernel carries at most
 * (SCM_MAX_FD, include/net/scm.h), never for just the expected number: a buffer of CMSG_SPACE(1
 * int) is padded to 24 bytes and really admits two. Every control message is walked; what is not
 * handed over is closed here. As the buffer cannot be too small, MSG_CTRUNC means that the kernel
 * could not install the descriptors: our fd table was full, or a security module refused.
 */
#include "internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

enum { PIDFD = 0x04 }; /* SCM_PIDFD, Linux 6.5 */

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(PZ_KERNEL_MAX_FDS * sizeof(int))];
};

void pz_close_all(const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        pz_close_keeping_errno(fds[i]);
}

/* Waits until SOCK may have EVENTS or an error to report. 0, -ETIMEDOUT or -EINTR. */
static int wait_for(int sock, short events, int64_t deadline)
{
    struct pollfd waited = {.fd = sock, .events = events};
    int ready = poll(&waited, 1, pz_remaining_ms(deadline));

    if (ready == -1)
        return -errno;
    return ready == 0 && pz_has_passed(deadline) ? -ETIMEDOUT : 0;
}

int pz_send(int sock, const uint8_t *data, size_t len, const int *fds, size_t nfds, int timeout_ms)
{
    int64_t deadline = pz_deadline(timeout_ms);
    union control control;
    /* sendmsg() only reads; iovec has no const form. */
    struct iovec bytes = {.iov_base = (void *)(uintptr_t)data, .iov_len = len};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

    if (len == 0)
        return -EINVAL;
    if (nfds > PZ_MAX_FDS)
        return -E2BIG;
    if (nfds > 0) {
        size_t size = nfds * sizeof(int);
        memset(&control, 0, CMSG_SPACE(size));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(size);
        struct cmsghdr *rights = &control.align;
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(rights), fds, size);
    }
    for (;;) {
        ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            return (int)sent;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return -errno;
        int rc = wait_for(sock, POLLOUT, deadline);
        if (rc < 0)
            return rc;
    }
}

/* Appends the descriptors of one control message to FDS. */
static void collect(const struct cmsghdr *rights, int *fds, size_t *nfds)
{
    size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);

    memcpy(fds + *nfds, CMSG_DATA(rights), count * sizeof(int));
    *nfds += count;
}

/* A socket with SO_PASSPIDFD, which is not our doing, brings a descriptor of its own kind. */
static void close_pidfd(const struct cmsghdr *message)
{
    int fd;

    memcpy(&fd, CMSG_DATA(message), sizeof fd);
    if (fd >= 0)
        close(fd);
}

long pz_receive_once(int sock, void *buf, size_t cap, int *fds, size_t *nfds, int *lost)
{
    union control control;
    struct iovec bytes = {.iov_base = buf, .iov_len = cap};
    struct msghdr message = {
        .msg_iov = &bytes,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };

    *nfds = 0;
    *lost = 0;
    long got = PZ_RETRY(recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
    if (got == -1)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            collect(c, fds, nfds);
        else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == PIDFD)
            close_pidfd(c);
    if (message.msg_flags & MSG_CTRUNC) {
        /* Asked while what did arrive still fills the table, the kernel tells whether that was the
         * reason. */
        int probe = fcntl(sock, F_DUPFD_CLOEXEC, 0);
        *lost = probe == -1 ? errno : EMSGSIZE;
        if (probe != -1)
            close(probe);
    } else if (message.msg_flags & MSG_TRUNC) {
        *lost = EMSGSIZE;
    }
    return got;
}

int pz_recv(int sock, uint8_t *buf, size_t cap, int *fds, size_t max_fds, size_t *nfds,
            int timeout_ms)
{
    int64_t deadline = pz_deadline(timeout_ms);
    int arrived[PZ_KERNEL_MAX_FDS];
    size_t count = 0;
    int lost = 0;
    long got;

    *nfds = 0;
    if (cap == 0 || cap > INT32_MAX)
        return -EINVAL;
    if (max_fds > PZ_MAX_FDS)
        return -E2BIG;
    while ((got = pz_receive_once(sock, buf, cap, arrived, &count, &lost)) == -EAGAIN) {
        int rc = wait_for(sock, POLLIN, deadline);
        if (rc < 0)
            return rc;
    }
    if (got < 0)
        return (int)got;
    if (got == 0 || lost != 0 || count > max_fds) {
        /* A zero-length seqpacket may bring descriptors too; it is the end all the same. */
        pz_close_all(arrived, count);
        return got == 0 ? 0 : lost != 0 ? -lost : -EPROTO;
    }
    for (*nfds = 0; *nfds < count; (*nfds)++)
        fds[*nfds] = arrived[*nfds];
    return (int)got;
}

int pz_unix_connect(const char *path, int type, int timeout_ms)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);

    if (length == 0 || length >= sizeof address.sun_path)
        return length == 0 ? -ENOENT : -ENAMETOOLONG;
    memcpy(address.sun_path, path, length);
    int at_once = timeout_ms == 0 ? SOCK_NONBLOCK : 0;
    PZ_SCOPED sock = socket(AF_UNIX, type | SOCK_CLOEXEC | at_once, 0);
    if (sock == -1)
        return -errno;
    /*
     * A full backlog makes a non-blocking connect() fail with EAGAIN, and poll() never reports room
     * in it; a blocking one sleeps until there is room, for SO_SNDTIMEO at most
     * (net/unix/af_unix.c). That is rounded up to a jiffy, so a caller with no time left must not
     * sleep: signals that come faster would end each sleep, and its wait never.
     */
    if (timeout_ms > 0) {
        struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
        if (setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == -1)
            return -errno;
    }
    if (connect(sock, (const struct sockaddr *)&address, sizeof address) == -1)
        return errno == EAGAIN ? -ETIMEDOUT : -errno;
    struct timeval none = {0};
    if (timeout_ms > 0 && setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none) == -1)
        return -errno;
    if (timeout_ms == 0 && fcntl(sock, F_SETFL, 0) == -1)
        return -errno;
    return pz_steal(&sock);
}
