/*
 * responder_site.c: see responder_site.h.
 */
#include "responder_site.h"

#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

struct responder_site open_responder(uint32_t seats, uint32_t deadline_ms)
{
    struct responder_site site = {.wake = eventfd(0, EFD_CLOEXEC)};
    int error = 99;

    site.responder = pz_responder_new(site.wake, seats, deadline_ms, &error);
    CHECK_EQ(error, 0);
    CHECK(site.responder != NULL);
    for (int i = 0; i < LISTENERS; i++)
        site.listeners[i] = tcp_listener();
    CHECK_EQ(pz_responder_watch(site.responder, site.listeners, LISTENERS), 0);
    return site;
}

void close_responder(struct responder_site *site)
{
    pz_responder_free(site->responder);
    pz_close_all(site->listeners, LISTENERS);
    close(site->wake);
}

void *run(void *responder)
{
    CHECK_EQ(pz_responder_run(responder), 0);
    return NULL;
}

void start(struct responder_site *site)
{
    CHECK_EQ(pthread_create(&site->thread, NULL, run, site->responder), 0);
}

void stop(struct responder_site *site)
{
    uint64_t value;

    CHECK_EQ(eventfd_write(site->wake, 1), 0);
    CHECK_EQ(pthread_join(site->thread, NULL), 0);
    CHECK_EQ(eventfd_read(site->wake, &value), 0);
}

/* One turn of the run in this thread: all that is ready when the wake fd is. */
void turn_responder(struct responder_site *site)
{
    uint64_t value;

    CHECK_EQ(eventfd_write(site->wake, 1), 0);
    CHECK_EQ(pz_responder_run(site->responder), 0);
    CHECK_EQ(eventfd_read(site->wake, &value), 0);
}

void expect_ok(int client)
{
    char text[3];
    int error;

    CHECK_EQ(hear(client, text, sizeof text, &error), sizeof text);
    CHECK(memcmp(text, "ok\n", 3) == 0);
}

/* `ok`, then the end of the stream and no reset. */
void expect_ok_and_end(int client)
{
    char text[8];
    int error = 99;

    expect_ok(client);
    CHECK_EQ(hear(client, text, sizeof text, &error), 0);
    CHECK_EQ(error, 0);
}

bool is_gone(int client)
{
    struct pollfd waited = {.fd = client, .events = 0};

    send(client, "x", 1, MSG_NOSIGNAL);
    CHECK(poll(&waited, 1, 0) >= 0);
    return (waited.revents & (POLLERR | POLLHUP)) != 0;
}

/* Turns until the client can read. */
void drive_responder(struct responder_site *site, int client)
{
    struct pollfd waited = {.fd = client, .events = POLLIN};
    int64_t give_up = clock_ms() + PATIENCE_MS;

    while (poll(&waited, 1, 0) == 0) {
        CHECK(clock_ms() < give_up);
        turn_responder(site);
    }
}
