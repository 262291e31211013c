/*
 * test_relay_bulk.c: much data, and readers that are slow.
 *
 * Theory of operation: every byte of a stream is known by its place, so that one that is lost,
 * doubled or out of order shows at once. Where it matters that something stands still the pod's
 * buffers are small. What the relay holds is looked up inside, behind a command to its threads.
 */
#include "relay_internal.h"

#include "harness.h"
#include "relay_inside.h"
#include "relay_site.h"
#include "support.h"

#include <poll.h>

enum { MEGABYTE = 1 << 20, CROWD = 6, WORDS = 10 };

static void expect_whole(struct relay_site *site, struct talk talk, bool by_client, uint64_t size)
{
    int from = by_client ? talk.client : talk.server, to = by_client ? talk.server : talk.client;

    expect_flood(from, to, size, true);
    CHECK_EQ(shutdown(to, SHUT_WR), 0);
    expect_fin(from);
    CHECK_EQ(expect_end_of_flow(site, PZ_END_COMPLETE).bytes[by_client ? 0 : 1], size);
    close_talk(talk);
}

static void bulk_goes_through_a_pipe(void)
{
    struct relay_site site = open_relay(relay_settings());

    CHECK_EQ(relay_counters(&site).pipes, 0);
    for (int i = 0; i < 4; i++) {
        in_row("stream %d", i);
        expect_whole(&site, open_talk(&site, i & 1 ? "::1" : "127.0.0.1", OUT_PORT), i & 2,
                     8 * MEGABYTE);
        CHECK_EQ(look_inside(&site).used_pipes, 0);
    }
    CHECK(relay_counters(&site).pipes > 0);
    CHECK(relay_counters(&site).pipes <= 2 * site.relay->n); /* they were used again */
    close_relay(&site);
}

static void say_words(struct talk talk)
{
    for (int i = 0; i < WORDS; i++) {
        expect_pass(talk.client, talk.server, "word");
        expect_pass(talk.server, talk.client, "answer");
    }
}

/* Bulk, words, bulk: words want no pipe. */
static void a_stream_that_dries_up(void)
{
    struct relay_site site = open_relay(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);

    for (int i = 0; i < 3; i++) {
        expect_flood(talk.client, talk.server, 4 * MEGABYTE, false);
        CHECK_EQ(look_inside(&site).used_pipes, 0);
        say_words(talk);
        int splices = calls_of(CALL_SPLICE);
        say_words(talk);
        CHECK_EQ(calls_of(CALL_SPLICE), splices);
    }
    CHECK(calls_of(CALL_SPLICE) > 0);
    close_talk(talk);
    struct pz_flow_event event = hear_event(&site);
    CHECK_EQ(event.bytes[0], 3 * (4 * MEGABYTE + 2 * WORDS * 4));
    CHECK_EQ(event.bytes[1], 3 * 2 * WORDS * 6);
    close_relay(&site);
}

/* ---- not enough pipes ---- */

struct stream {
    struct flood flood;
    int from, to;
};

static void move_all(struct stream *streams, size_t n, uint64_t size)
{
    int64_t give_up = clock_ms() + 20000;
    size_t done = 0;

    while (done < n) {
        struct pollfd waited[4 * CROWD];
        nfds_t nwaited = 0;
        done = 0;
        for (size_t i = 0; i < n; i++) {
            struct stream *one = &streams[i];
            int error = 0;
            if (!flood_on(&one->flood, one->from, size))
                waited[nwaited++] = (struct pollfd){.fd = one->from, .events = POLLOUT};
            drain_on(&one->flood, one->to, &error);
            CHECK_EQ(error, 0);
            if (one->flood.heard == size)
                done++;
            else
                waited[nwaited++] = (struct pollfd){.fd = one->to, .events = POLLIN};
        }
        CHECK(clock_ms() < give_up);
        if (nwaited > 0)
            CHECK(poll(waited, nwaited, 5000) > 0);
    }
}

static void both_ways_at_once_with(uint32_t max_pipes)
{
    struct pz_relay_settings settings = relay_settings();
    struct talk talks[CROWD];
    struct stream streams[2 * CROWD] = {0};

    settings.max_pipes = max_pipes;
    struct relay_site site = open_relay(settings);
    for (int i = 0; i < CROWD; i++) {
        talks[i] = open_talk(&site, "127.0.0.1", OUT_PORT);
        streams[2 * i] = (struct stream){{0, 0}, talks[i].client, talks[i].server};
        streams[2 * i + 1] = (struct stream){{0, 0}, talks[i].server, talks[i].client};
    }
    move_all(streams, COUNT(streams), 2 * MEGABYTE);
    CHECK(relay_counters(&site).pipes <= max_pipes * site.relay->n);
    CHECK_EQ(look_inside(&site).used_pipes, 0);
    CHECK_EQ(look_inside(&site).kept, 0);
    for (int i = 0; i < CROWD; i++)
        close_talk(talks[i]);
    for (int i = 0; i < CROWD; i++) {
        struct pz_flow_event event = hear_event(&site);
        CHECK_EQ(event.bytes[0], 2 * MEGABYTE);
        CHECK_EQ(event.bytes[1], 2 * MEGABYTE);
    }
    close_relay(&site);
}

static void without_pipes(void)
{
    both_ways_at_once_with(0);
}

static void with_one_pipe(void)
{
    both_ways_at_once_with(1);
}

static void with_pipes_for_some(void)
{
    both_ways_at_once_with(4);
}

/* Its size may be bounded, and the descriptors too. */
static void a_pipe_that_is_not_to_be_had(void)
{
    static const struct {
        enum call call;
        int error;
        bool has_pipe;
    } rows[] = {{CALL_PIPE2, EMFILE, true}, {CALL_FCNTL, EPERM, true}};
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(rows); i++) {
        in_row("%s", call_name(rows[i].call));
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        fail_in_relay(rows[i].call, 1, rows[i].error);
        expect_flood(talk.client, talk.server, 4 * MEGABYTE, false);
        has_failed(); /* the other thread may have a pipe from before */
        expect_whole(&site, talk, false, MEGABYTE);
    }
    close_relay(&site);
}

/* ---- slow readers ---- */

/* Half a megabyte: two sockets on each side of the relay, with what the kernel doubles. */
enum { KERNEL_HOLDS = MEGABYTE / 2 };

static struct relay_site open_with_small_buffers(struct pz_relay_settings settings)
{
    int netns = new_captured_pod();

    shrink_buffers(netns);
    return open_relay_in(netns, settings);
}

/* The sender stands still, little is held, and then all of it arrives. */
static void a_reader_that_is_slow(void)
{
    struct relay_site site = open_with_small_buffers(relay_settings());

    for (int i = 0; i < 2; i++) {
        bool by_client = i == 0;
        in_row("the %s sends", by_client ? "client" : "server");
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        int from = by_client ? talk.client : talk.server;
        int to = by_client ? talk.server : talk.client;
        struct flood flood = {0, 0};
        flood_until_stuck(&flood, from);
        uint64_t kept = look_inside(&site).kept;
        CHECK(kept <= SCRATCH);
        CHECK(flood.sent > kept);
        CHECK(flood.sent <= KERNEL_HOLDS);
        /* The other way is open all the time. */
        expect_pass(to, from, "are you still there?");
        CHECK_EQ(shutdown(from, SHUT_WR), 0);
        int error = 0;
        int64_t give_up = clock_ms() + 5000;
        while (!drain_on(&flood, to, &error)) {
            CHECK(clock_ms() < give_up);
            await(to, POLLIN);
        }
        CHECK_EQ(error, EPIPE);
        CHECK_EQ(flood.heard, flood.sent);
        CHECK_EQ(look_inside(&site).kept, 0);
        close_talk(talk);
        CHECK_EQ(expect_end_of_flow(&site, PZ_END_COMPLETE).bytes[i], flood.sent);
    }
    close_relay(&site);
}

/* It is complete for us as soon as the kernel has all of it, which it delivers without us. */
static void what_is_on_its_way_arrives(void)
{
    enum { ON_ITS_WAY = 96 * 1024 };
    struct relay_site site = open_relay(relay_settings());

    for (int i = 0; i < 2; i++) {
        struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
        int from = i == 0 ? talk.client : talk.server, to = i == 0 ? talk.server : talk.client;
        struct flood flood = {0, 0};
        int error = 0;
        in_row("the %s sends", i == 0 ? "client" : "server");
        CHECK_EQ(shutdown(to, SHUT_WR), 0);
        expect_fin(from);
        while (!flood_on(&flood, from, ON_ITS_WAY))
            CHECK((await(from, POLLOUT) & POLLOUT) != 0);
        CHECK_EQ(shutdown(from, SHUT_WR), 0);
        CHECK_EQ(expect_end_of_flow(&site, PZ_END_COMPLETE).bytes[i], ON_ITS_WAY);
        await_flows(&site, 0);
        while (!drain_on(&flood, to, &error))
            CHECK((await(to, POLLIN) & POLLIN) != 0);
        CHECK_EQ(error, EPIPE);
        CHECK_EQ(flood.heard, ON_ITS_WAY);
        close_talk(talk);
    }
    close_relay(&site);
}

/* A stream that is bulk, and then its reader stops: what is in the pipe stays there. */
static void a_pipe_that_stays_full(void)
{
    struct pz_relay_settings settings = relay_settings();
    struct flood flood = {0, 0};
    int error = 0;

    settings.threads = 1;
    settings.max_pipes = 1;
    struct relay_site site = open_relay(settings);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    /* It stops as bulk only where the room ends at once. */
    int64_t give_up = clock_ms() + 5000;
    while (look_inside(&site).used_pipes == 0) {
        CHECK(clock_ms() < give_up);
        drain_on(&flood, talk.server, &error);
        flood_until_stuck(&flood, talk.client);
    }
    CHECK_EQ(look_inside(&site).kept, 0);
    /* Nobody else has one then. */
    struct talk other = open_talk(&site, "127.0.0.1", OUT_PORT);
    expect_whole(&site, other, false, 2 * MEGABYTE);
    CHECK_EQ(relay_counters(&site).pipes, 1);
    /* With bytes in it a pipe is of no use to another flow. */
    reset(talk.server);
    expect_rst(talk.client);
    close(talk.client);
    expect_end_of_flow(&site, PZ_END_RESET_BY_DESTINATION);
    CHECK_EQ(relay_counters(&site).pipes, 0);
    other = open_talk(&site, "127.0.0.1", OUT_PORT);
    expect_whole(&site, other, false, 2 * MEGABYTE);
    close_relay(&site);
}

/* Once much is kept in all, of each new one little is read; and yet all arrives. */
static void much_that_is_kept(void)
{
    struct pz_relay_settings settings = relay_settings();
    struct flood flood = {0, 0};

    settings.threads = 1;
    struct relay_site site = open_with_small_buffers(settings);
    pretend_kept(&site, KEPT_LIMIT);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    flood_until_stuck(&flood, talk.client);
    CHECK(look_inside(&site).kept <= KEPT_LIMIT + SMALL_READ);
    CHECK(flood.sent <= KERNEL_HOLDS);
    CHECK_EQ(shutdown(talk.client, SHUT_WR), 0);
    int error = 0;
    while (!drain_on(&flood, talk.server, &error))
        CHECK((await(talk.server, POLLIN) & POLLIN) != 0);
    CHECK_EQ(flood.heard, flood.sent);
    CHECK_EQ(look_inside(&site).kept, KEPT_LIMIT);
    close_talk(talk);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    close_relay(&site);
}

/* What cannot be kept would be lost: the connection is cut, and says so. */
static void no_memory_to_keep(void)
{
    struct relay_site site = open_with_small_buffers(relay_settings());
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT);
    struct talk other = open_talk(&site, "127.0.0.1", OUT_PORT);
    struct flood flood = {0, 0};

    fail_in_relay(CALL_MALLOC, 1, ENOMEM);
    flood_until_stuck(&flood, talk.client);
    CHECK(has_failed());
    expect_rst(talk.server);
    close_talk(talk);
    CHECK_EQ(expect_end_of_flow(&site, PZ_END_BROKEN).error, ENOMEM);
    expect_pass(other.client, other.server, "unharmed");
    close_talk(other);
    expect_end_of_flow(&site, PZ_END_COMPLETE);
    close_relay(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(bulk_goes_through_a_pipe),
        TEST(a_stream_that_dries_up),
        TEST(without_pipes),
        TEST(with_one_pipe),
        TEST(with_pipes_for_some),
        TEST(a_pipe_that_is_not_to_be_had),
        TEST(a_reader_that_is_slow),
        TEST(what_is_on_its_way_arrives),
        TEST(a_pipe_that_stays_full),
        TEST(much_that_is_kept),
        TEST(no_memory_to_keep),
    };

    return run_tests("relay_pump.c", tests, COUNT(tests));
}
