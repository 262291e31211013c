/*
 * internal.h: what the C files share and Python never sees.
 */
#ifndef PZ_INTERNAL_H
#define PZ_INTERNAL_H

#include "pyztun.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(int) == sizeof(int32_t), "descriptors travel as int32_t");
_Static_assert(sizeof(struct pz_listener) == 36, "no padding: Python fills every byte of it");

/*
 * Retries a call that a signal interrupted before it did anything. Never for close(): Linux
 * releases the number before it can be interrupted, so a second close() could hit a stranger's new
 * fd.
 */
#define PZ_RETRY(call)                              \
    __extension__({                                 \
        long pz_result_;                            \
        do                                          \
            pz_result_ = (long)(call);              \
        while (pz_result_ == -1 && errno == EINTR); \
        pz_result_;                                 \
    })

static inline void pz_close_keeping_errno(int fd)
{
    int saved = errno;
    close(fd);
    errno = saved;
}

static inline void pz_close_scope(int *fd)
{
    if (*fd >= 0)
        pz_close_keeping_errno(*fd);
}

/* An fd that its scope closes, unless pz_steal() hands it on. */
#define PZ_SCOPED __attribute__((cleanup(pz_close_scope))) int

static inline int pz_steal(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

/* Notes where a call failed and returns -error. */
static inline int pz_fail(struct pz_failure *failure, enum pz_step step, int index, int error)
{
    if (failure != NULL) {
        failure->step = (int32_t)step;
        failure->index = index;
    }
    return -error;
}

static inline int64_t pz_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The moment MS (at most a second) from now, for pthread_cond_timedwait() on CLOCK_MONOTONIC. */
static inline struct timespec pz_moment_in(int ms)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return until;
}

/*
 * The moment at which timeout_ms from now have passed; -1 (for ever) stays -1. One millisecond more
 * than the clock, which is rounded down, says: no wait ends before its time.
 */
static inline int64_t pz_deadline(int timeout_ms)
{
    if (timeout_ms <= 0)
        return timeout_ms < 0 ? -1 : pz_now_ms();
    return pz_now_ms() + timeout_ms + 1;
}

static inline bool pz_has_passed(int64_t deadline)
{
    return deadline >= 0 && pz_now_ms() >= deadline;
}

/* Milliseconds until DEADLINE for poll(2) and epoll_wait(2): never below 0, -1 for no deadline. */
static inline int pz_remaining_ms(int64_t deadline)
{
    if (deadline < 0)
        return -1;
    int64_t left = deadline - pz_now_ms();
    if (left <= 0)
        return 0;
    return left > INT_MAX ? INT_MAX : (int)left;
}

/* thread.c: starts BODY(ARGUMENT) in a thread with every signal blocked. Returns 0 or -errno. */
int pz_start_thread(pthread_t *thread, void *(*body)(void *), void *argument);

/* thread.c: runs BODY(ARGUMENT) in a helper thread with every signal blocked and waits for it.
 * Returns 0 or -errno. */
int pz_in_helper_thread(void *(*body)(void *), void *argument);

/* netns.c: the cookie of a netns fd, where the kernel tells it so (Linux 6.18). Returns 0 or
 * -errno. */
int pz_netns_id(int fd, uint64_t *id);

/* fdpass.c: closes every descriptor of an array. */
void pz_close_all(const int *fds, size_t n);

/* The most descriptors that the kernel puts into one message: SCM_MAX_FD, include/net/scm.h. */
enum { PZ_KERNEL_MAX_FDS = 253 };

/*
 * fdpass.c: one non-blocking recvmsg(). Every descriptor that arrived is in FDS (PZ_KERNEL_MAX_FDS
 * long), counted in *nfds and owned by the caller. Returns bytes or -errno; *lost is an errno where
 * the kernel dropped descriptors or bytes, else 0.
 */
long pz_receive_once(int sock, void *buf, size_t cap, int *fds, size_t *nfds, int *lost);

/* linux/in6.h; kernel ABI, not in every libc's headers. */
enum { PZ_IPV6_TRANSPARENT = 75, PZ_IPV6_FREEBIND = 78 };

/* listen.c: setsockopt() of an int. Returns 0 or -errno. */
int pz_set_int(int fd, int level, int name, int value);

/* listen.c: options, bind, listen on a socket that exists. Returns 0 or -errno. */
int pz_make_listening(int fd, const struct pz_listener *wanted, int index,
                      struct pz_failure *failure);

#endif
