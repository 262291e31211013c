/*
 * relay_inside.h: what the relay's threads have, and calls of theirs that fail.
 *
 * Theory of operation: nobody may look at a thread's things while it runs. So all of them are
 * halted where they would wait for events; a command brings those there that sleep.
 */
#ifndef RELAY_INSIDE_H
#define RELAY_INSIDE_H

#include "inject.h"
#include "relay_site.h"

/* Of all threads, behind a turn of each; meanwhile they stand still. */
struct inside {
    uint64_t kept; /* bytes */
    uint32_t used_pipes;
};

struct inside look_inside(struct relay_site *site);
/* From now on the first thread believes to keep so much more. */
void pretend_kept(struct relay_site *site, uint64_t bytes);

/* ---- faults ---- */

/* The NTH call (from 1) of CALL in another thread than this one fails with ERROR; in this one. */
void fail_in_relay(enum call call, int nth, int error);
void fail_option_in_relay(int option, int error);
void fail_here(enum call call, int nth, int error);
/* Whether it has. Nothing fails any more. */
bool has_failed(void);

/* CPU time of the process in this test, microseconds. */
int64_t cpu_us(void);

#endif
