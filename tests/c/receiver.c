/*
 * receiver.c: see receiver.h.
 */
#include "receiver.h"

#include "harness.h"
#include "internal.h"
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PATIENCE_MS = 5000 };

const struct pz_handoff_limits ROOMY = {
    .max_peers = 64, .deadline_ms = LONG_MS, .max_unsent = 1 << 26};

struct site open_site(struct pz_handoff_limits limits)
{
    struct site site = {.listener = unix_listener(NULL, SOCK_STREAM, 512),
                        .wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    int error = 99;

    site.handoff = pz_handoff_new(site.listener, site.wake, &limits, NULL, 0, &error);
    CHECK_EQ(error, 0);
    CHECK(site.handoff != NULL);
    return site;
}

void close_site(struct site *site)
{
    pz_handoff_free(site->handoff);
    close(site->listener);
    close(site->wake);
}

struct pz_handoff_counters counters(const struct site *site)
{
    struct pz_handoff_counters counters;

    pz_handoff_counters(site->handoff, &counters);
    return counters;
}

int next(struct site *site)
{
    return pz_handoff_next(site->handoff, &site->request);
}

void answer(struct site *site, const char *text, bool close_after)
{
    CHECK_EQ(pz_handoff_answer(site->handoff, site->request.peer, (const uint8_t *)text,
                               strlen(text), close_after),
             0);
}

/* ---- what a peer sees ---- */

void expect_text(int sock, const char *text)
{
    char got[64];
    int error;

    CHECK_EQ(hear(sock, got, strlen(text), &error), strlen(text));
    CHECK(memcmp(got, text, strlen(text)) == 0);
}

void expect_end(int sock)
{
    char got[4];
    int error;

    CHECK_EQ(hear(sock, got, sizeof got, &error), 0);
    CHECK(error == 0 || error == ECONNRESET);
}

bool is_open(int sock)
{
    struct pollfd peer = {.fd = sock, .events = POLLIN};

    CHECK(poll(&peer, 1, 0) >= 0);
    return (peer.revents & (POLLHUP | POLLERR)) == 0;
}

void turn(struct site *site)
{
    uint64_t value;

    CHECK_EQ(eventfd_write(site->wake, 1), 0);
    CHECK_EQ(next(site), PZ_EVENT_WOKEN);
    CHECK_EQ(eventfd_read(site->wake, &value), 0);
}

void settle(struct site *site, uint64_t accepted)
{
    int64_t give_up = clock_ms() + PATIENCE_MS;

    while (counters(site).accepted < accepted) {
        CHECK(clock_ms() < give_up);
        turn(site);
    }
}

void drive(struct site *site, int peer)
{
    struct pollfd waited = {.fd = peer, .events = POLLIN};
    int64_t give_up = clock_ms() + PATIENCE_MS;
    uint64_t value;

    while (poll(&waited, 1, 1) == 0) {
        CHECK(clock_ms() < give_up);
        CHECK_EQ(eventfd_write(site->wake, 1), 0);
        int event = next(site);
        if (event == PZ_EVENT_LIST)
            answer(site, "ok\n", false);
        else
            CHECK_EQ(event, PZ_EVENT_WOKEN);
        CHECK_EQ(eventfd_read(site->wake, &value), 0);
    }
}

void settle_peers(struct site *site, uint32_t peers)
{
    int64_t give_up = clock_ms() + PATIENCE_MS;

    while (counters(site).peers != peers) {
        CHECK(clock_ms() < give_up);
        turn(site);
    }
}

/* Twice: the first time the wake may be reported before the peer. */
int step(struct site *site)
{
    uint64_t value;
    int event = PZ_EVENT_WOKEN;

    for (int i = 0; i < 2 && event == PZ_EVENT_WOKEN; i++) {
        CHECK_EQ(eventfd_write(site->wake, 1), 0);
        event = next(site);
        CHECK_EQ(eventfd_read(site->wake, &value), 0);
    }
    return event == PZ_EVENT_WOKEN ? 0 : event;
}

void ask_and_be_served(struct site *site, int peer)
{
    say(peer, "\x04", 1, NULL, 0);
    CHECK_EQ(next(site), PZ_EVENT_LIST);
    answer(site, "ok\n", false);
    expect_text(peer, "ok\n");
}

static int send_buffer(void)
{
    int ends[2], size = 0;
    socklen_t length = sizeof size;

    unix_pair(SOCK_STREAM, ends);
    CHECK_EQ(getsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, &length), 0);
    pz_close_all(ends, 2);
    return size;
}

struct large new_large(void)
{
    struct large large = {.size = 4 * (size_t)send_buffer()};

    large.text = malloc(large.size);
    CHECK(large.text != NULL);
    for (size_t i = 0; i < large.size; i++)
        large.text[i] = (uint8_t)(i * 31 >> 4);
    return large;
}

void answer_large(struct site *site, const struct large *large, bool close_after)
{
    pz_handoff_answer(site->handoff, site->request.peer, large->text, large->size, close_after);
}

int ask_and_not_read(struct site *site, const struct large *large)
{
    int peer = dial(site->listener);

    say(peer, "\x04", 1, NULL, 0);
    CHECK_EQ(next(site), PZ_EVENT_LIST);
    answer_large(site, large, false);
    return peer;
}

int open_file(void)
{
    char path[64];
    static int number;

    snprintf(path, sizeof path, "%s/%d", test_dir(), number++);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    return fd;
}

int open_netns(void)
{
    int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0);
    return fd;
}

void expect_fd(const struct site *site, int sent)
{
    CHECK(site->request.fd >= 0);
    CHECK(is_same_file(site->request.fd, sent));
    CHECK(is_cloexec(site->request.fd));
    close(site->request.fd);
}
