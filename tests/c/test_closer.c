/*
 * test_closer.c: descriptors of strangers are closed in a thread of their own.
 *
 * Theory of operation: that a descriptor is closed shows at the other end of its pipe. A close()
 * that sleeps is made by hold(), a hook before the closer's close() that waits for release(); the
 * test's own thread, which is the main one, passes.
 */
#include "closer.h"

#include "harness.h"
#include "inject.h"
#include "internal.h"
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { MANY = 1000, PATIENCE_MS = 1000 };

static bool on_main_thread(void)
{
    return syscall(SYS_gettid) == getpid();
}

static int gate[2];
static atomic_bool passed;

static void wait_at_the_gate(void)
{
    char byte;

    if (on_main_thread())
        return;
    CHECK_EQ(read(gate[0], &byte, 1), 0);
    atomic_store(&passed, true);
}

static void hold(void)
{
    CHECK_EQ(pipe2(gate, O_CLOEXEC), 0);
    at_call(CALL_CLOSE, wait_at_the_gate);
}

static void release(void)
{
    at_call(CALL_CLOSE, NULL);
    close(gate[1]);
}

static struct pz_closer *new_closer(void)
{
    int error = 99;
    struct pz_closer *closer = pz_closer_new(&error);

    CHECK(closer != NULL);
    CHECK_EQ(error, 0);
    return closer;
}

struct pipe_ends {
    int read, write;
};

static struct pipe_ends new_pipe(void)
{
    int ends[2];

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    return (struct pipe_ends){ends[0], ends[1]};
}

static bool is_closed(int read_end)
{
    struct pollfd waited = {.fd = read_end, .events = POLLIN};

    return poll(&waited, 1, 0) == 1 && waited.revents & POLLHUP;
}

static void what_it_takes_is_closed(void)
{
    struct pz_closer *closer = new_closer();

    for (int i = 0; i < MANY; i++) {
        struct pipe_ends ends = new_pipe();
        pz_closer_take(closer, ends.write);
        CHECK_EQ(await(ends.read, POLLIN) & POLLHUP, POLLHUP);
        close(ends.read);
    }
    pz_closer_quit(closer);
}

static void quitting_closes_the_rest(void)
{
    enum { FEW = 100 };
    struct pz_closer *closer = new_closer();
    int reads[FEW];

    for (int i = 0; i < FEW; i++) {
        struct pipe_ends ends = new_pipe();
        reads[i] = ends.read;
        pz_closer_take(closer, ends.write);
    }
    pz_closer_quit(closer);
    for (int i = 0; i < FEW; i++)
        CHECK(is_closed(reads[i]));
    pz_close_all(reads, FEW);
}

static void a_close_that_sleeps_holds_up_nobody(void)
{
    struct pz_closer *closer = new_closer();
    struct pipe_ends first = new_pipe(), second = new_pipe();

    hold();
    pz_closer_take(closer, first.write);
    pz_closer_take(closer, second.write);
    CHECK(!is_closed(first.read) && !is_closed(second.read));
    release();
    CHECK_EQ(await(second.read, POLLIN) & POLLHUP, POLLHUP);
    CHECK(is_closed(first.read));
    pz_closer_quit(closer);
    pz_close_all((int[]){first.read, second.read, gate[0]}, 3);
}

/* Then the caller leaves it open and goes on: a thread that may sleep for ever is none to wait for.
 */
static void with_the_ring_full_it_stays_open(void)
{
    struct pz_closer *closer = new_closer();
    struct pipe_ends ends = new_pipe();

    hold();
    inject_nothing();
    for (int i = 0; i < PZ_CLOSER_ROOM; i++)
        pz_closer_take(closer, dup(ends.write));
    while (calls_of(CALL_CLOSE) == 0) /* the thread has come to the gate with the first */
        sched_yield();
    pz_closer_take(closer, dup(ends.write)); /* in place of the one that the thread has */
    int64_t start = clock_ms();
    pz_closer_take(closer, ends.write);
    CHECK(clock_ms() - start < PATIENCE_MS);
    CHECK_EQ(calls_of(CALL_CLOSE), 1);
    CHECK(fcntl(ends.write, F_GETFD) >= 0);
    release();
    CHECK(!is_closed(ends.read));
    close(ends.write);
    CHECK_EQ(await(ends.read, POLLIN) & POLLHUP, POLLHUP);
    pz_closer_quit(closer);
    pz_close_all((int[]){ends.read, gate[0]}, 2);
}

static void quitting_does_not_wait_for_ever(void)
{
    struct pz_closer *closer = new_closer();
    struct pipe_ends stuck = new_pipe();
    int64_t start = clock_ms();

    hold();
    pz_closer_take(closer, stuck.write);
    pz_closer_quit(closer);
    CHECK(clock_ms() - start >= PATIENCE_MS - 1);
    CHECK(!is_closed(stuck.read));
    release(); /* and the thread ends by itself; what it leaves would be found as a leak */
    CHECK_EQ(await(stuck.read, POLLIN) & POLLHUP, POLLHUP);
    CHECK(atomic_load(&passed)); /* which also tells TSan that the thread is done with the gate */
    pz_close_all((int[]){stuck.read, gate[0]}, 2);
}

/* Setting an option waits for the lock of the socket, which its other owners can hold as long as
 * they like: by a write from memory that nobody serves. */
static void expect_the_closer(void)
{
    CHECK(!on_main_thread());
}

static void the_caller_asks_a_stranger_nothing(void)
{
    struct pz_closer *closer = new_closer();

    at_call(CALL_SETSOCKOPT, expect_the_closer);
    pz_closer_take(closer, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    pz_closer_quit(closer);
    at_call(CALL_SETSOCKOPT, NULL);
}

static void a_lingering_socket_ends_at_once(void)
{
    static const char words[1 << 16];
    struct linger patient = {1, 60};
    struct pz_closer *closer = new_closer();
    struct pipe_ends behind = new_pipe();
    int listener = tcp_listener(), client = dial_tcp(listener);

    CHECK_EQ(await(listener, POLLIN), POLLIN);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while (send(client, words, sizeof words, MSG_DONTWAIT) > 0)
        continue; /* until more is unsent than the other end takes */
    CHECK_EQ(setsockopt(client, SOL_SOCKET, SO_LINGER, &patient, sizeof patient), 0);
    pz_closer_take(closer, client);
    pz_closer_take(closer, behind.write);
    CHECK_EQ(await(behind.read, POLLIN) & POLLHUP, POLLHUP);
    pz_closer_quit(closer);
    pz_close_all((int[]){listener, server, behind.read}, 3);
}

static void expect_signals_blocked(void)
{
    sigset_t mask;

    if (on_main_thread())
        return;
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    CHECK(sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGUSR1) == 1);
}

static void its_thread_takes_no_signal(void)
{
    struct pz_closer *closer = new_closer();
    sigset_t mask;

    at_call(CALL_CLOSE, expect_signals_blocked);
    pz_closer_take(closer, dup(STDERR_FILENO));
    pz_closer_quit(closer);
    at_call(CALL_CLOSE, NULL);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    CHECK_EQ(sigismember(&mask, SIGTERM), 0);
}

static void what_cannot_be_made(void)
{
    int error = 99;

    inject(CALL_CALLOC, 1, ENOMEM);
    CHECK(pz_closer_new(&error) == NULL);
    CHECK_EQ(error, -ENOMEM);
    inject(CALL_PTHREAD_CREATE, 1, EAGAIN);
    CHECK(pz_closer_new(&error) == NULL);
    CHECK_EQ(error, -EAGAIN);
    inject_nothing();
}

int main(void)
{
    static const struct test tests[] = {
        TEST(what_it_takes_is_closed),
        TEST(quitting_closes_the_rest),
        TEST(a_close_that_sleeps_holds_up_nobody),
        TEST(with_the_ring_full_it_stays_open),
        TEST(quitting_does_not_wait_for_ever),
        TEST(the_caller_asks_a_stranger_nothing),
        TEST(a_lingering_socket_ends_at_once),
        TEST(its_thread_takes_no_signal),
        TEST(what_cannot_be_made),
    };

    return run_tests("closer.c", tests, COUNT(tests));
}
