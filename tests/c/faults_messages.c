/*
 * faults_messages.c: see faults.h. What is received by a failed call is closed; what a failed call
 * did not take is still there.
 */
#include "faults.h"

#include "harness.h"
#include "inject.h"
#include "internal.h"
#include "support.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SHORT_MS = 2, PATIENCE_MS = 1000, BIG = 1 << 16 };

static int ends[2];
static int files[2];
static int arrived[2];
static size_t narrived;

static void open_pair(void)
{
    unix_pair(SOCK_STREAM, ends);
    files[0] = pz_netns_home();
    files[1] = pz_netns_home();
    CHECK(files[0] >= 0 && files[1] >= 0);
    narrived = 0;
}

static void close_pair(void)
{
    pz_close_all(ends, 2);
    pz_close_all(files, 2);
}

/* ---- send ---- */

static int send_two(struct pz_failure *failure)
{
    (void)failure;
    return pz_send(ends[0], (const uint8_t *)"abc", 3, files, 2, PATIENCE_MS);
}

static void expect_sent_or_nothing(int result)
{
    uint8_t byte[3];
    size_t n;
    int fds[2];
    int got = pz_recv(ends[1], byte, sizeof byte, fds, 2, &n, 0);

    CHECK_EQ(got, result < 0 ? -ETIMEDOUT : result);
    if (got > 0) {
        CHECK_EQ(n, 2);
        pz_close_all(fds, 2);
    }
    close_pair();
}

static void open_full_pair(void)
{
    static const uint8_t big[BIG];

    open_pair();
    while (pz_send(ends[0], big, sizeof big, NULL, 0, 0) > 0)
        continue;
}

static int send_without_room(struct pz_failure *failure)
{
    (void)failure;
    return pz_send(ends[0], (const uint8_t *)"abc", 3, files, 2, SHORT_MS);
}

static void close_full_pair(int result)
{
    (void)result;
    close_pair();
}

/* ---- receive ---- */

static void open_pair_with_message(void)
{
    open_pair();
    say(ends[0], "abc", 3, files, 2);
}

static int receive_two(struct pz_failure *failure)
{
    uint8_t byte[8];

    (void)failure;
    return pz_recv(ends[1], byte, sizeof byte, arrived, 2, &narrived, PATIENCE_MS);
}

/* A call that failed took nothing: the message comes with the next. */
static void expect_received_or_waiting(int result)
{
    if (result < 0 && result != -EMFILE)
        CHECK_EQ(receive_two(NULL), 3);
    else if (result >= 0)
        CHECK_EQ(result, 3);
    CHECK_EQ(narrived, result == -EMFILE ? 0 : 2);
    pz_close_all(arrived, narrived);
    close_pair();
}

static int receive_nothing(struct pz_failure *failure)
{
    uint8_t byte;

    (void)failure;
    return pz_recv(ends[1], &byte, 1, arrived, 2, &narrived, SHORT_MS);
}

/* The wait for ever that a signal ends. */
static void open_pair_and_interrupt(void)
{
    open_pair();
    inject(CALL_POLL, 1, EINTR);
}

static int receive_for_ever(struct pz_failure *failure)
{
    uint8_t byte;

    (void)failure;
    return pz_recv(ends[1], &byte, 1, arrived, 2, &narrived, -1);
}

static void expect_no_message(int result)
{
    (void)result;
    CHECK_EQ(narrived, 0);
    close_pair();
}

/* One more descriptor than the caller wants. */
static int receive_one_of_two(struct pz_failure *failure)
{
    uint8_t byte[8];

    (void)failure;
    return pz_recv(ends[1], byte, sizeof byte, arrived, 1, &narrived, PATIENCE_MS);
}

/* The fd table is full, as the kernel tells when it is asked for one more. */
static int receive_with_full_table(struct pz_failure *failure)
{
    fill_fd_table(1);
    int rc = receive_two(failure);
    empty_fd_table();
    return rc;
}

static void expect_message_lost(int result)
{
    CHECK(result < 0);
    CHECK_EQ(narrived, 0);
    close_pair();
}

/* ---- connect ---- */

static int listener = -1;
static char path[96];

static void open_listener(void)
{
    listener = unix_listener("here", SOCK_STREAM, 4);
    snprintf(path, sizeof path, "%s/here", test_dir());
}

static int connect_there(struct pz_failure *failure)
{
    (void)failure;
    return pz_unix_connect(path, SOCK_STREAM, PATIENCE_MS);
}

static int connect_at_once(struct pz_failure *failure)
{
    (void)failure;
    return pz_unix_connect(path, SOCK_STREAM, 0);
}

static void close_listener(int result)
{
    if (result >= 0) {
        CHECK(is_cloexec(result));
        CHECK_EQ(fcntl(result, F_GETFL) & O_NONBLOCK, 0);
        close(result);
    }
    close(listener);
    unlink(path);
}

struct scenarios message_scenarios(void)
{
    static const struct scenario all[] = {
        {.name = "send", .set_up = open_pair, .run = send_two, .tear_down = expect_sent_or_nothing},
        {.name = "send without room",
         .set_up = open_full_pair,
         .run = send_without_room,
         .tear_down = close_full_pair,
         .expected = -ETIMEDOUT},
        {.name = "receive",
         .set_up = open_pair_with_message,
         .run = receive_two,
         .tear_down = expect_received_or_waiting,
         .opens = true},
        {.name = "receive nothing",
         .set_up = open_pair,
         .run = receive_nothing,
         .tear_down = expect_no_message,
         .expected = -ETIMEDOUT},
        {.name = "receive for ever",
         .set_up = open_pair_and_interrupt,
         .run = receive_for_ever,
         .tear_down = expect_no_message,
         .expected = -EINTR},
        {.name = "receive too many",
         .set_up = open_pair_with_message,
         .run = receive_one_of_two,
         .tear_down = expect_no_message,
         .expected = -EPROTO},
        {.name = "receive with a full table",
         .set_up = open_pair_with_message,
         .run = receive_with_full_table,
         .tear_down = expect_message_lost,
         .expected = -EMFILE},
        {.name = "connect",
         .set_up = open_listener,
         .run = connect_there,
         .tear_down = close_listener,
         .opens = true},
        {.name = "connect at once",
         .set_up = open_listener,
         .run = connect_at_once,
         .tear_down = close_listener,
         .opens = true},
    };

    return (struct scenarios){all, COUNT(all)};
}
