/*
 * responder.c: what the seed form's listeners answer: `ok`, and a clean end.
 *
 * Theory of operation
 *
 * One thread in one epoll_wait() over all listeners of all pods and the connections they gave birth
 * to. The listeners are not ours: their owner calls forget() and then closes them, while this
 * thread may hold an event for that number. By then the number may be anything that a peer of the
 * handoff sent, even a blocking listener, on which accept4() would sleep for ever. So forget() and
 * accept4() exclude each other, and events from before a forget() are dropped; level-triggered
 * epoll repeats what was real.
 *
 * A connection is answered at once (three bytes always fit into a fresh send buffer), shut down for
 * writing, and read until the client ends it. Closing a socket with unread bytes makes the kernel
 * send RST instead of FIN (RFC 2525 2.17), which can destroy the answer before the client reads it:
 * hence the reading, for a client that talks first. It ends at a deadline; with every seat taken
 * the oldest goes.
 *
 * epoll word: the upper half says what the lower half is, a listener's fd or a connection's seat.
 */
#include "internal.h"
#include "seats.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { EVENTS = 64, READS_PER_TURN = 16, SCRAP = 4096, ACCEPT_PAUSE_MS = 20 };
enum word_kind { LISTENER, CONNECTION, WAKE };

struct pz_responder {
    struct pz_seats seats;
    int *connections; /* fd by seat */
    uint32_t deadline_ms;
    int epoll;
    int wake;
    pthread_mutex_t accepting; /* forget() waits for the accept() that is under way */
    uint64_t forgotten;        /* calls of forget(): an event from before one is stale */
};

static struct epoll_event word(uint32_t events, enum word_kind kind, uint32_t value)
{
    return (struct epoll_event){.events = events, .data.u64 = (uint64_t)kind << 32 | value};
}

static void hang_up(struct pz_responder *r, uint32_t seat)
{
    /* While a fork of us still has it open, epoll would report it for ever (epoll(7), Q6). */
    epoll_ctl(r->epoll, EPOLL_CTL_DEL, r->connections[seat], NULL);
    close(r->connections[seat]);
    r->connections[seat] = -1;
    pz_seats_leave(&r->seats, seat);
}

/* Reads and forgets what the client says; closes the connection when it has said everything. */
static void listen_out(struct pz_responder *r, uint32_t seat)
{
    char scrap[SCRAP];

    for (int i = 0; i < READS_PER_TURN; i++) {
        long got = PZ_RETRY(recv(r->connections[seat], scrap, sizeof scrap, MSG_DONTWAIT));
        if (got > 0)
            continue;
        if (got == 0 || errno != EAGAIN)
            hang_up(r, seat);
        return;
    }
}

/* A connection for which there is no fd is a client that waits: the oldest one makes room. */
static void make_room(struct pz_responder *r)
{
    if (r->seats.oldest != PZ_NOBODY)
        hang_up(r, r->seats.oldest);
    else
        poll(NULL, 0, ACCEPT_PAUSE_MS);
}

/*
 * Accepts from a listener, unless forget() was called since the event was asked for. EINVAL: root
 * in the pod destroyed the socket (ss -K), which epoll would report for ever.
 */
static int accept_from(struct pz_responder *r, int listener, uint64_t forgotten)
{
    int fd = -1;

    errno = EAGAIN;
    pthread_mutex_lock(&r->accepting);
    if (r->forgotten == forgotten) {
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd == -1 && errno == EINVAL)
            epoll_ctl(r->epoll, EPOLL_CTL_DEL, listener, NULL);
    }
    pthread_mutex_unlock(&r->accepting);
    return fd;
}

/* Accepts one connection and answers it. */
static void answer_one(struct pz_responder *r, int listener, uint64_t forgotten)
{
    static const char answer[] = "ok\n";
    int fd = accept_from(r, listener, forgotten);

    if (fd == -1) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            make_room(r);
        return;
    }
    if (r->seats.taken == r->seats.size)
        hang_up(r, r->seats.oldest);
    uint32_t seat = pz_seats_take(&r->seats, pz_now_ms() + (int64_t)r->deadline_ms);
    r->connections[seat] = fd;
    struct epoll_event event = word(EPOLLIN, CONNECTION, seat);
    if (send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL | MSG_DONTWAIT) == -1 ||
        shutdown(fd, SHUT_WR) == -1 || epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &event) == -1)
        hang_up(r, seat);
}

static void expire(struct pz_responder *r)
{
    while (pz_has_passed(pz_seats_next_deadline(&r->seats)))
        hang_up(r, r->seats.oldest);
}

/* One turn: waits until DEADLINE at most, serves what is ready. Returns how much that was. */
static long turn(struct pz_responder *r, int64_t deadline, bool *woken)
{
    struct epoll_event events[EVENTS];
    int64_t next = pz_seats_next_deadline(&r->seats);

    if (next < 0 || (deadline >= 0 && deadline < next))
        next = deadline;
    pthread_mutex_lock(&r->accepting);
    uint64_t forgotten = r->forgotten;
    pthread_mutex_unlock(&r->accepting);
    long n = PZ_RETRY(epoll_wait(r->epoll, events, EVENTS, pz_remaining_ms(next)));
    for (long i = 0; i < n; i++) {
        uint32_t value = (uint32_t)events[i].data.u64;
        switch ((enum word_kind)(events[i].data.u64 >> 32)) {
        case LISTENER: answer_one(r, (int)value, forgotten); break;
        case CONNECTION:
            if (pz_seats_is_taken(&r->seats, value))
                listen_out(r, value);
            break;
        case WAKE: *woken = true; break;
        }
    }
    expire(r);
    return n;
}

int pz_responder_watch(struct pz_responder *r, const int *listeners, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct epoll_event event = word(EPOLLIN, LISTENER, (uint32_t)listeners[i]);
        if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, listeners[i], &event) == -1) {
            int error = errno;
            pz_responder_forget(r, listeners, i);
            return -error;
        }
    }
    return 0;
}

void pz_responder_forget(struct pz_responder *r, const int *listeners, size_t n)
{
    pthread_mutex_lock(&r->accepting);
    for (size_t i = 0; i < n; i++)
        epoll_ctl(r->epoll, EPOLL_CTL_DEL, listeners[i], NULL);
    r->forgotten++;
    pthread_mutex_unlock(&r->accepting);
}

int pz_responder_run(struct pz_responder *r)
{
    bool woken = false;

    while (!woken)
        turn(r, -1, &woken);
    return 0;
}

/* The wake fd may stay readable after a run, and would keep every later turn from sleeping. */
static void stop_being_woken(struct pz_responder *r)
{
    epoll_ctl(r->epoll, EPOLL_CTL_DEL, r->wake, NULL);
}

int pz_responder_accept_queued(struct pz_responder *r, int timeout_ms)
{
    int64_t deadline = pz_deadline(timeout_ms);
    bool woken;

    stop_being_woken(r);
    /* Listeners are level-triggered: with a connection queued, a turn has something to do. */
    while (turn(r, 0, &woken) > 0 && !pz_has_passed(deadline))
        continue;
    return 0;
}

int pz_responder_finish(struct pz_responder *r, int timeout_ms)
{
    int64_t deadline = pz_deadline(timeout_ms);
    bool woken;

    stop_being_woken(r);
    while (r->seats.taken > 0 && !pz_has_passed(deadline))
        turn(r, deadline, &woken);
    return (int)r->seats.taken;
}

void pz_responder_free(struct pz_responder *r)
{
    if (r == NULL)
        return;
    while (r->seats.seats != NULL && r->seats.oldest != PZ_NOBODY)
        hang_up(r, r->seats.oldest);
    if (r->epoll >= 0)
        close(r->epoll);
    pz_seats_free(&r->seats);
    free(r->connections);
    pthread_mutex_destroy(&r->accepting);
    free(r);
}

static int set_up(struct pz_responder *r, uint32_t max_connections)
{
    struct epoll_event event = word(EPOLLIN, WAKE, 0);

    r->connections = calloc(max_connections, sizeof *r->connections);
    if (r->connections == NULL)
        return -ENOMEM;
    int rc = pz_seats_init(&r->seats, max_connections);
    if (rc < 0)
        return rc;
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (r->epoll == -1 || epoll_ctl(r->epoll, EPOLL_CTL_ADD, r->wake, &event) == -1)
        return -errno;
    return 0;
}

struct pz_responder *pz_responder_new(int wake, uint32_t max_connections, uint32_t deadline_ms,
                                      int *error)
{
    struct pz_responder *r = calloc(1, sizeof *r);

    if (r == NULL || max_connections == 0) {
        *error = r == NULL ? -ENOMEM : -EINVAL;
        free(r);
        return NULL;
    }
    r->epoll = -1;
    pthread_mutex_init(&r->accepting, NULL);
    r->wake = wake;
    r->deadline_ms = deadline_ms;
    *error = set_up(r, max_connections);
    if (*error < 0) {
        pz_responder_free(r);
        return NULL;
    }
    return r;
}
