/*
 * test_handoff_bounds.c: seats, deadlines, unread answers, uids and descriptors that run out.
 *
 * Theory of operation: see receiver.h. Each bound is reached on purpose; then the one who is to pay
 * for it must be closed, and everyone else must still be served.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

enum { OTHER_UID = 4242 };

/* ---- the bound of what is kept ---- */

static struct site site_with_unsent(const struct large *large, size_t quarters)
{
    struct pz_handoff_limits limits = ROOMY;

    limits.max_unsent = (uint32_t)(large->size / 4 * quarters);
    return open_site(limits);
}

static void who_vanishes_while_reading_owes_nothing(void)
{
    struct large large = new_large();
    struct site site = site_with_unsent(&large, 5);

    for (int i = 0; i < 8; i++) {
        close(ask_and_not_read(&site, &large));
        settle_peers(&site, 0);
    }
    CHECK_EQ(counters(&site).evicted, 0);
    free(large.text);
    close_site(&site);
}

static void a_second_fault_behind_a_first_piece(void)
{
    struct site site = open_site(ROOMY);
    struct large large = new_large();
    int peer = ask_and_not_read(&site, &large), error;
    char piece[4096];

    inject(CALL_SEND, 1, EPIPE);
    while (counters(&site).peers > 0) {
        CHECK(hear(peer, piece, sizeof piece, &error) > 0);
        turn(&site);
    }
    inject_nothing();
    close(peer);
    free(large.text);
    close_site(&site);
}

static void the_longest_silent_reader_makes_room(void)
{
    struct large large = new_large();
    struct site site = site_with_unsent(&large, 5);
    int first = ask_and_not_read(&site, &large), second = ask_and_not_read(&site, &large);

    CHECK(!is_open(first));
    CHECK(is_open(second));
    CHECK_EQ(counters(&site).evicted, 1);
    CHECK_EQ(counters(&site).peers, 1);
    int third = ask_and_not_read(&site, &large);
    CHECK(!is_open(second));
    CHECK(is_open(third));
    pz_close_all((int[]){first, second, third}, 3);
    free(large.text);
    close_site(&site);
}

static void who_has_read_everything_need_not_make_room(void)
{
    struct large large = new_large();
    struct site site = site_with_unsent(&large, 5);
    int honest = dial(site.listener);

    ask_and_be_served(&site, honest);
    int first = ask_and_not_read(&site, &large), second = ask_and_not_read(&site, &large);
    CHECK(is_open(honest));
    CHECK(!is_open(first));
    CHECK(is_open(second));
    ask_and_be_served(&site, honest);
    pz_close_all((int[]){honest, first, second}, 3);
    free(large.text);
    close_site(&site);
}

static void an_answer_beyond_the_bound_costs_its_reader_alone(void)
{
    struct large large = new_large(), half = {large.text, large.size / 2};
    struct site site = site_with_unsent(&large, 2);
    int honest = dial(site.listener);

    ask_and_be_served(&site, honest);
    int modest = ask_and_not_read(&site, &half), greedy = ask_and_not_read(&site, &large);
    CHECK(!is_open(greedy));
    CHECK(is_open(honest));
    CHECK(is_open(modest));
    CHECK_EQ(counters(&site).peers, 2);
    ask_and_be_served(&site, honest);
    pz_close_all((int[]){honest, modest, greedy}, 3);
    free(large.text);
    close_site(&site);
}

/* ---- seats ---- */

static void the_longest_idle_goes_and_never_the_newcomer(void)
{
    struct pz_handoff_limits limits = ROOMY;
    int peers[4];

    limits.max_peers = 2;
    struct site site = open_site(limits);
    for (uint64_t i = 0; i < 2; i++) {
        peers[i] = dial(site.listener);
        settle(&site, i + 1);
    }
    ask_and_be_served(&site, peers[0]); /* now [1] is the longest idle */
    peers[2] = dial(site.listener);
    settle(&site, 3);
    CHECK(is_open(peers[0]));
    expect_end(peers[1]);
    ask_and_be_served(&site, peers[2]);
    peers[3] = dial(site.listener);
    ask_and_be_served(&site, peers[3]);
    expect_end(peers[0]);
    CHECK(is_open(peers[2]));
    CHECK_EQ(counters(&site).evicted, 2);
    CHECK_EQ(counters(&site).peers, 2);
    pz_close_all(peers, 4);
    close_site(&site);
}

static void a_crowd(void)
{
    enum { CROWD = 300, SEATS = 50 };
    struct pz_handoff_limits limits = ROOMY;
    int peers[CROWD];

    limits.max_peers = SEATS;
    struct site site = open_site(limits);
    for (int i = 0; i < CROWD; i++)
        peers[i] = dial(site.listener);
    settle(&site, CROWD);
    CHECK_EQ(counters(&site).peers, SEATS);
    CHECK_EQ(counters(&site).evicted, CROWD - SEATS);
    for (int i = 0; i < CROWD; i++)
        CHECK_EQ(is_open(peers[i]), i >= CROWD - SEATS);
    for (int i = CROWD - SEATS; i < CROWD; i++)
        ask_and_be_served(&site, peers[i]);
    pz_close_all(peers, CROWD);
    close_site(&site);
}

static void disconnects_at_every_point(void)
{
    static const struct {
        const char *text;
        size_t size;
    } starts[] = {{"", 0},
                  {"\x03", 1},
                  {"\x03"
                   "1",
                   2},
                  {"\x03"
                   "12345678901234567890",
                   21}};
    struct site site = open_site(ROOMY);

    for (size_t i = 0; i < COUNT(starts); i++)
        for (int seated = 0; seated <= 1; seated++) {
            in_row("start %zu, %s", i, seated ? "seated" : "queued");
            int peer = dial(site.listener);
            if (seated)
                settle(&site, counters(&site).accepted + 1);
            say(peer, starts[i].text, starts[i].size, NULL, 0);
            close(peer);
            uint64_t accepted = counters(&site).accepted + !seated;
            if (starts[i].size == 0) {
                settle(&site, accepted);
                settle_peers(&site, 0);
            } else {
                CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
                CHECK_EQ(site.request.why, PZ_WHY_TRUNCATED);
                answer(&site, "no\n", true);
            }
            CHECK_EQ(counters(&site).peers, 0);
        }
    close_site(&site);
}

/* ---- deadlines ---- */

static struct site hasty_site(void)
{
    struct pz_handoff_limits limits = ROOMY;

    limits.deadline_ms = SHORT_MS;
    return open_site(limits);
}

static void a_late_request_is_told(void)
{
    struct site site = hasty_site();
    int64_t start = clock_ms();
    int idle = dial(site.listener), late = dial(site.listener);

    say(late,
        "\x03"
        "12",
        3, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    CHECK(clock_ms() - start >= SHORT_MS);
    CHECK_EQ(site.request.why, PZ_WHY_LATE);
    answer(&site, "late\n", true);
    expect_text(late, "late\n");
    expect_end(late);
    expect_end(idle); /* without a word: it had asked nothing */
    CHECK_EQ(counters(&site).expired, 2);
    CHECK_EQ(counters(&site).peers, 0);
    pz_close_all((int[]){idle, late}, 2);
    close_site(&site);
}

struct dripping {
    int sock;
    int stop; /* an eventfd */
};

static void *drip(void *argument)
{
    const struct dripping *dripping = argument;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec every = {{0, SHORT_MS * 1000000L / 3}, {0, SHORT_MS * 1000000L / 3}};
    struct pollfd waited[2] = {{.fd = timer, .events = POLLIN},
                               {.fd = dripping->stop, .events = POLLIN}};
    uint64_t ticks;

    CHECK_EQ(timerfd_settime(timer, 0, &every, NULL), 0);
    while (poll(waited, 2, -1) > 0 && waited[1].revents == 0) {
        CHECK_EQ(read(timer, &ticks, sizeof ticks), sizeof ticks);
        send(dripping->sock, "1", 1, MSG_NOSIGNAL);
    }
    close(timer);
    return NULL;
}

/* Were it prolonged, the twenty-first digit would be reported instead. */
static void a_byte_now_and_then_prolongs_nothing(void)
{
    struct site site = hasty_site();
    struct dripping dripping = {dial(site.listener), eventfd(0, EFD_CLOEXEC)};
    pthread_t thread;

    say(dripping.sock, "\x03", 1, NULL, 0);
    CHECK_EQ(pthread_create(&thread, NULL, drip, &dripping), 0);
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    CHECK_EQ(site.request.why, PZ_WHY_LATE);
    CHECK_EQ(eventfd_write(dripping.stop, 1), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    close(dripping.stop);
    close(dripping.sock);
    close_site(&site);
}

static void pass_time(int ms)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec once = {.it_value = {0, ms * 1000000L}};

    CHECK_EQ(timerfd_settime(timer, 0, &once, NULL), 0);
    CHECK_EQ(await(timer, POLLIN), POLLIN);
    close(timer);
}

/* The receiver was busy elsewhere while the time of a peer ran out. */
static void a_request_that_came_in_time_is_served_late(void)
{
    struct site site = hasty_site();
    int peer = dial(site.listener);

    settle(&site, 1);
    say(peer, "\x04", 1, NULL, 0);
    pass_time(2 * SHORT_MS);
    CHECK_EQ(eventfd_write(site.wake, 1), 0); /* or a failure would wait for ever */
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    answer(&site, "ok\n", false);
    expect_text(peer, "ok\n");
    close(peer);
    close_site(&site);
}

static void an_answer_starts_the_time_anew(void)
{
    struct site site = hasty_site();
    int peer = dial(site.listener), other = dial(site.listener);

    settle(&site, 2);
    ask_and_be_served(&site, peer);
    int64_t answered = clock_ms();
    say(peer, "\x03", 1, NULL, 0);
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    CHECK_EQ(site.request.why, PZ_WHY_LATE);
    CHECK(clock_ms() - answered >= SHORT_MS - 1);
    expect_end(other);
    pz_close_all((int[]){peer, other}, 2);
    close_site(&site);
}

static void a_signal_does_not_end_the_wait(void)
{
    struct site site = hasty_site();
    int64_t start = clock_ms();
    int peer = dial(site.listener);

    say(peer, "\x03", 1, NULL, 0);
    start_signals();
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    stop_signals();
    CHECK_EQ(site.request.why, PZ_WHY_LATE);
    CHECK(clock_ms() - start >= SHORT_MS);
    close(peer);
    close_site(&site);
}

/* Such a connection must leave epoll by name: its end would be reported again and again. */
static void a_peer_that_is_gone_wakes_nobody(void)
{
    struct site site = hasty_site();
    struct copies copies = {.client = dial(site.listener)};

    CHECK_EQ(pipe2(copies.gate, O_CLOEXEC), 0);
    ask_and_be_served(&site, copies.client);
    int child = start_child(keep_copies, &copies);
    close(copies.client);
    settle_peers(&site, 0);
    int late = dial(site.listener);
    say(late, "\x03", 1, NULL, 0);
    inject_nothing();
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    CHECK(calls_of(CALL_EPOLL_WAIT) < 10);
    close(copies.gate[1]);
    CHECK_EQ(end_child(child), 0);
    pz_close_all((int[]){copies.gate[0], late}, 2);
    close_site(&site);
}

/* ---- who may ask ---- */

struct stranger {
    int listener;
    const char *answer; /* NULL: an end without a word */
};

static void ask_as_nobody(void *argument)
{
    const struct stranger *stranger = argument;

    become_nobody();
    int peer = dial(stranger->listener);
    /* EPIPE where the receiver has closed it already: the answer is there to read all the same. */
    send(peer, "\x04", 1, MSG_NOSIGNAL);
    if (stranger->answer != NULL)
        expect_text(peer, stranger->answer);
    expect_end(peer);
    close(peer);
}

static void another_uid_is_denied(void)
{
    struct site site = open_site(ROOMY);
    struct stranger stranger = {site.listener, "denied\n"};

    need_other_user();
    int child = start_child(ask_as_nobody, &stranger);
    CHECK_EQ(next(&site), PZ_EVENT_DENIED);
    CHECK_EQ(site.request.uid, OTHER_UID);
    CHECK_EQ(site.request.gid, OTHER_UID);
    CHECK_EQ(site.request.pid, child);
    CHECK_EQ(site.request.fd, -1);
    answer(&site, "denied\n", true);
    CHECK_EQ(end_child(child), 0);
    CHECK_EQ(counters(&site).peers, 0);
    close_site(&site);
}

static void a_listed_uid_may_ask(void)
{
    static const uint32_t uids[] = {17, OTHER_UID};
    struct site site = open_site(ROOMY);
    struct stranger stranger = {site.listener, "ok\n"};
    int error;

    need_other_user();
    pz_handoff_free(site.handoff);
    site.handoff = pz_handoff_new(site.listener, site.wake, &ROOMY, uids, COUNT(uids), &error);
    int child = start_child(ask_as_nobody, &stranger);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    CHECK_EQ(site.request.uid, OTHER_UID);
    answer(&site, "ok\n", true);
    CHECK_EQ(end_child(child), 0);
    close_site(&site);
}

static void who_may_not_ask_costs_nobody_a_seat(void)
{
    struct pz_handoff_limits limits = ROOMY;

    limits.max_peers = 1;
    struct site site = open_site(limits);
    struct stranger stranger = {site.listener, NULL};
    int peer = dial(site.listener);
    need_other_user();
    ask_and_be_served(&site, peer);
    int child = start_child(ask_as_nobody, &stranger);
    CHECK_EQ(await(site.listener, POLLIN), POLLIN);
    settle(&site, 2);
    CHECK_EQ(end_child(child), 0);
    ask_and_be_served(&site, peer);
    CHECK_EQ(counters(&site).evicted, 0);
    close(peer);
    close_site(&site);
}

/* ---- descriptors whose end can take time ---- */

static int gate[2];

static void wait_at_the_gate(void)
{
    char byte;

    if (syscall(SYS_gettid) != getpid())
        CHECK_EQ(read(gate[0], &byte, 1), 0);
}

/* A stranger's file, and one that is left unread when its connection is closed. */
static void a_close_that_sleeps_delays_nobody(void)
{
    struct site site = open_site(ROOMY);
    int ends[2], peer = dial(site.listener), leaver = dial(site.listener);

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    CHECK_EQ(pipe2(gate, O_CLOEXEC), 0);
    say(peer, "\x01", 1, &ends[1], 1);
    say(leaver, "\x04", 1, NULL, 0);
    say(leaver, "\x01", 1, &ends[1], 1);
    close(ends[1]);
    at_call(CALL_CLOSE, wait_at_the_gate);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    CHECK_EQ(site.request.not_netns, -EINVAL);
    answer(&site, "no\n", false);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    answer(&site, "bye\n", true);
    expect_text(peer, "no\n");
    ask_and_be_served(&site, peer);
    expect_text(leaver, "bye\n");
    struct pollfd waited = {.fd = ends[0], .events = POLLIN};
    CHECK_EQ(poll(&waited, 1, 0), 0);
    at_call(CALL_CLOSE, NULL);
    close(gate[1]);
    CHECK_EQ(await(ends[0], POLLIN) & POLLHUP, POLLHUP);
    close_site(&site);
    pz_close_all((int[]){ends[0], gate[0], peer, leaver}, 4);
}

/* ---- a full fd table ---- */

static void without_fds_the_longest_idle_makes_room(void)
{
    struct site site = open_site(ROOMY);
    int idle = dial(site.listener), other = dial(site.listener);

    settle(&site, 2);
    int peer = dial(site.listener);
    say(peer, "\x04", 1, NULL, 0);
    fill_fd_table(0);
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    answer(&site, "ok\n", false);
    empty_fd_table();
    expect_text(peer, "ok\n");
    expect_end(idle);
    CHECK(is_open(other));
    CHECK_EQ(counters(&site).accept_errors, 1);
    CHECK_EQ(counters(&site).evicted, 1);
    pz_close_all((int[]){idle, other, peer}, 3);
    close_site(&site);
}

static void without_fds_and_peers_accepting_pauses(void)
{
    struct site site = open_site(ROOMY);
    int peer = dial(site.listener);

    say(peer, "\x04", 1, NULL, 0);
    fill_fd_table(0);
    while (counters(&site).accept_errors == 0)
        turn(&site);
    inject_nothing();
    for (int i = 0; i < 3; i++)
        turn(&site);
    CHECK_EQ(calls_of(CALL_ACCEPT4), 0); /* no loop that only fails */
    empty_fd_table();
    CHECK_EQ(next(&site), PZ_EVENT_LIST);
    answer(&site, "ok\n", false);
    expect_text(peer, "ok\n");
    CHECK_EQ(counters(&site).accept_errors, 1);
    close(peer);
    close_site(&site);
}

static void an_fd_that_found_no_room_is_told(void)
{
    struct site site = open_site(ROOMY);
    int file = open_file(), peer = dial(site.listener);

    say(peer, "\x01", 1, &file, 1);
    fill_fd_table(1); /* for accept4() */
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    empty_fd_table();
    CHECK_EQ(site.request.why, PZ_WHY_FD_TABLE);
    CHECK_EQ(site.request.fd, -1);
    answer(&site, "full\n", true);
    expect_text(peer, "full\n");
    pz_close_all((int[]){file, peer}, 2);
    close_site(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(who_vanishes_while_reading_owes_nothing),
        TEST(a_second_fault_behind_a_first_piece),
        TEST(the_longest_silent_reader_makes_room),
        TEST(who_has_read_everything_need_not_make_room),
        TEST(an_answer_beyond_the_bound_costs_its_reader_alone),
        TEST(the_longest_idle_goes_and_never_the_newcomer),
        TEST(a_crowd),
        TEST(disconnects_at_every_point),
        TEST(a_late_request_is_told),
        TEST(a_byte_now_and_then_prolongs_nothing),
        TEST(a_request_that_came_in_time_is_served_late),
        TEST(an_answer_starts_the_time_anew),
        TEST(a_signal_does_not_end_the_wait),
        TEST(a_peer_that_is_gone_wakes_nobody),
        TEST(another_uid_is_denied),
        TEST(a_listed_uid_may_ask),
        TEST(who_may_not_ask_costs_nobody_a_seat),
        TEST(a_close_that_sleeps_delays_nobody),
        TEST(without_fds_the_longest_idle_makes_room),
        TEST(without_fds_and_peers_accepting_pauses),
        TEST(an_fd_that_found_no_room_is_told),
    };

    return run_tests("handoff.c: bounds", tests, COUNT(tests));
}
