/*
 * test_fdpass_wait.c: waits for a message, for room, and for a listener.
 *
 * Theory of operation: a full socket, an empty one and a listener with a full backlog stand for the
 * three waits; each must end in time, by a signal, or by what it waits for.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { KERNEL_MAX = 253, SHORT_MS = 30, LONG_MS = 5000, BIG = 1 << 20 };

static const int TYPES[] = {SOCK_STREAM, SOCK_SEQPACKET};
static uint8_t big[BIG];

static void close_pair(const int ends[2])
{
    close(ends[0]);
    close(ends[1]);
}

static void fill(int sock)
{
    int rc;

    while ((rc = pz_send(sock, big, 4096, NULL, 0, 0)) > 0)
        continue;
    CHECK_EQ(rc, -ETIMEDOUT);
}

/* ---- waiting ---- */

/* A wait that must not end before its time. */
struct wait {
    const char *name;
    int (*call)(int timeout_ms);
};

static int waiting[2];
static char full_path[64];

static int wait_to_receive(int timeout_ms)
{
    uint8_t byte;
    size_t arrived;

    return pz_recv(waiting[1], &byte, 1, NULL, 0, &arrived, timeout_ms);
}

static int wait_to_send(int timeout_ms)
{
    return pz_send(waiting[0], big, 4096, NULL, 0, timeout_ms);
}

static int wait_to_connect(int timeout_ms)
{
    return pz_unix_connect(full_path, SOCK_STREAM, timeout_ms);
}

static const struct wait WAITS[] = {
    {"receive", wait_to_receive}, {"send", wait_to_send}, {"connect", wait_to_connect}};

static int queued[8];
static size_t nqueued;

/* A socket to receive from without a message, to send to without room, to connect to without room.
 */
static int make_waits(int type)
{
    int listener = unix_listener("full", SOCK_STREAM, 0);

    snprintf(full_path, sizeof full_path, "%s/full", test_dir());
    nqueued = 0;
    while ((queued[nqueued] = pz_unix_connect(full_path, SOCK_STREAM, 0)) >= 0) {
        nqueued++;
        CHECK(nqueued < COUNT(queued));
    }
    CHECK_EQ(queued[nqueued], -ETIMEDOUT);
    unix_pair(type, waiting);
    fill(waiting[0]);
    /* What fill() wrote waits in [1]; a second pair has nothing to read. */
    int empty[2];
    unix_pair(type, empty);
    int full = dup(waiting[0]);
    close(waiting[0]);
    waiting[0] = full;
    queued[nqueued++] = waiting[1];
    queued[nqueued++] = empty[0];
    waiting[1] = empty[1];
    return listener;
}

static void end_waits(int listener)
{
    pz_close_all(queued, nqueued);
    close_pair(waiting);
    close(listener);
    unlink(full_path);
}

static void every_wait_ends_in_time(void)
{
    static const int timeouts[] = {0, 1, SHORT_MS};

    for (size_t t = 0; t < COUNT(TYPES); t++) {
        int listener = make_waits(TYPES[t]);
        for (size_t i = 0; i < COUNT(WAITS); i++)
            for (size_t j = 0; j < COUNT(timeouts); j++) {
                int64_t start = clock_ms();
                in_row("type %d, %s, %d ms", TYPES[t], WAITS[i].name, timeouts[j]);
                CHECK_EQ(WAITS[i].call(timeouts[j]), -ETIMEDOUT);
                CHECK(clock_ms() - start >= timeouts[j]);
                CHECK(clock_ms() - start < LONG_MS);
            }
        end_waits(listener);
    }
}

static void a_signal_ends_every_wait(void)
{
    static const int timeouts[] = {-1, 60000};
    int listener = make_waits(SOCK_STREAM);

    start_signals();
    for (size_t i = 0; i < COUNT(WAITS); i++)
        for (size_t j = 0; j < COUNT(timeouts); j++) {
            in_row("%s, %d ms", WAITS[i].name, timeouts[j]);
            CHECK_EQ(WAITS[i].call(timeouts[j]), -EINTR);
        }
    stop_signals();
    end_waits(listener);
}

/* ---- pz_unix_connect() ---- */

static void connecting(void)
{
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        char path[64];
        struct timeval limit = {.tv_sec = 99};
        socklen_t size = sizeof limit;
        int listener = unix_listener("it", TYPES[t], 4);
        snprintf(path, sizeof path, "%s/it", test_dir());
        for (int timeout_ms = -1; timeout_ms <= 1; timeout_ms++) {
            int sock = pz_unix_connect(path, TYPES[t], timeout_ms);
            CHECK(sock >= 0);
            CHECK(is_cloexec(sock));
            CHECK_EQ(getsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, &size), 0);
            CHECK(limit.tv_sec == 0 && limit.tv_usec == 0);
            close(sock);
        }
        close(listener);
        unlink(path);
    }
}

static void *connect_in_thread(void *result)
{
    *(int *)result = pz_unix_connect(full_path, SOCK_STREAM, -1);
    return NULL;
}

static void connecting_waits_for_room(void)
{
    int listener = make_waits(SOCK_STREAM), result = -1;
    pthread_t caller;

    CHECK_EQ(pthread_create(&caller, NULL, connect_in_thread, &result), 0);
    close(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    CHECK_EQ(pthread_join(caller, NULL), 0);
    CHECK(result >= 0);
    close(result);
    end_waits(listener);
}

static void a_path_may_have_107_bytes(void)
{
    char name[108] = {0}, path[110];
    size_t dir = strlen(test_dir()) + 1;

    memset(name, 'x', 107 - dir);
    int listener = unix_listener(name, SOCK_STREAM, 4);
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    CHECK_EQ(strlen(path), 107);
    int sock = pz_unix_connect(path, SOCK_STREAM, 0);
    CHECK(sock >= 0);
    close(sock);
    close(listener);
    strcat(path, "x");
    CHECK_EQ(pz_unix_connect(path, SOCK_STREAM, 0), -ENAMETOOLONG);
}

static void nobody_connects(void *path)
{
    become_nobody();
    CHECK_EQ(pz_unix_connect(path, SOCK_STREAM, 0), -EACCES);
}

static void each_way_not_to_connect(void)
{
    char path[64], other[64];

    snprintf(path, sizeof path, "%s/it", test_dir());
    snprintf(other, sizeof other, "%s/plain", test_dir());
    CHECK_EQ(pz_unix_connect("", SOCK_STREAM, 0), -ENOENT);
    CHECK_EQ(pz_unix_connect(path, SOCK_STREAM, 0), -ENOENT);
    int listener = unix_listener("it", SOCK_STREAM, 4);
    CHECK_EQ(pz_unix_connect(path, SOCK_SEQPACKET, 0), -EPROTOTYPE);
    CHECK_EQ(pz_unix_connect(path, 99, 0), -EINVAL);
    fill_fd_table(0);
    CHECK_EQ(pz_unix_connect(path, SOCK_STREAM, 0), -EMFILE);
    empty_fd_table();
    close(listener);
    CHECK_EQ(pz_unix_connect(path, SOCK_STREAM, -1), -ECONNREFUSED);
    close(open(other, O_CREAT | O_CLOEXEC | O_WRONLY, 0600));
    CHECK_EQ(pz_unix_connect(other, SOCK_STREAM, -1), -ECONNREFUSED);
}

static void a_directory_that_is_not_ours(void)
{
    char path[64];
    int listener = unix_listener("it", SOCK_STREAM, 4);

    snprintf(path, sizeof path, "%s/it", test_dir());
    need_other_user();
    CHECK_EQ(in_child(nobody_connects, path, NULL, 0), 0);
    close(listener);
}

/* ---- each syscall fails once ---- */

static const struct {
    enum call call;
    int nth, error, expected;
} CONNECT_FAULTS[] = {
    {CALL_SOCKET, 1, ENFILE, -ENFILE},   {CALL_SETSOCKOPT, 1, ENOMEM, -ENOMEM},
    {CALL_SETSOCKOPT, 2, EPERM, -EPERM}, {CALL_CONNECT, 1, EACCES, -EACCES},
    {CALL_CONNECT, 1, EINTR, -EINTR},    {CALL_CONNECT, 1, EAGAIN, -ETIMEDOUT},
};

static void each_fault_of_connecting(void)
{
    char path[64];
    int listener = unix_listener("it", SOCK_STREAM, 16);

    snprintf(path, sizeof path, "%s/it", test_dir());
    for (size_t i = 0; i < COUNT(CONNECT_FAULTS); i++) {
        in_row("row %zu", i);
        inject(CONNECT_FAULTS[i].call, CONNECT_FAULTS[i].nth, CONNECT_FAULTS[i].error);
        CHECK_EQ(pz_unix_connect(path, SOCK_STREAM, LONG_MS), CONNECT_FAULTS[i].expected);
        inject_nothing();
    }
    close(listener);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(every_wait_ends_in_time),
        TEST(a_signal_ends_every_wait),
        TEST(connecting),
        TEST(connecting_waits_for_room),
        TEST(a_path_may_have_107_bytes),
        TEST(each_way_not_to_connect),
        TEST(a_directory_that_is_not_ours),
        TEST(each_fault_of_connecting),
    };

    return run_tests("fdpass.c: waiting and connecting", tests, COUNT(tests));
}
