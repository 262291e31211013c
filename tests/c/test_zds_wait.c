/*
 * test_zds_wait.c: how the wait for a message of a node agent ends without one.
 *
 * Theory of operation: seqpacket pairs, the agent's end here too: it closes, or another thread
 * wakes the wait, or time passes. No wait may end before its time, by any clock, and none without a
 * reason.
 */
#include "internal.h"

#include "agent.h"
#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

/* Nothing of an earlier event is left in what comes with this one. */
static void expect_nothing(const struct pz_zds_request *request)
{
    CHECK_EQ(request->inode, 0);
    CHECK_EQ(request->cookie, 0);
    CHECK_EQ(request->fd, -1);
    CHECK_EQ(request->not_netns, 0);
    CHECK_EQ(request->lost, 0);
    CHECK_EQ(request->failed, 0);
    CHECK_EQ(request->unsent, 0);
    CHECK_EQ(request->nfds, 0);
    CHECK_EQ(request->size, 0);
}

/* ---- the end ---- */

static void expect_closed(struct line *line, int lost)
{
    CHECK_EQ(hear_agent(line), PZ_ZDS_CLOSED);
    CHECK_EQ(line->request.lost, lost);
    CHECK_EQ(line->request.fd, -1);
    CHECK_EQ(line->request.size, 0);
}

static void close_agent(struct line *line)
{
    close(line->agent);
    line->agent = open_file();
}

static void what_was_sent_comes_before_the_end(void)
{
    struct line line = open_line();
    int netns = open_netns();

    tell(&line, DEL, DEL_SIZE, NULL, 0);
    tell_add(&line, netns);
    close_agent(&line);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    expect_add(&line, hear_agent(&line), netns);
    pz_close_all((int[]){line.request.fd, netns}, 2);
    for (int i = 0; i < 3; i++)
        expect_closed(&line, 0);
    close_line(&line);
}

static void an_agent_that_only_stops_sending(void)
{
    struct line line = open_line();

    CHECK_EQ(shutdown(line.agent, SHUT_WR), 0);
    expect_closed(&line, 0);
    close_line(&line);
}

/* unix(7): it cannot be told from the end. What comes with it is closed. */
static void a_message_without_bytes_is_the_end(void)
{
    struct line line = open_line();
    int ends[2];

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    tell(&line, "", 0, NULL, 0);
    expect_closed(&line, 0);
    tell(&line, "", 0, &ends[1], 1);
    close(ends[1]);
    expect_closed(&line, 0);
    CHECK_EQ(line.request.nfds, 1);
    CHECK(ends_soon(ends[0]));
    close(ends[0]);
    close_line(&line);
}

static void an_agent_that_dies_with_answers_unread(void)
{
    struct line line = open_line();

    CHECK_EQ(send(line.sock, ACK, ACK_SIZE, 0), ACK_SIZE);
    close_agent(&line);
    expect_closed(&line, -ECONNRESET);
    close_line(&line);
}

static void what_is_no_connection(void)
{
    struct line line = open_line();
    int kept = line.sock;

    line.sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    expect_closed(&line, -ENOTCONN);
    close(line.sock);
    line.sock = eventfd(1, EFD_CLOEXEC);
    expect_closed(&line, -ENOTSOCK);
    close(line.sock);
    expect_closed(&line, -EBADF);
    line.sock = kept;
    close_line(&line);
}

/* Behind a packet without bytes something stays unread, for which the kernel may report an error
 * first (net/unix/af_unix.c); it goes by. */
static ssize_t hear_behind_reset(const struct line *line, char *got, size_t size)
{
    ssize_t heard = recv(line->agent, got, size, 0);

    return heard == -1 && errno == ECONNRESET ? recv(line->agent, got, size, 0) : heard;
}

/* Whatever is unread ends, here in a thread of its own, and the agent learns of the end. */
static void hanging_up_ends_what_was_not_read(void)
{
    struct line line = open_line();
    int ends[2];
    char got[ACK_SIZE + 1];

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    tell(&line, DEL, DEL_SIZE, NULL, 0);
    tell(&line, "", 0, &ends[1], 1);
    tell(&line, DEL, DEL_SIZE, &ends[1], 1);
    close(ends[1]);
    CHECK_EQ(send(line.sock, ACK, ACK_SIZE, 0), ACK_SIZE);
    pz_zds_hang_up(line.zds, line.sock);
    CHECK_EQ(hear_behind_reset(&line, got, sizeof got), ACK_SIZE);
    CHECK_EQ(hear_behind_reset(&line, got, sizeof got), 0);
    CHECK(ends_soon(ends[0]));
    close(ends[0]);
    line.sock = open_file();
    close_line(&line);
}

/* ---- wake ---- */

static void the_wake_goes_first(void)
{
    struct line line = open_line();
    int netns = open_netns();
    uint64_t value;

    tell_add(&line, netns);
    CHECK_EQ(eventfd_write(line.wake, 1), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(hear_agent(&line), PZ_ZDS_WOKEN);
        expect_nothing(&line.request);
    }
    CHECK_EQ(eventfd_read(line.wake, &value), 0);
    CHECK_EQ(value, 1);
    expect_add(&line, hear_agent(&line), netns);
    pz_close_all((int[]){line.request.fd, netns}, 2);
    close_line(&line);
}

static void *wake(void *line)
{
    CHECK_EQ(eventfd_write(((const struct line *)line)->wake, 1), 0);
    return NULL;
}

static void *send_del(void *line)
{
    tell(line, DEL, DEL_SIZE, NULL, 0);
    return NULL;
}

static void a_wait_for_ever_ends_by_another_thread(void)
{
    static const struct {
        void *(*act)(void *);
        bool without_connection;
        int event;
    } rows[] = {
        {wake, false, PZ_ZDS_WOKEN}, {wake, true, PZ_ZDS_WOKEN}, {send_del, false, PZ_ZDS_MESSAGE}};

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct line line = open_line();
        pthread_t other;
        in_row("way %zu", i);
        CHECK_EQ(pthread_create(&other, NULL, rows[i].act, &line), 0);
        int sock = rows[i].without_connection ? -1 : line.sock;
        CHECK_EQ(pz_zds_next(line.zds, sock, -1, 1, &line.request), rows[i].event);
        CHECK_EQ(pthread_join(other, NULL), 0);
        close_line(&line);
    }
}

/* ---- time ---- */

static int64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void wait_in_vain(struct line *line, int sock, int ms)
{
    int64_t began = clock_ns();

    CHECK_EQ(pz_zds_next(line->zds, sock, ms, 1, &line->request), PZ_ZDS_DUE);
    CHECK(clock_ns() - began >= (int64_t)ms * 1000000);
    expect_nothing(&line->request);
}

static void no_wait_ends_early(void)
{
    static const int times[] = {0, 1, 2, 3, 30};
    struct line line = open_line();

    for (int signals = 0; signals < 2; signals++) {
        if (signals)
            start_signals();
        for (size_t i = 0; i < COUNT(times); i++)
            for (int again = 0; again < 5; again++) {
                in_row("%d ms%s", times[i], signals ? ", with signals" : "");
                wait_in_vain(&line, line.sock, times[i]);
                wait_in_vain(&line, -1, times[i]);
            }
    }
    stop_signals();
    close_line(&line);
}

static void without_time_it_looks_all_the_same(void)
{
    struct line line = open_line();
    int netns = open_netns();

    tell_add(&line, netns);
    expect_add(&line, pz_zds_next(line.zds, line.sock, 0, 1, &line.request), netns);
    close(line.request.fd);
    CHECK_EQ(eventfd_write(line.wake, 1), 0);
    CHECK_EQ(pz_zds_next(line.zds, -1, 0, 1, &line.request), PZ_ZDS_WOKEN);
    expect_nothing(&line.request);
    close(netns);
    close_line(&line);
}

/* poll() said that there is something, and there is nothing. */
static void a_false_alarm(void)
{
    struct line line = open_line();
    int netns = open_netns();

    tell_add(&line, netns);
    inject(CALL_RECVMSG, 1, EAGAIN);
    expect_add(&line, hear_agent(&line), netns);
    CHECK_EQ(calls_of(CALL_RECVMSG), 2);
    inject_nothing();
    pz_close_all((int[]){line.request.fd, netns}, 2);
    close_line(&line);
}

static bool fails_poll(enum call call, const void *back, int *error)
{
    (void)back;
    *error = ENOMEM;
    return call == CALL_POLL;
}

/* Then only the clock ends it. */
static void a_poll_that_never_succeeds(void)
{
    struct line line = open_line();

    at_every_call(fails_poll);
    wait_in_vain(&line, line.sock, 3);
    at_every_call(NULL);
    close_line(&line);
}

/* ---- a wait that cannot be made ---- */

static void what_cannot_be_made(void)
{
    static const struct {
        enum call call;
        int nth, error;
    } rows[] = {{CALL_CALLOC, 1, ENOMEM},
                {CALL_CALLOC, 2, ENOMEM},
                {CALL_OPEN, 1, EMFILE},
                {CALL_FSTATFS, 1, EIO},
                {CALL_PTHREAD_CREATE, 1, EAGAIN}};

    for (size_t i = 0; i < COUNT(rows); i++) {
        int error = 99;
        in_row("%s()", call_name(rows[i].call));
        inject(rows[i].call, rows[i].nth, rows[i].error);
        CHECK(pz_zds_new(-1, &error) == NULL);
        CHECK_EQ(error, -rows[i].error);
        inject_nothing();
    }
    pz_zds_free(NULL);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(what_was_sent_comes_before_the_end),
        TEST(an_agent_that_only_stops_sending),
        TEST(a_message_without_bytes_is_the_end),
        TEST(an_agent_that_dies_with_answers_unread),
        TEST(what_is_no_connection),
        TEST(hanging_up_ends_what_was_not_read),
        TEST(the_wake_goes_first),
        TEST(a_wait_for_ever_ends_by_another_thread),
        TEST(no_wait_ends_early),
        TEST(without_time_it_looks_all_the_same),
        TEST(a_false_alarm),
        TEST(a_poll_that_never_succeeds),
        TEST(what_cannot_be_made),
    };

    return run_tests("zds.c: waiting", tests, COUNT(tests));
}
