/*
 * zds_known.h: which netns and uids are surely unknown: two counting filters.
 *
 * Theory of operation: a cell counts who is known under one hash. A cell of 0 proves that nobody
 * is; any other means "ask the caller", who has the tables, so a collision costs time and is never
 * wrong. A cell that is full stays so, since nobody can tell any more how many are behind it. An
 * agent that chooses its uids to collide slows down its own Adds alone.
 */
#ifndef PZ_ZDS_KNOWN_H
#define PZ_ZDS_KNOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* With a thousand workloads one Add in thirty finds a cell in use that is not its own. */
enum { PZ_KNOWN_BITS = 16, PZ_KNOWN_CELLS = 1 << PZ_KNOWN_BITS, PZ_KNOWN_FULL = UINT8_MAX };

/* Zeroed: nobody is known. Pages that were never written cost no memory. */
struct pz_known {
    uint8_t inodes[PZ_KNOWN_CELLS];
    uint8_t uids[PZ_KNOWN_CELLS];
};

/* A UID of no bytes is none: the netns alone is known. */
void pz_known_add(struct pz_known *known, uint64_t inode, const uint8_t *uid, size_t size);

/* Undoes one pz_known_add() of the same two. */
void pz_known_remove(struct pz_known *known, uint64_t inode, const uint8_t *uid, size_t size);

/* Whether neither the netns nor the uid is known. False: perhaps. */
bool pz_known_is_new(const struct pz_known *known, uint64_t inode, const uint8_t *uid, size_t size);

/* The cells, for the tests. */
size_t pz_known_cell_of_inode(uint64_t inode);
size_t pz_known_cell_of_uid(const uint8_t *uid, size_t size);

#endif
