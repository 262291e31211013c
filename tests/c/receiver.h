/*
 * receiver.h: a receiver of the seed form and its peers, in one thread.
 *
 * Theory of operation: a peer connects and writes before the receiver is asked, so what next()
 * returns is fixed. Where the receiver must do something that is no event (seat a silent peer,
 * close one), the wake fd brings it back: turn() and what is built on it. A deadline is waited for
 * by next() itself. The netns of the requests is our own, which takes no privilege.
 */
#ifndef RECEIVER_H
#define RECEIVER_H

#include "pyztun.h"

#include <stdbool.h>

enum { SHORT_MS = 30, LONG_MS = 60000 };

/* 64 peers, a deadline of LONG_MS, as good as no bound of unsent bytes. */
extern const struct pz_handoff_limits ROOMY;

struct site {
    struct pz_handoff *handoff;
    struct pz_request request; /* of the last event */
    int listener, wake;
};

struct site open_site(struct pz_handoff_limits limits);
void close_site(struct site *site);
struct pz_handoff_counters counters(const struct site *site);

/* pz_handoff_next() and pz_handoff_answer() to its event. */
int next(struct site *site);
void answer(struct site *site, const char *text, bool close_after);

/* Serves one LIST of PEER. */
void ask_and_be_served(struct site *site, int peer);

/* ---- letting it work ---- */

/* Lets the receiver do what is ready; no peer may have a whole request under way. */
void turn(struct site *site);
/* Turns until so many were accepted; until so many are seated. */
void settle(struct site *site, uint64_t accepted);
void settle_peers(struct site *site, uint32_t peers);
/* Until PEER has an answer or an end to read, answering every LIST with `ok`. */
void drive(struct site *site, int peer);
/* Lets the receiver do what is ready; returns the event that came of it, or 0. */
int step(struct site *site);

/* ---- what a peer sees ---- */

void expect_text(int sock, const char *text);
/* The end; it comes as ECONNRESET where the receiver left something unread. */
void expect_end(int sock);
bool is_open(int sock);

/* ---- answers that do not fit ---- */

/* Four times what the kernel takes, so that three to four times that is kept. */
struct large {
    uint8_t *text;
    size_t size;
};

struct large new_large(void); /* text is malloc()ed */
void answer_large(struct site *site, const struct large *large, bool close_after);
/* Connects a peer that asks, gets the large answer and does not read it. */
int ask_and_not_read(struct site *site, const struct large *large);

/* ---- descriptors to send ---- */

/* A file that is no netns; the netns in which the test runs. */
int open_file(void);
int open_netns(void);
/* The last event brought the same file, close-on-exec; closes it. */
void expect_fd(const struct site *site, int sent);

#endif
