/*
 * closer.c: see closer.h.
 *
 * Theory of operation
 *
 * close() can sleep. The last close of a socket with SO_LINGER waits for its peer, that of a file
 * on FUSE or NFS for the server (close(2), f_op->flush), that of a terminal for its output. Whoever
 * sends us such a descriptor, or leaves it unread in a connection that we close, would hold up
 * everybody else. So the handoff thread closes only what it knows: netns, and connections that have
 * nothing unread.
 *
 * What waits here is a stranger's file or a connection with something unread. Of the latter
 * everything is read first, as the end of a connection is the end of every descriptor in it. A
 * socket is told not to linger; that alone can wait, for the socket's lock, and a file on FUSE can
 * wait for ever.
 *
 * They wait in a ring. When it is full the caller waits a little for the thread, and if that does
 * not get on, as a thread stuck in close() does not, it leaves the descriptor open and goes on.
 * Then the fd table is the bound: someone who was allowed to connect can fill it, but never stop
 * the handoff thread.
 */
#include "closer.h"

#include "internal.h"

#include <stdlib.h>
#include <sys/socket.h>

struct item {
    int fd;
    bool is_connection; /* ours: to be read to its end */
};

struct pz_closer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct item ring[PZ_CLOSER_ROOM];
    size_t first;
    size_t count;
    int64_t second_ms; /* when the present second of waiting began */
    int64_t waited_ms; /* for room, within it */
    bool quit;
    bool finished;  /* the thread touches nothing any more, unless abandoned */
    bool abandoned; /* the thread frees all this at its end */
};

enum { QUIT_PATIENCE_MS = 1000, PATIENCE_MS = 250, LOOK_AGAIN_MS = 1, SCRAP = 4096 };

static void destroy(struct pz_closer *closer)
{
    pthread_cond_destroy(&closer->changed);
    pthread_mutex_destroy(&closer->lock);
    free(closer);
}

/* Waits for something to close. Its fd is -1 when nothing is left and nothing will come. */
static struct item next_item(struct pz_closer *closer)
{
    struct item item = {.fd = -1};

    pthread_mutex_lock(&closer->lock);
    while (closer->count == 0 && !closer->quit)
        pthread_cond_wait(&closer->changed, &closer->lock);
    if (closer->count > 0) {
        item = closer->ring[closer->first];
        closer->first = (closer->first + 1) % PZ_CLOSER_ROOM;
        closer->count--;
        pthread_cond_signal(&closer->changed);
    }
    pthread_mutex_unlock(&closer->lock);
    return item;
}

static void close_stranger(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

/*
 * Nothing can be added to it any more: the caller has shut it down. A packet without bytes looks
 * like the end and may carry descriptors; what is behind one ends with the close.
 */
static void close_connection(int sock)
{
    int fds[PZ_KERNEL_MAX_FDS], lost;
    uint8_t scrap[SCRAP];
    long got;

    do {
        size_t nfds = 0;
        got = pz_receive_once(sock, scrap, sizeof scrap, fds, &nfds, &lost);
        for (size_t i = 0; i < nfds; i++)
            close_stranger(fds[i]);
    } while (got > 0);
    close(sock);
}

static void *close_all(void *argument)
{
    struct pz_closer *closer = argument;

    for (struct item item; (item = next_item(closer)).fd != -1;)
        if (item.is_connection)
            close_connection(item.fd);
        else
            close_stranger(item.fd);
    pthread_mutex_lock(&closer->lock);
    closer->finished = true;
    bool abandoned = closer->abandoned;
    pthread_cond_signal(&closer->changed);
    pthread_mutex_unlock(&closer->lock);
    if (abandoned)
        destroy(closer);
    return NULL;
}

struct pz_closer *pz_closer_new(int *error)
{
    struct pz_closer *closer = calloc(1, sizeof *closer);
    pthread_condattr_t monotonic;
    pthread_t thread;

    if (closer == NULL) {
        *error = -ENOMEM;
        return NULL;
    }
    pthread_mutex_init(&closer->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&closer->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *error = pz_start_thread(&thread, close_all, closer);
    if (*error < 0) {
        destroy(closer);
        return NULL;
    }
    pthread_detach(thread);
    return closer;
}

/*
 * Waits for room, for PATIENCE_MS in all within a second: a thread that is only behind makes room
 * in microseconds. Returns whether there is room. Holds the lock.
 */
static bool wait_for_room(struct pz_closer *closer)
{
    while (closer->count == PZ_CLOSER_ROOM) {
        int64_t before = pz_now_ms();
        if (before - closer->second_ms >= 1000) {
            closer->second_ms = before;
            closer->waited_ms = 0;
        }
        if (closer->waited_ms >= PATIENCE_MS)
            return false;
        struct timespec soon = pz_moment_in(LOOK_AGAIN_MS);
        pthread_cond_timedwait(&closer->changed, &closer->lock, &soon);
        closer->waited_ms += pz_now_ms() - before;
    }
    return true;
}

static void take(struct pz_closer *closer, struct item item)
{
    pthread_mutex_lock(&closer->lock);
    if (wait_for_room(closer)) {
        closer->ring[(closer->first + closer->count) % PZ_CLOSER_ROOM] = item;
        closer->count++;
        pthread_cond_signal(&closer->changed);
    }
    pthread_mutex_unlock(&closer->lock);
}

void pz_closer_take(struct pz_closer *closer, int fd)
{
    take(closer, (struct item){.fd = fd, .is_connection = false});
}

void pz_closer_take_connection(struct pz_closer *closer, int sock)
{
    take(closer, (struct item){.fd = sock, .is_connection = true});
}

void pz_closer_quit(struct pz_closer *closer)
{
    struct timespec until = pz_moment_in(QUIT_PATIENCE_MS);
    int rc = 0;

    pthread_mutex_lock(&closer->lock);
    closer->quit = true;
    pthread_cond_signal(&closer->changed);
    while (!closer->finished && rc == 0)
        rc = pthread_cond_timedwait(&closer->changed, &closer->lock, &until);
    bool finished = closer->finished;
    closer->abandoned = !finished;
    pthread_mutex_unlock(&closer->lock);
    if (finished)
        destroy(closer);
}
