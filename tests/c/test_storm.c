/*
 * test_storm.c: every call that blocks, with a signal every two milliseconds.
 *
 * Theory of operation: the handler is installed without SA_RESTART, so that every wait in the
 * kernel is cut short. A wait with a deadline comes back with -EINTR each time and its caller goes
 * on with what is left, as Python does; a native wait goes on by itself. Which thread takes the
 * signal is decided by blocking it in the others; the handler counts.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum {
    WAIT_MS = 60,
    LATE_MS = 2000, /* for a host that is busy */
    ROUNDS = 150,
    SIGNALS = 5,
    PORT = 15008,
    QUEUE = 8,
    CHUNK = 4096
};

static atomic_int taken;
static pthread_t target;
static atomic_bool by_another;

static void count(int number)
{
    (void)number;
    atomic_fetch_add(&taken, 1);
    if (!pthread_equal(pthread_self(), target))
        atomic_store(&by_another, true);
}

static void set_mask(int how)
{
    sigset_t mask;

    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    CHECK_EQ(pthread_sigmask(how, &mask, NULL), 0);
}

/* From now on the calling thread, and no other, is interrupted. */
static void start_storm(void)
{
    struct sigaction action = {.sa_handler = count};

    target = pthread_self();
    atomic_store(&taken, 0);
    start_signals();
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    set_mask(SIG_UNBLOCK);
}

static void stop_storm(void)
{
    stop_signals();
    CHECK(!atomic_load(&by_another));
}

/* ---- waits with a deadline ---- */

static int ends[2];
static char path[96];
static uint8_t chunk[CHUNK];

static int receive(int timeout_ms)
{
    uint8_t byte;
    size_t n;

    return pz_recv(ends[1], &byte, 1, NULL, 0, &n, timeout_ms);
}

static int send_more(int timeout_ms)
{
    return pz_send(ends[1], chunk, sizeof chunk, NULL, 0, timeout_ms);
}

static int connect_there(int timeout_ms)
{
    return pz_unix_connect(path, SOCK_STREAM, timeout_ms);
}

/* As a caller does it who wants to wait for WAIT_MS in all. */
static void wait_through(int (*wait)(int timeout_ms), const char *name)
{
    int64_t start = clock_ms(), deadline = start + WAIT_MS;
    int interrupted = 0, rc;

    in_row("%s", name);
    while ((rc = wait(pz_remaining_ms(deadline))) == -EINTR)
        interrupted++;
    CHECK_EQ(rc, -ETIMEDOUT);
    CHECK(clock_ms() - start >= WAIT_MS);
    CHECK(clock_ms() - start < WAIT_MS + LATE_MS);
    CHECK(interrupted >= SIGNALS);
}

static void deadlines_hold(void)
{
    int queued[QUEUE], n = 0, listener = unix_listener("full", SOCK_STREAM, 0);

    snprintf(path, sizeof path, "%s/full", test_dir());
    unix_pair(SOCK_STREAM, ends);
    while (send_more(0) > 0)
        continue;
    while ((queued[n] = connect_there(0)) >= 0)
        CHECK(++n < QUEUE);
    start_storm();
    wait_through(receive, "receive");
    wait_through(send_more, "send");
    wait_through(connect_there, "connect");
    stop_storm();
    pz_close_all(queued, (size_t)n);
    pz_close_all(ends, 2);
    close(listener);
}

/* ---- messages ---- */

static void *say_many(void *unused)
{
    int fd = open_netns();

    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        uint8_t byte = (uint8_t)i;
        say(ends[1], &byte, 1, &fd, 1);
        if (i % 8 == 7) /* the other side has read everything */
            CHECK_EQ(await(ends[1], POLLIN) != 0 && recv(ends[1], &byte, 1, 0) == 1, 1);
    }
    close(fd);
    return NULL;
}

/* Nothing is lost and nothing comes twice, and every descriptor with it. */
static void no_message_is_lost(void)
{
    pthread_t speaker;

    unix_pair(SOCK_SEQPACKET, ends);
    set_mask(SIG_BLOCK);
    CHECK_EQ(pthread_create(&speaker, NULL, say_many, NULL), 0);
    start_storm();
    for (int i = 0; i < ROUNDS; i++) {
        uint8_t byte;
        size_t n;
        int fd, rc;
        while ((rc = pz_recv(ends[0], &byte, 1, &fd, 1, &n, -1)) == -EINTR)
            continue;
        CHECK_EQ(rc, 1);
        CHECK_EQ(byte, (uint8_t)i);
        CHECK_EQ(n, 1);
        close(fd);
        if (i % 8 == 7)
            say(ends[0], "", 1, NULL, 0);
    }
    stop_storm();
    CHECK_EQ(pthread_join(speaker, NULL), 0);
    pz_close_all(ends, 2);
}

/* ---- excursions ---- */

static void visit_often(void *argument)
{
    const int *pod = argument;
    uint64_t before = netns_here();
    int visits = 0;

    start_storm();
    while (visits++ < ROUNDS || atomic_load(&taken) < SIGNALS) {
        struct pz_listener wanted[2] = {on_loopback(PORT), on_loopback6(PORT)};
        uint64_t cookie;
        int fds[2];
        CHECK_EQ(pz_listen(*pod, -1, wanted, 2, fds, NULL), 0);
        int sock = pz_socket(*pod, -1, AF_INET, SOCK_DGRAM, 0, NULL), fresh = new_pod();
        CHECK_EQ(netns_of_socket(fds[1]), netns_of(*pod));
        CHECK_EQ(netns_of_socket(sock), netns_of(*pod));
        CHECK_EQ(pz_netns_cookie(*pod, -1, &cookie, NULL), 0);
        CHECK_EQ(netns_here(), before);
        pz_close_all((int[]){fds[0], fds[1], sock, fresh}, 4);
    }
    stop_storm();
}

static void every_excursion_comes_home(void)
{
    need_namespaces();
    int pod = new_pod();
    in_row("main");
    visit_often(&pod);
    set_mask(SIG_BLOCK);
    in_row("worker");
    in_worker(visit_often, &pod);
    close(pod);
}

/* ---- the receiver ---- */

static void *ask_many(void *argument)
{
    const struct site *site = argument;
    int pod = open_netns(), staying = dial(site->listener);

    for (int i = 0; i < ROUNDS; i++) {
        int peer = i % 2 == 0 ? dial(site->listener) : staying;
        say(peer, "\x01", 1, &pod, 1);
        expect_text(peer, "taken\n");
        if (peer != staying)
            close(peer);
    }
    CHECK(is_open(staying));
    pz_close_all((int[]){pod, staying}, 2);
    CHECK_EQ(eventfd_write(site->wake, 1), 0);
    return NULL;
}

static void each_request_is_served_once(void)
{
    struct site site = open_site(ROOMY);
    pthread_t clients;
    int served = 0, event;

    set_mask(SIG_BLOCK);
    CHECK_EQ(pthread_create(&clients, NULL, ask_many, &site), 0);
    start_storm();
    while ((event = next(&site)) != PZ_EVENT_WOKEN) {
        CHECK_EQ(event, PZ_EVENT_TAKE);
        close(site.request.fd);
        answer(&site, "taken\n", false);
        served++;
    }
    CHECK_EQ(pthread_join(clients, NULL), 0);
    stop_storm();
    CHECK_EQ(served, ROUNDS);
    CHECK_EQ(counters(&site).accepted, ROUNDS / 2 + 1);
    CHECK_EQ(counters(&site).expired, 0);
    CHECK_EQ(counters(&site).accept_errors, 0);
    close_site(&site);
}

static void the_drain_has_its_time(void)
{
    struct large large = new_large();
    struct site site = open_site(ROOMY);
    int reader = ask_and_not_read(&site, &large);

    start_storm();
    int64_t start = clock_ms();
    pz_handoff_drain(site.handoff, WAIT_MS);
    CHECK_EQ(next(&site), PZ_EVENT_QUIET);
    CHECK(clock_ms() - start >= WAIT_MS);
    CHECK(clock_ms() - start < WAIT_MS + LATE_MS);
    CHECK(atomic_load(&taken) >= SIGNALS);
    stop_storm();
    close(reader);
    free(large.text);
    close_site(&site);
}

/* A peer that says nothing is closed when its time is over, not by a signal before. */
static void a_peer_has_its_time(void)
{
    struct pz_handoff_limits limits = ROOMY;
    limits.deadline_ms = WAIT_MS;
    struct site site = open_site(limits);
    int silent = dial(site.listener);
    int64_t start = clock_ms();

    say(silent, "\x03", 1, NULL, 0);
    start_storm();
    CHECK_EQ(next(&site), PZ_EVENT_MALFORMED);
    CHECK_EQ(site.request.why, PZ_WHY_LATE);
    CHECK(clock_ms() - start >= WAIT_MS);
    CHECK(clock_ms() - start < WAIT_MS + LATE_MS);
    stop_storm();
    close(silent);
    close_site(&site);
}

/* ---- the responder ---- */

struct answering {
    struct pz_responder *responder;
    int listener, wake;
};

static void *call_many(void *argument)
{
    const struct answering *it = argument;

    for (int i = 0; i < ROUNDS; i++) {
        char text[8];
        int client = dial_tcp(it->listener), how;
        CHECK_EQ(hear(client, text, sizeof text, &how), 3);
        CHECK_EQ(how, 0);
        close(client);
    }
    CHECK_EQ(eventfd_write(it->wake, 1), 0);
    return NULL;
}

static void the_responder_answers_everyone(void)
{
    struct answering it = {.listener = tcp_listener(), .wake = eventfd(0, EFD_CLOEXEC)};
    pthread_t clients;
    int error = 0;

    it.responder = pz_responder_new(it.wake, ROUNDS, LONG_MS, &error);
    CHECK_EQ(error, 0);
    CHECK_EQ(pz_responder_watch(it.responder, &it.listener, 1), 0);
    set_mask(SIG_BLOCK);
    CHECK_EQ(pthread_create(&clients, NULL, call_many, &it), 0);
    start_storm();
    CHECK_EQ(pz_responder_run(it.responder), 0);
    CHECK_EQ(pthread_join(clients, NULL), 0);
    int silent = dial_tcp(it.listener);
    CHECK_EQ(pz_responder_accept_queued(it.responder, WAIT_MS), 0);
    pz_responder_forget(it.responder, &it.listener, 1);
    int64_t start = clock_ms();
    CHECK_EQ(pz_responder_finish(it.responder, WAIT_MS), 1);
    CHECK(clock_ms() - start >= WAIT_MS);
    CHECK(clock_ms() - start < WAIT_MS + LATE_MS);
    CHECK(atomic_load(&taken) >= SIGNALS);
    stop_storm();
    pz_responder_free(it.responder);
    pz_close_all((int[]){silent, it.listener, it.wake}, 3);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(deadlines_hold),
        TEST(no_message_is_lost),
        TEST(every_excursion_comes_home),
        TEST(each_request_is_served_once),
        TEST(the_drain_has_its_time),
        TEST(a_peer_has_its_time),
        TEST(the_responder_answers_everyone),
    };

    return run_tests("a storm of signals", tests, COUNT(tests));
}
