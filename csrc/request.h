/*
 * request.h: the bytes of the seed form's requests.
 */
#ifndef PZ_REQUEST_H
#define PZ_REQUEST_H

#include "pyztun.h"

/* A request of which a part was read; all zero between requests. */
struct pz_partial {
    uint64_t cookie;
    uint8_t kind;   /* the first byte, 0 before it */
    uint8_t digits; /* of the cookie */
};

/*
 * Takes the next byte, with which NFDS descriptors came. Returns 0 to go on, or the event that is
 * complete: the request, or PZ_EVENT_MALFORMED with request->why. PARTIAL is then all zero again.
 */
int pz_request_feed(struct pz_partial *partial, uint8_t byte, size_t nfds,
                    struct pz_request *request);

#endif
