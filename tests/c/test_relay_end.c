/*
 * test_relay_end.c: pods come and go, a relay begins and ends, whatever is under way.
 *
 * Theory of operation: a crowd is one connection in each state there is, and some whose two ends
 * move bytes as fast as they can in a thread of their own. What a pod's end, or the relay's, makes
 * of it is the same for all of them. That nothing is touched afterwards is what ASan, LSan and TSan
 * are here for.
 */
#include "relay_internal.h"

#include "harness.h"
#include "relay_inside.h"
#include "relay_site.h"
#include "support.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum {
    BUSY = 3,
    CROWD = BUSY + 4,
    ROUNDS = 3,
    OTHER_ID = 78,
    PODS = 3,
    AHEAD = 32 * SCRATCH,
    LONG_MS = 5000,
    SHORT_MS = 40
};

/* ---- a crowd ---- */

struct crowd {
    struct talk busy[BUSY], idle, half_closed, blocked;
    int waiting; /* for a destination that does not answer */
    pthread_t thread;
    atomic_bool moved, stop;
};

/* Both ways, until there is no way any more. */
static void *move_bytes(void *argument)
{
    struct crowd *crowd = argument;
    struct flood there[BUSY] = {0}, back[BUSY] = {0};

    while (!atomic_load(&crowd->stop)) {
        for (int i = 0; i < BUSY; i++) {
            int error;
            flood_on(&there[i], crowd->busy[i].client, there[i].heard + AHEAD);
            drain_on(&there[i], crowd->busy[i].server, &error);
            flood_on(&back[i], crowd->busy[i].server, back[i].heard + AHEAD);
            drain_on(&back[i], crowd->busy[i].client, &error);
        }
        if (there[BUSY - 1].heard > 8 * SCRATCH)
            atomic_store(&crowd->moved, true);
    }
    return NULL;
}

static void gather(struct crowd *crowd, const struct relay_site *site)
{
    struct flood flood = {0, 0};
    int64_t give_up = clock_ms() + LONG_MS;

    crowd->idle = open_talk(site, "127.0.0.1", OUT_PORT);
    crowd->half_closed = open_talk(site, "::1", OUT_PORT);
    CHECK_EQ(shutdown(crowd->half_closed.server, SHUT_WR), 0);
    expect_fin(crowd->half_closed.client);
    crowd->blocked = open_talk(site, "127.0.0.5", IN_PORT);
    flood_until_stuck(&flood, crowd->blocked.client);
    crowd->waiting = dial_in_pod(site->netns, "127.0.0.1", SILENT_PORT);
    for (int i = 0; i < BUSY; i++)
        crowd->busy[i] = open_talk(site, "127.0.0.1", (uint16_t)(OUT_PORT + i));
    await_flows(site, CROWD);
    atomic_init(&crowd->stop, false);
    atomic_init(&crowd->moved, false);
    CHECK_EQ(pthread_create(&crowd->thread, NULL, move_bytes, crowd), 0);
    while (!atomic_load(&crowd->moved)) {
        CHECK(clock_ms() < give_up);
        sched_yield();
    }
}

static void scatter(struct crowd *crowd)
{
    atomic_store(&crowd->stop, true);
    CHECK_EQ(pthread_join(crowd->thread, NULL), 0);
    close_talk(crowd->idle);
    close_talk(crowd->half_closed);
    close_talk(crowd->blocked);
    close(crowd->waiting);
    for (int i = 0; i < BUSY; i++)
        close_talk(crowd->busy[i]);
}

/* Each one of them was cut, and nothing that is cut looks complete. */
static void expect_cut(const struct crowd *crowd)
{
    struct flood flood = {0, 0};
    int error = 0;

    expect_rst(crowd->idle.client);
    expect_rst(crowd->idle.server);
    expect_rst(crowd->half_closed.server);
    expect_rst(crowd->waiting);
    while (!drain_on(&flood, crowd->blocked.server, &error))
        await(crowd->blocked.server, POLLIN);
    CHECK_EQ(error, ECONNRESET);
}

/* ---- a pod's end ---- */

static void *drop_it(void *argument)
{
    struct relay_site *site = argument;

    pz_relay_drop(site->relay, site->pod);
    close_listeners(site);
    return NULL;
}

static void a_pod_ends_in_the_middle_of_it(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct relay_site other = {.netns = new_captured_pod(), .relay = site.relay};
    static struct crowd crowd;
    pthread_t dropper;

    open_listeners(&other);
    other.pod = take_pod(&other, OTHER_ID, "other");
    for (int round = 0; round < ROUNDS; round++) {
        in_row("round %d", round);
        gather(&crowd, &site);
        struct talk talk = open_talk(&other, "127.0.0.1", OUT_PORT);
        CHECK_EQ(pthread_create(&dropper, NULL, drop_it, &site), 0);
        CHECK_EQ(pthread_join(dropper, NULL), 0);
        CHECK_EQ(relay_counters(&site).flows, 1);
        for (int i = 0; i < CROWD; i++)
            CHECK_EQ(expect_end_of_flow(&site, PZ_END_WORKLOAD_GONE).pod, POD_ID);
        expect_pass(talk.client, talk.server, "the other one has nothing to do with it");
        expect_cut(&crowd);
        scatter(&crowd);
        close_talk(talk);
        CHECK_EQ(expect_end_of_flow(&site, PZ_END_COMPLETE).pod, OTHER_ID);
        open_listeners(&site);
        site.pod = take_pod(&site, POD_ID, "name");
    }
    close_listeners(&other);
    close(other.netns);
    close_relay(&site);
}

/* ---- names ---- */

struct renaming {
    struct relay_site *site;
    atomic_bool stop;
};

static void *rename_it(void *argument)
{
    struct renaming *renaming = argument;
    char name[16], space[16];

    for (unsigned i = 0; !atomic_load(&renaming->stop); i++) {
        struct pz_relay_counters counters;
        size_t name_size = (size_t)snprintf(name, sizeof name, "n%u", i % 1000);
        size_t space_size = (size_t)snprintf(space, sizeof space, "s%u", i % 1000);
        CHECK_EQ(pz_relay_rename(renaming->site->relay, renaming->site->pod, (uint8_t *)name,
                                 name_size, (uint8_t *)space, space_size),
                 0);
        pz_relay_counters(renaming->site->relay, &counters);
    }
    return NULL;
}

/* Reads the lines of a batch; each has both names of one moment. */
static int check_names(const struct pz_batch *batch)
{
    static char text[1 << 16];
    int lines = 0;

    CHECK(batch->log_size < sizeof text);
    memcpy(text, batch->log, batch->log_size);
    text[batch->log_size] = '\0';
    for (const char *at = text; (at = strstr(at, "src.workload=")) != NULL; at++, lines++) {
        unsigned name = 1, space = 2;
        if (strncmp(at, "src.workload=\"name\"", 19) == 0)
            continue;
        CHECK_EQ(sscanf(at, "src.workload=\"n%u\" src.namespace=\"s%u\"", &name, &space), 2);
        CHECK_EQ(name, space);
    }
    return lines;
}

static void names_change_while_connections_end(void)
{
    enum { FLOWS = 40 };
    struct relay_site site = open_relay(relay_settings());
    struct renaming renaming = {.site = &site};
    struct pz_batch batch;
    pthread_t thread;
    int lines = 0;

    CHECK_EQ(pthread_create(&thread, NULL, rename_it, &renaming), 0);
    for (int i = 0; i < FLOWS; i++)
        close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
    while (lines < FLOWS) {
        CHECK(pz_relay_next(site.relay, &batch, LONG_MS) > 0);
        lines += check_names(&batch);
    }
    atomic_store(&renaming.stop, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    close_relay(&site);
}

/* An open connection keeps its names. */
static void a_name_is_of_the_beginning(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    struct pz_batch batch;

    CHECK_EQ(
        pz_relay_rename(site.relay, site.pod, (const uint8_t *)"n1", 2, (const uint8_t *)"s1", 2),
        0);
    fail_here(CALL_MALLOC, 1, ENOMEM);
    CHECK_EQ(
        pz_relay_rename(site.relay, site.pod, (const uint8_t *)"n2", 2, (const uint8_t *)"s2", 2),
        -ENOMEM);
    CHECK(has_failed());
    close_talk(talk);
    CHECK_EQ(pz_relay_next(site.relay, &batch, LONG_MS), 1);
    CHECK(memmem(batch.log, batch.log_size, "\"name\"", 6) != NULL);
    close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
    CHECK_EQ(pz_relay_next(site.relay, &batch, LONG_MS), 1);
    CHECK(memmem(batch.log, batch.log_size, "\"n1\"", 4) != NULL);
    close_relay(&site);
}

/* ---- the doors close, and it finishes ---- */

/* What the kernel had accepted is served: whoever was told that it is connected. */
static void closing_the_doors_accepts_what_is_queued(void)
{
    enum { QUEUED = 20 };
    struct relay_site site = {.netns = new_captured_pod()};
    struct pz_relay_settings settings = relay_settings();
    int clients[QUEUED];

    open_listeners(&site);
    int listener = serve_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    for (int i = 0; i < QUEUED; i++)
        clients[i] = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    site.relay = new_relay(&settings);
    site.pod = take_pod(&site, POD_ID, "name");
    pz_relay_close_doors(site.relay);
    close_listeners(&site);
    CHECK_EQ(relay_counters(&site).accepted, QUEUED);
    for (int i = 0; i < QUEUED; i++) {
        int server = answer_call(listener);
        close(server);
    }
    for (int i = 0; i < QUEUED; i++) {
        expect_fin(clients[i]);
        close(clients[i]);
    }
    CHECK_EQ(pz_relay_finish(site.relay, LONG_MS), 0);
    close(listener);
    pz_relay_free(site.relay);
    close(site.netns);
}

/* A listener may be closed then, and its number be another's. */
static void doors_that_were_closed_stay_so(void)
{
    struct relay_site site = open_relay(relay_settings());
    int strangers[DOORS], clients[DOORS];

    pz_relay_close_doors(site.relay);
    close_listeners(&site);
    for (int i = 0; i < DOORS; i++) {
        strangers[i] = tcp_listener();
        clients[i] = dial_tcp(strangers[i]);
    }
    pz_relay_close_doors(site.relay);
    pz_relay_drop(site.relay, site.pod);
    for (int i = 0; i < DOORS; i++) {
        struct pollfd queued = {.fd = strangers[i], .events = POLLIN};
        CHECK_EQ(poll(&queued, 1, 0), 1);
        close(clients[i]);
        close(strangers[i]);
    }
    CHECK_EQ(relay_counters(&site).accepted, 0);
    open_listeners(&site);
    site.pod = take_pod(&site, POD_ID, "name");
    close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
    hear_event(&site);
    close_relay(&site);
}

static void *end_talk_late(void *argument)
{
    const struct talk *talk = argument;
    struct pollfd none = {.fd = -1};

    poll(&none, 1, SHORT_MS);
    close_talk(*talk);
    return NULL;
}

static void finishing_waits_for_the_last(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    pthread_t thread;
    int64_t began = clock_ms();

    pz_relay_close_doors(site.relay);
    CHECK_EQ(pthread_create(&thread, NULL, end_talk_late, &talk), 0);
    CHECK_EQ(pz_relay_finish(site.relay, LONG_MS), 0);
    CHECK(clock_ms() - began >= SHORT_MS);
    CHECK(clock_ms() - began < LONG_MS / 2);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    CHECK_EQ(pz_relay_finish(site.relay, -1), 0);
    close_relay(&site);
}

static void finishing_resets_what_is_left(void)
{
    struct relay_site site = open_relay(relay_settings());
    static struct crowd crowd;

    gather(&crowd, &site);
    pz_relay_close_doors(site.relay);
    int64_t began = clock_ms();
    CHECK_EQ(pz_relay_finish(site.relay, SHORT_MS), CROWD);
    CHECK(clock_ms() - began >= SHORT_MS);
    for (int i = 0; i < CROWD; i++)
        expect_end_of_flow(&site, PZ_END_DRAINED);
    expect_cut(&crowd);
    scatter(&crowd);
    CHECK_EQ(pz_relay_finish(site.relay, 0), 0);
    close_relay(&site);
}

/* Nobody says beforehand that it ends; the pod is not dropped either. */
static void it_ends_in_the_middle_of_it(void)
{
    static struct crowd crowd;
    struct pz_relay_settings settings = relay_settings();
    int netns = new_captured_pod();

    for (int round = 0; round < 2 * ROUNDS; round++) {
        settings.max_pipes = round % 2 ? 4 : 0; /* with pipes or many turns */
        struct relay_site site = open_relay_in(netns, settings);
        in_row("round %d", round);
        gather(&crowd, &site);
        pz_relay_free(site.relay);
        expect_cut(&crowd);
        scatter(&crowd);
        close_listeners(&site);
    }
    close(netns);
}

static void relay_until_killed(void *argument)
{
    struct relay_site *site = argument;
    struct pz_relay_settings settings = relay_settings();

    site->relay = new_relay(&settings);
    site->pod = take_pod(site, POD_ID, "name");
    for (;;)
        pause();
}

/* The kernel closes for us then; and it says RST, too. */
static void it_is_killed_in_the_middle_of_it(void)
{
    struct relay_site site = {.netns = new_captured_pod()};

    open_listeners(&site);
    int child = start_child(relay_until_killed, &site);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    struct talk half = open_talk(&site, "127.0.0.5", IN_PORT);
    expect_pass(talk.client, talk.server, "hello");
    expect_pass(half.server, half.client, "good bye");
    CHECK_EQ(shutdown(half.server, SHUT_WR), 0);
    expect_fin(half.client);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK_EQ(WTERMSIG(end_child(child)), SIGKILL);
    expect_rst(talk.client);
    expect_rst(talk.server);
    expect_rst(half.server);
    close_talk(talk);
    close_talk(half);
    close_listeners(&site);
    close(site.netns);
}

static void a_wake_that_is_interrupted(void)
{
    struct relay_site site = open_relay(relay_settings());

    fail_here(CALL_WRITE, 1, EINTR);
    pz_relay_drop(site.relay, site.pod);
    CHECK(has_failed());
    close_relay(&site);
}

/* ---- beginnings ---- */

static void what_is_no_setting(void)
{
    static const struct pz_relay_settings rows[] = {
        {.threads = 0, .max_flows = 1},
        {.threads = PZ_RELAY_MAX_THREADS + 1, .max_flows = 1},
        {.threads = 1, .max_flows = 0},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        int error = 99;
        in_row("row %zu", i);
        CHECK(pz_relay_new(&rows[i], &error) == NULL);
        CHECK_EQ(error, -EINVAL);
    }
    pz_relay_free(NULL);
}

static void what_is_no_pod(void)
{
    static const size_t rows[] = {0, PZ_RELAY_MAX_DOORS + 1};
    struct relay_site site = open_relay(relay_settings());
    struct pz_door doors[PZ_RELAY_MAX_DOORS + 1] = {0};

    for (size_t i = 0; i < COUNT(rows); i++) {
        int error = 99;
        CHECK(pz_relay_take(site.relay, site.netns, doors, rows[i], 1, (const uint8_t *)"", 0,
                            (const uint8_t *)"", 0, &error) == NULL);
        CHECK_EQ(error, -EINVAL);
    }
    close_relay(&site);
}

/* With its last door refused by epoll the others are closed, and nobody was let in; then it works
 * as if nothing had been. */
static void a_pod_is_taken_whole_or_not_at_all(void)
{
    struct pz_relay_settings settings = relay_settings();
    struct relay_site site = {.netns = new_captured_pod()};
    struct pz_pod *pod = NULL;
    int error = -1, tries = 0;

    open_listeners(&site);
    site.relay = new_relay(&settings);
    while (error < 0) {
        fail_here(CALL_EPOLL_CTL, ++tries, ENOSPC);
        error = 99;
        pod = pz_relay_take(site.relay, site.netns, site.doors, DOORS, POD_ID,
                            (const uint8_t *)"name", 4, (const uint8_t *)"space", 5, &error);
        CHECK_EQ(has_failed(), pod == NULL);
        in_row("try %d", tries);
        CHECK_EQ(pod == NULL, error == -ENOSPC);
        if (pod != NULL)
            break;
        int client = dial_in_pod(site.netns, "127.0.0.1", OUTBOUND_PORT);
        struct pollfd silent = {.fd = client, .events = POLLIN};
        look_inside(&site);
        CHECK_EQ(poll(&silent, 1, 0), 0);
        reset(client);
        CHECK_EQ(relay_counters(&site).flows, 0);
    }
    CHECK_EQ(error, 0);
    CHECK_EQ(tries, 2 * DOORS + 1);
    close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
    close_relay(&site);
}

/* A netns is the caller's; a relay is begun and ended where it stands, on whatever thread. */
static void begin_and_end(void *unused)
{
    struct pz_relay_settings settings = relay_settings();

    (void)unused;
    for (settings.threads = 1; settings.threads <= 8; settings.threads *= 2)
        pz_relay_free(new_relay(&settings));
}

static void it_begins_and_ends_in_any_thread(void)
{
    need_namespaces();
    begin_and_end(NULL);
    in_worker(begin_and_end, NULL);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_pod_ends_in_the_middle_of_it),
        TEST(names_change_while_connections_end),
        TEST(a_name_is_of_the_beginning),
        TEST(closing_the_doors_accepts_what_is_queued),
        TEST(doors_that_were_closed_stay_so),
        TEST(finishing_waits_for_the_last),
        TEST(finishing_resets_what_is_left),
        TEST(it_ends_in_the_middle_of_it),
        TEST(it_is_killed_in_the_middle_of_it),
        TEST(a_wake_that_is_interrupted),
        TEST(what_is_no_setting),
        TEST(what_is_no_pod),
        TEST(a_pod_is_taken_whole_or_not_at_all),
        TEST(it_begins_and_ends_in_any_thread),
    };

    return run_tests("relay.c", tests, COUNT(tests));
}
