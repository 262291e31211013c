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
 * The descriptors wait in a ring. With the ring full the caller closes by itself: bounded memory
 * and descriptors count for more than the patience of someone who was allowed to connect and then
 * sends 256 files that hold up the thread. A lingering socket, the one of these that needs no
 * privilege to make, does not hold it up.
 */
#include "closer.h"

#include "internal.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>

struct pz_closer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int ring[PZ_CLOSER_ROOM];
    size_t first;
    size_t count;
    bool quit;
    bool finished;  /* the thread touches nothing any more, unless abandoned */
    bool abandoned; /* the thread frees all this at its end */
};

enum { PATIENCE_S = 1 };

static void destroy(struct pz_closer *closer)
{
    pthread_cond_destroy(&closer->changed);
    pthread_mutex_destroy(&closer->lock);
    free(closer);
}

/* Waits for a descriptor. Returns it, or -1 when there is none left and none will come. */
static int next_fd(struct pz_closer *closer)
{
    int fd = -1;

    pthread_mutex_lock(&closer->lock);
    while (closer->count == 0 && !closer->quit)
        pthread_cond_wait(&closer->changed, &closer->lock);
    if (closer->count > 0) {
        fd = closer->ring[closer->first];
        closer->first = (closer->first + 1) % PZ_CLOSER_ROOM;
        closer->count--;
    }
    pthread_mutex_unlock(&closer->lock);
    return fd;
}

/* A socket that lingers is told first to end at once. Even that may wait, for the socket's lock. */
static void end(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

static void *close_all(void *argument)
{
    struct pz_closer *closer = argument;

    for (int fd; (fd = next_fd(closer)) != -1;)
        end(fd);
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
    sigset_t everything, before;
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
    sigfillset(&everything);
    pthread_sigmask(SIG_SETMASK, &everything, &before);
    *error = -pthread_create(&thread, NULL, close_all, closer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (*error < 0) {
        destroy(closer);
        return NULL;
    }
    pthread_detach(thread);
    return closer;
}

void pz_closer_take(struct pz_closer *closer, int fd)
{
    bool room;

    pthread_mutex_lock(&closer->lock);
    room = closer->count < PZ_CLOSER_ROOM;
    if (room) {
        closer->ring[(closer->first + closer->count) % PZ_CLOSER_ROOM] = fd;
        closer->count++;
        pthread_cond_signal(&closer->changed);
    }
    pthread_mutex_unlock(&closer->lock);
    if (!room)
        end(fd);
}

void pz_closer_quit(struct pz_closer *closer)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PATIENCE_S;
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
