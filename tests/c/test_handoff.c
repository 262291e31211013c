/*
 * test_handoff.c: requests, answers, waking and draining of the seed form's receiver.
 *
 * Theory of operation: see receiver.h; the bounds are in test_handoff_bounds.c. What a peer may say
 * is a table, held once in one piece and once byte by byte with the receiver waiting in between.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { MAX_FDS = 250 };
#define COOKIE "\x03"

/* ---- requests ---- */

/* What is sent, and what the receiver makes of it. */
static const struct conversation {
    const char *text;
    size_t size, nfds;
    bool ends; /* the peer closes its side */
    int event;
    uint32_t why, byte, counted;
    uint64_t cookie;
} CONVERSATIONS[] = {
    {"\x01", 1, 1, false, PZ_EVENT_TAKE, 0, 1, 1, 0},
    {"\x02", 1, 1, false, PZ_EVENT_RELEASE, 0, 2, 1, 0},
    {COOKIE "0\n", 3, 0, false, PZ_EVENT_RELEASE_COOKIE, 0, 3, 0, 0},
    {COOKIE "42\n", 4, 0, false, PZ_EVENT_RELEASE_COOKIE, 0, 3, 0, 42},
    {COOKIE "00000000000000000007\n", 22, 0, false, PZ_EVENT_RELEASE_COOKIE, 0, 3, 0, 7},
    {COOKIE "18446744073709551615\n", 22, 0, false, PZ_EVENT_RELEASE_COOKIE, 0, 3, 0, UINT64_MAX},
    {COOKIE "18446744073709551615\n", 22, 0, true, PZ_EVENT_RELEASE_COOKIE, 0, 3, 0, UINT64_MAX},
    {"\x04", 1, 0, false, PZ_EVENT_LIST, 0, 4, 0, 0},
    {"\x04", 1, 0, true, PZ_EVENT_LIST, 0, 4, 0, 0},
    {"\x00", 1, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_BYTE, 0, 0, 0},
    {"\x05", 1, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_BYTE, 5, 0, 0},
    {"\xff", 1, 0, true, PZ_EVENT_MALFORMED, PZ_WHY_BYTE, 255, 0, 0},
    {"\x05", 1, 1, false, PZ_EVENT_MALFORMED, PZ_WHY_BYTE, 5, 1, 0},
    {"\x00", 1, 250, false, PZ_EVENT_MALFORMED, PZ_WHY_BYTE, 0, 250, 0},
    {"\x01", 1, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 1, 0, 0},
    {"\x01", 1, 2, false, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 1, 2, 0},
    {"\x01", 1, 250, false, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 1, 250, 0},
    {"\x02", 1, 0, true, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 2, 0, 0},
    {"\x02", 1, 3, false, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 2, 3, 0},
    {COOKIE "1\n", 3, 1, false, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 3, 1, 0},
    {"\x04", 1, 1, false, PZ_EVENT_MALFORMED, PZ_WHY_FDS, 4, 1, 0},
    {COOKIE "\n", 2, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "x", 2, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "1 \n", 4, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "-1\n", 4, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "1\0", 3, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "18446744073709551616\n", 22, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "99999999999999999999\n", 22, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {COOKIE "000000000000000000007\n", 23, 0, false, PZ_EVENT_MALFORMED, PZ_WHY_COOKIE, 3, 0, 0},
    {"\x03", 1, 0, true, PZ_EVENT_MALFORMED, PZ_WHY_TRUNCATED, 3, 0, 0},
    {COOKIE "12", 3, 0, true, PZ_EVENT_MALFORMED, PZ_WHY_TRUNCATED, 3, 0, 0},
};

static void hold(struct site *site, const struct conversation *row, int netns)
{
    const struct pz_request *request = &site->request;
    int fds[MAX_FDS], peer = dial(site->listener);

    for (size_t i = 0; i < row->nfds; i++)
        fds[i] = netns;
    say(peer, row->text, row->size, fds, row->nfds);
    if (row->ends)
        CHECK_EQ(shutdown(peer, SHUT_WR), 0);
    CHECK_EQ(next(site), row->event);
    CHECK_EQ(request->why, row->why);
    if (row->nfds == 0)
        CHECK_EQ(request->cookie, row->cookie);
    CHECK_EQ(request->byte, row->byte);
    if (row->event != PZ_EVENT_MALFORMED && row->nfds == 1) {
        CHECK_EQ(request->not_netns, 0);
        expect_fd(site, netns);
    } else {
        CHECK_EQ(request->fd, -1);
    }
    if (row->event == PZ_EVENT_MALFORMED)
        CHECK_EQ(request->nfds, row->counted);
    answer(site, "so\n", row->event == PZ_EVENT_MALFORMED);
    expect_text(peer, "so\n");
    if (row->event == PZ_EVENT_MALFORMED)
        expect_end(peer);
    close(peer);
}

static void every_request_in_one_go(void)
{
    struct site site = open_site(ROOMY);
    int netns = open_netns();

    for (size_t i = 0; i < COUNT(CONVERSATIONS); i++) {
        in_row("row %zu", i);
        hold(&site, &CONVERSATIONS[i], netns);
    }
    close(netns);
    close_site(&site);
}

/* The same with the receiver waiting behind every byte, until it has made up its mind. */
static void every_request_byte_by_byte(void)
{
    struct site site = open_site(ROOMY);

    for (size_t i = 0; i < COUNT(CONVERSATIONS); i++) {
        const struct conversation *row = &CONVERSATIONS[i];
        if (row->nfds > 0 || row->ends)
            continue;
        int event = 0, peer = dial(site.listener);
        in_row("row %zu", i);
        settle(&site, counters(&site).accepted + 1);
        for (size_t at = 0; at < row->size && event == 0; at++) {
            say(peer, row->text + at, 1, NULL, 0);
            event = step(&site);
        }
        CHECK_EQ(event, row->event);
        CHECK_EQ(site.request.cookie, row->cookie);
        CHECK_EQ(site.request.why, row->why);
        answer(&site, "so\n", true);
        expect_text(peer, "so\n");
        close(peer);
    }
    close_site(&site);
}

static void an_fd_in_the_middle_of_a_cookie(void)
{
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener), netns = open_netns();

    say(peer,
        "\x03"
        "1",
        2, NULL, 0);
    say(peer, "2", 1, &netns, 1);
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    CHECK_EQ(site.request.why, PZ_WHY_FDS);
    CHECK_EQ(site.request.nfds, 1);
    CHECK_EQ(site.request.fd, -1);
    close(netns);
    close(peer);
    close_site(&site);
}

static void who_asks(void)
{
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener);

    say(peer, "\x04", 1, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    CHECK_EQ(site.request.pid, getpid());
    CHECK_EQ(site.request.uid, getuid());
    CHECK_EQ(site.request.gid, getgid());
    close(peer);
    close_site(&site);
}

static void many_requests_on_one_connection(void)
{
    enum { MANY = 200 };
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener);
    char text[MANY];

    memset(text, PZ_EVENT_LIST, sizeof text);
    say(peer, text, sizeof text, NULL, 0);
    for (int i = 0; i < MANY; i++) {
        char line[16];
        snprintf(line, sizeof line, "%d\n", i);
        CHECK_EQ(next(&site), PZ_EVENT_LIST);
        answer(&site, line, false);
        expect_text(peer, line);
    }
    ask_and_be_served(&site, peer);
    close(peer);
    close_site(&site);
}

static void many_cookies_on_one_connection(void)
{
    static const char text[] = COOKIE "11111111111111111111\n" COOKIE "22\n" COOKIE "3\n";
    static const uint64_t cookies[] = {11111111111111111111u, 22, 3};
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener);

    say(peer, text, sizeof text - 1, NULL, 0);
    for (size_t i = 0; i < COUNT(cookies); i++) {
        CHECK_EQ(next(&site), PZ_EVENT_RELEASE_COOKIE);
        CHECK_EQ(site.request.cookie, cookies[i]);
        answer(&site, "ok\n", false);
    }
    close(peer);
    close_site(&site);
}

/* One recvmsg() could return bytes of several of these messages with the descriptors of one. */
static void glued_requests_stay_paired(void)
{
    struct site site = open_site(ROOMY);
    int netns = open_netns(), stranger = open_file(), peer = dial(site.listener);

    say(peer, "\x04", 1, NULL, 0);
    say(peer, "\x01", 1, &netns, 1);
    say(peer, COOKIE "7\n", 3, NULL, 0);
    say(peer, "\x02", 1, &stranger, 1);
    say(peer, "\x01\x04", 2, &netns, 1);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    CHECK_EQ(site.request.fd, -1);
    answer(&site, "1\n", false);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    expect_fd(&site, netns);
    answer(&site, "2\n", false);
    CHECK_EQ(next(&site), PZ_EVENT_RELEASE_COOKIE);
    CHECK_EQ(site.request.cookie, 7);
    answer(&site, "3\n", false);
    CHECK_EQ(next(&site), PZ_EVENT_RELEASE);
    CHECK_EQ(site.request.not_netns, -EINVAL);
    CHECK_EQ(site.request.fd, -1);
    answer(&site, "4\n", false);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    expect_fd(&site, netns);
    answer(&site, "5\n", false);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    answer(&site, "6\n", true);
    expect_text(peer, "1\n2\n3\n4\n5\n6\n");
    expect_end(peer);
    pz_close_all((int[]){netns, stranger, peer}, 3);
    close_site(&site);
}

static void what_a_peer_queued_before_it_closed_is_served(void)
{
    struct site site = open_site(ROOMY);
    int netns = open_netns(), peer = dial(site.listener);

    say(peer, "\x01", 1, &netns, 1);
    say(peer, "\x02", 1, &netns, 1);
    close(peer);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    expect_fd(&site, netns);
    close(netns);
    answer(&site, "nobody reads this\n", false);
    turn(&site);
    CHECK_EQ(counters(&site).peers, 0);
    close_site(&site);
}

/* ---- answers ---- */

static void who_is_not_answered_is_closed(void)
{
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener);

    say(peer, "\x04", 1, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    turn(&site);
    expect_end(peer);
    CHECK_EQ(counters(&site).peers, 0);
    close(peer);
    close_site(&site);
}

static void an_answer_goes_to_the_last_event_alone(void)
{
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener);
    static const uint32_t strangers[] = {1, 63, 64, UINT32_MAX};

    say(peer, "\x04", 1, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    for (size_t i = 0; i < COUNT(strangers); i++)
        CHECK_EQ(pz_handoff_answer(site.handoff, strangers[i], (const uint8_t *)"no\n", 3, 1), 0);
    answer(&site, "ok\n", false);
    answer(&site, "twice\n", true);
    expect_text(peer, "ok\n");
    ask_and_be_served(&site, peer);
    close(peer);
    close_site(&site);
}

struct reader {
    int sock;
    const struct large *large;
    const char *then; /* what it asks behind the answer */
};

static void *read_slowly(void *argument)
{
    const struct reader *reader = argument;
    uint8_t piece[1000];
    int error;

    for (size_t at = 0; at < reader->large->size;) {
        size_t left = reader->large->size - at, size = left < sizeof piece ? left : sizeof piece;
        CHECK_EQ(hear(reader->sock, piece, size, &error), size);
        CHECK(memcmp(piece, reader->large->text + at, size) == 0);
        at += size;
    }
    if (reader->then != NULL)
        say(reader->sock, reader->then, 1, NULL, 0);
    else
        expect_end(reader->sock);
    return NULL;
}

static void a_slow_reader_gets_everything(void)
{
    struct site site = open_site(ROOMY);
    struct large large = new_large();
    pthread_t thread;
    int slow = dial(site.listener), quick = dial(site.listener);

    say(slow, "\x04\x04", 2, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    uint32_t seat = site.request.peer;
    answer_large(&site, &large, false);
    ask_and_be_served(&site, quick); /* the second request of the slow one has to wait */
    CHECK(site.request.peer != seat);
    struct reader reader = {slow, &large, "\x04"};
    CHECK_EQ(pthread_create(&thread, NULL, read_slowly, &reader), 0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    CHECK_EQ(site.request.peer, seat);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    answer(&site, "second\n", false);
    expect_text(slow, "second\n");
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    CHECK_EQ(site.request.peer, seat);
    answer(&site, "third\n", false);
    expect_text(slow, "third\n");
    pz_close_all((int[]){slow, quick}, 2);
    free(large.text);
    close_site(&site);
}

static void the_end_comes_behind_a_large_answer(void)
{
    struct site site = open_site(ROOMY);
    struct large large = new_large();
    pthread_t thread;
    int peer = dial(site.listener);
    struct reader reader = {peer, &large, NULL};

    say(peer, "\x04", 1, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    answer_large(&site, &large, true);
    CHECK_EQ(pthread_create(&thread, NULL, read_slowly, &reader), 0);
    settle_peers(&site, 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    close(peer);
    free(large.text);
    close_site(&site);
}

static void who_asks_and_never_reads_delays_nobody(void)
{
    struct pz_handoff_limits limits = ROOMY;
    struct large large = new_large();

    limits.deadline_ms = SHORT_MS;
    struct site site = open_site(limits);
    int deaf = ask_and_not_read(&site, &large), quick = dial(site.listener);
    ask_and_be_served(&site, quick);
    /* Its time is up before that of a half request that comes later. */
    int late = dial(site.listener);
    say(late, "\x03", 1, NULL, 0);
    while (next(&site) != PZ_EVENT_MALFORMED)
        continue;
    CHECK_EQ(site.request.why, PZ_WHY_LATE);
    CHECK(!is_open(deaf));
    CHECK(counters(&site).expired >= 2);
    pz_close_all((int[]){deaf, quick, late}, 3);
    free(large.text);
    close_site(&site);
}

/* ---- waking and draining ---- */

static void *wake_it(void *wake)
{
    CHECK_EQ(eventfd_write(*(const int *)wake, 1), 0);
    return NULL;
}

static void another_thread_wakes(void)
{
    struct site site = open_site(ROOMY);
    pthread_t thread;
    uint64_t value;

    CHECK_EQ(pthread_create(&thread, NULL, wake_it, &site.wake), 0);
    CHECK_EQ(next(&site), PZ_EVENT_WOKEN);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(eventfd_read(site.wake, &value), 0);
    close_site(&site);
}

static void a_drain_serves_what_is_queued(void)
{
    struct site site = open_site(ROOMY);
    int netns = open_netns(), seated = dial(site.listener), idle = dial(site.listener), peers[3];

    settle(&site, 2);
    say(seated, "\x04\x04", 2, NULL, 0);
    for (int i = 0; i < 3; i++) {
        peers[i] = dial(site.listener);
        say(peers[i], "\x01", 1, &netns, 1);
    }
    close(peers[2]);
    pz_handoff_drain(site.handoff, LONG_MS);
    int takes = 0, lists = 0, event;
    while ((event = next(&site)) != PZ_EVENT_QUIET) {
        takes += event == PZ_EVENT_TAKE;
        lists += event == PZ_EVENT_LIST;
        if (event == PZ_EVENT_TAKE)
            expect_fd(&site, netns);
        answer(&site, "ok\n", false);
    }
    CHECK_EQ(takes, 3);
    CHECK_EQ(lists, 2);
    expect_text(seated, "ok\nok\n");
    expect_text(peers[0], "ok\n");
    CHECK(is_open(idle));
    CHECK_EQ(next(&site), PZ_EVENT_QUIET);
    close_site(&site);
    expect_end(idle);
    pz_close_all((int[]){netns, seated, idle, peers[0], peers[1]}, 5);
}

/* ---- making and ending one ---- */

static void what_cannot_be_made(void)
{
    static const uint32_t seats[] = {0, UINT32_MAX, UINT32_MAX - 2};
    int wake = eventfd(0, EFD_CLOEXEC), listener = unix_listener(NULL, SOCK_STREAM, 1), error;

    for (size_t i = 0; i < COUNT(seats); i++) {
        struct pz_handoff_limits limits = ROOMY;
        limits.max_peers = seats[i];
        CHECK(pz_handoff_new(listener, wake, &limits, NULL, 0, &error) == NULL);
        CHECK_EQ(error, -EINVAL);
    }
    CHECK(pz_handoff_new(-1, wake, &ROOMY, NULL, 0, &error) == NULL);
    CHECK_EQ(error, -EBADF);
    CHECK(pz_handoff_new(listener, -1, &ROOMY, NULL, 0, &error) == NULL);
    CHECK_EQ(error, -EBADF);
    pz_handoff_free(NULL);
    pz_close_all((int[]){wake, listener}, 2);
}

static void the_listener_stays_the_callers(void)
{
    struct site site = open_site(ROOMY);
    int peers[2];

    CHECK(fcntl(site.listener, F_GETFL) & O_NONBLOCK);
    for (int i = 0; i < 2; i++)
        peers[i] = dial(site.listener);
    settle(&site, 2);
    close_site(&site);
    for (int i = 0; i < 2; i++)
        expect_end(peers[i]);
    pz_close_all(peers, 2);
}

static const struct {
    enum call call;
    int nth, error;
} NEW_FAULTS[] = {
    {CALL_CALLOC, 1, ENOMEM},         {CALL_CALLOC, 2, ENOMEM},        {CALL_CALLOC, 3, ENOMEM},
    {CALL_CALLOC, 4, ENOMEM},         {CALL_CALLOC, 5, ENOMEM},        {CALL_FCNTL, 1, EBADF},
    {CALL_FCNTL, 2, EPERM},           {CALL_FSTATFS, 1, EIO},          {CALL_OPEN, 1, EMFILE},
    {CALL_PTHREAD_CREATE, 1, EAGAIN}, {CALL_EPOLL_CREATE1, 1, EMFILE}, {CALL_EPOLL_CTL, 1, ENOSPC},
    {CALL_EPOLL_CTL, 2, ENOMEM},
};

static void each_fault_of_making_one(void)
{
    int wake = eventfd(0, EFD_CLOEXEC), listener = unix_listener(NULL, SOCK_STREAM, 1);

    for (size_t i = 0; i < COUNT(NEW_FAULTS); i++) {
        int error = 99;
        in_row("row %zu", i);
        inject(NEW_FAULTS[i].call, NEW_FAULTS[i].nth, NEW_FAULTS[i].error);
        CHECK(pz_handoff_new(listener, wake, &ROOMY, NULL, 0, &error) == NULL);
        CHECK_EQ(error, -NEW_FAULTS[i].error);
        inject_nothing();
    }
    pz_close_all((int[]){wake, listener}, 2);
}

/* Up to two calls fail while one peer asks; it is served or closed, and the next one is served. */
static const struct {
    bool served;
    enum call call[2];
    int nth[2], error[2];
} FAULTS[] = {
    {true, {CALL_ACCEPT4}, {1}, {ECONNABORTED}},
    {true, {CALL_ACCEPT4}, {1}, {EMFILE}},
    {true, {CALL_ACCEPT4}, {1}, {ENOBUFS}},
    {false, {CALL_GETSOCKOPT}, {1}, {ENOTCONN}},
    {true, {CALL_EPOLL_WAIT}, {1}, {EINTR}},
    {true, {CALL_RECVMSG}, {1}, {EINTR}},
    {true, {CALL_RECVMSG}, {1}, {EAGAIN}},
    {false, {CALL_RECVMSG}, {1}, {ECONNRESET}},
    {false, {CALL_RECVMSG, CALL_EPOLL_CTL}, {1, 1}, {EAGAIN, ENOSPC}},
    {true, {CALL_SEND}, {1}, {EINTR}},
    {true, {CALL_SEND}, {1}, {EAGAIN}},
    {true, {CALL_SEND, CALL_EPOLL_CTL}, {1, 2}, {EAGAIN, ENOSPC}},
    {false, {CALL_SEND}, {1}, {EPIPE}},
    {false, {CALL_SEND, CALL_MALLOC}, {1, 1}, {EAGAIN, ENOMEM}},
    {false, {CALL_SEND, CALL_EPOLL_CTL}, {1, 1}, {EAGAIN, ENOSPC}},
};

static void each_fault_of_serving(void)
{
    struct site site = open_site(ROOMY);

    for (size_t i = 0; i < COUNT(FAULTS); i++) {
        int peer = dial(site.listener);
        in_row("row %zu", i);
        say(peer, "\x04", 1, NULL, 0);
        inject_nothing();
        for (int j = 0; j < 2; j++)
            if (FAULTS[i].nth[j] > 0)
                inject(FAULTS[i].call[j], FAULTS[i].nth[j], FAULTS[i].error[j]);
        drive(&site, peer);
        inject_nothing();
        if (FAULTS[i].served)
            expect_text(peer, "ok\n");
        else
            expect_end(peer);
        close(peer);
        int after = dial(site.listener);
        say(after, "\x04", 1, NULL, 0);
        drive(&site, after);
        expect_text(after, "ok\n");
        close(after);
        settle_peers(&site, 0);
    }
    close_site(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(every_request_in_one_go),
        TEST(every_request_byte_by_byte),
        TEST(an_fd_in_the_middle_of_a_cookie),
        TEST(who_asks),
        TEST(many_requests_on_one_connection),
        TEST(many_cookies_on_one_connection),
        TEST(glued_requests_stay_paired),
        TEST(what_a_peer_queued_before_it_closed_is_served),
        TEST(who_is_not_answered_is_closed),
        TEST(an_answer_goes_to_the_last_event_alone),
        TEST(a_slow_reader_gets_everything),
        TEST(the_end_comes_behind_a_large_answer),
        TEST(who_asks_and_never_reads_delays_nobody),
        TEST(another_thread_wakes),
        TEST(a_drain_serves_what_is_queued),
        TEST(what_cannot_be_made),
        TEST(the_listener_stays_the_callers),
        TEST(each_fault_of_making_one),
        TEST(each_fault_of_serving),
    };

    return run_tests("handoff.c", tests, COUNT(tests));
}
