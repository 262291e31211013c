/*
 * relay_flow.c: the life of a connection.
 *
 * Theory of operation
 *
 * A flow is two sockets and what was read from one and not yet written to the other, the same in
 * both directions. Each socket is in epoll once, edge-triggered, for everything: what epoll said is
 * kept as flags of the side, and a flag holds until a call disproves it.
 *
 *   state       side 0 (source)       side 1 (destination)     ends as
 *   CONNECTING  accepted, not read    connect() under way      OPEN: it is writable without error
 *                                                              DEAD: refused, too late, source RST
 *   OPEN        both directions are pumped, each for itself    DEAD: FIN both ways, RST, time over
 *   DEAD        closed; the memory lives to the end of the turn, as epoll words point to it
 *
 *   in OPEN, of a direction           legal
 *   neither FIN_RCVD nor FIN_SENT     recv, splice, send
 *   FIN_RCVD of its source            send of what is kept, then shutdown(SHUT_WR): FIN_SENT
 *   FIN_SENT to its destination       nothing; both directions there: close
 *
 * A FIN is passed on as a FIN, the other direction goes on. Everything else that ends a connection
 * is passed on as RST (SO_LINGER with zero, then close), so that a stream that was cut never looks
 * like one that is complete. Of a source whose destination cannot be reached that is the only
 * thing that it gets. Both sockets are set to that before anything can go through them, and to end
 * with a FIN only where both sides have said theirs: so it is also when this process is killed.
 *
 * Time: a flow has no timer. A thread knows when the first flow's time can be over and then looks
 * at all of them; flows without a limit cost nothing.
 */
#include "relay_internal.h"

#include <stdlib.h>
#include <string.h>

static const uint32_t EVERYTHING = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET;

enum { SWEEP_MS = 50 }; /* not more often */

static uint64_t now_us(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void pz_reset_on_close(int fd, bool is_on)
{
    struct linger at_once = {.l_onoff = is_on, .l_linger = 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

struct flow *pz_flow_new(struct thread *t, struct place *place, int source_fd)
{
    struct flow *flow = calloc(1, sizeof *flow);
    struct pz_pod *pod = place->door->pod;

    if (flow == NULL) {
        pz_place_leave(t->relay, pod);
        close(source_fd);
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        flow->sides[i].source.kind = i == 0 ? SOURCE_SIDE_0 : SOURCE_SIDE_1;
        flow->sides[i].fd = flow->sides[i].pipe.read = flow->sides[i].pipe.write = -1;
    }
    flow->sides[0].fd = source_fd;
    flow->pod = pod;
    flow->kind = place->door->kind;
    pthread_mutex_lock(&pod->lock);
    flow->label = pz_label_hold(pod->label);
    pthread_mutex_unlock(&pod->lock);
    flow->state = FLOW_CONNECTING;
    flow->begun_us = now_us(CLOCK_MONOTONIC);
    flow->last_ms = t->now_ms;
    flow->next = t->flows;
    if (t->flows != NULL)
        t->flows->previous = flow;
    t->flows = flow;
    pz_count(&t->counters.accepted, 1);
    return flow;
}

/* ---- the end ---- */

static void report(struct thread *t, struct flow *flow, enum pz_end end, int error)
{
    struct counters *counters = &t->counters;
    struct pz_flow_event event = {
        .pod = flow->pod->id,
        .ended_us = now_us(CLOCK_REALTIME),
        .duration_us = now_us(CLOCK_MONOTONIC) - flow->begun_us,
        .bytes = {flow->sides[0].bytes, flow->sides[1].bytes},
        .source = flow->source,
        .destination = flow->destination,
        .kind = flow->kind,
        .end = (uint16_t)end,
        .own_source = flow->own_source,
        .opened = flow->state == FLOW_OPEN,
        .error = error,
    };

    pz_count(end >= PZ_END_NO_HBONE ? &counters->refused : &counters->closed, 1);
    for (int i = 0; i < 2; i++)
        pz_count(&counters->bytes[i], event.bytes[i]);
    pz_count(&counters->own_source, flow->own_source);
    pz_journal_add(t->relay->journal, &event, flow->label);
    flow->label = NULL;
}

static void close_side(struct thread *t, struct side *side, bool reset)
{
    pz_pump_discard(t, side);
    if (side->fd < 0)
        return;
    if (!reset)
        pz_reset_on_close(side->fd, false);
    /* While a fork of us still has it open, epoll would report it for ever (epoll(7), Q6). */
    epoll_ctl(t->epoll, EPOLL_CTL_DEL, side->fd, NULL);
    close(side->fd);
    side->fd = -1;
}

static void leave_list(struct thread *t, struct flow *flow)
{
    if (flow->previous != NULL)
        flow->previous->next = flow->next;
    else
        t->flows = flow->next;
    if (flow->next != NULL)
        flow->next->previous = flow->previous;
}

void pz_flow_end(struct thread *t, struct flow *flow, enum pz_end end, int error)
{
    if (flow->state == FLOW_DEAD)
        return;
    /* Before the other ends can tell: lines are in the order in which things happened. */
    report(t, flow, end, error);
    for (int i = 0; i < 2; i++)
        close_side(t, &flow->sides[i], end != PZ_END_COMPLETE);
    flow->state = FLOW_DEAD;
    leave_list(t, flow);
    flow->next = t->dead;
    t->dead = flow;
    pz_place_leave(t->relay, flow->pod);
}

void pz_flow_end_all(struct thread *t, const struct pz_pod *pod, enum pz_end end)
{
    for (struct flow *flow = t->flows, *next; flow != NULL; flow = next) {
        next = flow->next;
        if (pod == NULL || flow->pod == pod)
            pz_flow_end(t, flow, end, 0);
    }
}

void pz_flow_bury(struct thread *t)
{
    struct flow **kept = &t->dead;

    while (*kept != NULL) {
        struct flow *flow = *kept;
        if (flow->is_ready) { /* its turn in the list of the ready ones comes first */
            kept = &flow->next;
        } else {
            *kept = flow->next;
            free(flow);
        }
    }
}

/* ---- time ---- */

static bool has_fin(const struct flow *flow)
{
    return ((flow->sides[0].flags | flow->sides[1].flags) & FIN_RCVD) != 0;
}

/* When its time is over; INT64_MAX: never. */
static int64_t deadline_of(const struct thread *t, const struct flow *flow)
{
    const struct pz_relay_settings *settings = &t->relay->settings;
    uint32_t limit = settings->idle_ms;

    if (flow->state == FLOW_CONNECTING)
        limit = settings->connect_ms;
    else if (has_fin(flow) && settings->half_close_ms != 0 &&
             (limit == 0 || settings->half_close_ms < limit))
        limit = settings->half_close_ms;
    return limit == 0 ? INT64_MAX : flow->last_ms + limit;
}

static void expect(struct thread *t, const struct flow *flow)
{
    int64_t deadline = deadline_of(t, flow);

    if (deadline < t->sweep_ms)
        t->sweep_ms = deadline;
}

static enum pz_end lateness(const struct flow *flow)
{
    if (flow->state == FLOW_CONNECTING)
        return PZ_END_CONNECT_TIMEOUT;
    return has_fin(flow) ? PZ_END_HALF_CLOSED : PZ_END_IDLE;
}

void pz_flow_sweep(struct thread *t)
{
    int64_t first = INT64_MAX;

    for (struct flow *flow = t->flows, *next; flow != NULL; flow = next) {
        next = flow->next;
        int64_t deadline = deadline_of(t, flow);
        if (deadline <= t->now_ms)
            pz_flow_end(t, flow, lateness(flow), 0);
        else if (deadline < first)
            first = deadline;
    }
    t->sweep_ms = first < t->now_ms + SWEEP_MS ? t->now_ms + SWEEP_MS : first;
}

/* ---- events ---- */

static void get_ready(struct thread *t, struct flow *flow)
{
    if (flow->is_ready)
        return;
    flow->is_ready = true;
    flow->next_ready = NULL;
    *t->ready_end = flow;
    t->ready_end = &flow->next_ready;
}

static bool is_complete(const struct flow *flow)
{
    return (flow->sides[0].flags & flow->sides[1].flags & FIN_SENT) != 0;
}

static int error_of(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == -1 ? errno : error;
}

static void end_broken(struct thread *t, struct flow *flow, int side, int error)
{
    bool is_reset = error == ECONNRESET || error == EPIPE;
    enum pz_end end = side == 0 ? PZ_END_RESET_BY_SOURCE : PZ_END_RESET_BY_DESTINATION;

    if (error == ENOMEM || error == ENOBUFS) /* ours, and nobody's reset */
        end = PZ_END_BROKEN;
    pz_flow_end(t, flow, end, is_reset ? 0 : error);
}

/* Pumps one direction as far as it goes now. False: the flow has ended. */
static bool run_direction(struct thread *t, struct flow *flow, int from)
{
    int broken = from;

    switch (pz_pump(t, flow, from, &broken)) {
    case PUMP_BROKEN: end_broken(t, flow, broken, errno); return false;
    case PUMP_MORE: get_ready(t, flow); return true;
    case PUMP_WAIT:
    case PUMP_DONE: break;
    }
    if (!(flow->sides[from].flags & BROKEN))
        return true;
    /* An RST overtakes what its sender had said and the other side does not take. */
    end_broken(t, flow, from, error_of(flow->sides[from].fd));
    return false;
}

static void run(struct thread *t, struct flow *flow)
{
    uint64_t before = flow->sides[0].bytes + flow->sides[1].bytes;
    bool had_fin = has_fin(flow);

    if (!run_direction(t, flow, 0) || !run_direction(t, flow, 1))
        return;
    if (is_complete(flow)) {
        pz_flow_end(t, flow, PZ_END_COMPLETE, 0);
        return;
    }
    if (flow->sides[0].bytes + flow->sides[1].bytes != before)
        flow->last_ms = t->now_ms;
    if (has_fin(flow) && !had_fin) {
        flow->last_ms = t->now_ms;
        expect(t, flow);
    }
}

/* What came of the connect(). */
static void answered(struct thread *t, struct flow *flow, uint32_t events)
{
    /* Writable and nothing else: it is connected. */
    int error = events & (EPOLLERR | EPOLLHUP) ? error_of(flow->sides[1].fd) : 0;

    if (error != 0) {
        pz_flow_end(t, flow, PZ_END_CONNECT_FAILED, error);
        return;
    }
    flow->state = FLOW_OPEN;
    flow->last_ms = t->now_ms;
    expect(t, flow);
    run(t, flow);
}

static void note(struct side *side, uint32_t events)
{
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        side->flags |= READABLE;
    if (events & EPOLLPRI) /* urgent data: recv() stops there, with more behind it */
        side->flags |= READABLE | FIN_COMES;
    if (events & EPOLLOUT)
        side->flags |= WRITABLE;
    if (events & (EPOLLRDHUP | EPOLLHUP))
        side->flags |= FIN_COMES;
    if (events & EPOLLERR)
        side->flags |= BROKEN | FIN_COMES;
}

void pz_flow_event(struct thread *t, struct source *source, uint32_t events)
{
    struct flow *flow = flow_of(source);
    struct side *side = (struct side *)source;

    if (flow->state == FLOW_DEAD)
        return;
    note(side, events);
    if (flow->state == FLOW_OPEN)
        run(t, flow);
    else if (source->kind == SOURCE_SIDE_1 && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        answered(t, flow, events);
    else if (side->flags & BROKEN)
        pz_flow_end(t, flow, PZ_END_RESET_BY_SOURCE, 0);
}

void pz_flow_continue(struct thread *t)
{
    struct flow *flow = t->ready;

    /* Those that have still more to do go to the end of a list of the next turn. */
    t->ready = NULL;
    t->ready_end = &t->ready;
    while (flow != NULL) {
        struct flow *next = flow->next_ready;
        flow->is_ready = false;
        if (flow->state == FLOW_OPEN)
            run(t, flow);
        flow = next;
    }
}

void pz_flow_connecting(struct thread *t, struct flow *flow, int destination_fd)
{
    flow->sides[1].fd = destination_fd;
    for (int i = 1; i >= 0; i--) {
        struct side *side = &flow->sides[i];
        struct epoll_event event = {.events = EVERYTHING, .data.ptr = &side->source};
        if (epoll_ctl(t->epoll, EPOLL_CTL_ADD, side->fd, &event) == -1) {
            pz_flow_end(t, flow, PZ_END_BROKEN, errno);
            return;
        }
    }
    expect(t, flow);
}
