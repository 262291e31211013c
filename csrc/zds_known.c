/*
 * zds_known.c: see zds_known.h.
 */
#include "zds_known.h"

/*
 * The finalizer of MurmurHash3. The inodes of netns that are made in a row are an arithmetic
 * progression, of which a single multiplication makes another one: by some strides they all met in
 * few cells.
 */
static size_t cell_of(uint64_t number)
{
    number = (number ^ number >> 33) * 0xff51afd7ed558ccdu;
    number = (number ^ number >> 33) * 0xc4ceb9fe1a85ec53u;
    return (size_t)(number >> (64 - PZ_KNOWN_BITS));
}

size_t pz_known_cell_of_inode(uint64_t inode)
{
    return cell_of(inode);
}

/* FNV-1a. */
size_t pz_known_cell_of_uid(const uint8_t *uid, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ uid[i]) * 0x100000001b3u;
    return cell_of(hash);
}

static void count_up(uint8_t *cell)
{
    if (*cell < PZ_KNOWN_FULL)
        ++*cell;
}

static void count_down(uint8_t *cell)
{
    if (*cell > 0 && *cell < PZ_KNOWN_FULL)
        --*cell;
}

void pz_known_add(struct pz_known *known, uint64_t inode, const uint8_t *uid, size_t size)
{
    count_up(&known->inodes[pz_known_cell_of_inode(inode)]);
    if (size > 0)
        count_up(&known->uids[pz_known_cell_of_uid(uid, size)]);
}

void pz_known_remove(struct pz_known *known, uint64_t inode, const uint8_t *uid, size_t size)
{
    count_down(&known->inodes[pz_known_cell_of_inode(inode)]);
    if (size > 0)
        count_down(&known->uids[pz_known_cell_of_uid(uid, size)]);
}

bool pz_known_is_new(const struct pz_known *known, uint64_t inode, const uint8_t *uid, size_t size)
{
    return known->inodes[pz_known_cell_of_inode(inode)] == 0 &&
           known->uids[pz_known_cell_of_uid(uid, size)] == 0;
}
