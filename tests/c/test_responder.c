/*
 * test_responder.c: `ok` to every connection, and a clean end.
 *
 * Theory of operation: the responder runs in a thread of its own as in the service, or, where the
 * test wants to decide what is queued when it looks, in the test's own thread between turns.
 * Listeners are on loopback at home: where they belong makes no difference to it. That a connection
 * is really closed at the other end shows when the client sends: a socket that is gone answers with
 * a reset, at once, since loopback delivers before send() returns.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "responder_site.h"
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

/* ---- answers ---- */

static void every_connection_is_answered(void)
{
    enum { CLIENTS = 20 };
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int clients[LISTENERS * CLIENTS];

    start(&site);
    for (int i = 0; i < LISTENERS * CLIENTS; i++)
        clients[i] = dial_tcp(site.listeners[i % LISTENERS]);
    for (int i = 0; i < LISTENERS * CLIENTS; i++)
        expect_ok_and_end(clients[i]);
    stop(&site);
    pz_close_all(clients, COUNT(clients));
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    close_responder(&site);
}

struct speech {
    const char *name;
    size_t before; /* bytes queued before it is accepted */
    size_t after;  /* bytes said once `ok` has come */
    bool half_closes;
};

static const struct speech SPEECHES[] = {
    {"says nothing", 0, 0, false},
    {"talks first", 10, 0, false},
    {"talks first and much", 60000, 0, false},
    {"talks later", 0, 10, false},
    {"talks first and later", 100, 100, false},
    {"half-closes", 10, 0, true},
    {"only half-closes", 0, 0, true},
};

static void hold(struct responder_site *site, const struct speech *speech)
{
    static const char words[60000];
    int client = dial_tcp(site->listeners[0]);

    CHECK_EQ(send(client, words, speech->before, MSG_DONTWAIT), speech->before);
    if (speech->half_closes)
        CHECK_EQ(shutdown(client, SHUT_WR), 0);
    start(site);
    expect_ok(client);
    if (speech->after > 0)
        CHECK_EQ(send(client, words, speech->after, MSG_NOSIGNAL), speech->after);
    char text[8];
    int error = 99;
    CHECK_EQ(hear(client, text, sizeof text, &error), 0);
    CHECK_EQ(error, 0);
    stop(site);
    close(client);
}

static void the_end_is_clean_whatever_the_client_says(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);

    for (size_t i = 0; i < COUNT(SPEECHES); i++) {
        in_row("%s", SPEECHES[i].name);
        hold(&site, &SPEECHES[i]);
    }
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    close_responder(&site);
}

static void a_megabyte_first(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    char *words = calloc(1, MEGABYTE);
    int client = dial_tcp(site.listeners[0]);

    start(&site);
    for (size_t at = 0; at < MEGABYTE;) {
        ssize_t sent = send(client, words + at, MEGABYTE - at, MSG_NOSIGNAL);
        CHECK(sent > 0);
        at += (size_t)sent;
    }
    CHECK_EQ(shutdown(client, SHUT_WR), 0);
    expect_ok_and_end(client);
    stop(&site);
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    close(client);
    free(words);
    close_responder(&site);
}

static void a_client_that_resets(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    struct linger reset = {1, 0};
    int client = dial_tcp(site.listeners[0]), queued = dial_tcp(site.listeners[1]);

    CHECK_EQ(setsockopt(queued, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    close(queued); /* before it is accepted */
    drive_responder(&site, client);
    CHECK_EQ(setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    close(client);
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    close_responder(&site);
}

/* ---- bounds ---- */

static void the_deadline(void)
{
    struct responder_site site = open_responder(SEATS, SHORT_MS);
    int64_t begin = clock_ms();
    int client = dial_tcp(site.listeners[0]);

    start(&site);
    expect_ok_and_end(client);
    CHECK(!is_gone(client));
    stop(&site);
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    CHECK(clock_ms() - begin >= SHORT_MS);
    CHECK(clock_ms() - begin < LONG_MS);
    CHECK(is_gone(client));
    close(client);
    close_responder(&site);
}

/* What a client keeps saying prolongs nothing. */
static void *talk_until_it_ends(void *argument)
{
    int client = *(const int *)argument;

    while (send(client, "more", 4, MSG_NOSIGNAL) > 0)
        CHECK_EQ(await(client, POLLOUT) & POLLOUT, POLLOUT);
    return NULL;
}

static void who_never_stops_talking(void)
{
    struct responder_site site = open_responder(SEATS, SHORT_MS);
    int client = dial_tcp(site.listeners[0]);
    pthread_t talker;

    start(&site);
    CHECK_EQ(pthread_create(&talker, NULL, talk_until_it_ends, &client), 0);
    CHECK_EQ(pthread_join(talker, NULL), 0);
    stop(&site);
    CHECK_EQ(pz_responder_finish(site.responder, 0), 0);
    close(client);
    close_responder(&site);
}

static void with_every_seat_taken_the_oldest_goes(void)
{
    struct responder_site site = open_responder(2, LONG_MS);
    int clients[4];

    for (int i = 0; i < 4; i++) {
        clients[i] = dial_tcp(site.listeners[0]);
        drive_responder(&site, clients[i]);
        expect_ok(clients[i]);
    }
    CHECK(is_gone(clients[0]));
    CHECK(is_gone(clients[1]));
    CHECK(!is_gone(clients[2]));
    CHECK(!is_gone(clients[3]));
    CHECK_EQ(pz_responder_finish(site.responder, 0), 2);
    pz_close_all(clients, 4);
    close_responder(&site);
}

static void without_fds_the_oldest_goes(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int old = dial_tcp(site.listeners[0]);

    drive_responder(&site, old);
    expect_ok(old);
    int young = dial_tcp(site.listeners[1]);
    fill_fd_table(0);
    drive_responder(&site, young);
    empty_fd_table();
    expect_ok(young);
    CHECK(is_gone(old));
    CHECK(!is_gone(young));
    pz_close_all((int[]){old, young}, 2);
    close_responder(&site);
}

static void without_fds_and_connections_it_waits(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int client = dial_tcp(site.listeners[0]);

    fill_fd_table(0);
    inject_nothing();
    while (calls_of(CALL_ACCEPT4) == 0)
        turn_responder(&site);
    CHECK(calls_of(CALL_POLL) >= 1);
    empty_fd_table();
    drive_responder(&site, client);
    expect_ok(client);
    close(client);
    close_responder(&site);
}

/* Such a connection must leave epoll by name: its end would be reported again and again. */
static void a_client_that_is_gone_wakes_nobody(void)
{
    struct responder_site site = open_responder(SEATS, SHORT_MS);
    struct copies copies = {.client = dial_tcp(site.listeners[0])};

    CHECK_EQ(pipe2(copies.gate, O_CLOEXEC), 0);
    drive_responder(&site, copies.client);
    int child = start_child(keep_copies, &copies);
    close(copies.client);
    inject_nothing();
    while (calls_of(CALL_RECV) == 0)
        turn_responder(&site);
    int other = dial_tcp(site.listeners[1]);
    drive_responder(&site, other);
    inject_nothing();
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    CHECK(calls_of(CALL_EPOLL_WAIT) < 10);
    close(copies.gate[1]);
    CHECK_EQ(end_child(child), 0);
    pz_close_all((int[]){copies.gate[0], other}, 2);
    close_responder(&site);
}

/* ---- watching and forgetting ---- */

static void a_forgotten_listener_is_not_accepted_from(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    struct pollfd waited = {.events = POLLIN};

    pz_responder_forget(site.responder, site.listeners, 1);
    int silent = dial_tcp(site.listeners[0]), client = dial_tcp(site.listeners[1]);
    drive_responder(&site, client);
    expect_ok(client);
    waited.fd = silent;
    CHECK_EQ(poll(&waited, 1, 0), 0);
    CHECK_EQ(pz_responder_watch(site.responder, site.listeners, 1), 0);
    drive_responder(&site, silent);
    expect_ok(silent);
    pz_close_all((int[]){silent, client}, 2);
    close_responder(&site);
}

static void watching_is_all_or_none(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC), fresh = tcp_listener();
    int with_file[3] = {fresh, file, -1}, with_known[2] = {fresh, site.listeners[1]};
    int with_none[2] = {fresh, -1}, twice[2] = {fresh, fresh};

    CHECK_EQ(pz_responder_watch(site.responder, with_file, 3), -EPERM);
    CHECK_EQ(pz_responder_watch(site.responder, with_none, 2), -EBADF);
    CHECK_EQ(pz_responder_watch(site.responder, twice, 2), -EEXIST);
    CHECK_EQ(pz_responder_watch(site.responder, with_known, 2), -EEXIST);
    inject(CALL_EPOLL_CTL, 1, ENOSPC);
    CHECK_EQ(pz_responder_watch(site.responder, &fresh, 1), -ENOSPC);
    inject_nothing();
    CHECK_EQ(pz_responder_watch(site.responder, &fresh, 1), 0); /* it was forgotten each time */
    int client = dial_tcp(site.listeners[1]);
    drive_responder(&site, client);
    expect_ok(client); /* and what was watched before still is */
    pz_close_all((int[]){client, file, fresh}, 3);
    close_responder(&site);
}

/* Closed without being forgotten: the number may be anything by the time an event is served. */
static void a_listener_that_vanished(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int client = dial_tcp(site.listeners[1]);

    inject(CALL_ACCEPT4, 1, EBADF);
    drive_responder(&site, client);
    inject_nothing();
    expect_ok(client);
    close(client);
    close_responder(&site);
}

/* EINVAL: root in the pod has destroyed it, and epoll would report it for ever. */
static void a_listener_that_was_destroyed(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int client = dial_tcp(site.listeners[1]);

    inject(CALL_ACCEPT4, 1, EINVAL);
    turn_responder(&site);
    CHECK_EQ(calls_of(CALL_ACCEPT4), 1);
    inject_nothing();
    turn_responder(&site);
    CHECK_EQ(calls_of(CALL_ACCEPT4), 0);
    close(client);
    close_responder(&site);
}

/* What the handoff thread does while the responder runs. */
static void *come_and_go(void *argument)
{
    struct pz_responder *responder = argument;

    for (int i = 0; i < 100; i++) {
        int listeners[LISTENERS], clients[LISTENERS];
        for (int j = 0; j < LISTENERS; j++)
            listeners[j] = tcp_listener();
        CHECK_EQ(pz_responder_watch(responder, listeners, LISTENERS), 0);
        for (int j = 0; j < LISTENERS; j++)
            clients[j] = dial_tcp(listeners[j]);
        for (int j = 0; j < LISTENERS; j++)
            expect_ok_and_end(clients[j]);
        clients[0] = (close(clients[0]), dial_tcp(listeners[0])); /* perhaps never answered */
        pz_responder_forget(responder, listeners, LISTENERS);
        pz_close_all(listeners, LISTENERS);
        pz_close_all(clients, LISTENERS);
    }
    return NULL;
}

static void others_watch_and_forget_during_a_run(void)
{
    enum { OTHERS = 3 };
    struct responder_site site = open_responder(SEATS, LONG_MS);
    pthread_t others[OTHERS];

    start(&site);
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(pthread_create(&others[i], NULL, come_and_go, site.responder), 0);
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(pthread_join(others[i], NULL), 0);
    stop(&site);
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    close_responder(&site);
}

/* ---- the end ---- */

static void what_is_queued_is_answered(void)
{
    enum { CLIENTS = 30 };
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int clients[CLIENTS];

    for (int i = 0; i < CLIENTS; i++)
        clients[i] = dial_tcp(site.listeners[i % LISTENERS]);
    CHECK_EQ(eventfd_write(site.wake, 1), 0); /* and stays: an ended run may leave it so */
    CHECK_EQ(pz_responder_run(site.responder), 0);
    CHECK_EQ(pz_responder_accept_queued(site.responder, LONG_MS), 0);
    for (int i = 0; i < CLIENTS; i++)
        expect_ok_and_end(clients[i]);
    pz_responder_forget(site.responder, site.listeners, LISTENERS);
    CHECK_EQ(pz_responder_finish(site.responder, 0), CLIENTS);
    pz_close_all(clients, CLIENTS);
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    close_responder(&site);
}

/* Whether or not accept_queued() came between, a readable wake fd is no reason to spin. */
static void finishing_sleeps(void)
{
    struct responder_site site = open_responder(SEATS, SHORT_MS);
    int client = dial_tcp(site.listeners[0]);

    drive_responder(&site, client);
    CHECK_EQ(eventfd_write(site.wake, 1), 0);
    inject_nothing();
    CHECK_EQ(pz_responder_finish(site.responder, LONG_MS), 0);
    CHECK(calls_of(CALL_EPOLL_WAIT) < 10);
    expect_ok(client);
    close(client);
    close_responder(&site);
}

static void no_limit_of_time(void)
{
    struct responder_site site = open_responder(SEATS, SHORT_MS);
    int clients[2] = {dial_tcp(site.listeners[0]), dial_tcp(site.listeners[0])};

    CHECK_EQ(pz_responder_accept_queued(site.responder, -1), 0);
    expect_ok(clients[0]);
    expect_ok(clients[1]);
    CHECK_EQ(pz_responder_finish(site.responder, -1), 0);
    pz_close_all(clients, 2);
    close_responder(&site);
}

static void free_closes_what_is_open(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);
    int client = dial_tcp(site.listeners[0]);

    drive_responder(&site, client);
    close_responder(&site);
    expect_ok_and_end(client);
    CHECK(is_gone(client));
    close(client);
    pz_responder_free(NULL);
}

/* ---- each syscall fails once ---- */

static const struct {
    enum call call;
    int nth, error;
} NEW_FAULTS[] = {
    {CALL_CALLOC, 1, ENOMEM},        {CALL_CALLOC, 2, ENOMEM},    {CALL_CALLOC, 3, ENOMEM},
    {CALL_EPOLL_CREATE1, 1, EMFILE}, {CALL_EPOLL_CTL, 1, ENOSPC},
};

static void each_fault_of_making_one(void)
{
    int wake = eventfd(0, EFD_CLOEXEC), error = 99;

    for (size_t i = 0; i < COUNT(NEW_FAULTS); i++) {
        in_row("row %zu", i);
        inject(NEW_FAULTS[i].call, NEW_FAULTS[i].nth, NEW_FAULTS[i].error);
        CHECK(pz_responder_new(wake, SEATS, LONG_MS, &error) == NULL);
        CHECK_EQ(error, -NEW_FAULTS[i].error);
        inject_nothing();
    }
    CHECK(pz_responder_new(wake, 0, LONG_MS, &error) == NULL);
    CHECK_EQ(error, -EINVAL);
    CHECK(pz_responder_new(-1, SEATS, LONG_MS, &error) == NULL);
    CHECK_EQ(error, -EBADF);
    close(wake);
}

static const struct {
    bool answered;
    enum call call;
    int error;
} FAULTS[] = {
    {true, CALL_ACCEPT4, ECONNABORTED}, {true, CALL_ACCEPT4, EMFILE},
    {true, CALL_ACCEPT4, ENOBUFS},      {true, CALL_EPOLL_WAIT, EINTR},
    {true, CALL_RECV, EINTR},           {true, CALL_RECV, EAGAIN},
    {true, CALL_EPOLL_CTL, ENOSPC},     {true, CALL_SHUTDOWN, ENOTCONN},
    {false, CALL_SEND, EPIPE},
};

static void each_fault_of_answering(void)
{
    struct responder_site site = open_responder(SEATS, LONG_MS);

    for (size_t i = 0; i < COUNT(FAULTS); i++) {
        char text[3];
        int client = dial_tcp(site.listeners[0]), error;
        in_row("row %zu", i);
        if (FAULTS[i].call == CALL_RECV)
            say(client, "x", 1, NULL, 0);
        inject(FAULTS[i].call, 1, FAULTS[i].error);
        drive_responder(&site, client);
        while (calls_of(FAULTS[i].call) == 0)
            turn_responder(&site);
        inject_nothing();
        size_t got = hear(client, text, sizeof text, &error);
        CHECK_EQ(got, FAULTS[i].answered ? sizeof text : 0);
        close(client);
    }
    close_responder(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(every_connection_is_answered),
        TEST(the_end_is_clean_whatever_the_client_says),
        TEST(a_megabyte_first),
        TEST(a_client_that_resets),
        TEST(the_deadline),
        TEST(who_never_stops_talking),
        TEST(with_every_seat_taken_the_oldest_goes),
        TEST(without_fds_the_oldest_goes),
        TEST(without_fds_and_connections_it_waits),
        TEST(a_client_that_is_gone_wakes_nobody),
        TEST(a_forgotten_listener_is_not_accepted_from),
        TEST(watching_is_all_or_none),
        TEST(a_listener_that_vanished),
        TEST(a_listener_that_was_destroyed),
        TEST(others_watch_and_forget_during_a_run),
        TEST(what_is_queued_is_answered),
        TEST(finishing_sleeps),
        TEST(no_limit_of_time),
        TEST(free_closes_what_is_open),
        TEST(each_fault_of_making_one),
        TEST(each_fault_of_answering),
    };

    return run_tests("responder.c", tests, COUNT(tests));
}
