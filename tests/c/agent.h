/*
 * agent.h: a node agent and ztunnel's end of its connection, in one thread.
 *
 * Theory of operation: the agent sends before ztunnel's end waits, so what hear_agent() returns is
 * fixed, and no event is waited for longer than it takes.
 */
#ifndef AGENT_H
#define AGENT_H

#include "pyztun.h"

#include <stdbool.h>

/* An Add of uid u, name n, namespace m, service account s; a Del of uid u; both as Istio writes
 * them. ACCENT is an Add with a letter beyond ASCII. */
extern const char ADD[], DEL[], ACCENT[], ACK[];
enum { ADD_SIZE = 16, DEL_SIZE = 5, ACCENT_SIZE = 9, ACK_SIZE = 2 };

/* What an Add that is taken gets: 127.0.0.1:15008 and the two ports behind it. */
enum { PORT = 15008, LISTENERS = 3 };

struct line {
    struct pz_zds *zds;
    struct pz_zds_request request; /* of the last event */
    int sock, agent, wake;
    struct pz_listener wanted[LISTENERS];
    int fds[LISTENERS]; /* that the last event brought, or 4711 */
    struct pz_failure failure;
};

struct line open_line(void);

/* Frees the wait, which closes what was not wanted, then the sockets. */
void close_line(struct line *line);

/* The agent sends one packet of any size, 0 too, with up to 253 descriptors. */
void tell(const struct line *line, const void *message, size_t size, const int *fds, size_t nfds);
void tell_add(const struct line *line, int netns);
/* An Add of another uid: one letter. */
void tell_add_of(const struct line *line, char uid, int netns);

/* From now on Adds may be taken. LINE stays where it is. */
void serve_adds(struct line *line, int home_fd);

/* pz_zds_next() with a patience of seconds, and with room. */
int hear_agent(struct line *line);

/* The event is an Add that is not taken, and all that is to know of it is there. Its fd stays
 * open. */
void expect_add(const struct line *line, int event, int netns);

/* The event is an Add that is taken: as above, and the listeners are there. */
void expect_taken(const struct line *line, int event, int netns);

/* Closes what an event has brought, listeners too. */
void close_brought(struct line *line);

/* The agent has received exactly one packet; exactly none. */
void expect_ack(const struct line *line);
void expect_no_answer(const struct line *line);

/* The cookie of a netns, 0 where there is none. */
uint64_t cookie_of(int netns);

/* Nobody has the write end of a pipe open any more; waits for the thread that closes. */
bool ends_soon(int read_end);

#endif
