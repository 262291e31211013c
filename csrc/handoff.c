/*
 * handoff.c: the native wait of the seed form's receiver.
 *
 * Theory of operation
 *
 * One thread sleeps in one epoll_wait() over the listening socket, every connected peer and a wake
 * fd, and wakes with one complete request in its hands: no event loop between the request and the
 * switch to the pod. The policy (which netns, what to answer) is the caller's; this file knows
 * bytes and descriptors.
 *
 * A request is read byte by byte. On a stream the kernel returns descriptors with the first byte of
 * the message that carried them, but one recvmsg() may glue earlier bytes without descriptors in
 * front of it (net/unix/af_unix.c, unix_stream_read_generic()): whoever reads ahead can no longer
 * tell which request an fd belongs to. One byte per call keeps byte and fd together; a request has
 * one byte, a cookie at most 22.
 *
 * What a peer may be doing, and what is legal then:
 *
 * - ASKING: nothing, or a part of a request, has been read. Watched for EPOLLIN.
 *
 * - WAITING: its request was returned to the caller, who must answer. It is not read.
 *
 * - READING: it has not read the whole answer yet; the rest is kept here. Watched for EPOLLOUT.
 *   Further requests wait in its socket, so that nobody makes us queue a second answer.
 *
 * No peer delays another: everything is non-blocking, each turn of the wait does one step for one
 * peer, and epoll hands out ready peers in turn. Each must complete a request within deadline_ms
 * from accept or from its last answer; the bytes in between prolong nothing. When the seats are
 * taken the longest silent one goes, never the newcomer.
 *
 * A new peer is tried at once and put into epoll only if it has nothing to say yet, or behind its
 * first answer: a one-shot sender costs no epoll_ctl() before it is answered.
 */
#include "closer.h"
#include "internal.h"
#include "request.h"
#include "seats.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { EVENTS = 64, ACCEPT_PAUSE_MS = 100, COOKIE_DIGITS = 20, MAX_READY = 8192 };
/* What the epoll word says: one of these, or a seat. */
#define LISTENER_WORD (UINT32_MAX - 1)
#define WAKE_WORD     (UINT32_MAX - 2)

enum peer_state { ASKING, WAITING, READING };

struct peer {
    uint8_t *unsent; /* READING: malloc()ed */
    size_t unsent_len;
    size_t unsent_at;
    struct pz_partial partial; /* ASKING */
    struct ucred who;
    int fd;
    enum peer_state state;
    bool watched;
    bool last; /* close behind the answer */
};

struct pz_handoff {
    struct pz_seats seats;
    struct pz_closer *closer;
    struct peer *peers;
    uint32_t *uids;
    size_t nuids;
    size_t unsent; /* bytes over all peers */
    struct pz_handoff_limits limits;
    struct pz_handoff_counters counters;
    struct epoll_event events[EVENTS];
    int nevents;
    int next_event;
    int epoll;
    int listener;
    int64_t accept_again_ms; /* accepting is paused until then; -1: it is not */
    uint32_t waiting;        /* the peer whose request the caller holds, or PZ_NOBODY */
    uint64_t nsfs_dev;
    uid_t own_uid;
    bool draining;
    int64_t drain_until_ms;
};

static int watch(const struct pz_handoff *h, int op, int fd, uint32_t events, uint32_t word)
{
    struct epoll_event event = {.events = events, .data.u64 = word};

    return epoll_ctl(h->epoll, op, fd, &event) == -1 ? -errno : 0;
}

/* Empties the seat; the caller closes the connection. */
static int vacate(struct pz_handoff *h, uint32_t seat)
{
    struct peer *peer = &h->peers[seat];
    int fd = peer->fd;

    /* While a fork of us still has it open, epoll would report it for ever (epoll(7), Q6). */
    if (peer->watched)
        epoll_ctl(h->epoll, EPOLL_CTL_DEL, fd, NULL);
    h->unsent -= peer->unsent_len;
    free(peer->unsent);
    *peer = (struct peer){.fd = -1};
    pz_seats_leave(&h->seats, seat);
    if (h->waiting == seat)
        h->waiting = PZ_NOBODY;
    return fd;
}

static void discard(struct pz_handoff *h, const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        pz_closer_take(h->closer, fds[i]);
}

/*
 * Closes a connection. Descriptors that the peer sent and we did not read end with it, and whoever
 * closes the last one may sleep: see closer.c. No byte unread, no descriptor either; and after
 * shutdown() the peer can send nothing more.
 */
static void hang_up(struct pz_handoff *h, int fd)
{
    uint8_t unread;

    shutdown(fd, SHUT_RD);
    if (recv(fd, &unread, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
        pz_closer_take_connection(h->closer, fd);
    else
        close(fd);
}

static void close_peer(struct pz_handoff *h, uint32_t seat)
{
    hang_up(h, vacate(h, seat));
}

static bool evict_oldest(struct pz_handoff *h)
{
    if (h->seats.oldest == PZ_NOBODY)
        return false;
    h->counters.evicted++;
    close_peer(h, h->seats.oldest);
    return true;
}

/* Closes the longest silent one of those who do not read their answers. */
static bool evict_oldest_reader(struct pz_handoff *h)
{
    for (uint32_t i = h->seats.oldest; i != PZ_NOBODY; i = h->seats.seats[i].newer)
        if (h->peers[i].state == READING) {
            h->counters.evicted++;
            close_peer(h, i);
            return true;
        }
    return false;
}

static int64_t new_deadline(const struct pz_handoff *h)
{
    return pz_now_ms() + (int64_t)h->limits.deadline_ms;
}

/* Hands the peer's request, or what is wrong with it, to the caller. */
static int report(struct pz_handoff *h, uint32_t seat, int event, struct pz_request *request)
{
    struct peer *peer = &h->peers[seat];

    request->peer = seat;
    request->pid = peer->who.pid;
    request->uid = peer->who.uid;
    request->gid = peer->who.gid;
    peer->state = WAITING;
    h->waiting = seat;
    return event;
}

static int malformed(struct pz_handoff *h, uint32_t seat, enum pz_why why,
                     struct pz_request *request)
{
    request->why = (uint32_t)why;
    return report(h, seat, PZ_EVENT_MALFORMED, request);
}

/* A request that came with one descriptor: what is it? A stranger's file goes at once. */
static void identify(struct pz_handoff *h, int fd, struct pz_request *request)
{
    struct pz_netns_info netns = {0};

    request->not_netns = pz_netns_inspect(fd, h->nsfs_dev, &netns);
    if (request->not_netns != 0) {
        discard(h, &fd, 1);
        return;
    }
    request->fd = fd;
    request->inode = netns.ino;
    request->cookie = netns.id;
}

/* What one read brought. Returns 0 to read on, or an event. */
static int take_in(struct pz_handoff *h, uint32_t seat, uint8_t byte, const int *fds, size_t nfds,
                   struct pz_request *request)
{
    int event = pz_request_feed(&h->peers[seat].partial, byte, nfds, request);

    if (event == PZ_EVENT_TAKE || event == PZ_EVENT_RELEASE)
        identify(h, fds[0], request);
    else
        discard(h, fds, nfds);
    return event == 0 ? 0 : report(h, seat, event, request);
}

/*
 * Reads one peer until a request is complete or nothing is left to read. Returns an event or 0.
 * At most 22 bytes a call: no request has more.
 */
static int read_request(struct pz_handoff *h, uint32_t seat, struct pz_request *request)
{
    struct peer *peer = &h->peers[seat];
    int event = 0;

    while (event == 0) {
        int fds[PZ_KERNEL_MAX_FDS];
        uint8_t byte = 0;
        size_t nfds = 0;
        int lost = 0;
        long got = pz_receive_once(peer->fd, &byte, 1, fds, &nfds, &lost);
        if (got == -EAGAIN)
            return 0;
        if (got == 0 && peer->partial.kind != 0)
            return malformed(h, seat, PZ_WHY_TRUNCATED, request);
        if (got <= 0) {
            close_peer(h, seat);
            return 0;
        }
        if (lost != 0) {
            discard(h, fds, nfds);
            return malformed(h, seat, PZ_WHY_FD_TABLE, request);
        }
        event = take_in(h, seat, byte, fds, nfds, request);
    }
    return event;
}

/* Has epoll wait for EVENTS of the peer. One that cannot be watched is closed. */
static void watch_peer(struct pz_handoff *h, uint32_t seat, uint32_t events)
{
    struct peer *peer = &h->peers[seat];

    if (watch(h, peer->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, peer->fd, events, seat) == 0)
        peer->watched = true;
    else
        close_peer(h, seat);
}

static bool may_ask(const struct pz_handoff *h, uid_t uid)
{
    if (uid == 0 || uid == h->own_uid)
        return true;
    for (size_t i = 0; i < h->nuids; i++)
        if (h->uids[i] == uid)
            return true;
    return false;
}

/*
 * accept() failed for want of fds or memory: the connection stays queued and epoll would report it
 * for ever. Room is made by closing the longest silent peer; where there is none, accepting pauses.
 */
static void make_room_to_accept(struct pz_handoff *h)
{
    h->counters.accept_errors++;
    if (evict_oldest(h))
        return;
    if (watch(h, EPOLL_CTL_MOD, h->listener, 0, LISTENER_WORD) == 0)
        h->accept_again_ms = pz_now_ms() + ACCEPT_PAUSE_MS;
}

/* Seats a peer that connected. PZ_NOBODY: it was closed. */
static uint32_t seat_peer(struct pz_handoff *h, int fd)
{
    struct ucred who;
    socklen_t size = sizeof who;

    bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0;
    bool full = h->seats.taken == h->seats.size;
    /* One who may not ask must not cost one who may its seat, even if it then gets no answer. */
    if (!known || (full && !may_ask(h, who.uid))) {
        hang_up(h, fd);
        return PZ_NOBODY;
    }
    if (full)
        evict_oldest(h);
    uint32_t seat = pz_seats_take(&h->seats, new_deadline(h));
    h->peers[seat] = (struct peer){.fd = fd, .state = ASKING, .who = who};
    return seat;
}

/* Accepts one connection and tries to read its request. Returns an event or 0. */
static int accept_peer(struct pz_handoff *h, struct pz_request *request)
{
    int fd = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd == -1) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            make_room_to_accept(h);
        return 0;
    }
    h->counters.accepted++;
    uint32_t seat = seat_peer(h, fd);
    if (seat == PZ_NOBODY)
        return 0;
    if (!may_ask(h, h->peers[seat].who.uid))
        return report(h, seat, PZ_EVENT_DENIED, request);
    int event = read_request(h, seat, request);
    if (event == 0 && pz_seats_is_taken(&h->seats, seat))
        watch_peer(h, seat, EPOLLIN);
    return event;
}

/* The whole answer is out. */
static void answered(struct pz_handoff *h, uint32_t seat)
{
    struct peer *peer = &h->peers[seat];
    bool was_reading = peer->state == READING;

    if (peer->last) {
        close_peer(h, seat);
        return;
    }
    peer->state = ASKING;
    pz_seats_touch(&h->seats, seat, new_deadline(h));
    if (was_reading || !peer->watched)
        watch_peer(h, seat, EPOLLIN);
}

/* Sends what the peer has not read yet. */
static void send_rest(struct pz_handoff *h, uint32_t seat)
{
    struct peer *peer = &h->peers[seat];
    long sent = PZ_RETRY(send(peer->fd, peer->unsent + peer->unsent_at,
                              peer->unsent_len - peer->unsent_at, MSG_NOSIGNAL | MSG_DONTWAIT));

    if (sent == -1) {
        if (errno != EAGAIN)
            close_peer(h, seat);
        return;
    }
    peer->unsent_at += (size_t)sent;
    if (peer->unsent_at < peer->unsent_len)
        return;
    h->unsent -= peer->unsent_len;
    free(peer->unsent);
    peer->unsent = NULL;
    peer->unsent_len = peer->unsent_at = 0;
    answered(h, seat);
}

/* Keeps the rest of an answer, closing the longest silent readers while there is no room for it. */
static void keep_rest(struct pz_handoff *h, uint32_t seat, const uint8_t *text, size_t len)
{
    struct peer *peer = &h->peers[seat];

    pz_seats_touch(&h->seats, seat, new_deadline(h));
    bool fits = len <= h->limits.max_unsent;
    while (fits && h->unsent + len > h->limits.max_unsent && evict_oldest_reader(h))
        continue;
    peer->unsent = !fits || h->unsent + len > h->limits.max_unsent ? NULL : malloc(len);
    if (peer->unsent == NULL) {
        close_peer(h, seat);
        return;
    }
    memcpy(peer->unsent, text, len);
    peer->unsent_len = len;
    h->unsent += len;
    peer->state = READING;
    watch_peer(h, seat, EPOLLOUT);
}

int pz_handoff_answer(struct pz_handoff *h, uint32_t seat, const uint8_t *text, size_t len,
                      int close_after)
{
    /* Answered already, or not what the last event was about: the seat may be another's. */
    if (seat == PZ_NOBODY || seat != h->waiting)
        return 0;
    struct peer *peer = &h->peers[seat];
    h->waiting = PZ_NOBODY;
    peer->last = close_after != 0;
    long sent = PZ_RETRY(send(peer->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT));
    if (sent == -1 && errno == EAGAIN)
        sent = 0;
    if (sent == -1)
        close_peer(h, seat);
    else if ((size_t)sent == len)
        answered(h, seat);
    else
        keep_rest(h, seat, text + sent, len - (size_t)sent);
    return 0;
}

int pz_handoff_take(struct pz_handoff *h, struct pz_request *request, int home_fd,
                    const struct pz_listener *wanted, size_t n, int *out_fds, const uint8_t *ready,
                    size_t len, struct pz_failure *failure)
{
    char answer[MAX_READY];

    if (len > sizeof answer - COOKIE_DIGITS - 2)
        return pz_fail(failure, PZ_STEP_ARGUMENT, -1, EMSGSIZE);
    int rc = pz_listen(request->fd, home_fd, wanted, n, out_fds, failure);
    if (rc < 0)
        return rc;
    if (request->cookie == 0 && pz_socket_cookie(out_fds[0], &request->cookie) < 0)
        request->cookie = request->inode;
    memcpy(answer, ready, len);
    int digits = snprintf(answer + len, sizeof answer - len, "%" PRIu64 "\n", request->cookie);
    return pz_handoff_answer(h, request->peer, (const uint8_t *)answer, len + (size_t)digits, 0);
}

/* What epoll reported of one peer. A stale event names an empty seat or finds nothing to do. */
static int serve_peer(struct pz_handoff *h, uint32_t seat, struct pz_request *request)
{
    if (!pz_seats_is_taken(&h->seats, seat))
        return 0;
    switch (h->peers[seat].state) {
    case ASKING: return read_request(h, seat, request);
    case READING: send_rest(h, seat); return 0;
    case WAITING: return 0;
    }
    return 0;
}

static int serve(struct pz_handoff *h, const struct epoll_event *event, struct pz_request *request)
{
    uint32_t word = (uint32_t)event->data.u64;

    if (word == WAKE_WORD)
        return PZ_EVENT_WOKEN;
    if (word == LISTENER_WORD)
        return accept_peer(h, request);
    return serve_peer(h, word, request);
}

/* Closes a peer whose time is up; one in the middle of a request is told. An event or 0. */
static int expire_oldest(struct pz_handoff *h, struct pz_request *request)
{
    uint32_t seat = h->seats.oldest;

    /* We may be late, not the peer: what it has sent by now counts. */
    if (h->peers[seat].state == ASKING) {
        int event = read_request(h, seat, request);
        if (event != 0 || !pz_seats_is_taken(&h->seats, seat))
            return event;
    }
    h->counters.expired++;
    if (h->peers[seat].state == ASKING && h->peers[seat].partial.kind != 0)
        return malformed(h, seat, PZ_WHY_LATE, request);
    close_peer(h, seat);
    return 0;
}

static int wait_ms(const struct pz_handoff *h)
{
    int64_t deadline = pz_seats_next_deadline(&h->seats);

    if (h->draining)
        return h->unsent > 0 ? pz_remaining_ms(h->drain_until_ms) : 0;
    if (h->accept_again_ms >= 0 && (deadline < 0 || h->accept_again_ms < deadline))
        deadline = h->accept_again_ms;
    return pz_remaining_ms(deadline);
}

/* Sleeps until something is ready or due. Returns how many events there are. */
static int wait_for_events(struct pz_handoff *h)
{
    h->next_event = 0;
    h->nevents = (int)PZ_RETRY(epoll_wait(h->epoll, h->events, EVENTS, wait_ms(h)));
    if (h->nevents < 0)
        h->nevents = 0;
    if (pz_has_passed(h->accept_again_ms)) {
        h->accept_again_ms = -1;
        watch(h, EPOLL_CTL_MOD, h->listener, EPOLLIN, LISTENER_WORD);
    }
    return h->nevents;
}

int pz_handoff_next(struct pz_handoff *h, struct pz_request *request)
{
    *request = (struct pz_request){.fd = -1, .peer = PZ_NOBODY};
    if (h->waiting != PZ_NOBODY)
        close_peer(h, h->waiting);
    for (;;) {
        if (h->draining && pz_has_passed(h->drain_until_ms))
            return PZ_EVENT_QUIET;
        while (h->next_event < h->nevents) {
            int event = serve(h, &h->events[h->next_event++], request);
            if (event != 0)
                return event;
        }
        if (pz_has_passed(pz_seats_next_deadline(&h->seats))) {
            int event = expire_oldest(h, request);
            if (event != 0)
                return event;
        } else if (wait_for_events(h) == 0 && h->draining && h->unsent == 0) {
            return PZ_EVENT_QUIET;
        }
    }
}

void pz_handoff_drain(struct pz_handoff *h, int timeout_ms)
{
    h->draining = true;
    h->drain_until_ms = pz_deadline(timeout_ms);
}

void pz_handoff_counters(const struct pz_handoff *h, struct pz_handoff_counters *out)
{
    *out = h->counters;
    out->peers = h->seats.taken;
}

void pz_handoff_free(struct pz_handoff *h)
{
    if (h == NULL)
        return;
    while (h->seats.seats != NULL && h->seats.oldest != PZ_NOBODY)
        close_peer(h, h->seats.oldest);
    if (h->closer != NULL)
        pz_closer_quit(h->closer);
    if (h->epoll >= 0)
        close(h->epoll);
    pz_seats_free(&h->seats);
    free(h->peers);
    free(h->uids);
    free(h);
}

static int set_up(struct pz_handoff *h, int wake, const uint32_t *uids)
{
    int flags = fcntl(h->listener, F_GETFL);
    int rc = pz_nsfs_device(&h->nsfs_dev);

    if (rc < 0)
        return rc;
    if (flags == -1 || fcntl(h->listener, F_SETFL, flags | O_NONBLOCK) == -1)
        return -errno;
    h->peers = calloc(h->limits.max_peers, sizeof *h->peers);
    h->uids = calloc(h->nuids > 0 ? h->nuids : 1, sizeof *h->uids);
    if (h->peers == NULL || h->uids == NULL)
        return -ENOMEM;
    h->closer = pz_closer_new(&rc);
    if (h->closer == NULL)
        return rc;
    for (size_t i = 0; i < h->nuids; i++)
        h->uids[i] = uids[i];
    rc = pz_seats_init(&h->seats, h->limits.max_peers);
    if (rc < 0)
        return rc;
    h->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (h->epoll == -1)
        return -errno;
    rc = watch(h, EPOLL_CTL_ADD, h->listener, EPOLLIN, LISTENER_WORD);
    return rc < 0 ? rc : watch(h, EPOLL_CTL_ADD, wake, EPOLLIN, WAKE_WORD);
}

struct pz_handoff *pz_handoff_new(int listener, int wake, const struct pz_handoff_limits *limits,
                                  const uint32_t *uids, size_t nuids, int *error)
{
    struct pz_handoff *h = calloc(1, sizeof *h);

    if (h == NULL || limits->max_peers == 0 || limits->max_peers >= WAKE_WORD) {
        *error = h == NULL ? -ENOMEM : -EINVAL;
        free(h);
        return NULL;
    }
    h->listener = listener;
    h->epoll = -1;
    h->limits = *limits;
    h->nuids = nuids;
    h->own_uid = geteuid();
    h->accept_again_ms = -1;
    h->waiting = PZ_NOBODY;
    *error = set_up(h, wake, uids);
    if (*error < 0) {
        pz_handoff_free(h);
        return NULL;
    }
    return h;
}
