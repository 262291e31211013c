/*
 * test_zds_known.c: which Adds are surely new, and that no other one is taken.
 *
 * Theory of operation: the filter is compared with plain counts over few names: whoever is counted
 * is never new, and whoever is alone in its cells is new again when it is forgotten. Uids with the
 * same hash are looked for. Then the wait is asked, with real netns: what is known is not taken.
 */
#include "zds_known.h"

#include "agent.h"
#include "harness.h"
#include "inject.h"
#include "internal.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES = 64, ROUNDS = 40000, SIZE = 8 };

struct name {
    uint64_t inode;
    uint8_t uid[SIZE];
    size_t size;
};

static struct name name_of(unsigned number)
{
    struct name name = {.inode = 4026531840u + number};

    name.size = (size_t)snprintf((char *)name.uid, sizeof name.uid, "%u", number);
    return name;
}

/* Another uid in the same cell. */
static struct name twin_of(struct name name)
{
    size_t cell = pz_known_cell_of_uid(name.uid, name.size);

    for (unsigned number = NAMES; number < 100 * PZ_KNOWN_CELLS; number++) {
        struct name other = name_of(number);
        if (pz_known_cell_of_uid(other.uid, other.size) == cell)
            return other;
    }
    CHECK(!"found");
    return name;
}

/* A netns that has the same cell. */
static uint64_t twin_of_inode(uint64_t inode)
{
    uint64_t other = inode + 1;

    while (pz_known_cell_of_inode(other) != pz_known_cell_of_inode(inode))
        other++;
    return other;
}

static struct pz_known *nobody(void)
{
    struct pz_known *known = calloc(1, sizeof *known);

    CHECK(known != NULL);
    return known;
}

static void add(struct pz_known *known, struct name name)
{
    pz_known_add(known, name.inode, name.uid, name.size);
}

static void remove_one(struct pz_known *known, struct name name)
{
    pz_known_remove(known, name.inode, name.uid, name.size);
}

static bool is_new(const struct pz_known *known, struct name name)
{
    return pz_known_is_new(known, name.inode, name.uid, name.size);
}

static bool is_empty(const struct pz_known *known)
{
    static const struct pz_known none;

    return memcmp(known, &none, sizeof none) == 0;
}

/* ---- the filter ---- */

static void either_of_the_two_is_enough(void)
{
    struct pz_known *known = nobody();
    struct name one = name_of(1), two = name_of(2), mixed = {.inode = one.inode, .size = two.size};

    memcpy(mixed.uid, two.uid, two.size);
    CHECK(is_new(known, one));
    add(known, one);
    CHECK(!is_new(known, one));
    CHECK(is_new(known, two));
    CHECK(!is_new(known, mixed));
    mixed.inode = two.inode;
    memcpy(mixed.uid, one.uid, one.size);
    CHECK(!is_new(known, mixed));
    remove_one(known, one);
    CHECK(is_new(known, one));
    CHECK(is_empty(known));
    free(known);
}

/* Home and the like, which have no uid. */
static void a_netns_alone(void)
{
    struct pz_known *known = nobody();
    struct name one = name_of(1), two = name_of(2);

    pz_known_add(known, one.inode, one.uid, 0);
    CHECK(!is_new(known, one));
    CHECK(is_new(known, two));
    two.inode = one.inode;
    CHECK(!is_new(known, two));
    one.inode++;
    CHECK(is_new(known, one));
    one.inode--;
    pz_known_remove(known, one.inode, one.uid, 0);
    CHECK(is_empty(known));
    free(known);
}

static void whoever_is_counted_is_never_new(void)
{
    struct pz_known *known = nobody();
    int counts[NAMES] = {0};

    srandom(7);
    for (int round = 0; round < ROUNDS; round++) {
        unsigned number = (unsigned)random() % NAMES;
        struct name name = name_of(number);
        if (counts[number] > 0 && random() % 2 == 0) {
            remove_one(known, name);
            counts[number]--;
        } else if (counts[number] < 2) {
            add(known, name);
            counts[number]++;
        }
        for (unsigned i = 0; i < NAMES; i++)
            CHECK(counts[i] == 0 || !is_new(known, name_of(i)));
    }
    for (unsigned i = 0; i < NAMES; i++)
        while (counts[i]-- > 0)
            remove_one(known, name_of(i));
    CHECK(is_empty(known));
    free(known);
}

/* One of two that share a cell goes: the other is known all the same. */
static void two_of_one_hash(void)
{
    struct pz_known *known = nobody();
    struct name one = name_of(1), twin = twin_of(one);

    add(known, one);
    CHECK(!is_new(known, twin));
    add(known, twin);
    remove_one(known, one);
    CHECK(!is_new(known, twin));
    CHECK(!is_new(known, one));
    remove_one(known, twin);
    CHECK(is_new(known, one));
    CHECK(is_empty(known));
    twin = (struct name){.inode = twin_of_inode(one.inode), .uid = "x", .size = 1};
    add(known, twin);
    CHECK(!is_new(known, one));
    remove_one(known, twin);
    CHECK(is_new(known, one));
    free(known);
}

/* Nobody can tell how many are left of those behind a full cell. */
static void a_full_cell_stays_full(void)
{
    struct pz_known *known = nobody();
    struct name one = name_of(1);

    for (int i = 0; i < PZ_KNOWN_FULL - 1; i++)
        add(known, one);
    for (int i = 0; i < PZ_KNOWN_FULL - 1; i++)
        remove_one(known, one);
    CHECK(is_empty(known));
    for (int i = 0; i < PZ_KNOWN_FULL + 2; i++)
        add(known, one);
    for (int i = 0; i < 2 * PZ_KNOWN_FULL; i++) {
        remove_one(known, one);
        CHECK(!is_new(known, one));
    }
    free(known);
}

/* One undone that was never done takes nothing from anybody. */
static void an_empty_cell_stays_empty(void)
{
    struct pz_known *known = nobody();

    remove_one(known, name_of(1));
    CHECK(is_empty(known));
    add(known, name_of(1));
    CHECK(!is_new(known, name_of(1)));
    free(known);
}

/* Inodes of netns come one behind the other; so do many uids. */
static void neighbours_have_cells_of_their_own(void)
{
    struct pz_known *known = nobody();
    int shared = 0;

    for (unsigned i = 0; i < 1000; i++) {
        shared += !is_new(known, name_of(i));
        add(known, name_of(i));
    }
    CHECK(shared < 60);
    free(known);
}

/* ---- the wait ---- */

static const uint8_t U[] = "u", V[] = "v";

static void expect_outcome(struct line *line, int pod, bool taken)
{
    tell_add(line, pod);
    int event = hear_agent(line);
    if (taken) {
        expect_taken(line, event, pod);
        expect_ack(line);
    } else {
        expect_add(line, event, pod);
        CHECK_EQ(line->request.failed, 0);
        expect_no_answer(line);
    }
    close_brought(line);
}

static void what_is_known_is_not_taken(void)
{
    need_namespaces();
    struct line line = open_line();
    serve_adds(&line, -1);
    int pod = new_pod(), other = new_pod();
    uint64_t inode = netns_of(pod), elsewhere = netns_of(other);
    const struct {
        const char *name;
        uint64_t inode;
        const uint8_t *uid;
        size_t size;
        bool taken;
    } rows[] = {
        {"both", inode, U, 1, false},           {"the netns", inode, V, 1, false},
        {"the uid", elsewhere, U, 1, false},    {"neither", elsewhere, V, 1, true},
        {"no workload", inode, NULL, 0, false}, {"another netns alone", elsewhere, NULL, 0, true},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        in_row("%s", rows[i].name);
        expect_outcome(&line, pod, true);
        pz_zds_know(line.zds, rows[i].inode, rows[i].uid, rows[i].size);
        expect_outcome(&line, pod, rows[i].taken);
        pz_zds_know(line.zds, rows[i].inode, rows[i].uid, rows[i].size);
        pz_zds_forget(line.zds, rows[i].inode, rows[i].uid, rows[i].size);
        expect_outcome(&line, pod, rows[i].taken);
        pz_zds_forget(line.zds, rows[i].inode, rows[i].uid, rows[i].size);
        expect_outcome(&line, pod, true);
    }
    pz_close_all((int[]){pod, other}, 2);
    close_line(&line);
}

/* It costs time and nothing else: the caller finds that it knows neither. */
static void a_stranger_of_the_same_hash_is_not_taken(void)
{
    need_namespaces();
    struct line line = open_line();
    serve_adds(&line, -1);
    int pod = new_pod();
    struct name u = {.uid = "u", .size = 1}, twin = twin_of(u);
    uint64_t inode = twin_of_inode(netns_of(pod));
    pz_zds_know(line.zds, netns_of(pod) + 1, twin.uid, twin.size);
    expect_outcome(&line, pod, false);
    pz_zds_forget(line.zds, netns_of(pod) + 1, twin.uid, twin.size);
    expect_outcome(&line, pod, true);
    pz_zds_know(line.zds, inode, V, 1);
    expect_outcome(&line, pod, false);
    pz_zds_forget(line.zds, inode, V, 1);
    expect_outcome(&line, pod, true);
    close(pod);
    close_line(&line);
}

/* The kernel gives the inodes of netns made in a row in steps, of any size. */
static void inodes_in_steps_are_spread(void)
{
    enum { HELD = 1000, MORE = 100, STEPS = 2000 };

    for (unsigned step = 1; step < STEPS; step++) {
        struct pz_known *known = nobody();
        unsigned hits = 0;
        in_row("step %u", step);
        for (unsigned i = 0; i < HELD; i++)
            pz_known_add(known, 4026531840u + i * (uint64_t)step, NULL, 0);
        for (unsigned i = HELD; i < HELD + MORE; i++)
            hits += known->inodes[pz_known_cell_of_inode(4026531840u + i * (uint64_t)step)] != 0;
        CHECK(hits < MORE / 5);
        free(known);
    }
}

int main(void)
{
    static const struct test tests[] = {
        TEST(inodes_in_steps_are_spread),
        TEST(either_of_the_two_is_enough),
        TEST(a_netns_alone),
        TEST(whoever_is_counted_is_never_new),
        TEST(two_of_one_hash),
        TEST(a_full_cell_stays_full),
        TEST(an_empty_cell_stays_empty),
        TEST(neighbours_have_cells_of_their_own),
        TEST(what_is_known_is_not_taken),
        TEST(a_stranger_of_the_same_hash_is_not_taken),
    };

    return run_tests("zds_known.c", tests, COUNT(tests));
}
