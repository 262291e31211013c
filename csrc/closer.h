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

/*
 * Takes ownership of a stranger's FD and closes it soon; never touches it in the calling thread.
 * With no room left it waits for some, for 250 ms a second at most, and then leaves FD open for
 * good. One caller.
 */
void pz_closer_take(struct pz_closer *closer, int fd);

/* The same for a connection that was shut down for reading and may have something unread. */
void pz_closer_take_connection(struct pz_closer *closer, int sock);

/* Waits a second at most until all is closed. A thread that is held up longer ends later. */
void pz_closer_quit(struct pz_closer *closer);

#endif
