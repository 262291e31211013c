/*
 * test_relay_flow.c: a connection from its beginning to each of its ends.
 *
 * Theory of operation: client and server are the test's, the relay's threads are between them.
 * What a connection got is told twice, by what the two ends see and by the event; both are
 * compared.
 */
#include "relay_internal.h"

#include "harness.h"
#include "relay_inside.h"
#include "relay_site.h"
#include "support.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

enum { SHORT_MS = 40, MANY = 48, WORDS = 6 };

/* ---- bytes ---- */

struct way {
    const char *name, *ip;
    uint16_t port, kind;
    const char *source;
};

static const struct way WAYS[] = {
    {"out, v4", "127.0.0.1", OUT_PORT, PZ_DOOR_OUTBOUND, "127.0.0.1"},
    {"out, v6", "::1", OUT_PORT, PZ_DOOR_OUTBOUND, "::1"},
    {"in, v4 on a dual-stack listener", "127.0.0.5", IN_PORT, PZ_DOOR_INBOUND, "127.0.0.1"},
    {"in, v6", "::1", IN_PORT, PZ_DOOR_INBOUND, "::1"},
    {"in, of the pod itself", "127.0.0.1", IN_PORT, PZ_DOOR_INBOUND, "127.0.0.1"},
};

static uint16_t peer_port(int sock)
{
    struct sockaddr_in6 address;
    socklen_t size = sizeof address;

    CHECK_EQ(getpeername(sock, (struct sockaddr *)&address, &size), 0);
    return ntohs(address.sin6_port);
}

static void bytes_both_ways(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(WAYS); i++) {
        const struct way *way = &WAYS[i];
        in_row("%s", way->name);
        struct talk talk = open_talk(&site, way->ip, way->port);
        uint16_t source = port_of(talk.client);
        CHECK(peer_port(talk.server) != source);
        expect_pass(talk.client, talk.server, "hello");
        expect_pass(talk.server, talk.client, "good day");
        await_flows(&site, 1);
        close(talk.client);
        expect_fin(talk.server);
        close(talk.server);
        struct pz_flow_event event = expect_end_of_flow(&site, PZ_END_COMPLETE);
        CHECK_EQ(event.pod, POD_ID);
        CHECK_EQ(event.kind, way->kind);
        CHECK_EQ(event.bytes[0], 5);
        CHECK_EQ(event.bytes[1], 8);
        CHECK_EQ(event.opened, 1);
        CHECK_EQ(event.own_source, 0);
        CHECK_EQ(event.error, 0);
        CHECK(is_address(&event.source, way->source, source));
        CHECK(is_address(&event.destination, way->ip, way->port));
    }
    struct pz_relay_counters counters = relay_counters(&site);
    CHECK_EQ(counters.accepted, COUNT(WAYS));
    CHECK_EQ(counters.closed, COUNT(WAYS));
    CHECK_EQ(counters.refused, 0);
    CHECK_EQ(counters.bytes[0], 5 * COUNT(WAYS));
    CHECK_EQ(counters.bytes[1], 8 * COUNT(WAYS));
    close_relay(&site);
}

/* An application that is called sees who calls. */
static void the_source_is_kept(void)
{
    struct relay_site site = open_relay(relay_settings());
    int listener = serve_in_pod(site.netns, OUR_ADDRESS, IN_PORT);
    int client = dial_in_pod(site.netns, OUR_ADDRESS, IN_PORT), server = answer_call(listener);
    struct sockaddr_in mine, seen;
    socklen_t size = sizeof mine;

    CHECK_EQ(getsockname(client, (struct sockaddr *)&mine, &size), 0);
    CHECK_EQ(getpeername(server, (struct sockaddr *)&seen, &size), 0);
    CHECK_EQ(seen.sin_addr.s_addr, mine.sin_addr.s_addr);
    close(client);
    expect_fin(server);
    close(server);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    close(listener);
    close_relay(&site);
}

static void one_byte_at_a_time(void)
{
    enum { ROUNDS = 300 };
    struct relay_site site = open_relay(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);

    for (int i = 0; i < ROUNDS; i++) {
        expect_pass(talk.client, talk.server, "a");
        expect_pass(talk.server, talk.client, "b");
    }
    close_talk(talk);
    struct pz_flow_event event = hear_event(&site);
    CHECK_EQ(event.bytes[0], ROUNDS);
    CHECK_EQ(event.bytes[1], ROUNDS);
    CHECK_EQ(relay_counters(&site).pipes, 0);
    close_relay(&site);
}

static void many_at_once(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk talks[MANY];

    for (int i = 0; i < MANY; i++)
        talks[i] = open_talk(&site, i % 2 ? "127.0.0.1" : "::1", i % 3 ? OUT_PORT : IN_PORT);
    for (int round = 0; round < WORDS; round++)
        for (int i = 0; i < MANY; i++) {
            char word[32];
            snprintf(word, sizeof word, "%d.%d", round, i);
            expect_pass(talks[i].client, talks[i].server, word);
            expect_pass(talks[i].server, talks[i].client, word);
        }
    await_flows(&site, MANY);
    for (int i = 0; i < MANY; i++)
        close_talk(talks[i]);
    for (int i = 0; i < MANY; i++)
        hear_event(&site);
    CHECK_EQ(relay_counters(&site).closed, MANY);
    await_flows(&site, 0);
    close_relay(&site);
}

/* ---- FIN ---- */

struct farewell {
    const char *name;
    bool client_first, says_more, in_one_go;
};

static const struct farewell FAREWELLS[] = {
    {"the client first", true, false, false},
    {"the server first", false, false, false},
    {"the client, and the server goes on", true, true, false},
    {"the server, and the client goes on", false, true, false},
    {"the client, with its last word", true, true, true},
    {"the server, with its last word", false, true, true},
};

static void each_side_may_end_first(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(FAREWELLS); i++) {
        const struct farewell *row = &FAREWELLS[i];
        in_row("%s", row->name);
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        int first = row->client_first ? talk.client : talk.server;
        int second = row->client_first ? talk.server : talk.client;
        char word[8];
        int error = 99;
        if (row->in_one_go)
            CHECK_EQ(send(first, "last", 4, MSG_NOSIGNAL | MSG_MORE), 4);
        CHECK_EQ(shutdown(first, SHUT_WR), 0);
        if (row->in_one_go)
            CHECK_EQ(hear(second, word, 4, &error), 4);
        expect_fin(second);
        if (row->says_more) {
            expect_pass(second, first, "more");
            expect_pass(second, first, "and more");
        }
        await_flows(&site, 1);
        CHECK_EQ(shutdown(second, SHUT_WR), 0);
        expect_fin(first);
        struct pz_flow_event event = expect_end_of_flow(&site, PZ_END_COMPLETE);
        int side = row->client_first ? 0 : 1;
        CHECK_EQ(event.bytes[side], row->in_one_go ? 4 : 0);
        CHECK_EQ(event.bytes[1 - side], row->says_more ? 12 : 0);
        close_talk(talk);
    }
    close_relay(&site);
}

static void both_end_at_once(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (int i = 0; i < 20; i++) {
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        CHECK_EQ(send(talk.client, "c", 1, MSG_NOSIGNAL), 1);
        CHECK_EQ(send(talk.server, "s", 1, MSG_NOSIGNAL), 1);
        CHECK_EQ(shutdown(talk.client, SHUT_WR) + shutdown(talk.server, SHUT_WR), 0);
        expect_fin(talk.client);
        expect_fin(talk.server);
        struct pz_flow_event event = expect_end_of_flow(&site, PZ_END_COMPLETE);
        CHECK_EQ(event.bytes[0] + event.bytes[1], 2);
        close_talk(talk);
    }
    close_relay(&site);
}

/* ---- RST ---- */

enum when { BEFORE_DATA, IN_MIDSTREAM, HALF_CLOSED, BEHIND_DATA, WHENS };

static const char *const WHEN[WHENS] = {"before data", "in midstream", "half-closed",
                                        "right behind data"};

static void a_reset_is_passed_on_as_one(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (int i = 0; i < 2 * WHENS; i++) {
        enum when when = (enum when)(i / 2);
        bool by_client = i % 2 == 0;
        in_row("by the %s, %s", by_client ? "client" : "server", WHEN[when]);
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        int one = by_client ? talk.client : talk.server;
        int other = by_client ? talk.server : talk.client;
        look_inside(&site); /* behind the turn in which it became open */
        if (when == IN_MIDSTREAM)
            expect_pass(one, other, "some");
        if (when == HALF_CLOSED) {
            CHECK_EQ(shutdown(other, SHUT_WR), 0);
            expect_fin(one);
        }
        if (when == BEHIND_DATA)
            CHECK_EQ(send(one, "lost?", 5, MSG_NOSIGNAL), 5);
        reset(one);
        expect_rst(other);
        struct pz_flow_event event = expect_end_of_flow(
            &site, by_client ? PZ_END_RESET_BY_SOURCE : PZ_END_RESET_BY_DESTINATION);
        CHECK_EQ(event.error, 0);
        CHECK_EQ(event.opened, 1);
        if (when != BEHIND_DATA)
            CHECK_EQ(event.bytes[by_client ? 0 : 1], when == IN_MIDSTREAM ? 4 : 0);
        close(other);
    }
    close_relay(&site);
}

/* One side does not read, so that something is kept for it; and either of them resets. */
static void a_reset_while_a_side_is_blocked(void)
{
    struct relay_site site = {.netns = new_captured_pod()};

    shrink_buffers(site.netns);
    site = open_relay_in(site.netns, relay_settings());
    for (int i = 0; i < 4; i++) {
        bool client_sends = i & 1, sender_resets = i & 2;
        in_row("the %s sends, the %s resets", client_sends ? "client" : "server",
               sender_resets ? "sender" : "other");
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        int sender = client_sends ? talk.client : talk.server;
        int other = client_sends ? talk.server : talk.client;
        struct flood flood = {0, 0};
        flood_until_stuck(&flood, sender);
        int error = 0;
        if (sender_resets) {
            reset(sender);
            int64_t give_up = clock_ms() + 5000;
            while (!drain_on(&flood, other, &error))
                CHECK(clock_ms() < give_up);
            CHECK_EQ(error, ECONNRESET);
            close(other);
        } else {
            reset(other);
            expect_rst(sender);
            close(sender);
        }
        CHECK_EQ(hear_event(&site).end, client_sends == sender_resets
                                            ? PZ_END_RESET_BY_SOURCE
                                            : PZ_END_RESET_BY_DESTINATION);
    }
    CHECK_EQ(look_inside(&site).kept, 0);
    close_relay(&site);
}

/* ---- a destination that is not reached ---- */

struct failure {
    const char *name;
    uint16_t port;
    enum pz_end end;
    int error;
};

static void what_cannot_be_reached(void)
{
    static const struct failure rows[] = {
        {"refused", OUT_PORT, PZ_END_CONNECT_FAILED, ECONNREFUSED},
        {"refused, inbound", IN_PORT, PZ_END_CONNECT_FAILED, ECONNREFUSED},
        {"no such host", UNREACHABLE_PORT, PZ_END_CONNECT_FAILED, EHOSTUNREACH},
        {"silent", SILENT_PORT, PZ_END_CONNECT_TIMEOUT, 0},
    };
    struct pz_relay_settings settings = relay_settings();

    settings.connect_ms = SHORT_MS;
    struct relay_site site = open_relay(settings);
    for (size_t i = 0; i < COUNT(rows); i++) {
        in_row("%s", rows[i].name);
        int client = dial_in_pod(site.netns, "127.0.0.1", rows[i].port);
        expect_rst(client);
        struct pz_flow_event event = expect_end_of_flow(&site, rows[i].end);
        CHECK_EQ(event.error, rows[i].error);
        CHECK_EQ(event.opened, 0);
        CHECK_EQ(event.bytes[0] + event.bytes[1], 0);
        if (rows[i].end == PZ_END_CONNECT_TIMEOUT)
            CHECK(event.duration_us >= (SHORT_MS - 1) * 1000);
        close(client);
    }
    CHECK_EQ(relay_counters(&site).closed, COUNT(rows));
    close_relay(&site);
}

static void a_connect_that_fails_at_once(void)
{
    static const int errors[] = {ENETUNREACH, EADDRNOTAVAIL, EACCES};
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(errors); i++) {
        await_flows(&site, 0);
        fail_in_relay(CALL_CONNECT, 1, errors[i]);
        int client = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT);
        expect_rst(client);
        CHECK(has_failed());
        CHECK_EQ(expect_end_of_flow(&site, PZ_END_CONNECT_FAILED).error, errors[i]);
        close(client);
    }
    close_relay(&site);
}

/* ---- before the answer ---- */

enum early { EARLY_NOTHING, EARLY_WORD, EARLY_FIN, EARLY_BOTH, EARLIES };

/* What the client does meanwhile waits; the kernel asks again after a second. */
static void before_the_answer(void)
{
    struct relay_site site = open_relay(relay_settings());
    int listener = serve_in_pod(site.netns, "127.0.0.1", SILENT_PORT);
    int clients[EARLIES], servers[EARLIES];

    for (int i = 0; i < EARLIES; i++) {
        clients[i] = dial_in_pod(site.netns, "127.0.0.1", SILENT_PORT);
        if (i == EARLY_WORD || i == EARLY_BOTH)
            CHECK_EQ(send(clients[i], "early", 5, MSG_NOSIGNAL), 5);
        if (i == EARLY_FIN || i == EARLY_BOTH)
            CHECK_EQ(shutdown(clients[i], SHUT_WR), 0);
    }
    int impatient = dial_in_pod(site.netns, "127.0.0.1", SILENT_PORT);
    CHECK_EQ(send(impatient, "early", 5, MSG_NOSIGNAL), 5);
    await_flows(&site, EARLIES + 1);
    reset(impatient);
    CHECK_EQ(expect_end_of_flow(&site, PZ_END_RESET_BY_SOURCE).opened, 0);
    silence_ends(site.netns);
    for (int i = 0; i < EARLIES; i++)
        servers[i] = answer_call(listener);
    close(listener);
    for (int i = 0; i < EARLIES; i++)
        close(clients[i]);
    int words = 0;
    for (int i = 0; i < EARLIES; i++) {
        char word[8];
        int error = 99;
        size_t size = hear(servers[i], word, sizeof word, &error);
        CHECK(size == 0 || (size == 5 && memcmp(word, "early", 5) == 0));
        CHECK_EQ(error, 0);
        words += size == 5;
        close(servers[i]);
    }
    CHECK_EQ(words, 2);
    uint64_t bytes = 0;
    for (int i = 0; i < EARLIES; i++)
        bytes += expect_end_of_flow(&site, PZ_END_COMPLETE).bytes[0];
    CHECK_EQ(bytes, 10);
    close_relay(&site);
}

/* ---- time ---- */

/* It ends, and not before so many milliseconds since then. */
static void expect_late_end(struct relay_site *site, struct talk talk, enum pz_end end,
                            int64_t since, int64_t ms)
{
    CHECK((await(talk.client, POLLERR) & POLLERR) != 0);
    CHECK(clock_ms() - since >= ms - 1); /* the clock is rounded down, twice */
    expect_rst(talk.client);
    expect_rst(talk.server);
    expect_end_of_flow(site, end);
    close_talk(talk);
}

static void idle_for_too_long(void)
{
    enum { IDLE_MS = 2 * SHORT_MS };
    struct pz_relay_settings settings = relay_settings();

    settings.idle_ms = IDLE_MS;
    struct relay_site site = open_relay(settings);
    int64_t began = clock_ms(), last = began;
    struct talk silent = open_talk(&site, "127.0.0.1", OUT_PORT);
    expect_late_end(&site, silent, PZ_END_IDLE, began, IDLE_MS);
    /* Bytes of either side put it off. */
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    began = clock_ms();
    for (bool side = false; clock_ms() - began < 2 * IDLE_MS; side = !side) {
        struct pollfd none = {.fd = -1};
        last = clock_ms();
        expect_pass(side ? talk.client : talk.server, side ? talk.server : talk.client, "x");
        poll(&none, 1, SHORT_MS / 2);
    }
    expect_late_end(&site, talk, PZ_END_IDLE, last, IDLE_MS);
    close_relay(&site);
}

static void half_closed_for_too_long(void)
{
    enum { HALF_MS = 2 * SHORT_MS };
    struct pz_relay_settings settings = relay_settings();

    settings.half_close_ms = HALF_MS;
    struct relay_site site = open_relay(settings);
    struct talk open = open_talk(&site, "127.0.0.1", OUT_PORT);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    CHECK_EQ(shutdown(talk.server, SHUT_WR), 0);
    expect_fin(talk.client);
    int64_t began = clock_ms(), last = began;
    while (clock_ms() - began < 2 * HALF_MS) {
        struct pollfd none = {.fd = -1};
        last = clock_ms();
        expect_pass(talk.client, talk.server, "x");
        poll(&none, 1, SHORT_MS / 2);
    }
    expect_rst(talk.server);
    CHECK(clock_ms() - last >= HALF_MS - 1);
    expect_end_of_flow(&site, PZ_END_HALF_CLOSED);
    close_talk(talk);
    /* The one that is open both ways has no limit. */
    expect_pass(open.client, open.server, "still there");
    close_talk(open);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    close_relay(&site);
}

/* The shorter limit holds; and who waits for nobody costs no time. */
static void limits_do_not_meet(void)
{
    struct pz_relay_settings settings = relay_settings();

    settings.idle_ms = SHORT_MS;
    settings.half_close_ms = 60000;
    settings.connect_ms = 60000;
    struct relay_site site = open_relay(settings);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    int waiting = dial_in_pod(site.netns, "127.0.0.1", SILENT_PORT);
    CHECK_EQ(shutdown(talk.client, SHUT_WR), 0);
    expect_fin(talk.server);
    expect_rst(talk.client);
    expect_end_of_flow(&site, PZ_END_HALF_CLOSED);
    close_talk(talk);
    await_flows(&site, 1);
    int64_t before = cpu_us(), began = clock_ms();
    struct pollfd none = {.fd = -1};
    poll(&none, 1, 3 * SHORT_MS);
    CHECK(cpu_us() - before < (clock_ms() - began) * 1000 / 4);
    await_flows(&site, 1);
    close(waiting);
    close_relay(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(bytes_both_ways),
        TEST(the_source_is_kept),
        TEST(one_byte_at_a_time),
        TEST(many_at_once),
        TEST(each_side_may_end_first),
        TEST(both_end_at_once),
        TEST(a_reset_is_passed_on_as_one),
        TEST(a_reset_while_a_side_is_blocked),
        TEST(what_cannot_be_reached),
        TEST(a_connect_that_fails_at_once),
        TEST(before_the_answer),
        TEST(idle_for_too_long),
        TEST(half_closed_for_too_long),
        TEST(limits_do_not_meet),
    };

    return run_tests("relay_flow.c", tests, COUNT(tests));
}
