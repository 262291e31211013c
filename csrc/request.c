/*
 * request.c: see request.h.
 *
 * Theory of operation: a pure state machine, no I/O. A request is one byte; for PZ_EVENT_TAKE and
 * PZ_EVENT_RELEASE exactly one descriptor comes with it, and nothing else ever brings any. After
 * PZ_EVENT_RELEASE_COOKIE follow 1 to 20 decimal digits and a newline. At most 22 bytes, then it
 * ends.
 */
#include "request.h"

#include <stdbool.h>

enum { MAX_DIGITS = 20 };

static int end(struct pz_partial *partial, int event)
{
    *partial = (struct pz_partial){0};
    return event;
}

static int malformed(struct pz_partial *partial, enum pz_why why, struct pz_request *request)
{
    request->why = (uint32_t)why;
    return end(partial, PZ_EVENT_MALFORMED);
}

static int feed_cookie(struct pz_partial *partial, uint8_t byte, struct pz_request *request)
{
    if (byte == '\n' && partial->digits > 0) {
        request->cookie = partial->cookie;
        return end(partial, PZ_EVENT_RELEASE_COOKIE);
    }
    if (byte < '0' || byte > '9' || partial->digits == MAX_DIGITS)
        return malformed(partial, PZ_WHY_COOKIE, request);
    uint64_t digit = (uint64_t)(byte - '0');
    if (partial->cookie > (UINT64_MAX - digit) / 10)
        return malformed(partial, PZ_WHY_COOKIE, request);
    partial->cookie = partial->cookie * 10 + digit;
    partial->digits++;
    return 0;
}

int pz_request_feed(struct pz_partial *partial, uint8_t byte, size_t nfds,
                    struct pz_request *request)
{
    bool first = partial->kind == 0;
    uint8_t kind = first ? byte : partial->kind;
    bool brings_fd = kind == PZ_EVENT_TAKE || kind == PZ_EVENT_RELEASE;

    request->byte = kind;
    request->nfds = (uint32_t)nfds;
    if (kind < PZ_EVENT_TAKE || kind > PZ_EVENT_LIST)
        return malformed(partial, PZ_WHY_BYTE, request);
    if (nfds != (brings_fd ? 1 : 0))
        return malformed(partial, PZ_WHY_FDS, request);
    if (!first)
        return feed_cookie(partial, byte, request);
    partial->kind = kind;
    return kind == PZ_EVENT_RELEASE_COOKIE ? 0 : end(partial, kind);
}
