/*
 * responder_site.h: a responder with its listeners and clients, for the tests of responder.c.
 */
#ifndef RESPONDER_SITE_H
#define RESPONDER_SITE_H

#include "pyztun.h"

#include <pthread.h>
#include <stdbool.h>

enum {
    SHORT_MS = 40,
    LONG_MS = 60000,
    PATIENCE_MS = 5000,
    SEATS = 64,
    LISTENERS = 3,
    MEGABYTE = 1 << 20
};

struct responder_site {
    struct pz_responder *responder;
    pthread_t thread;
    int listeners[LISTENERS];
    int wake;
};

struct responder_site open_responder(uint32_t seats, uint32_t deadline_ms);
void close_responder(struct responder_site *site);
void *run(void *responder);
void start(struct responder_site *site);
void stop(struct responder_site *site);
/* One turn of the run in this thread: all that is ready when the wake fd is. */
void turn_responder(struct responder_site *site);
void expect_ok(int client);
/* `ok`, then the end of the stream and no reset. */
void expect_ok_and_end(int client);
bool is_gone(int client);
/* Turns until the client can read. */
void drive_responder(struct responder_site *site, int client);

#endif
