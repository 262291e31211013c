/*
 * relay_journal.c: what became of connections, from the threads to the one who reads it.
 *
 * Theory of operation
 *
 * One ring behind one lock, which is held for the copy of an event and never longer: the reader
 * takes everything in one go and formats it outside. A thread never waits for a reader that is
 * behind: with the ring full an event is lost, and counted.
 *
 * The reader sleeps on an eventfd that is written only for the first event after it has emptied
 * the ring; then it lets GATHER_MS pass for more. So it runs some dozens of times a second
 * however many connections end, and costs the threads no wake-up each.
 *
 * An event holds a label, counted: a pod's names may change or end before its line is written.
 */
#include "relay_internal.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

enum { ROOM = PZ_RELAY_EVENTS, BATCH = PZ_RELAY_BATCH, GATHER_MS = 20 };

struct entry {
    struct pz_flow_event event;
    struct label *label;
};

struct journal {
    pthread_mutex_t lock;
    int wake;
    bool is_asleep; /* the reader wants to be woken */
    bool is_woken;  /* by pz_journal_wake() */
    bool json, log;
    uint64_t lost;
    size_t first, count;
    struct entry *ring;
    struct entry *taken; /* of the last batch */
    struct pz_flow_event *events;
    size_t n;
    char *text;
    size_t text_room;
};

struct journal *pz_journal_new(const struct pz_relay_settings *settings)
{
    struct journal *journal = calloc(1, sizeof *journal);

    if (journal == NULL)
        return NULL;
    pthread_mutex_init(&journal->lock, NULL);
    journal->json = settings->json != 0;
    journal->log = settings->log != 0;
    journal->is_asleep = true;
    journal->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    journal->ring = calloc(ROOM, sizeof *journal->ring);
    journal->taken = calloc(BATCH, sizeof *journal->taken);
    journal->events = calloc(BATCH, sizeof *journal->events);
    if (journal->wake == -1 || journal->ring == NULL || journal->taken == NULL ||
        journal->events == NULL) {
        int error = journal->wake == -1 ? errno : ENOMEM;
        pz_journal_free(journal);
        errno = error;
        return NULL;
    }
    return journal;
}

static void drop_taken(struct journal *journal)
{
    for (size_t i = 0; i < journal->n; i++)
        pz_label_drop(journal->taken[i].label);
    journal->n = 0;
}

void pz_journal_free(struct journal *journal)
{
    if (journal == NULL)
        return;
    if (journal->taken != NULL)
        drop_taken(journal);
    for (; journal->count > 0; journal->count--) {
        pz_label_drop(journal->ring[journal->first].label);
        journal->first = (journal->first + 1) % ROOM;
    }
    if (journal->wake >= 0)
        close(journal->wake);
    pthread_mutex_destroy(&journal->lock);
    free(journal->ring);
    free(journal->taken);
    free(journal->events);
    free(journal->text);
    free(journal);
}

static void signal_reader(const struct journal *journal)
{
    uint64_t one = 1;

    /* Fails only where it is readable anyway. */
    if (write(journal->wake, &one, sizeof one) == -1)
        return;
}

void pz_journal_add(struct journal *journal, const struct pz_flow_event *event, struct label *label)
{
    pthread_mutex_lock(&journal->lock);
    bool fits = journal->count < ROOM, wakes = journal->is_asleep;
    if (fits) {
        struct entry *entry = &journal->ring[(journal->first + journal->count) % ROOM];
        *entry = (struct entry){*event, label};
        journal->count++;
    } else {
        journal->lost++;
    }
    journal->is_asleep = false;
    pthread_mutex_unlock(&journal->lock);
    if (!fits)
        pz_label_drop(label);
    if (wakes)
        signal_reader(journal);
}

uint64_t pz_journal_lost(struct journal *journal)
{
    pthread_mutex_lock(&journal->lock);
    uint64_t lost = journal->lost;
    pthread_mutex_unlock(&journal->lock);
    return lost;
}

void pz_journal_wake(struct journal *journal)
{
    pthread_mutex_lock(&journal->lock);
    journal->is_woken = true;
    pthread_mutex_unlock(&journal->lock);
    signal_reader(journal);
}

/* ---- the reader ---- */

/* Takes what is there, BATCH at most; with nothing left the next event wakes us. */
static size_t take(struct journal *journal)
{
    pthread_mutex_lock(&journal->lock);
    size_t n = journal->count < BATCH ? journal->count : BATCH;
    for (size_t i = 0; i < n; i++)
        journal->taken[i] = journal->ring[(journal->first + i) % ROOM];
    journal->first = (journal->first + n) % ROOM;
    journal->count -= n;
    journal->is_asleep = journal->count == 0;
    if (n == 0)
        journal->is_woken = false;
    pthread_mutex_unlock(&journal->lock);
    journal->n = n;
    return n;
}

/* Waits for an event. Returns whether there is time to gather more. */
static bool sleep_until_event(struct journal *journal, int timeout_ms)
{
    struct pollfd readable = {.fd = journal->wake, .events = POLLIN};
    uint64_t count;

    pthread_mutex_lock(&journal->lock);
    bool is_asleep = journal->is_asleep && !journal->is_woken;
    pthread_mutex_unlock(&journal->lock);
    PZ_RETRY(poll(&readable, 1, is_asleep ? timeout_ms : 0));
    if (PZ_RETRY(read(journal->wake, &count, sizeof count)) == -1)
        return false;
    pthread_mutex_lock(&journal->lock);
    bool may_gather = !journal->is_woken && journal->count < BATCH;
    pthread_mutex_unlock(&journal->lock);
    return may_gather;
}

static size_t room_for(const struct journal *journal)
{
    size_t room = 0;

    for (size_t i = 0; i < journal->n; i++)
        room += LINE_ROOM + strlen(journal->taken[i].label->name) +
                strlen(journal->taken[i].label->space);
    return room;
}

static size_t write_lines(struct journal *journal)
{
    size_t room = room_for(journal), size = 0;

    if (room > journal->text_room) {
        char *larger = realloc(journal->text, room);
        if (larger == NULL)
            return 0;
        journal->text = larger;
        journal->text_room = room;
    }
    for (size_t i = 0; i < journal->n; i++)
        size += pz_log_line(journal->text + size, &journal->events[i], journal->taken[i].label,
                            journal->json);
    return size;
}

int pz_journal_next(struct journal *journal, struct pz_batch *batch, int timeout_ms)
{
    drop_taken(journal);
    if (sleep_until_event(journal, timeout_ms))
        poll(NULL, 0, GATHER_MS);
    take(journal);
    for (size_t i = 0; i < journal->n; i++)
        journal->events[i] = journal->taken[i].event;
    *batch = (struct pz_batch){.events = journal->events, .n = (uint32_t)journal->n};
    if (journal->log)
        batch->log_size = (uint32_t)write_lines(journal);
    batch->log = (const uint8_t *)journal->text;
    return (int)journal->n;
}

/* ---- labels ---- */

struct label *pz_label_new(const uint8_t *name, size_t name_size, const uint8_t *space,
                           size_t space_size)
{
    size_t room = 6 * (name_size + space_size) + 6;
    struct label *label = malloc(sizeof *label + room);

    if (label == NULL)
        return NULL;
    atomic_init(&label->holders, 1);
    size_t size = pz_log_quote(label->text, name, name_size);
    label->text[size++] = '\0';
    label->name = label->text;
    label->space = label->text + size;
    size += pz_log_quote(label->text + size, space, space_size);
    label->text[size] = '\0';
    return label;
}

struct label *pz_label_hold(struct label *label)
{
    atomic_fetch_add_explicit(&label->holders, 1, memory_order_relaxed);
    return label;
}

void pz_label_drop(struct label *label)
{
    if (label != NULL && atomic_fetch_sub(&label->holders, 1) == 1)
        free(label);
}
