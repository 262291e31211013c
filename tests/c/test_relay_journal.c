/*
 * test_relay_journal.c: events from many to one, and what holds their names.
 */
#include "relay_internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <string.h>

enum { ROOM = 16384, BATCH = 1024, LONG_MS = 5000, SOON_MS = 1000, THREADS = 4, EACH = 3000 };

static struct journal *new_journal(bool log)
{
    struct pz_relay_settings settings = {.log = log};
    struct journal *journal = pz_journal_new(&settings);

    CHECK(journal != NULL);
    return journal;
}

static struct label *new_label(const char *name)
{
    struct label *label =
        pz_label_new((const uint8_t *)name, strlen(name), (const uint8_t *)"s", 1);

    CHECK(label != NULL);
    return label;
}

static void add(struct journal *journal, uint64_t number, struct label *label)
{
    struct pz_flow_event event = {.pod = number, .kind = PZ_DOOR_OUTBOUND};

    pz_journal_add(journal, &event, pz_label_hold(label));
}

static unsigned holders(const struct label *label)
{
    return atomic_load(&label->holders);
}

/* The next batch, which comes at once. */
static struct pz_batch hear_batch(struct journal *journal, int n)
{
    struct pz_batch batch;
    int64_t began = clock_ms();

    CHECK_EQ(pz_journal_next(journal, &batch, LONG_MS), n);
    CHECK(clock_ms() - began < SOON_MS);
    CHECK_EQ(batch.n, n);
    return batch;
}

static void events_come_in_order(void)
{
    struct journal *journal = new_journal(true);
    struct label *label = new_label("n");

    for (uint64_t i = 0; i < 3; i++)
        add(journal, i, label);
    struct pz_batch batch = hear_batch(journal, 3);
    for (uint64_t i = 0; i < 3; i++)
        CHECK_EQ(batch.events[i].pod, i);
    size_t lines = 0;
    for (uint32_t i = 0; i < batch.log_size; i++)
        lines += batch.log[i] == '\n';
    CHECK_EQ(lines, 3);
    CHECK_EQ(batch.log[batch.log_size - 1], '\n');
    CHECK_EQ(holders(label), 4);
    /* The next call gives them back. */
    CHECK_EQ(pz_journal_next(journal, &batch, 0), 0);
    CHECK_EQ(batch.n + batch.log_size, 0);
    CHECK_EQ(holders(label), 1);
    pz_label_drop(label);
    pz_journal_free(journal);
}

/* Also behind a batch that has emptied the ring: nobody waits for a time that is to be over. */
static void each_event_wakes_the_reader(void)
{
    struct journal *journal = new_journal(false);
    struct label *label = new_label("n");
    struct pz_batch batch;

    for (uint64_t i = 0; i < 4; i++) {
        in_row("event %d", (int)i);
        add(journal, i, label);
        batch = hear_batch(journal, 1);
        CHECK_EQ(batch.events[0].pod, i);
        CHECK_EQ(batch.log_size, 0);
    }
    CHECK_EQ(pz_journal_next(journal, &batch, 0), 0);
    add(journal, 5, label);
    hear_batch(journal, 1);
    pz_label_drop(label);
    pz_journal_free(journal);
}

/* What a batch has left is the next one, and nothing is waited for. */
static void batches_are_bounded(void)
{
    static const int sizes[] = {BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 2 * BATCH + 5};
    struct journal *journal = new_journal(true);
    struct label *label = new_label("n");

    for (size_t i = 0; i < COUNT(sizes); i++) {
        in_row("%d events", sizes[i]);
        for (int number = 0; number < sizes[i]; number++)
            add(journal, (uint64_t)number, label);
        for (int number = 0; number < sizes[i];) {
            int left = sizes[i] - number;
            struct pz_batch batch = hear_batch(journal, left < BATCH ? left : BATCH);
            for (uint32_t at = 0; at < batch.n; at++)
                CHECK_EQ(batch.events[at].pod, number++);
        }
    }
    pz_label_drop(label);
    pz_journal_free(journal);
}

static void a_full_ring_loses_and_counts(void)
{
    enum { MORE = 7 };
    struct journal *journal = new_journal(false);
    struct label *label = new_label("n");

    for (int i = 0; i < 2 * BATCH; i++) /* so that the end of it is in the middle */
        add(journal, 0, label);
    hear_batch(journal, BATCH);
    hear_batch(journal, BATCH);
    for (uint64_t i = 0; i < ROOM + MORE; i++)
        add(journal, i, label);
    CHECK_EQ(pz_journal_lost(journal), MORE);
    CHECK_EQ(holders(label), ROOM + BATCH + 1);
    for (uint64_t number = 0; number < ROOM;) {
        struct pz_batch batch = hear_batch(journal, BATCH);
        for (uint32_t at = 0; at < batch.n; at++)
            CHECK_EQ(batch.events[at].pod, number++);
    }
    add(journal, 1, label);
    hear_batch(journal, 1);
    CHECK_EQ(pz_journal_lost(journal), MORE);
    pz_label_drop(label);
    pz_journal_free(journal);
}

/* LSan looks at what is not given back, in the ring and in the batch. */
static void the_end_gives_labels_back(void)
{
    struct journal *journal = new_journal(true);
    struct label *label = new_label("n");

    for (int i = 0; i < BATCH + 3; i++)
        add(journal, 1, label);
    hear_batch(journal, BATCH);
    pz_journal_free(journal);
    CHECK_EQ(holders(label), 1);
    pz_label_drop(label);
    pz_journal_free(NULL);
    pz_label_drop(NULL);
}

static void a_line_has_the_name_of_its_time(void)
{
    struct journal *journal = new_journal(true);
    struct label *before = new_label("before"), *after = new_label("after");
    char text[2 * LINE_ROOM];

    add(journal, 1, before);
    pz_label_drop(before); /* the event alone has it now */
    add(journal, 2, after);
    pz_label_drop(after);
    struct pz_batch batch = hear_batch(journal, 2);
    CHECK(batch.log_size < sizeof text);
    memcpy(text, batch.log, batch.log_size);
    text[batch.log_size] = '\0';
    const char *second = strchr(text, '\n');
    CHECK(second != NULL);
    CHECK(strstr(text, "src.workload=\"before\"") < second);
    CHECK(strstr(second, "src.workload=\"after\"") != NULL);
    pz_journal_free(journal);
}

/* ---- waking ---- */

static void time_is_over(void)
{
    enum { SHORT_MS = 20 };
    struct journal *journal = new_journal(false);
    struct pz_batch batch;
    int64_t began = clock_ms();

    CHECK_EQ(pz_journal_next(journal, &batch, SHORT_MS), 0);
    CHECK(clock_ms() - began >= SHORT_MS);
    pz_journal_free(journal);
}

static void a_wake_ends_one_wait(void)
{
    enum { SHORT_MS = 30 };
    struct journal *journal = new_journal(false);
    struct label *label = new_label("n");
    struct pz_batch batch;

    pz_journal_wake(journal);
    hear_batch(journal, 0);
    int64_t began = clock_ms();
    CHECK_EQ(pz_journal_next(journal, &batch, SHORT_MS), 0);
    CHECK(clock_ms() - began >= SHORT_MS);
    /* It hides no event, and gathers none. */
    add(journal, 1, label);
    pz_journal_wake(journal);
    hear_batch(journal, 1);
    hear_batch(journal, 0);
    add(journal, 2, label);
    hear_batch(journal, 1);
    pz_label_drop(label);
    pz_journal_free(journal);
}

static void *wake_it(void *journal)
{
    pz_journal_wake(journal);
    return NULL;
}

static void a_wake_from_another_thread(void)
{
    struct journal *journal = new_journal(false);
    pthread_t thread;

    CHECK_EQ(pthread_create(&thread, NULL, wake_it, journal), 0);
    hear_batch(journal, 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    pz_journal_free(journal);
}

/* ---- many writers ---- */

struct crowd {
    struct journal *journal;
    struct label *label;
};

static void *add_many(void *argument)
{
    const struct crowd *crowd = argument;

    for (uint64_t i = 0; i < EACH; i++)
        add(crowd->journal, i, crowd->label);
    return NULL;
}

static void many_threads_and_one_reader(void)
{
    struct crowd crowd = {new_journal(true), new_label("n")};
    pthread_t threads[THREADS];
    uint64_t seen = 0;
    struct pz_batch batch;

    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, add_many, &crowd), 0);
    while (seen + pz_journal_lost(crowd.journal) < THREADS * EACH) {
        int64_t began = clock_ms();
        seen += (uint64_t)pz_journal_next(crowd.journal, &batch, LONG_MS);
        CHECK(clock_ms() - began < SOON_MS);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(pz_journal_next(crowd.journal, &batch, 0), 0);
    CHECK_EQ(holders(crowd.label), 1);
    pz_label_drop(crowd.label);
    pz_journal_free(crowd.journal);
}

/* ---- faults ---- */

static void without_memory_for_the_log_events_come(void)
{
    struct journal *journal = new_journal(true);
    struct label *label = new_label("n");

    add(journal, 1, label);
    inject(CALL_REALLOC, 1, ENOMEM);
    struct pz_batch batch = hear_batch(journal, 1);
    inject_nothing();
    CHECK_EQ(batch.log_size, 0);
    add(journal, 2, label);
    CHECK(hear_batch(journal, 1).log_size > 0);
    pz_label_drop(label);
    pz_journal_free(journal);
}

static void a_poll_that_fails_loses_nothing(void)
{
    static const int errors[] = {EINTR, ENOMEM};
    struct journal *journal = new_journal(false);
    struct label *label = new_label("n");
    struct pz_batch batch;

    for (size_t i = 0; i < COUNT(errors); i++) {
        inject(CALL_POLL, 1, errors[i]);
        add(journal, 1, label);
        CHECK_EQ(pz_journal_next(journal, &batch, LONG_MS), 1);
        inject_nothing();
    }
    pz_label_drop(label);
    pz_journal_free(journal);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(events_come_in_order),
        TEST(each_event_wakes_the_reader),
        TEST(batches_are_bounded),
        TEST(a_full_ring_loses_and_counts),
        TEST(the_end_gives_labels_back),
        TEST(a_line_has_the_name_of_its_time),
        TEST(time_is_over),
        TEST(a_wake_ends_one_wait),
        TEST(a_wake_from_another_thread),
        TEST(many_threads_and_one_reader),
        TEST(without_memory_for_the_log_events_come),
        TEST(a_poll_that_fails_loses_nothing),
    };

    return run_tests("relay_journal.c", tests, COUNT(tests));
}
