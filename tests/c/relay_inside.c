/*
 * relay_inside.c: see relay_inside.h.
 */
#include "relay_inside.h"

#include "relay_internal.h"

#include "harness.h"
#include "support.h"

#include <sched.h>

enum { PATIENCE_MS = 5000 };

/* ---- looking ---- */

/* A command brings every thread once round; a pod without a connection is one for nothing. */
static void *bring_round(void *argument)
{
    const struct relay_site *site = argument;
    int listener = tcp_listener(), error = 99;
    struct pz_door door = {listener, PZ_DOOR_HBONE, HBONE_PORT};
    struct pz_pod *pod = pz_relay_take(site->relay, site->netns, &door, 1, 0, (const uint8_t *)"",
                                       0, (const uint8_t *)"", 0, &error);

    CHECK_EQ(error, 0);
    pz_relay_drop(site->relay, pod);
    close(listener);
    return NULL;
}

static atomic_bool is_halted;
static atomic_uint halted;

static void halt(void)
{
    if (!atomic_load(&is_halted))
        return;
    atomic_fetch_add(&halted, 1);
    while (atomic_load(&is_halted))
        sched_yield();
    atomic_fetch_sub(&halted, 1);
}

/* Every thread stands before its epoll_wait(), behind all that was ready; the command that brings
 * it there is answered afterwards. */
static pthread_t halt_threads(struct relay_site *site)
{
    int64_t give_up = clock_ms() + PATIENCE_MS;
    pthread_t herald;

    atomic_store(&is_halted, true);
    at_call(CALL_EPOLL_WAIT, halt);
    CHECK_EQ(pthread_create(&herald, NULL, bring_round, site), 0);
    while (atomic_load(&halted) < site->relay->n) {
        CHECK(clock_ms() < give_up);
        sched_yield();
    }
    return herald;
}

static void release_threads(pthread_t herald)
{
    atomic_store(&is_halted, false);
    CHECK_EQ(pthread_join(herald, NULL), 0);
    while (atomic_load(&halted) > 0)
        sched_yield();
    at_call(CALL_EPOLL_WAIT, NULL);
}

struct inside look_inside(struct relay_site *site)
{
    struct inside inside = {0, 0};
    pthread_t herald = halt_threads(site);

    for (unsigned i = 0; i < site->relay->n; i++) {
        const struct thread *t = &site->relay->threads[i];
        inside.kept += t->kept;
        inside.used_pipes += t->all_pipes - t->free_pipes;
    }
    release_threads(herald);
    return inside;
}

void pretend_kept(struct relay_site *site, uint64_t bytes)
{
    pthread_t herald = halt_threads(site);

    site->relay->threads[0].kept += bytes;
    release_threads(herald);
}

/* ---- faults ---- */

static struct {
    atomic_int call, option, left, error; /* option 0: any */
    atomic_bool done, here;
} fault;
static _Thread_local bool is_here;

static bool is_the_one(enum call call, const void *back, int *error)
{
    (void)back;
    if ((int)call != atomic_load(&fault.call) || is_here != atomic_load(&fault.here))
        return false;
    if (atomic_load(&fault.option) != 0 && option_asked() != atomic_load(&fault.option))
        return false;
    *error = atomic_load(&fault.error);
    if (atomic_fetch_sub(&fault.left, 1) != 1)
        return false;
    atomic_store(&fault.done, true);
    return true;
}

static void arm(bool here, enum call call, int option, int nth, int error)
{
    at_every_call(NULL);
    is_here = true;
    atomic_store(&fault.here, here);
    atomic_store(&fault.call, (int)call);
    atomic_store(&fault.option, option);
    atomic_store(&fault.left, nth);
    atomic_store(&fault.error, error);
    atomic_store(&fault.done, false);
    at_every_call(is_the_one);
}

void fail_in_relay(enum call call, int nth, int error)
{
    arm(false, call, 0, nth, error);
}

void fail_option_in_relay(int option, int error)
{
    arm(false, CALL_SETSOCKOPT, option, 1, error);
}

void fail_here(enum call call, int nth, int error)
{
    arm(true, call, 0, nth, error);
}

bool has_failed(void)
{
    at_every_call(NULL);
    return atomic_load(&fault.done);
}

int64_t cpu_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}
