/*
 * closer.h: closes descriptors that came from strangers, in a thread of its own.
 */
#ifndef PZ_CLOSER_H
#define PZ_CLOSER_H

#include <stddef.h>

struct pz_closer;

/* How many descriptors may wait to be closed. */
enum { PZ_CLOSER_ROOM = 256 };

/* Starts the thread. NULL with -errno in *error. */
struct pz_closer *pz_closer_new(int *error);

/* Takes ownership of FD and closes it soon. Never blocks while there is room. One caller's thread.
 */
void pz_closer_take(struct pz_closer *closer, int fd);

/* Waits up to a second until all is closed. A thread that is held up longer ends by itself later.
 */
void pz_closer_quit(struct pz_closer *closer);

#endif
