/*
 * test_relay_door.c: what is accepted, and what is refused.
 */
#include "relay_internal.h"

#include "harness.h"
#include "relay_inside.h"
#include "relay_site.h"
#include "support.h"

#include <linux/capability.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>

enum { WATCH_MS = 120, SHORT_MS = 40, LONG_MS = 5000, PODS = 3 };

/* ---- refused ---- */

struct refusal {
    const char *name, *ip;
    uint16_t port;
    enum pz_end end;
};

static const struct refusal REFUSALS[] = {
    {"direct, out", "127.0.0.1", OUTBOUND_PORT, PZ_END_DIRECT},
    {"direct, out, v6", "::1", OUTBOUND_PORT, PZ_END_DIRECT},
    {"direct, out, another address", OUR_ADDRESS, OUTBOUND_PORT, PZ_END_DIRECT},
    {"direct, in", "127.0.0.1", INBOUND_PORT, PZ_END_DIRECT},
    {"direct, in, v6", "::1", INBOUND_PORT, PZ_END_DIRECT},
    {"loop, out to out", LOOP_OUT, OUTBOUND_PORT, PZ_END_LOOP},
    {"loop, out to in", LOOP_OUT, INBOUND_PORT, PZ_END_LOOP},
    {"loop, out to HBONE", LOOP_OUT, HBONE_PORT, PZ_END_LOOP},
    {"loop, in to out", LOOP_IN, OUTBOUND_PORT, PZ_END_LOOP},
    {"loop, in to in", LOOP_IN, INBOUND_PORT, PZ_END_LOOP},
    {"HBONE", "127.0.0.1", HBONE_PORT, PZ_END_NO_HBONE},
    {"SOCKS5", "127.0.0.1", SOCKS5_PORT, PZ_END_NO_HBONE},
    {"SOCKS5, v6", "::1", SOCKS5_PORT, PZ_END_NO_HBONE},
};

static void expect_refusal(struct relay_site *site, const struct refusal *row, bool is_tracked)
{
    in_row("%s", row->name);
    int client = dial_in_pod(site->netns, row->ip, row->port);
    expect_rst(client);
    close(client);
    struct pz_flow_event event = expect_end_of_flow(site, row->end);
    CHECK_EQ(event.opened + event.error, 0);
    CHECK_EQ(event.source.family, strchr(row->ip, ':') == NULL ? 4 : 6);
    if (is_tracked)
        CHECK(is_address(&event.destination, row->ip, row->port));
    else
        CHECK_EQ(event.destination.family, 0);
}

static void what_is_refused_is_reset(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(REFUSALS); i++)
        expect_refusal(&site, &REFUSALS[i], true);
    CHECK_EQ(relay_counters(&site).refused, COUNT(REFUSALS));
    CHECK_EQ(relay_counters(&site).closed, 0);
    /* All else goes on. */
    close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
    hear_event(&site);
    close_relay(&site);
}

/* Without rules nothing is tracked: the destination is not known, and is none. */
static void without_rules_all_is_direct(void)
{
    static const struct refusal rows[] = {
        {"out", "127.0.0.1", OUTBOUND_PORT, PZ_END_DIRECT},
        {"out, v6", "::1", OUTBOUND_PORT, PZ_END_DIRECT},
        {"in", "127.0.0.1", INBOUND_PORT, PZ_END_DIRECT},
        {"HBONE", "127.0.0.1", HBONE_PORT, PZ_END_NO_HBONE},
    };

    need_namespaces();
    struct relay_site site = open_relay_in(new_pod(), relay_settings());
    for (size_t i = 0; i < COUNT(rows); i++)
        expect_refusal(&site, &rows[i], false);
    close_relay(&site);
}

/* A capture port of somebody else is a port like any other. */
static void a_capture_port_of_another_machine(void)
{
    struct pz_relay_settings settings = relay_settings();

    settings.connect_ms = SHORT_MS;
    struct relay_site site = open_relay(settings);
    int client = dial_in_pod(site.netns, NOT_OURS, OUTBOUND_PORT);
    expect_rst(client);
    struct pz_flow_event event = expect_end_of_flow(&site, PZ_END_CONNECT_TIMEOUT);
    CHECK(is_address(&event.destination, NOT_OURS, OUTBOUND_PORT));
    close(client);
    close_relay(&site);
}

/* ---- what cannot be asked ---- */

struct fault {
    const char *name, *ip;
    enum call call;
    int nth; /* of setsockopt(): the option */
    int error;
    uint16_t port;
    enum pz_end end;
    int told; /* event.error */
};

static const struct fault FAULTS[] = {
    {"no original destination", "127.0.0.1", CALL_GETSOCKOPT, 2, ENOPROTOOPT, OUT_PORT,
     PZ_END_DIRECT, 0},
    {"no own address", LOOP_OUT, CALL_GETSOCKNAME, 1, ENOBUFS, INBOUND_PORT, PZ_END_DIRECT, 0},
    {"no address, and maybe a loop", NOT_OURS, CALL_BIND, 1, EACCES, INBOUND_PORT, PZ_END_LOOP, 0},
    {"no socket", "127.0.0.1", CALL_SOCKET, 1, EMFILE, OUT_PORT, PZ_END_BROKEN, EMFILE},
    {"no such family", "127.0.0.1", CALL_SOCKET, 1, EAFNOSUPPORT, OUT_PORT, PZ_END_BROKEN,
     EAFNOSUPPORT},
    {"the pod cannot be entered", "127.0.0.1", CALL_SETNS, 1, EPERM, OUT_PORT, PZ_END_BROKEN,
     EPERM},
    {"no mark", "127.0.0.1", CALL_SETSOCKOPT, SO_MARK, EPERM, OUT_PORT, PZ_END_NO_MARK, EPERM},
    {"no memory for a mark", "127.0.0.1", CALL_SETSOCKOPT, SO_MARK, ENOMEM, OUT_PORT, PZ_END_BROKEN,
     ENOMEM},
    {"not transparent", "127.0.0.5", CALL_SETSOCKOPT, IP_TRANSPARENT, EPERM, IN_PORT,
     PZ_END_NO_MARK, EPERM},
    {"no epoll entry", "127.0.0.1", CALL_EPOLL_CTL, 1, ENOSPC, OUT_PORT, PZ_END_BROKEN, ENOSPC},
    {"no second epoll entry", "127.0.0.1", CALL_EPOLL_CTL, 2, ENOMEM, OUT_PORT, PZ_END_BROKEN,
     ENOMEM},
};

static void fail_once(enum call call, int nth, int error)
{
    if (call == CALL_SETSOCKOPT)
        fail_option_in_relay(nth, error);
    else
        fail_in_relay(call, nth, error);
}

static void what_fails_is_reset_and_told(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (size_t i = 0; i < COUNT(FAULTS); i++) {
        const struct fault *row = &FAULTS[i];
        in_row("%s", row->name);
        int client = socket_in_pod(site.netns, row->ip);
        await_flows(&site, 0); /* or a call of its end would be counted */
        fail_once(row->call, row->nth, row->error);
        call_with(client, row->ip, row->port);
        expect_rst(client);
        CHECK(has_failed());
        struct pz_flow_event event = expect_end_of_flow(&site, row->end);
        CHECK_EQ(event.error, row->told);
        CHECK_EQ(event.opened, 0);
        close(client);
    }
    close_talk(open_talk(&site, "127.0.0.1", OUT_PORT));
    hear_event(&site);
    close_relay(&site);
}

/* Not even a flow can be told of then. */
static void no_memory_for_a_flow(void)
{
    struct relay_site site = open_relay(relay_settings());

    fail_in_relay(CALL_CALLOC, 1, ENOMEM);
    int client = dial_in_pod(site.netns, "127.0.0.1", OUT_PORT);
    expect_rst(client);
    CHECK(has_failed());
    close(client);
    expect_no_event(&site);
    CHECK_EQ(relay_counters(&site).accepted, 0);
    CHECK_EQ(atomic_load(&site.relay->flows), 0);
    close_relay(&site);
}

/* Options without which a connection is as good, or nearly. */
static void what_may_fail(void)
{
    static const struct {
        const char *name;
        enum call call;
        int nth;
        bool own_source;
    } rows[] = {
        {"TCP_NODELAY", CALL_SETSOCKOPT, TCP_NODELAY, false},
        {"SO_KEEPALIVE", CALL_SETSOCKOPT, SO_KEEPALIVE, false},
        {"TCP_KEEPIDLE", CALL_SETSOCKOPT, TCP_KEEPIDLE, false},
        {"IP_FREEBIND", CALL_SETSOCKOPT, IP_FREEBIND, false},
        {"IP_BIND_ADDRESS_NO_PORT", CALL_SETSOCKOPT, IP_BIND_ADDRESS_NO_PORT, false},
        {"the source's address", CALL_BIND, 1, true},
    };
    struct relay_site site = open_relay(relay_settings());
    int listener = serve_in_pod(site.netns, "127.0.0.5", IN_PORT);
    uint64_t own = 0;

    for (size_t i = 0; i < COUNT(rows); i++) {
        in_row("%s", rows[i].name);
        int client = socket_in_pod(site.netns, "127.0.0.5");
        await_flows(&site, 0);
        fail_once(rows[i].call, rows[i].nth, EADDRNOTAVAIL);
        call_with(client, "127.0.0.5", IN_PORT);
        struct talk talk = {client, answer_call(listener)};
        CHECK(has_failed());
        expect_pass(talk.client, talk.server, "all the same");
        close_talk(talk);
        struct pz_flow_event event = hear_event(&site);
        CHECK_EQ(event.opened, 1);
        CHECK_EQ(event.own_source, rows[i].own_source);
        own += rows[i].own_source;
    }
    CHECK_EQ(relay_counters(&site).own_source, own);
    close(listener);
    close_relay(&site);
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;

    CHECK_EQ(getsockopt(fd, level, name, &value, &size), 0);
    return value;
}

/* An accepted connection inherits them. */
static void listeners_have_what_connections_inherit(void)
{
    struct relay_site site = open_relay(relay_settings());

    for (int i = 0; i < DOORS; i++) {
        int fd = site.doors[i].listener;
        CHECK_EQ(option(fd, IPPROTO_TCP, TCP_NODELAY), 1);
        CHECK_EQ(option(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
        CHECK_EQ(option(fd, IPPROTO_TCP, TCP_KEEPIDLE), 180);
        CHECK_EQ(option(fd, IPPROTO_TCP, TCP_KEEPINTVL), 180);
        CHECK_EQ(option(fd, IPPROTO_TCP, TCP_KEEPCNT), 9);
    }
    close_relay(&site);
}

/* ---- without privilege ---- */

/* The thread's, and so those of all threads that it starts. */
static void give_up_network_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    CHECK_EQ(syscall(SYS_capget, &header, data), 0);
    for (int i = 0; i < 2; i++)
        data[i].inheritable = 0;
    data[0].effective &= ~(1U << CAP_NET_ADMIN | 1U << CAP_NET_RAW);
    data[0].permitted &= ~(1U << CAP_NET_ADMIN | 1U << CAP_NET_RAW);
    CHECK_EQ(syscall(SYS_capset, &header, data), 0);
}

static void unprivileged_it_relays_nothing(void)
{
    struct pz_relay_settings settings = relay_settings();
    int netns = new_captured_pod();

    give_up_network_capabilities();
    for (int marks = 1; marks >= 0; marks--) {
        settings.mark = marks ? RELAY_MARK : 0;
        struct relay_site site = open_relay_in(netns, settings);
        int client = dial_in_pod(netns, "127.0.0.5", IN_PORT);
        in_row("%s", marks ? "no mark" : "not transparent");
        expect_rst(client);
        CHECK_EQ(expect_end_of_flow(&site, PZ_END_NO_MARK).error, EPERM);
        CHECK_EQ(relay_counters(&site).refused, 1);
        close(client);
        pz_relay_free(site.relay);
        close_listeners(&site);
    }
    close(netns);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(what_is_refused_is_reset),
        TEST(without_rules_all_is_direct),
        TEST(a_capture_port_of_another_machine),
        TEST(what_fails_is_reset_and_told),
        TEST(no_memory_for_a_flow),
        TEST(what_may_fail),
        TEST(listeners_have_what_connections_inherit),
        TEST(unprivileged_it_relays_nothing),
    };

    return run_tests("relay_door.c", tests, COUNT(tests));
}
