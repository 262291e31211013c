/*
 * relay_pump.c: bytes from one side of a flow to the other.
 *
 * Theory of operation
 *
 * Most streams are short messages: recv() into a buffer that all flows of the thread share, send()
 * at once. What the other side does not take is copied and kept, and while there is something kept
 * nothing is read: the kernel's window closes, and the sender waits (backpressure end to end). So
 * a flow that nobody reads holds SCRATCH bytes of ours a direction at most, and once KEPT_LIMIT is
 * kept in all, SMALL_READ.
 *
 * A stream that fills the buffer twice in a row is bulk: it is spliced through a pipe, from socket
 * to socket without a copy (0.74 of the direct throughput against 0.46), until it dries up. Pipes
 * are the thread's, bounded, and held only while something is in them. Without one recv() does.
 *
 * splice() into a pipe says EAGAIN both for a socket without data and for a full pipe; so the pipe
 * is emptied before more is read, and then it can only be the socket. SIGPIPE is blocked in our
 * threads (thread.c); send() is told not to raise it at all.
 */
#include "relay_internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum {
    BULK_READS = 2,
    STEPS = 16,             /* reads of one direction before the others have their turn, */
    SHARE = 1024 * 1024,    /* and bytes */
    BULK_ENOUGH = 64 * 1024 /* bytes of one visit, below which a stream is bulk no more */
};

/* ---- pipes ---- */

int pz_pipes_init(struct thread *t)
{
    t->pipes = calloc(t->relay->settings.max_pipes + 1, sizeof *t->pipes);
    return t->pipes == NULL ? -ENOMEM : 0;
}

static void close_pipe(struct thread *t, const struct pipe *pipe)
{
    close(pipe->read);
    close(pipe->write);
    t->all_pipes--;
    pz_count(&t->counters.pipes, UINT64_MAX); /* one less */
}

void pz_pipes_free(struct thread *t)
{
    while (t->pipes != NULL && t->free_pipes > 0)
        close_pipe(t, &t->pipes[--t->free_pipes]);
    free(t->pipes);
}

static bool take_pipe(struct thread *t, struct side *side)
{
    int ends[2];

    if (t->free_pipes > 0) {
        side->pipe = t->pipes[--t->free_pipes];
        return true;
    }
    if (t->all_pipes == t->relay->settings.max_pipes || pipe2(ends, O_CLOEXEC | O_NONBLOCK) == -1)
        return false;
    fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE); /* where it may not, what it has will do */
    side->pipe = (struct pipe){.read = ends[0], .write = ends[1]};
    t->all_pipes++;
    pz_count(&t->counters.pipes, 1);
    return true;
}

/* Gives an empty pipe back; one with something in it cannot serve another flow. */
static void leave_pipe(struct thread *t, struct side *side)
{
    if (side->pipe.read < 0)
        return;
    if (side->piped == 0)
        t->pipes[t->free_pipes++] = side->pipe;
    else
        close_pipe(t, &side->pipe);
    side->pipe = (struct pipe){.read = -1, .write = -1};
    side->piped = 0;
}

/* ---- what is kept ---- */

static void forget_kept(struct thread *t, struct side *side)
{
    t->kept -= side->kept_at + side->kept_size;
    free(side->kept);
    side->kept = NULL;
    side->kept_at = side->kept_size = 0;
}

void pz_pump_discard(struct thread *t, struct side *side)
{
    if (side->kept != NULL)
        forget_kept(t, side);
    leave_pipe(t, side);
}

static bool keep(struct thread *t, struct side *side, const uint8_t *bytes, size_t size)
{
    side->kept = malloc(size);
    if (side->kept == NULL)
        return false;
    memcpy(side->kept, bytes, size);
    side->kept_size = (uint32_t)size;
    t->kept += size;
    return true;
}

/* ---- one call each; a side is a socket today ---- */

enum step { STEP_ON, STEP_WAIT, STEP_FAILED };

static enum step could_not_write(struct side *to)
{
    if (errno != EAGAIN)
        return STEP_FAILED;
    to->flags &= ~(uint32_t)WRITABLE;
    return STEP_WAIT;
}

/* Writes; *done says how much. Less than all: to is not writable any more. */
static enum step write_some(struct side *from, struct side *to, const uint8_t *bytes, size_t size,
                            size_t *done)
{
    *done = 0;
    if (!(to->flags & WRITABLE))
        return STEP_WAIT;
    long sent = PZ_RETRY(send(to->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT));
    if (sent == -1)
        return could_not_write(to);
    *done = (size_t)sent;
    from->bytes += (uint64_t)sent;
    if (*done == size)
        return STEP_ON;
    to->flags &= ~(uint32_t)WRITABLE;
    return STEP_WAIT;
}

static enum step write_kept(struct thread *t, struct side *from, struct side *to)
{
    size_t done;
    enum step step = write_some(from, to, from->kept + from->kept_at, from->kept_size, &done);

    from->kept_at += (uint32_t)done;
    from->kept_size -= (uint32_t)done;
    if (from->kept_size == 0)
        forget_kept(t, from);
    return step;
}

static enum step write_piped(struct side *from, struct side *to)
{
    while (from->piped > 0) {
        if (!(to->flags & WRITABLE))
            return STEP_WAIT;
        long sent = PZ_RETRY(splice(from->pipe.read, NULL, to->fd, NULL, from->piped,
                                    SPLICE_F_MOVE | SPLICE_F_NONBLOCK));
        if (sent <= 0)
            return could_not_write(to);
        from->piped -= (uint32_t)sent;
        from->bytes += (uint64_t)sent;
    }
    return STEP_ON;
}

/* The stream has ended, has nothing now, or has failed. */
static enum step no_bytes(struct side *from, long got)
{
    if (got == 0) {
        from->flags |= FIN_RCVD;
        return STEP_ON;
    }
    if (errno != EAGAIN)
        return STEP_FAILED;
    from->flags &= ~(uint32_t)READABLE;
    return STEP_WAIT;
}

static enum step read_piped(struct side *from)
{
    long got = PZ_RETRY(splice(from->fd, NULL, from->pipe.write, NULL, PIPE_SIZE,
                               SPLICE_F_MOVE | SPLICE_F_NONBLOCK));

    if (got <= 0)
        return no_bytes(from, got);
    from->piped = (uint32_t)got;
    return STEP_ON;
}

/* Reads once and writes it; *broken is the side whose call failed. */
static enum step copy(struct thread *t, struct side *from, struct side *to, bool *to_failed)
{
    size_t room = t->kept < KEPT_LIMIT ? SCRATCH : SMALL_READ, done;
    long got = PZ_RETRY(recv(from->fd, t->scratch, room, MSG_DONTWAIT));

    if (got <= 0)
        return no_bytes(from, got);
    /* A short read has emptied the queue; only a FIN, and what is behind urgent data, would not
     * make another edge. */
    if ((size_t)got < room && !(from->flags & FIN_COMES))
        from->flags &= ~(uint32_t)READABLE;
    from->full = (size_t)got < SCRATCH ? 0 : from->full + 1;
    if (from->full >= BULK_READS)
        from->is_bulk = 1;
    enum step step = write_some(from, to, t->scratch, (size_t)got, &done);
    *to_failed = step == STEP_FAILED;
    if (step == STEP_WAIT && !keep(t, from, t->scratch + done, (size_t)got - done)) {
        errno = ENOMEM;
        return STEP_FAILED;
    }
    return step;
}

/* ---- a direction ---- */

static enum step pass_on_fin(struct side *to, const struct side *from)
{
    to->flags |= FIN_SENT;
    /* With nothing more to come from there either, close() says it. */
    if ((to->flags & FIN_RCVD) && (from->flags & FIN_SENT))
        return STEP_ON;
    return shutdown(to->fd, SHUT_WR) == -1 ? STEP_FAILED : STEP_ON;
}

/* What was read goes first, in the order in which it was read. */
static enum step write_held(struct thread *t, struct side *from, struct side *to)
{
    enum step step = STEP_ON;

    if (from->kept != NULL)
        step = write_kept(t, from, to);
    if (step == STEP_ON && from->piped > 0)
        step = write_piped(from, to);
    return step;
}

static enum step read_and_write(struct thread *t, struct side *from, struct side *to,
                                bool *to_failed)
{
    if (!from->is_bulk || (from->pipe.read < 0 && !take_pipe(t, from)))
        return copy(t, from, to, to_failed);
    enum step step = read_piped(from);
    if (step == STEP_WAIT || (from->flags & FIN_RCVD)) {
        /* splice() does not go past urgent data, and says EAGAIN or end of file there; recv() does,
         * and knows what is true. */
        from->flags = (from->flags | READABLE) & ~(uint32_t)FIN_RCVD;
        return copy(t, from, to, to_failed);
    }
    if (step == STEP_ON && from->piped > 0) {
        step = write_piped(from, to);
        *to_failed = step == STEP_FAILED;
    }
    return step;
}

/* A pipe is held while something is in it; a stream that brings little is no bulk. */
static void dry(struct thread *t, struct side *from, uint64_t before)
{
    if (from->piped > 0)
        return;
    leave_pipe(t, from);
    if (from->is_bulk && from->bytes - before < BULK_ENOUGH)
        from->is_bulk = from->full = 0;
}

enum pump pz_pump(struct thread *t, struct flow *flow, int from_index, int *broken)
{
    struct side *from = &flow->sides[from_index], *to = &flow->sides[1 - from_index];
    uint64_t before = from->bytes;
    enum pump result = PUMP_MORE;

    for (int i = 0; i < STEPS && from->bytes - before < SHARE && result == PUMP_MORE; i++) {
        bool to_failed = true;
        enum step step = write_held(t, from, to);
        if (step == STEP_ON && (from->flags & FIN_RCVD)) {
            if (!(to->flags & FIN_SENT))
                step = pass_on_fin(to, from);
            if (step == STEP_ON)
                result = PUMP_DONE;
        } else if (step == STEP_ON && (!(from->flags & READABLE) || !(to->flags & WRITABLE))) {
            result = PUMP_WAIT; /* nothing is read that nobody takes */
        } else if (step == STEP_ON) {
            to_failed = false;
            step = read_and_write(t, from, to, &to_failed);
        }
        if (step == STEP_WAIT) {
            result = PUMP_WAIT;
        } else if (step == STEP_FAILED) {
            *broken = to_failed ? 1 - from_index : from_index;
            return PUMP_BROKEN;
        }
    }
    if (result != PUMP_MORE)
        dry(t, from, before);
    return result;
}
