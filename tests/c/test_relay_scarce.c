/*
 * test_relay_scarce.c: those that wait for a place or a descriptor, and doors that lose theirs.
 */
#include "relay_internal.h"

#include "harness.h"
#include "relay_inside.h"
#include "relay_site.h"
#include "support.h"

#include <poll.h>
#include <sched.h>
#include <string.h>

enum { WATCH_MS = 120, LONG_MS = 5000, PODS = 3 };

static void expect_rest(int ms)
{
    struct pollfd none = {.fd = -1};
    int64_t cpu = cpu_us(), began = clock_ms();

    poll(&none, 1, ms);
    CHECK(cpu_us() - cpu < (clock_ms() - began) * 1000 / 4);
}

static void await_pause(const struct relay_site *site)
{
    int64_t give_up = clock_ms() + 5000;

    while (relay_pauses(site) == 0) {
        CHECK(clock_ms() < give_up);
        sched_yield();
    }
}

static void more_than_a_pods_share_wait(void)
{
    struct pz_relay_settings settings = relay_settings();

    settings.max_flows = 3; /* the last is for a pod that has none */
    struct relay_site site = open_relay(settings);
    struct talk first = open_talk(&site, "127.0.0.1", OUT_PORT);
    struct talk second = open_talk(&site, "127.0.0.1", OUT_PORT + 1);
    int listener = serve_in_pod(site.netns, "127.0.0.1", OUT_PORT + 2);
    int client = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT + 2);
    await_pause(&site);
    expect_rest(WATCH_MS);
    CHECK_EQ(relay_counters(&site).accepted, 2);
    CHECK_EQ(relay_counters(&site).paused, 0);
    CHECK_EQ(relay_counters(&site).held_back_pod, POD_ID);
    expect_pass(first.client, first.server, "those that are there go on");
    close_talk(first);
    struct talk third = {client, answer_call(listener)};
    expect_pass(third.client, third.server, "my turn");
    expect_pass(second.client, second.server, "and mine");
    close_talk(second);
    close_talk(third);
    close(listener);
    close_relay(&site);
}

/* At one relay, which is that of the first. */
static void open_pods(struct relay_site pods[PODS], struct pz_relay_settings settings)
{
    pods[0] = open_relay(settings);
    for (int i = 1; i < PODS; i++) {
        pods[i] = (struct relay_site){.netns = new_captured_pod(), .relay = pods[0].relay};
        open_listeners(&pods[i]);
        pods[i].pod = take_pod(&pods[i], (uint64_t)i, "other");
    }
}

/* Each leaves something for the next. */
static void greedy_pods(void)
{
    static const int shares[PODS] = {13, 2, 1}; /* of 16: four fifths of what each of them finds */
    struct pz_relay_settings settings = relay_settings();
    struct relay_site pods[PODS];
    struct talk talks[PODS][16];
    int waiting[PODS];

    settings.max_flows = 16;
    open_pods(pods, settings);
    for (int i = 0; i < PODS; i++) {
        in_row("pod %d", i);
        uint64_t before = relay_counters(&pods[0]).held_back;
        for (int n = 0; n < shares[i]; n++)
            talks[i][n] = open_talk(&pods[i], "127.0.0.1", (uint16_t)(OUT_PORT + n));
        waiting[i] = dial_in_pod(pods[i].netns, "127.0.0.1", OUT_PORT + 20);
        int64_t give_up = clock_ms() + LONG_MS;
        while (relay_counters(&pods[0]).held_back == before)
            CHECK(clock_ms() < give_up);
    }
    CHECK_EQ(relay_counters(&pods[0]).flows, 16);
    for (int i = 0; i < PODS; i++) {
        for (int n = 0; n < shares[i]; n++)
            close_talk(talks[i][n]);
        close(waiting[i]);
    }
    for (int i = 1; i < PODS; i++) {
        pz_relay_drop(pods[i].relay, pods[i].pod);
        close_listeners(&pods[i]);
        close(pods[i].netns);
    }
    close_relay(&pods[0]);
}

static const int FULL[] = {EMFILE, ENFILE, ENOMEM, ENOBUFS, EPERM};

static void accept_that_fails_is_tried_again(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(FULL); i++) {
        in_row("%s", strerror(FULL[i]));
        fail_in_relay(CALL_ACCEPT4, 1, FULL[i]);
        uint64_t before = relay_counters(&site).paused;
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        CHECK(has_failed());
        CHECK(relay_counters(&site).paused > before);
        expect_pass(talk.client, talk.server, "late");
        close_talk(talk);
        hear_event(&site);
    }
    close_relay(&site);
}

/* The client is accepted as soon as there is a descriptor; one without a second one is reset. */
static void a_full_fd_table(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk before = open_talk(&site, "127.0.0.1", OUT_PORT);
    int listener = serve_in_pod(site.netns, "127.0.0.1", OUT_PORT + 1);

    fill_fd_table(1);
    int client = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT + 1);
    await_pause(&site);
    expect_rest(WATCH_MS);
    expect_pass(before.client, before.server, "nobody else is harmed");
    empty_fd_table();
    struct talk talk = {client, answer_call(listener)};
    expect_pass(talk.client, talk.server, "healed");
    close_talk(talk);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    fill_fd_table(2);
    client = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT + 1);
    expect_rst(client);
    CHECK_EQ(expect_end_of_flow(&site, PZ_END_BROKEN).error, EMFILE);
    empty_fd_table();
    close(client);
    close_talk(before);
    close(listener);
    close_relay(&site);
}

/* An accept() that fails for one connection says nothing of the next. */
static void a_connection_that_was_aborted(void)
{
    static const int errors[] = {ECONNABORTED, EINTR, EAGAIN};
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(errors); i++) {
        in_row("%s", strerror(errors[i]));
        fail_in_relay(CALL_ACCEPT4, 1, errors[i]);
        close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
        CHECK(has_failed());
        hear_event(&site);
    }
    CHECK_EQ(relay_counters(&site).paused, 0);
    close_relay(&site);
}

/* What cannot be shown to epoll again is tried once more, and again. */
static void a_pause_that_does_not_end_at_once(void)
{
    struct pz_relay_settings settings = relay_settings();

    settings.threads = 1;
    struct relay_site site = open_relay(settings);
    int listener = serve_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    int client = socket_in_pod(site.netns, "127.0.0.1");
    fail_in_relay(CALL_ACCEPT4, 1, EMFILE);
    call_with(client, "127.0.0.1", OUT_PORT);
    await_pause(&site);
    fail_in_relay(CALL_EPOLL_CTL, 1, ENOSPC);
    struct talk talk = {client, answer_call(listener)};
    CHECK(has_failed());
    CHECK_EQ(relay_counters(&site).paused, 2);
    close_talk(talk);
    hear_event(&site);
    close(listener);
    close_relay(&site);
}

static void wait_at(struct relay_site *pod, int waiting[2], uint64_t pauses)
{
    int64_t give_up = clock_ms() + LONG_MS;

    waiting[0] = dial_in_pod(pod->netns, "127.0.0.1", OUT_PORT);
    waiting[1] = dial_in_pod(pod->netns, "::1", IN_PORT);
    while (relay_pauses(pod) < pauses)
        CHECK(clock_ms() < give_up);
}

static void drop_and_turn_away(struct relay_site *pod, const int waiting[2])
{
    pz_relay_drop(pod->relay, pod->pod);
    close_listeners(pod);
    for (int i = 0; i < 2; i++) {
        expect_rst(waiting[i]);
        close(waiting[i]);
    }
}

/* In the list of those that wait for descriptors it is no more, either; the others are. */
static void a_pod_ends_while_it_is_paused(void)
{
    struct pz_relay_settings settings = relay_settings();
    struct relay_site pods[PODS];
    int waiting[PODS][2];

    settings.max_flows = 1;
    settings.threads = 1;
    open_pods(pods, settings);
    struct talk talk = open_talk(&pods[2], "127.0.0.1", OUT_PORT + 1);
    wait_at(&pods[0], waiting[0], 2);
    wait_at(&pods[1], waiting[1], 4);
    drop_and_turn_away(&pods[1], waiting[1]); /* the last of the list */
    wait_at(&pods[2], waiting[2], 6);
    drop_and_turn_away(&pods[0], waiting[0]);
    drop_and_turn_away(&pods[2], waiting[2]);
    expect_end_of_flow(&pods[0], PZ_END_WORKLOAD_GONE);
    close_talk(talk);
    /* A new pod has nothing to wait for. */
    open_listeners(&pods[0]);
    pods[0].pod = take_pod(&pods[0], POD_ID, "name");
    close_talk(open_talk(&pods[0], "127.0.0.1", OUT_PORT));
    expect_end_of_flow(&pods[0], PZ_END_COMPLETE);
    for (int i = 1; i < PODS; i++)
        close(pods[i].netns);
    close_relay(&pods[0]);
}

/* Each gets on once there is room, whichever door it waits at. */
static void all_doors_go_on_behind_a_pause(void)
{
    static const struct {
        const char *ip;
        uint16_t port;
    } ways[] = {{"127.0.0.1", OUT_PORT}, {"::1", OUT_PORT}, {"127.0.0.1", IN_PORT}};
    struct pz_relay_settings settings = relay_settings();
    int clients[COUNT(ways)], listeners[COUNT(ways)];
    int64_t give_up = clock_ms() + LONG_MS;

    settings.max_flows = 1;
    settings.threads = 1;
    struct relay_site site = open_relay(settings);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT + 1);
    for (size_t i = 0; i < COUNT(ways); i++) {
        listeners[i] = serve_in_pod(site.netns, ways[i].ip, ways[i].port);
        clients[i] = dial_in_pod(site.netns, ways[i].ip, ways[i].port);
    }
    while (relay_pauses(&site) < COUNT(ways))
        CHECK(clock_ms() < give_up);
    close_talk(talk);
    for (size_t n = 0; n < COUNT(ways); n++) {
        struct pollfd waited[COUNT(ways)];
        for (size_t i = 0; i < COUNT(ways); i++)
            waited[i] = (struct pollfd){.fd = listeners[i], .events = POLLIN};
        CHECK_EQ(poll(waited, COUNT(ways), LONG_MS), 1);
        for (size_t i = 0; i < COUNT(ways); i++)
            if (waited[i].revents != 0) {
                close_talk((struct talk){clients[i], answer_call(listeners[i])});
                close(listeners[i]);
                listeners[i] = -1;
            }
    }
    for (size_t n = 0; n <= COUNT(ways); n++)
        expect_end_of_flow(&site, PZ_END_COMPLETE);
    close_relay(&site);
}

/* However long it waits: it has inherited nothing, and its end is an RST all the same. */
static void what_was_queued_before_the_pod_was_taken(void)
{
    struct pz_relay_settings settings = relay_settings();
    struct relay_site site = {.netns = new_captured_pod(), .relay = new_relay(&settings)};

    open_listeners(&site);
    int listener = serve_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    int client = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    site.pod = take_pod(&site, POD_ID, "name");
    int server = answer_call(listener);
    expect_pass(client, server, "there");
    pz_relay_drop(site.relay, site.pod);
    expect_rst(client);
    expect_rst(server);
    close(client);
    close(server);
    close(listener);
    close_relay(&site);
}

/* ---- a lost listener ---- */

/* As root of the pod may do by `ss -K`. The reader is woken, to look. */
static void destroy_listener(struct relay_site *site)
{
    CHECK_EQ(shutdown(site->doors[0].listener, SHUT_RDWR), 0);
    CHECK_EQ(pz_relay_next(site->relay, &site->batch, LONG_MS), 0);
    CHECK(relay_counters(site).lost_listeners > 0);
}

static void a_listener_that_is_destroyed(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);

    destroy_listener(&site);
    expect_rest(WATCH_MS);
    expect_pass(talk.client, talk.server, "what is open stays");
    close_talk(open_talk(&site, "::1", OUT_PORT));
    close_talk(talk);
    hear_event(&site);
    hear_event(&site);
    pz_relay_drop(site.relay, site.pod);
    close_relay(&site);
}

/* Where accept() is not even called. */
static void a_listener_that_is_destroyed_while_its_pod_waits(void)
{
    struct pz_relay_settings settings = relay_settings();

    settings.max_flows = 1;
    struct relay_site site = open_relay(settings);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    int waiting = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT + 1);
    await_pause(&site);
    CHECK_EQ(shutdown(site.doors[0].listener, SHUT_RDWR), 0);
    int64_t give_up = clock_ms() + LONG_MS;
    while (relay_counters(&site).lost_listeners == 0)
        CHECK(clock_ms() < give_up);
    expect_rst(waiting);
    close(waiting);
    close_talk(talk);
    close_relay(&site);
}

/* Another takes its place, and nothing else of the pod notices. */
static void a_listener_that_is_mended(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);

    destroy_listener(&site);
    int another = serve_in_pod(site.netns, "0.0.0.0", OUTBOUND_PORT);
    CHECK_EQ(pz_relay_mend(site.relay, site.pod, DOORS, another), -EINVAL);
    fail_here(CALL_EPOLL_CTL, 2, ENOSPC); /* of the second thread */
    CHECK_EQ(pz_relay_mend(site.relay, site.pod, 0, another), -ENOSPC);
    CHECK(has_failed());
    CHECK_EQ(pz_relay_mend(site.relay, site.pod, 0, another), 0);
    close(site.doors[0].listener);
    site.doors[0].listener = another;
    close_talk(open_talk(&site, "127.0.0.1", OUT_PORT + 1));
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    expect_pass(talk.client, talk.server, "what is open stays");
    close_talk(talk);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    close_relay(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(more_than_a_pods_share_wait),
        TEST(greedy_pods),
        TEST(accept_that_fails_is_tried_again),
        TEST(a_full_fd_table),
        TEST(a_connection_that_was_aborted),
        TEST(a_pause_that_does_not_end_at_once),
        TEST(a_pod_ends_while_it_is_paused),
        TEST(all_doors_go_on_behind_a_pause),
        TEST(what_was_queued_before_the_pod_was_taken),
        TEST(a_listener_that_is_destroyed),
        TEST(a_listener_that_is_destroyed_while_its_pod_waits),
        TEST(a_listener_that_is_mended),
    };

    return run_tests("relay_door.c: places", tests, COUNT(tests));
}
