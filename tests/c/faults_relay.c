/*
 * faults_relay.c: see faults.h.
 *
 * Theory of operation: a conversation is one connection through the relay, whose client sends,
 * whose server answers with as much, and both say FIN. Whatever fails in between, it must end:
 * whole at both ends, and then the event says so; or cut at whichever ends it has, and then the
 * event does not say that it is complete. Behind it the same relay serves another one, undisturbed.
 * The pod and its listeners are made once, the relay for each failure.
 */
#include "faults.h"

#include "harness.h"
#include "internal.h"
#include "relay_inside.h"
#include "relay_site.h"
#include "support.h"

#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

enum {
    WORD = 5,
    BULK = 2 * 1024 * 1024,
    SLOW = 512 * 1024,
    PATIENCE_MS = 5000,
    SMALL = 4096,
    LARGE = 200000
};

static struct relay_site site;
static struct pz_relay_settings settings;
static int server_out, server_in;

/* Those who talk to the relay can send much at a time, whatever it can. */
void prepare_relay_faults(void)
{
    int large = LARGE;

    settings = relay_settings();
    settings.threads = 1;
    settings.max_pipes = 2;
    site.netns = new_captured_pod();
    open_listeners(&site);
    server_out = serve_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    server_in = serve_in_pod(site.netns, "127.0.0.5", IN_PORT);
    CHECK_EQ(setsockopt(server_out, SOL_SOCKET, SO_SNDBUF, &large, sizeof large), 0);
}

void end_relay_faults(void)
{
    close(server_out);
    close(server_in);
    close_listeners(&site);
    close(site.netns);
}

/* ---- a conversation ---- */

struct end {
    struct flood flood;
    int sock;
    int error; /* 0: goes on; EPIPE: FIN */
    bool said;
};

/* Its stream has ended, and it has said all; or it was reset. */
static bool is_over(const struct end *end)
{
    return end->error != 0 && (end->error != EPIPE || end->said);
}

static void go_on(struct end *end, uint64_t size)
{
    if (end->error == 0)
        drain_on(&end->flood, end->sock, &end->error);
    if (end->said || is_over(end))
        return;
    end->said = flood_on(&end->flood, end->sock, size);
    if (end->said)
        shutdown(end->sock, SHUT_WR);
    else if (errno != EAGAIN)
        end->error = ECONNRESET; /* told once: a recv() behind it would say FIN */
}

static bool is_whole(const struct end *end, uint64_t size)
{
    return end->error == EPIPE && end->flood.heard == size;
}

static struct pollfd wanted(const struct end *end)
{
    short events = end->said ? 0 : POLLOUT;

    if (end->error == 0)
        events |= POLLIN;
    return (struct pollfd){.fd = is_over(end) ? -1 : end->sock, .events = events};
}

/* Both ends, each until its stream has ended. */
static void converse(struct end *client, struct end *server, int listener, uint64_t size)
{
    int64_t give_up = clock_ms() + PATIENCE_MS;

    while (!is_over(client) || (server->sock >= 0 && !is_over(server))) {
        struct pollfd waited[2] = {wanted(client), {.fd = listener, .events = POLLIN}};
        if (server->sock >= 0)
            waited[1] = wanted(server);
        CHECK(clock_ms() < give_up);
        CHECK(poll(waited, 2, PATIENCE_MS) > 0);
        if (server->sock < 0)
            server->sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (!is_over(client))
            go_on(client, size);
        if (server->sock >= 0 && !is_over(server))
            go_on(server, size);
    }
    /* It may have come and be cut before it was accepted. */
    if (server->sock < 0)
        server->sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (server->sock >= 0 && !is_over(server)) {
        CHECK(clock_ms() < give_up);
        await(server->sock, POLLIN);
        go_on(server, size);
    }
}

/* Returns the last of N events. */
static struct pz_flow_event hear_last(int n)
{
    struct pz_flow_event event = {0};
    struct pz_batch batch;
    int64_t give_up = clock_ms() + PATIENCE_MS;

    for (int heard = 0; heard < n;) {
        CHECK(clock_ms() < give_up);
        pz_relay_wake(site.relay);
        int more = pz_relay_next(site.relay, &batch, 0);
        if (more > 0)
            event = batch.events[more - 1];
        heard += more;
        CHECK(heard <= n);
    }
    return event;
}

/* Returns 0, or -EPROTO: an end was not told as what it was. */
static int hold(const char *ip, uint16_t port, int listener, uint64_t size, int buffer)
{
    struct end client = {.sock = socket_in_pod(site.netns, ip)}, server = {.sock = -1};
    int large = LARGE;

    CHECK_EQ(setsockopt(client.sock, SOL_SOCKET, SO_SNDBUF, &large, sizeof large), 0);
    if (buffer > 0)
        CHECK_EQ(setsockopt(client.sock, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer), 0);
    call_with(client.sock, ip, port);
    CHECK((await(client.sock, POLLOUT) & POLLOUT) != 0);
    converse(&client, &server, listener, size);
    close(client.sock);
    if (server.sock >= 0)
        close(server.sock);
    await_flows(&site, 0);
    if (relay_counters(&site).accepted == 0)
        return client.error == ECONNRESET && server.sock < 0 ? 0 : -EPROTO;
    struct pz_flow_event event = hear_last(1);
    bool whole = is_whole(&client, size) && is_whole(&server, size);
    if (event.end == PZ_END_COMPLETE)
        return whole && event.bytes[0] == size && event.bytes[1] == size ? 0 : -EPROTO;
    /* FIN came at neither end, or all had come before. */
    if (client.error == EPIPE && client.flood.heard != size)
        return -EPROTO;
    return server.error == EPIPE && server.flood.heard != size ? -EPROTO : 0;
}

static void open_it(void)
{
    site.relay = new_relay(&settings);
    site.pod = take_pod(&site, POD_ID, "name");
}

static void await_told(uint64_t connections)
{
    struct pz_relay_counters now = relay_counters(&site);
    int64_t give_up = clock_ms() + PATIENCE_MS;

    for (; now.closed + now.refused != connections; now = relay_counters(&site)) {
        CHECK(clock_ms() < give_up);
        sched_yield();
    }
    CHECK_EQ(now.accepted, connections);
}

static void still_serves(int result)
{
    uint64_t before = relay_counters(&site).accepted;

    (void)result;
    await_told(before);
    struct talk talk = open_talk(&site, "127.0.0.1", OUT_PORT + 1);
    expect_pass(talk.client, talk.server, "still there");
    close_talk(talk);
    await_told(before + 1);
    struct inside inside = look_inside(&site);
    CHECK_EQ(inside.used_pipes, 0);
    CHECK_EQ(inside.kept, 0);
    pz_relay_free(site.relay);
}

static int talk_out(struct pz_failure *failure)
{
    (void)failure;
    return hold("127.0.0.1", OUT_PORT, server_out, WORD, 0);
}

static int talk_in(struct pz_failure *failure)
{
    (void)failure;
    return hold("127.0.0.5", IN_PORT, server_in, WORD, 0);
}

/* Much, and through a pipe. */
static int talk_much(struct pz_failure *failure)
{
    (void)failure;
    return hold("127.0.0.1", OUT_PORT, server_out, BULK, 0);
}

/* Much, and to a client that takes little at a time. */
/* The relay can send little at a time, and has no pipe to keep the rest in. */
static void open_for_little(void)
{
    struct pz_relay_settings none = settings;

    none.max_pipes = 0;
    shrink_send_buffers(site.netns, true);
    site.relay = new_relay(&none);
    site.pod = take_pod(&site, POD_ID, "name");
}

static void still_serves_much(int result)
{
    shrink_send_buffers(site.netns, false);
    still_serves(result);
}

static int talk_slowly(struct pz_failure *failure)
{
    (void)failure;
    return hold("127.0.0.1", OUT_PORT, server_out, SLOW, SMALL);
}

/* ---- what is refused, or does not come about ---- */

/* The client is reset, and an event says something. */
static int be_reset(const char *ip, uint16_t port)
{
    int client = dial_in_pod(site.netns, ip, port), error = 99;
    char byte;

    hear(client, &byte, 1, &error);
    close(client);
    await_flows(&site, 0);
    if (relay_counters(&site).accepted > 0)
        hear_last(1);
    return error == ECONNRESET ? 0 : -EPROTO;
}

static int call_a_loop(struct pz_failure *failure)
{
    (void)failure;
    return be_reset(LOOP_OUT, INBOUND_PORT);
}

static int call_nobody(struct pz_failure *failure)
{
    (void)failure;
    return be_reset("127.0.0.1", OUT_PORT + 2);
}

/* ---- more than there is room for ---- */

static void open_for_one(void)
{
    struct pz_relay_settings one = settings;

    one.max_flows = 1;
    site.relay = new_relay(&one);
    site.pod = take_pod(&site, POD_ID, "name");
}

static int two_at_a_time(struct pz_failure *failure)
{
    int first = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    int server = answer_call(server_out);
    int second = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    int64_t give_up = clock_ms() + PATIENCE_MS;

    (void)failure;
    while (relay_pauses(&site) == 0)
        CHECK(clock_ms() < give_up);
    reset(first);
    close(server);
    server = answer_call(server_out);
    reset(second);
    close(server);
    await_flows(&site, 0);
    hear_last(2);
    return 0;
}

/* ---- beginnings ---- */

static void nothing(void)
{
}

static int begin(struct pz_failure *failure)
{
    int error = 99;

    (void)failure;
    site.relay = pz_relay_new(&settings, &error);
    CHECK_EQ(site.relay == NULL, error < 0);
    CHECK(error <= 0);
    return error;
}

static void free_it(int result)
{
    (void)result;
    pz_relay_free(site.relay);
}

static void open_without_pod(void)
{
    site.relay = new_relay(&settings);
}

static int take(struct pz_failure *failure)
{
    int error = 99;

    (void)failure;
    site.pod = pz_relay_take(site.relay, site.netns, site.doors, DOORS, POD_ID,
                             (const uint8_t *)"name", 4, (const uint8_t *)"space", 5, &error);
    CHECK_EQ(site.pod == NULL, error < 0);
    CHECK(error <= 0);
    return error;
}

static void take_again(int result)
{
    if (result < 0)
        site.pod = take_pod(&site, POD_ID, "name");
    still_serves(result);
}

static int rename_pod(struct pz_failure *failure)
{
    (void)failure;
    return pz_relay_rename(site.relay, site.pod, (const uint8_t *)"n", 1, (const uint8_t *)"s", 1);
}

/* ---- ends ---- */

static struct talk open_one;

static void open_with_talk(void)
{
    open_it();
    open_one = open_talk(&site, "127.0.0.1", OUT_PORT + 1);
    look_inside(&site); /* the server may know of it before the relay's thread is done */
}

static bool is_cut(void)
{
    char byte;
    int errors[2];

    hear(open_one.client, &byte, 1, &errors[0]);
    hear(open_one.server, &byte, 1, &errors[1]);
    close_talk(open_one);
    return errors[0] == ECONNRESET && errors[1] == ECONNRESET;
}

static int drop(struct pz_failure *failure)
{
    (void)failure;
    pz_relay_drop(site.relay, site.pod);
    CHECK_EQ(hear_last(1).end, PZ_END_WORKLOAD_GONE);
    return is_cut() ? 0 : -EPROTO;
}

static void take_another(int result)
{
    site.pod = take_pod(&site, POD_ID, "name");
    still_serves(result);
}

static int finish(struct pz_failure *failure)
{
    (void)failure;
    pz_relay_close_doors(site.relay);
    CHECK_EQ(pz_relay_finish(site.relay, 0), 1);
    return is_cut() ? 0 : -EPROTO;
}

static int free_with_talk(struct pz_failure *failure)
{
    (void)failure;
    pz_relay_free(site.relay);
    return is_cut() ? 0 : -EPROTO;
}

static void no_more(int result)
{
    (void)result;
}

/* ---- events ---- */

static void open_with_event(void)
{
    open_with_talk();
    reset(open_one.client);
    close(open_one.server);
    await_flows(&site, 0);
}

/* A wait may end without it, but it comes. */
static int hear_it(struct pz_failure *failure)
{
    struct pz_batch batch;
    int64_t give_up = clock_ms() + PATIENCE_MS;

    (void)failure;
    while (pz_relay_next(site.relay, &batch, PATIENCE_MS) == 0)
        CHECK(clock_ms() < give_up);
    CHECK_EQ(batch.n, 1);
    return 0;
}

struct scenarios relay_scenarios(void)
{
    static const struct scenario all[] = {
        {.name = "relay new",
         .files = "relay relay_pump relay_journal thread netns",
         .set_up = nothing,
         .run = begin,
         .tear_down = free_it,
         .opens = true},
        {.name = "relay take",
         .files = "relay relay_door relay_journal",
         .set_up = open_without_pod,
         .run = take,
         .tear_down = take_again},
        {.name = "relay rename",
         .files = "relay relay_journal",
         .set_up = open_it,
         .run = rename_pod,
         .tear_down = still_serves},
        {.name = "relay out",
         .files = "relay relay_door relay_flow relay_pump",
         .set_up = open_it,
         .run = talk_out,
         .tear_down = still_serves},
        {.name = "relay in",
         .files = "relay_door",
         .set_up = open_it,
         .run = talk_in,
         .tear_down = still_serves},
        {.name = "relay bulk",
         .files = "relay_pump",
         .set_up = open_it,
         .run = talk_much,
         .tear_down = still_serves},
        {.name = "relay slow",
         .files = "relay_pump",
         .set_up = open_for_little,
         .run = talk_slowly,
         .tear_down = still_serves_much},
        {.name = "relay loop",
         .files = "relay_door relay_flow",
         .set_up = open_it,
         .run = call_a_loop,
         .tear_down = still_serves},
        {.name = "relay nobody",
         .files = "relay_door relay_flow",
         .set_up = open_it,
         .run = call_nobody,
         .tear_down = still_serves},
        {.name = "relay for one",
         .files = "relay_door",
         .set_up = open_for_one,
         .run = two_at_a_time,
         .tear_down = still_serves},
        {.name = "relay drop",
         .files = "relay relay_door relay_flow",
         .set_up = open_with_talk,
         .run = drop,
         .tear_down = take_another},
        {.name = "relay finish",
         .files = "relay relay_door relay_flow",
         .set_up = open_with_talk,
         .run = finish,
         .tear_down = free_it},
        {.name = "relay free",
         .files = "relay relay_flow",
         .set_up = open_with_talk,
         .run = free_with_talk,
         .tear_down = no_more},
        {.name = "relay events",
         .files = "relay_journal",
         .set_up = open_with_event,
         .run = hear_it,
         .tear_down = free_it},
    };

    return (struct scenarios){all, COUNT(all)};
}
