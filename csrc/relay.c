/*
 * relay.c: the relay and its threads.
 *
 * Theory of operation
 *
 * Each thread is alone with its epoll and its flows; what it shares is read-only, counted, or
 * behind a lock that nobody holds for longer than a copy. It sleeps in epoll_wait() and does one
 * turn: the events of this wait, then the flows that had more to do, then time, then commands.
 * Nothing in a turn blocks.
 *
 * Adding a pod needs no turn: its doors are complete before epoll_ctl() shows them to a thread.
 * Taking one away does, since a thread may hold an event that points to it. So the one who commands
 * posts a command to all threads and waits until each has done it, at the end of a turn, when no
 * event is left; only then is anything freed, and its listeners may be closed by their owner.
 */
#include "relay_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

enum { SHARE = 4, EVENTS = 64, QUEUED_AT_END = 4096, FINISH_SLICE_MS = 50 };

/* ---- commands, in a thread ---- */

/* What the kernel has accepted for a listener would be reset when that is closed. */
static void accept_queued(struct thread *t, struct place *place)
{
    if (place->is_left)
        return;
    for (int i = 0; i < QUEUED_AT_END && pz_door_ready(t, place); i++)
        continue;
}

static void close_doors(struct thread *t)
{
    for (struct pz_pod *pod = t->relay->pods; pod != NULL; pod = pod->next)
        for (size_t i = 0; i < pod->n; i++) {
            accept_queued(t, &pod->doors[i].places[t->index]);
            pz_door_leave(t, &pod->doors[i].places[t->index]);
        }
}

static void drop_pod(struct thread *t, const struct pz_pod *pod)
{
    for (size_t i = 0; i < pod->n; i++)
        pz_door_leave(t, &pod->doors[i].places[t->index]);
    pz_flow_end_all(t, pod, PZ_END_WORKLOAD_GONE);
}

/* Does what was commanded. False: it was the end. */
static bool obey(struct thread *t)
{
    struct pz_relay *r = t->relay;

    pthread_mutex_lock(&r->lock);
    enum command command = r->command;
    struct pz_pod *pod = r->command_pod;
    size_t door = r->command_door;
    pthread_mutex_unlock(&r->lock);
    switch (command) {
    case NO_COMMAND: break;
    case DROP_POD: drop_pod(t, pod); break;
    case LEAVE_DOOR: pz_door_leave(t, &pod->doors[door].places[t->index]); break;
    case CLOSE_DOORS: close_doors(t); break;
    case RESET_ALL:
    case END: pz_flow_end_all(t, NULL, PZ_END_DRAINED); break;
    }
    pz_flow_bury(t);
    pthread_mutex_lock(&r->lock);
    if (--r->unanswered == 0)
        pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return command != END;
}

/* ---- a thread ---- */

static int patience(const struct thread *t)
{
    int64_t until = t->sweep_ms;

    if (t->ready != NULL)
        return 0;
    if (t->paused != NULL && t->resume_ms < until)
        until = t->resume_ms;
    return pz_remaining_ms(until == INT64_MAX ? -1 : until);
}

static bool dispatch(struct thread *t, const struct epoll_event *event)
{
    struct source *source = event->data.ptr;
    uint64_t count;

    switch (source->kind) {
    case SOURCE_WAKE: return PZ_RETRY(read(t->wake_fd, &count, sizeof count)) != -1;
    case SOURCE_DOOR: pz_door_ready(t, (struct place *)source); break;
    case SOURCE_SIDE_0:
    case SOURCE_SIDE_1: pz_flow_event(t, source, event->events); break;
    }
    return false;
}

static void *run(void *argument)
{
    struct thread *t = argument;
    struct epoll_event events[EVENTS];
    bool goes_on = true;

    while (goes_on) {
        bool is_commanded = false;
        long n = PZ_RETRY(epoll_wait(t->epoll, events, EVENTS, patience(t)));
        t->now_ms = pz_now_ms();
        for (long i = 0; i < n; i++)
            is_commanded |= dispatch(t, &events[i]);
        pz_flow_continue(t);
        if (t->now_ms >= t->sweep_ms)
            pz_flow_sweep(t);
        if (t->paused != NULL && t->now_ms >= t->resume_ms)
            pz_door_resume(t);
        pz_flow_bury(t);
        if (is_commanded)
            goes_on = obey(t);
    }
    /* No flow is open any more; of the dead, those whose turn was still to come. */
    pz_flow_continue(t);
    pz_flow_bury(t);
    return NULL;
}

static void wake(const struct thread *t)
{
    uint64_t one = 1;

    while (write(t->wake_fd, &one, sizeof one) == -1 && errno == EINTR)
        continue;
}

/* Has every thread obey, and waits for it. Holds control. */
static void command(struct pz_relay *r, enum command what, struct pz_pod *pod, size_t door)
{
    pthread_mutex_lock(&r->lock);
    r->command = what;
    r->command_pod = pod;
    r->command_door = door;
    r->unanswered = r->n;
    for (unsigned i = 0; i < r->n; i++)
        wake(&r->threads[i]);
    while (r->unanswered > 0)
        pthread_cond_wait(&r->changed, &r->lock);
    r->command = NO_COMMAND;
    pthread_mutex_unlock(&r->lock);
}

/* ---- pods ---- */

static void free_pod(struct pz_pod *pod)
{
    pz_label_drop(pod->label);
    pthread_mutex_destroy(&pod->lock);
    free(pod);
}

static struct pz_pod *new_pod(const struct pz_relay *r, int netns_fd, const struct pz_door *doors,
                              size_t n, uint64_t id, struct label *label)
{
    struct pz_pod *pod = calloc(1, sizeof *pod + n * r->n * sizeof *pod->places);

    if (pod == NULL)
        return NULL;
    pthread_mutex_init(&pod->lock, NULL);
    pod->id = id;
    pod->netns_fd = netns_fd;
    pod->label = label;
    pod->n = n;
    for (size_t i = 0; i < n; i++) {
        struct door *door = &pod->doors[i];
        *door = (struct door){.pod = pod,
                              .listener = doors[i].listener,
                              .kind = doors[i].kind,
                              .port = doors[i].port,
                              .places = &pod->places[i * r->n]};
        for (unsigned j = 0; j < r->n; j++)
            door->places[j] = (struct place){.source = {SOURCE_DOOR}, .door = door};
    }
    return pod;
}

/* Shows a door to every thread. Returns 0 or -errno. */
static int open_door(struct pz_relay *r, struct door *door)
{
    pz_door_options(door->listener);
    for (unsigned i = 0; i < r->n; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE,
                                    .data.ptr = &door->places[i]};
        door->places[i].is_left = false;
        if (epoll_ctl(r->threads[i].epoll, EPOLL_CTL_ADD, door->listener, &event) == -1)
            return -errno;
    }
    return 0;
}

static int open_doors(struct pz_relay *r, struct pz_pod *pod)
{
    int rc = 0;

    for (size_t i = 0; i < pod->n && rc == 0; i++)
        rc = open_door(r, &pod->doors[i]);
    return rc;
}

static void link_pod(struct pz_relay *r, struct pz_pod *pod)
{
    pod->next = r->pods;
    if (r->pods != NULL)
        r->pods->previous = pod;
    r->pods = pod;
}

static void unlink_pod(struct pz_relay *r, struct pz_pod *pod)
{
    if (pod->previous != NULL)
        pod->previous->next = pod->next;
    else
        r->pods = pod->next;
    if (pod->next != NULL)
        pod->next->previous = pod->previous;
}

struct pz_pod *pz_relay_take(struct pz_relay *r, int netns_fd, const struct pz_door *doors,
                             size_t n, uint64_t id, const uint8_t *name, size_t name_size,
                             const uint8_t *space, size_t space_size, int *error)
{
    *error = n == 0 || n > PZ_RELAY_MAX_DOORS ? -EINVAL : -ENOMEM;
    if (*error == -EINVAL)
        return NULL;
    struct label *label = pz_label_new(name, name_size, space, space_size);
    if (label == NULL)
        return NULL;
    struct pz_pod *pod = new_pod(r, netns_fd, doors, n, id, label);
    if (pod == NULL) {
        pz_label_drop(label);
        return NULL;
    }
    pthread_mutex_lock(&r->control);
    link_pod(r, pod);
    *error = open_doors(r, pod);
    pthread_mutex_unlock(&r->control);
    if (*error < 0) {
        pz_relay_drop(r, pod);
        return NULL;
    }
    return pod;
}

int pz_relay_rename(struct pz_relay *r, struct pz_pod *pod, const uint8_t *name, size_t name_size,
                    const uint8_t *space, size_t space_size)
{
    struct label *label = pz_label_new(name, name_size, space, space_size);

    (void)r;
    if (label == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&pod->lock);
    struct label *before = pod->label;
    pod->label = label;
    pthread_mutex_unlock(&pod->lock);
    pz_label_drop(before);
    return 0;
}

int pz_relay_mend(struct pz_relay *r, struct pz_pod *pod, size_t door, int listener)
{
    if (door >= pod->n)
        return -EINVAL;
    pthread_mutex_lock(&r->control);
    command(r, LEAVE_DOOR, pod, door);
    pod->doors[door].listener = listener;
    int rc = open_door(r, &pod->doors[door]);
    if (rc < 0)
        command(r, LEAVE_DOOR, pod, door);
    pthread_mutex_unlock(&r->control);
    return rc;
}

void pz_relay_drop(struct pz_relay *r, struct pz_pod *pod)
{
    pthread_mutex_lock(&r->control);
    command(r, DROP_POD, pod, 0);
    unlink_pod(r, pod);
    pthread_mutex_unlock(&r->control);
    free_pod(pod);
}

/* ---- places ---- */

/* Dynamic thresholds (Choudhury and Hahne, 1998): a pod may hold SHARE times what is free. So each
 * pod, however greedy, leaves a fifth of what it finds, and the last place to one that has none. */
bool pz_place_take(struct pz_relay *r, struct pz_pod *pod)
{
    uint32_t all = r->settings.max_flows;
    uint32_t taken = atomic_fetch_add(&r->flows, 1), own = atomic_fetch_add(&pod->flows, 1);

    if (taken < all && own <= (uint64_t)SHARE * (all - taken - 1))
        return true;
    pz_place_leave(r, pod);
    return false;
}

void pz_place_leave(struct pz_relay *r, struct pz_pod *pod)
{
    atomic_fetch_sub(&pod->flows, 1);
    if (atomic_fetch_sub(&r->flows, 1) > 1)
        return;
    pthread_mutex_lock(&r->lock);
    if (r->is_finishing)
        pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* ---- the end ---- */

void pz_relay_close_doors(struct pz_relay *r)
{
    pthread_mutex_lock(&r->control);
    command(r, CLOSE_DOORS, NULL, 0);
    pthread_mutex_unlock(&r->control);
}

int pz_relay_finish(struct pz_relay *r, int timeout_ms)
{
    int64_t deadline = pz_deadline(timeout_ms);

    pthread_mutex_lock(&r->lock);
    r->is_finishing = true;
    while (atomic_load(&r->flows) > 0 && !pz_has_passed(deadline)) {
        struct timespec soon = pz_moment_in(FINISH_SLICE_MS);
        pthread_cond_timedwait(&r->changed, &r->lock, &soon);
    }
    int left = (int)atomic_load(&r->flows);
    pthread_mutex_unlock(&r->lock);
    if (left > 0) {
        pthread_mutex_lock(&r->control);
        command(r, RESET_ALL, NULL, 0);
        pthread_mutex_unlock(&r->control);
    }
    return left;
}

static void free_thread(struct thread *t)
{
    pz_pipes_free(t);
    if (t->epoll >= 0)
        close(t->epoll);
    if (t->wake_fd >= 0)
        close(t->wake_fd);
}

void pz_relay_free(struct pz_relay *r)
{
    if (r == NULL)
        return;
    pthread_mutex_lock(&r->control);
    command(r, END, NULL, 0);
    pthread_mutex_unlock(&r->control);
    for (unsigned i = 0; i < r->n; i++)
        pthread_join(r->threads[i].id, NULL);
    for (unsigned i = 0; i < r->settings.threads; i++)
        free_thread(&r->threads[i]);
    while (r->pods != NULL) {
        struct pz_pod *pod = r->pods;
        unlink_pod(r, pod);
        free_pod(pod);
    }
    pz_journal_free(r->journal);
    if (r->home_fd >= 0)
        close(r->home_fd);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    pthread_mutex_destroy(&r->control);
    free(r);
}

/* ---- the beginning ---- */

static int start_thread(struct pz_relay *r, struct thread *t)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &t->wake};

    t->wake.kind = SOURCE_WAKE;
    t->sweep_ms = INT64_MAX;
    t->ready_end = &t->ready;
    t->paused_end = &t->paused;
    if (pz_pipes_init(t) < 0)
        return -ENOMEM;
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->epoll == -1 || t->wake_fd == -1 ||
        epoll_ctl(t->epoll, EPOLL_CTL_ADD, t->wake_fd, &event) == -1)
        return -errno;
    int rc = pz_start_thread(&t->id, run, t);
    if (rc == 0)
        r->n++;
    return rc;
}

static int start(struct pz_relay *r)
{
    r->home_fd = pz_netns_home();
    if (r->home_fd < 0)
        return r->home_fd;
    int rc = pz_netns_prove_home(r->home_fd);
    if (rc < 0)
        return rc;
    r->journal = pz_journal_new(&r->settings);
    if (r->journal == NULL)
        return -errno;
    for (unsigned i = 0; i < r->settings.threads && rc == 0; i++)
        rc = start_thread(r, &r->threads[i]);
    return rc;
}

struct pz_relay *pz_relay_new(const struct pz_relay_settings *settings, int *error)
{
    uint32_t n = settings->threads;
    pthread_condattr_t monotonic;

    *error = n == 0 || n > PZ_RELAY_MAX_THREADS || settings->max_flows == 0 ? -EINVAL : -ENOMEM;
    if (*error == -EINVAL)
        return NULL;
    struct pz_relay *r = calloc(1, sizeof *r + n * sizeof *r->threads);
    if (r == NULL)
        return NULL;
    r->settings = *settings;
    r->home_fd = -1;
    pthread_mutex_init(&r->control, NULL);
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    for (uint32_t i = 0; i < n; i++) {
        struct thread *t = &r->threads[i];
        t->relay = r;
        t->index = i;
        t->epoll = t->wake_fd = -1;
    }
    *error = start(r);
    if (*error < 0) {
        pz_relay_free(r);
        return NULL;
    }
    return r;
}

/* ---- what is known of it ---- */

int pz_relay_next(struct pz_relay *r, struct pz_batch *batch, int timeout_ms)
{
    return pz_journal_next(r->journal, batch, timeout_ms);
}

void pz_relay_wake(struct pz_relay *r)
{
    pz_journal_wake(r->journal);
}

static uint64_t value_of(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void pz_relay_counters(const struct pz_relay *r, struct pz_relay_counters *out)
{
    *out = (struct pz_relay_counters){.lost_events = pz_journal_lost(r->journal),
                                      .held_back_pod = atomic_load(&r->held_back_pod),
                                      .flows = atomic_load(&r->flows)};
    for (unsigned i = 0; i < r->n; i++) {
        const struct counters *one = &r->threads[i].counters;
        out->accepted += value_of(&one->accepted);
        out->refused += value_of(&one->refused);
        out->closed += value_of(&one->closed);
        out->bytes[0] += value_of(&one->bytes[0]);
        out->bytes[1] += value_of(&one->bytes[1]);
        out->own_source += value_of(&one->own_source);
        out->paused += value_of(&one->paused);
        out->held_back += value_of(&one->held_back);
        out->lost_listeners += value_of(&one->lost_listeners);
        out->pipes += value_of(&one->pipes);
    }
}
