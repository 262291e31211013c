/*
 * seats.c: see seats.h.
 */
#include "seats.h"

#include "internal.h"

#include <stdlib.h>

int pz_seats_init(struct pz_seats *s, uint32_t size)
{
    *s = (struct pz_seats){
        .size = size, .oldest = PZ_NOBODY, .newest = PZ_NOBODY, .vacant = PZ_NOBODY};
    s->seats = calloc(size, sizeof *s->seats);
    if (s->seats == NULL)
        return -ENOMEM;
    for (uint32_t i = size; i-- > 0;) {
        s->seats[i].newer = s->vacant;
        s->vacant = i;
    }
    return 0;
}

void pz_seats_free(struct pz_seats *s)
{
    free(s->seats);
    s->seats = NULL;
}

static void append(struct pz_seats *s, uint32_t seat, int64_t expires_ms)
{
    struct pz_seat *it = &s->seats[seat];

    it->expires_ms = expires_ms;
    it->older = s->newest;
    it->newer = PZ_NOBODY;
    if (s->newest == PZ_NOBODY)
        s->oldest = seat;
    else
        s->seats[s->newest].newer = seat;
    s->newest = seat;
}

static void unlink_from_order(struct pz_seats *s, uint32_t seat)
{
    struct pz_seat *it = &s->seats[seat];

    if (it->older == PZ_NOBODY)
        s->oldest = it->newer;
    else
        s->seats[it->older].newer = it->newer;
    if (it->newer == PZ_NOBODY)
        s->newest = it->older;
    else
        s->seats[it->newer].older = it->older;
}

uint32_t pz_seats_take(struct pz_seats *s, int64_t expires_ms)
{
    uint32_t seat = s->vacant;

    if (seat == PZ_NOBODY)
        return PZ_NOBODY;
    s->vacant = s->seats[seat].newer;
    s->seats[seat].taken = true;
    s->taken++;
    append(s, seat, expires_ms);
    return seat;
}

void pz_seats_touch(struct pz_seats *s, uint32_t seat, int64_t expires_ms)
{
    unlink_from_order(s, seat);
    append(s, seat, expires_ms);
}

void pz_seats_leave(struct pz_seats *s, uint32_t seat)
{
    unlink_from_order(s, seat);
    s->seats[seat].taken = false;
    s->seats[seat].newer = s->vacant;
    s->vacant = seat;
    s->taken--;
}
