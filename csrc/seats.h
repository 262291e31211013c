/*
 * seats.h: a bounded number of seats, kept in the order of who has been silent longest.
 *
 * Theory of operation: everyone seated has the same allowance, counted from its last progress. Kept
 * in the order of progress, the list answers two questions by its head alone: whose deadline comes
 * next, and whom to close when there is no room. Taking, touching and leaving a seat are O(1). A
 * seat is an index, so that it fits into an epoll word and a stale event can at worst name a seat
 * with someone else in it.
 */
#ifndef PZ_SEATS_H
#define PZ_SEATS_H

#include <stdbool.h>
#include <stdint.h>

#define PZ_NOBODY UINT32_MAX

struct pz_seat {
    int64_t expires_ms; /* on the clock of pz_now_ms() */
    uint32_t older;     /* PZ_NOBODY at the head; unused in a vacant seat */
    uint32_t newer;     /* PZ_NOBODY at the tail; in a vacant seat the next vacant one */
    bool taken;
};

struct pz_seats {
    struct pz_seat *seats;
    uint32_t size;
    uint32_t taken;
    uint32_t oldest;
    uint32_t newest;
    uint32_t vacant;
};

/* Returns 0 or -ENOMEM; pz_seats_free() takes it back and is harmless on zeroed memory. */
int pz_seats_init(struct pz_seats *s, uint32_t size);
void pz_seats_free(struct pz_seats *s);

/* Seats a newcomer as the newest; PZ_NOBODY when every seat is taken. */
uint32_t pz_seats_take(struct pz_seats *s, int64_t expires_ms);

/* SEAT made progress: it becomes the newest. */
void pz_seats_touch(struct pz_seats *s, uint32_t seat, int64_t expires_ms);

void pz_seats_leave(struct pz_seats *s, uint32_t seat);

static inline bool pz_seats_is_taken(const struct pz_seats *s, uint32_t seat)
{
    return seat < s->size && s->seats[seat].taken;
}

/* The moment at which the oldest expires; -1 when nobody is seated. */
static inline int64_t pz_seats_next_deadline(const struct pz_seats *s)
{
    return s->oldest == PZ_NOBODY ? -1 : s->seats[s->oldest].expires_ms;
}

#endif
