/*
 * zds.c: the native wait of ztunnel's end of a ZDS connection.
 *
 * Theory of operation
 *
 * One thread sleeps in one poll() over the connection and a wake fd, and wakes with one message,
 * its descriptor already known to be a netns or not: no event loop between an Add and the switch to
 * the pod. What a message means is the caller's to know, but for the one whose speed counts: a
 * plain Add of a netns and a uid that are surely unknown (zds_known.h) can mean one thing alone.
 * Its listeners are made and its ACK is sent before the call returns, so the caller's tables,
 * objects and log follow the ACK. Where one of the two may be known, where the caller has no room
 * and where the listeners cannot be made, nothing is sent and the caller decides.
 *
 * One message is handled in a call. So whatever the caller notes of an event, what it serves and
 * how much room is left, is true again when the next Add is looked at.
 *
 * A seqpacket message arrives whole or, if it was longer than our buffer, cut, with MSG_TRUNC; a
 * wrong one never shifts the next. So every message gets exactly one answer, in its turn, whatever
 * was wrong with it, and no descriptor is kept that does not belong: of two none is, since nobody
 * can tell which one was meant. A message without bytes cannot be told from the end of the
 * connection and is taken for it (unix(7)).
 *
 * The connection is its owner's until he hangs up. Strangers' descriptors go to a thread that does
 * nothing but close them, see closer.c; so does a connection, in which there may be more of them.
 */
#include "closer.h"
#include "internal.h"
#include "zds_known.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct pz_zds {
    struct pz_closer *closer;
    uint64_t nsfs_dev;
    int wake;
    /* How an Add is taken: arguments of pz_listen(), all borrowed. */
    int home_fd;
    const struct pz_listener *wanted;
    size_t n; /* 0: none is */
    int *out_fds;
    struct pz_failure *failure;
    struct pz_known known;
};

static void discard(struct pz_zds *z, const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        pz_closer_take(z->closer, fds[i]);
}

/* The only descriptor of a message: what is it? A stranger's file goes at once. */
static void identify(struct pz_zds *z, int fd, struct pz_zds_request *request)
{
    struct pz_netns_info netns = {0};

    request->not_netns = pz_netns_inspect(fd, z->nsfs_dev, &netns);
    if (request->not_netns != 0) {
        discard(z, &fd, 1);
        return;
    }
    request->fd = fd;
    request->inode = netns.ino;
    request->cookie = netns.id;
}

static bool is_new(const struct pz_zds *z, const struct pz_zds_request *request)
{
    const uint8_t *uid = request->message + request->add.at[PZ_ADD_UID];

    return pz_known_is_new(&z->known, request->inode, uid, request->add.size[PZ_ADD_UID]);
}

/* Listeners, then the ACK, which does not wait: whoever has no room for two bytes reads no answers.
 * The cookie of an older kernel can come behind it. */
static int take(struct pz_zds *z, int sock, struct pz_zds_request *request)
{
    static const uint8_t ACK[] = {0x0a, 0x00}; /* WorkloadResponse{ack: Ack{}} */

    request->failed = pz_listen(request->fd, z->home_fd, z->wanted, z->n, z->out_fds, z->failure);
    if (request->failed < 0)
        return PZ_ZDS_ADD;
    long sent = PZ_RETRY(send(sock, ACK, sizeof ACK, MSG_NOSIGNAL | MSG_DONTWAIT));
    request->unsent = sent == -1 ? -errno : 0;
    if (request->cookie == 0 && pz_socket_cookie(z->out_fds[0], &request->cookie) < 0)
        request->cookie = request->inode;
    return PZ_ZDS_TAKEN;
}

/* Reads one message, if there is one, and takes an Add if it may. An event, or 0. */
static int receive(struct pz_zds *z, int sock, bool has_room, struct pz_zds_request *request)
{
    int fds[PZ_KERNEL_MAX_FDS];
    size_t nfds = 0;
    int lost = 0;
    long got = pz_receive_once(sock, request->message, sizeof request->message, fds, &nfds, &lost);

    if (got == -EAGAIN)
        return 0;
    request->nfds = (uint32_t)nfds;
    request->lost = got < 0 ? (int32_t)got : -lost;
    if (got <= 0) {
        discard(z, fds, nfds);
        return PZ_ZDS_CLOSED;
    }
    request->size = (uint32_t)got;
    if (nfds == 1 && lost == 0)
        identify(z, fds[0], request);
    else
        discard(z, fds, nfds);
    if (request->fd < 0 || !pz_add_read(request->message, request->size, &request->add))
        return PZ_ZDS_MESSAGE;
    return has_room && is_new(z, request) ? take(z, sock, request) : PZ_ZDS_ADD;
}

int pz_zds_next(struct pz_zds *z, int sock, int timeout_ms, int has_room,
                struct pz_zds_request *request)
{
    int64_t deadline = pz_deadline(timeout_ms);
    struct pollfd waited[2] = {{.fd = sock, .events = POLLIN}, {.fd = z->wake, .events = POLLIN}};

    memset(request, 0, offsetof(struct pz_zds_request, message));
    request->fd = -1;
    for (;;) {
        long ready = PZ_RETRY(poll(waited, 2, pz_remaining_ms(deadline)));
        if (ready > 0 && waited[1].revents != 0)
            return PZ_ZDS_WOKEN;
        if (ready > 0 && waited[0].revents != 0) {
            int event = receive(z, sock, has_room && z->n > 0, request);
            if (event != 0)
                return event;
        }
        if (ready <= 0 && pz_has_passed(deadline))
            return PZ_ZDS_DUE;
    }
}

int pz_zds_serve(struct pz_zds *z, int home_fd, const struct pz_listener *wanted, size_t n,
                 int *out_fds, struct pz_failure *failure)
{
    if (n == 0 || n > PZ_MAX_LISTENERS)
        return -EINVAL;
    z->home_fd = home_fd;
    z->wanted = wanted;
    z->n = n;
    z->out_fds = out_fds;
    z->failure = failure;
    return 0;
}

void pz_zds_know(struct pz_zds *z, uint64_t inode, const uint8_t *uid, size_t size)
{
    pz_known_add(&z->known, inode, uid, size);
}

void pz_zds_forget(struct pz_zds *z, uint64_t inode, const uint8_t *uid, size_t size)
{
    pz_known_remove(&z->known, inode, uid, size);
}

void pz_zds_hang_up(struct pz_zds *z, int sock)
{
    shutdown(sock, SHUT_RDWR);
    pz_closer_take_connection(z->closer, sock);
}

void pz_zds_free(struct pz_zds *z)
{
    if (z == NULL)
        return;
    if (z->closer != NULL)
        pz_closer_quit(z->closer);
    free(z);
}

struct pz_zds *pz_zds_new(int wake, int *error)
{
    struct pz_zds *z = calloc(1, sizeof *z);

    if (z == NULL) {
        *error = -ENOMEM;
        return NULL;
    }
    z->wake = wake;
    *error = pz_nsfs_device(&z->nsfs_dev);
    if (*error == 0)
        z->closer = pz_closer_new(error);
    if (*error < 0) {
        pz_zds_free(z);
        return NULL;
    }
    return z;
}
