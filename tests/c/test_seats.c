/*
 * test_seats.c: a bounded number of seats in the order of silence.
 *
 * Theory of operation: the order is what matters (who is closed, whose deadline comes next), so
 * after every operation the whole list is walked in both directions and compared with a plain array
 * that does the same the slow way.
 */
#include "seats.h"

#include "harness.h"
#include "inject.h"

#include <errno.h>
#include <string.h>

enum { SEATS = 5, ROUNDS = 20000 };

struct model {
    uint32_t seat[SEATS]; /* the oldest first */
    int64_t expires[SEATS];
    uint32_t n;
};

static void compare(const struct pz_seats *s, const struct model *m)
{
    uint32_t seat = s->oldest, before = PZ_NOBODY;

    CHECK_EQ(s->taken, m->n);
    for (uint32_t i = 0; i < m->n; i++) {
        CHECK_EQ(seat, m->seat[i]);
        CHECK(pz_seats_is_taken(s, seat));
        CHECK_EQ(s->seats[seat].older, before);
        CHECK_EQ(s->seats[seat].expires_ms, m->expires[i]);
        before = seat;
        seat = s->seats[seat].newer;
    }
    CHECK_EQ(seat, PZ_NOBODY);
    CHECK_EQ(s->newest, before);
    CHECK_EQ(pz_seats_next_deadline(s), m->n == 0 ? -1 : m->expires[0]);
}

static void model_append(struct model *m, uint32_t seat, int64_t expires)
{
    m->seat[m->n] = seat;
    m->expires[m->n++] = expires;
}

static void model_remove(struct model *m, uint32_t at)
{
    m->n--;
    memmove(&m->seat[at], &m->seat[at + 1], (m->n - at) * sizeof m->seat[0]);
    memmove(&m->expires[at], &m->expires[at + 1], (m->n - at) * sizeof m->expires[0]);
}

static void take_one(struct pz_seats *s, struct model *m, int64_t expires)
{
    uint32_t seat = pz_seats_take(s, expires);

    if (m->n == SEATS) {
        CHECK_EQ(seat, PZ_NOBODY);
        return;
    }
    CHECK(seat < SEATS);
    for (uint32_t i = 0; i < m->n; i++)
        CHECK(m->seat[i] != seat);
    model_append(m, seat, expires);
}

static void touch_one(struct pz_seats *s, struct model *m, uint32_t at, int64_t expires)
{
    uint32_t seat = m->seat[at];

    pz_seats_touch(s, seat, expires);
    model_remove(m, at);
    model_append(m, seat, expires);
}

static void leave_one(struct pz_seats *s, struct model *m, uint32_t at)
{
    uint32_t seat = m->seat[at];

    pz_seats_leave(s, seat);
    model_remove(m, at);
    CHECK(!pz_seats_is_taken(s, seat));
}

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static void any_sequence_keeps_the_order(void)
{
    struct pz_seats s;
    struct model m = {.n = 0};
    uint32_t random = 1;

    CHECK_EQ(pz_seats_init(&s, SEATS), 0);
    for (int64_t round = 0; round < ROUNDS; round++) {
        uint32_t what = next_random(&random) % 8;
        in_row("round %d", (int)round);
        if (what < 4 || m.n == 0)
            take_one(&s, &m, round);
        else if (what < 6)
            touch_one(&s, &m, next_random(&random) % m.n, round);
        else
            leave_one(&s, &m, next_random(&random) % m.n);
        compare(&s, &m);
    }
    pz_seats_free(&s);
}

static void a_full_house_seats_nobody(void)
{
    struct pz_seats s;
    struct model m = {.n = 0};

    CHECK_EQ(pz_seats_init(&s, SEATS), 0);
    for (int i = 0; i <= SEATS; i++)
        take_one(&s, &m, i);
    CHECK_EQ(pz_seats_take(&s, 9), PZ_NOBODY);
    compare(&s, &m);
    leave_one(&s, &m, 2);
    take_one(&s, &m, 10);
    compare(&s, &m);
    pz_seats_free(&s);
}

static void a_number_outside_is_not_taken(void)
{
    static const uint32_t outside[] = {SEATS, SEATS + 1, PZ_NOBODY};
    struct pz_seats s;

    CHECK_EQ(pz_seats_init(&s, SEATS), 0);
    for (size_t i = 0; i < COUNT(outside); i++)
        CHECK(!pz_seats_is_taken(&s, outside[i]));
    pz_seats_free(&s);
}

static void without_memory(void)
{
    struct pz_seats s;

    inject(CALL_CALLOC, 1, ENOMEM);
    CHECK_EQ(pz_seats_init(&s, SEATS), -ENOMEM);
    CHECK_EQ(calls_of(CALL_CALLOC), 1);
    inject_nothing();
    pz_seats_free(&s);
}

static void free_is_harmless_on_zeroed_memory(void)
{
    struct pz_seats s = {0};

    pz_seats_free(&s);
    pz_seats_free(&s);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(any_sequence_keeps_the_order),      TEST(a_full_house_seats_nobody),
        TEST(a_number_outside_is_not_taken),     TEST(without_memory),
        TEST(free_is_harmless_on_zeroed_memory),
    };

    return run_tests("seats.c", tests, COUNT(tests));
}
