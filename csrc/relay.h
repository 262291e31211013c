/*
 * relay.h: the whole native interface of pyztun._relay, the data path of ztunnel.
 *
 * The conventions are those of pyztun.h. A relay has threads of its own, which nobody else's code
 * runs in: Python says which pods there are and reads what became of their connections, and never
 * stands in the path of one.
 */
#ifndef PZ_RELAY_H
#define PZ_RELAY_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

#define PZ_RELAY_MAX_THREADS 64
/* Listeners of one pod. */
#define PZ_RELAY_MAX_DOORS 8
/* Events that wait at most, and those of one pz_relay_next(). */
#define PZ_RELAY_EVENTS 16384
#define PZ_RELAY_BATCH  1024

/* What a listener in a pod is for. */
enum pz_door_kind {
    PZ_DOOR_OUTBOUND = 1, /* 15001: what the pod's processes connect to */
    PZ_DOOR_INBOUND = 2,  /* 15006: what others send to the pod, in plain */
    PZ_DOOR_HBONE = 3,    /* 15008: closed at once until HBONE exists */
    PZ_DOOR_SOCKS5 = 4    /* 15080: closed at once, too */
};

struct pz_door {
    int32_t listener; /* a non-blocking TCP listener in the pod, borrowed */
    uint16_t kind;    /* enum pz_door_kind */
    uint16_t port;    /* host byte order */
};

/* How a connection ended, or why there was none. */
enum pz_end {
    PZ_END_COMPLETE = 0, /* both sides said FIN, and everything before it was delivered */
    PZ_END_RESET_BY_SOURCE = 1,
    PZ_END_RESET_BY_DESTINATION = 2,
    PZ_END_CONNECT_FAILED = 3,  /* event.error says how */
    PZ_END_CONNECT_TIMEOUT = 4, /* settings.connect_ms */
    PZ_END_IDLE = 5,            /* settings.idle_ms */
    PZ_END_HALF_CLOSED = 6,     /* settings.half_close_ms */
    PZ_END_WORKLOAD_GONE = 7,   /* pz_relay_drop() */
    PZ_END_DRAINED = 8,         /* pz_relay_finish() */
    PZ_END_BROKEN = 9,          /* no socket, memory or epoll entry was to be had: event.error */
    PZ_END_NO_HBONE = 10,       /* refused: HBONE and SOCKS5 are not built */
    PZ_END_LOOP = 11,           /* refused: it was meant for a capture port of this pod */
    PZ_END_DIRECT = 12,         /* refused: to a capture port itself, not redirected to it */
    PZ_END_NO_MARK = 13         /* refused: no SO_MARK or IP_TRANSPARENT without CAP_NET_ADMIN or
                                   CAP_NET_RAW, and unmarked it would come back to us */
};

struct pz_address {
    uint8_t ip[16];  /* network byte order; IPv4 in the first four */
    uint16_t port;   /* host byte order */
    uint16_t family; /* 4, 6; 0: not known */
};

struct pz_relay_settings {
    uint32_t threads;    /* 1..PZ_RELAY_MAX_THREADS */
    uint32_t max_flows;  /* connections at a time, two descriptors each; more wait to be accepted,
                            and those of one pod as soon as it holds four times what is free */
    uint32_t max_pipes;  /* of each thread, two descriptors each: for streams that are bulk */
    uint32_t mark;       /* SO_MARK of outgoing connections, 0 for none */
    uint32_t connect_ms; /* for a connect to be answered */
    uint32_t idle_ms;    /* without a byte either way; 0 for ever */
    uint32_t half_close_ms; /* the same once one side said FIN; 0 for ever */
    uint32_t json;          /* the access log is JSON, else text */
    uint32_t log;           /* there is an access log */
};

/* One connection that is over. */
struct pz_flow_event {
    uint64_t pod;      /* as given to pz_relay_take() */
    uint64_t ended_us; /* of the epoch */
    uint64_t duration_us;
    uint64_t bytes[2]; /* from the source, from the destination: delivered to the other side */
    struct pz_address source;
    struct pz_address destination; /* the original one */
    uint16_t kind;                 /* enum pz_door_kind */
    uint16_t end;                  /* enum pz_end */
    uint16_t own_source; /* inbound: the source's address could not be taken, so the pod's was */
    uint16_t opened;     /* the destination was reached */
    int32_t error;       /* errno, 0 for none */
};

struct pz_relay_counters {
    uint64_t accepted;       /* all, also those that are refused then */
    uint64_t refused;        /* PZ_END_NO_HBONE and those behind it */
    uint64_t closed;         /* ended in any other way */
    uint64_t bytes[2];       /* of the closed ones: from sources, from destinations */
    uint64_t own_source;     /* inbound ones without their source's address */
    uint64_t paused;         /* times that a thread stopped accepting for want of descriptors */
    uint64_t held_back;      /* times that it did so as the pod had its share of max_flows */
    uint64_t held_back_pod;  /* the last such pod, as given to pz_relay_take() */
    uint64_t lost_listeners; /* found destroyed, counted by every thread for itself */
    uint64_t lost_events;
    uint64_t flows; /* now */
    uint64_t pipes; /* now */
};

struct pz_batch {
    const struct pz_flow_event *events;
    const uint8_t *log; /* access log lines of these events */
    uint32_t n;
    uint32_t log_size;
};

struct pz_relay;
struct pz_pod;

/*
 * Starts the threads, in the netns of the calling thread, to which they can return: EPERM without
 * CAP_SYS_ADMIN. NULL with -errno in *error. -EINVAL, -ENOMEM, -EAGAIN no more threads, -EMFILE.
 */
struct pz_relay *pz_relay_new(const struct pz_relay_settings *settings, int *error);

/*
 * From now on the connections of these N doors are relayed. ID, NAME and SPACE (UTF-8) are for
 * events and the log. NETNS_FD and the listeners are borrowed until pz_relay_drop() has returned,
 * the listeners also end with pz_relay_close_doors(). TCP_NODELAY, keepalive and SO_LINGER are set
 * on the listeners, whose connections inherit them. NULL with -errno in *error.
 */
struct pz_pod *pz_relay_take(struct pz_relay *r, int netns_fd, const struct pz_door *doors,
                             size_t n, uint64_t id, const uint8_t *name, size_t name_size,
                             const uint8_t *space, size_t space_size, int *error);

/* Other names for a pod; open connections keep theirs. Returns 0 or -ENOMEM. */
int pz_relay_rename(struct pz_relay *r, struct pz_pod *pod, const uint8_t *name, size_t name_size,
                    const uint8_t *space, size_t space_size);

/*
 * Another LISTENER, borrowed like the first, for the door of that index, whose own was destroyed
 * (ss -K); that one may be closed afterwards. Connections go on. Returns 0, or -errno: the door has
 * neither. Takes as long as a turn of each thread.
 */
int pz_relay_mend(struct pz_relay *r, struct pz_pod *pod, size_t door, int listener);

/*
 * Ends a pod: its connections are reset at once, and nothing of it is touched any more when this
 * returns, which takes as long as a turn of each thread. POD is void then.
 */
void pz_relay_drop(struct pz_relay *r, struct pz_pod *pod);

/*
 * Accepts what is queued, and then from no listener any more. Blocks for as long as that takes; the
 * listeners may be closed then. Connections go on.
 */
void pz_relay_close_doors(struct pz_relay *r);

/* Waits up to timeout_ms until the last connection is over, resets what is left, and returns how
 * many those were. */
int pz_relay_finish(struct pz_relay *r, int timeout_ms);

/*
 * Waits up to timeout_ms for events, gathers for some milliseconds more, and returns how many there
 * are; 0: the time is over, or pz_relay_wake() was called and there are none, or counters of what
 * hinders it have grown: paused, held_back, lost_listeners. What BATCH points to
 * is valid until the next call. One thread only.
 */
int pz_relay_next(struct pz_relay *r, struct pz_batch *batch, int timeout_ms);

/* Ends the present or the next wait of pz_relay_next(). Any thread. */
void pz_relay_wake(struct pz_relay *r);

void pz_relay_counters(const struct pz_relay *r, struct pz_relay_counters *out);

/* Resets all connections, ends the threads. Pods that are left are void. */
void pz_relay_free(struct pz_relay *r);

/* cdef: end */

#endif
