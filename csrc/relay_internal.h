/*
 * relay_internal.h: what the files of the relay share.
 *
 *   relay.c          the relay and its threads: pods come, go, drain
 *   relay_door.c     a listener is ready: accept, whereto, connect
 *   relay_verdict.c  the one place where is decided what to do with a connection; pure
 *   relay_flow.c     the life of a connection
 *   relay_pump.c     bytes from one side to the other
 *   relay_journal.c  what became of connections, from the threads to the one who reads it
 *   relay_log.c      an access log line; pure
 *
 * Who may touch what: a flow belongs to the thread that accepted it, for life. A pod and its doors
 * are made before any thread knows of them and freed when none does any more; meanwhile only its
 * label changes, under its lock. A thread's counters are written by it and read by anybody.
 */
#ifndef PZ_RELAY_INTERNAL_H
#define PZ_RELAY_INTERNAL_H

#include "internal.h"
#include "relay.h"

#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
    SCRATCH = 64 * 1024,           /* bytes of one recv() */
    SMALL_READ = 4 * 1024,         /* the same once KEPT_LIMIT is reached */
    KEPT_LIMIT = 64 * 1024 * 1024, /* bytes that a thread keeps for sides that do not read */
    PIPE_SIZE = 1024 * 1024,
};

/* What an epoll word points to; the first member of each of them. */
enum source_kind { SOURCE_WAKE, SOURCE_DOOR, SOURCE_SIDE_0, SOURCE_SIDE_1 };
struct source {
    enum source_kind kind;
};

/* ---- pods ---- */

/* How a workload is called in the log: escaped for it. Immutable, counted. */
struct label {
    atomic_uint holders;
    const char *name; /* into text */
    const char *space;
    char text[];
};

/* A door as one thread sees it. */
struct place {
    struct source source;
    struct door *door;
    struct place *next_paused;
    bool is_paused;
    bool is_left; /* the listener may be another file by now */
};

struct door {
    struct pz_pod *pod;
    int listener;
    uint16_t kind;
    uint16_t port;
    struct place *places; /* by thread */
};

struct pz_pod {
    struct pz_pod *next, *previous;
    uint64_t id;
    int netns_fd;
    _Atomic uint32_t flows; /* of all threads */
    pthread_mutex_t lock;   /* of the label */
    struct label *label;
    size_t n;
    struct door doors[PZ_RELAY_MAX_DOORS];
    struct place places[];
};

/* ---- connections ---- */

enum flow_state { FLOW_CONNECTING, FLOW_OPEN, FLOW_DEAD };

/* What is known of a side. READABLE and WRITABLE are what epoll said last and no call has
 * disproved. */
enum side_flag {
    READABLE = 1,
    WRITABLE = 2,
    FIN_COMES = 4, /* epoll has seen the peer's FIN: behind what is unread comes the end */
    FIN_RCVD = 8,  /* everything was read */
    FIN_SENT = 16, /* what the other side said to its end was passed on */
    BROKEN = 32    /* epoll has seen an error */
};

struct pipe {
    int read, write;
};

/* One end of a flow, and what was read from it and not yet written to the other. */
struct side {
    struct source source;
    int fd;
    uint32_t flags;
    uint8_t *kept; /* a piece of what recv() brought, from kept_at on */
    uint32_t kept_at;
    uint32_t kept_size;
    uint32_t piped;   /* bytes in the pipe */
    uint16_t full;    /* reads in a row that filled the scratch buffer */
    uint16_t is_bulk; /* spliced when a pipe is to be had */
    struct pipe pipe; /* -1, -1: none */
    uint64_t bytes;   /* of it, delivered to the other side */
};

struct flow {
    struct side sides[2]; /* 0: the one who connected to us; 1: the one to whom we connected */
    struct flow *next, *previous; /* of the thread's flows, or of its dead */
    struct flow *next_ready;
    struct pz_pod *pod;
    struct label *label;
    uint64_t begun_us; /* monotonic */
    int64_t last_ms;   /* when it began, was opened, or a byte moved */
    enum flow_state state;
    uint16_t kind;
    uint16_t own_source;
    bool is_ready; /* in the thread's list of those that have more to do */
    struct pz_address source, destination;
};

/* ---- threads ---- */

struct counters {
    _Atomic uint64_t accepted, refused, closed, bytes[2], own_source, paused, held_back,
        lost_listeners, pipes;
};

struct journal; /* relay_journal.c */

struct thread {
    struct source wake; /* where epoll points for wake_fd */
    struct pz_relay *relay;
    unsigned index;
    pthread_t id;
    int epoll;
    int wake_fd;
    int64_t now_ms;   /* as of this turn */
    int64_t sweep_ms; /* when some flow's time may be over; INT64_MAX: never */
    struct flow *flows;
    struct flow *dead; /* closed in this turn: epoll words may still point to them */
    struct flow *ready;
    struct flow **ready_end;
    struct place *paused;
    struct place **paused_end;
    int64_t resume_ms;
    uint64_t kept;      /* bytes, of all flows */
    struct pipe *pipes; /* free ones */
    uint32_t free_pipes;
    uint32_t all_pipes;
    struct counters counters;
    uint8_t scratch[SCRATCH];
};

enum command { NO_COMMAND, DROP_POD, LEAVE_DOOR, CLOSE_DOORS, RESET_ALL, END };

struct pz_relay {
    struct pz_relay_settings settings;
    int home_fd;
    struct journal *journal;
    pthread_mutex_t control; /* one who commands at a time; the list of pods */
    struct pz_pod *pods;
    pthread_mutex_t lock; /* of what is below */
    pthread_cond_t changed;
    enum command command;
    struct pz_pod *command_pod;
    size_t command_door; /* of this pod */
    unsigned unanswered; /* threads that have not done the command yet */
    bool is_finishing;
    _Atomic uint32_t flows;         /* of all threads */
    _Atomic uint64_t held_back_pod; /* the last one */
    unsigned n;                     /* threads that run */
    struct thread threads[];
};

static inline void pz_count(_Atomic uint64_t *counter, uint64_t more)
{
    /* One writer: no locked instruction. */
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + more, memory_order_relaxed);
}

static inline struct flow *flow_of(struct source *source)
{
    struct side *side = (struct side *)source;

    return (struct flow *)(side - (source->kind == SOURCE_SIDE_1));
}

/* ---- relay.c ---- */

/* Takes a place for one more flow of a pod. False: it has its share. */
bool pz_place_take(struct pz_relay *r, struct pz_pod *pod);

/* Gives it back. */
void pz_place_leave(struct pz_relay *r, struct pz_pod *pod);

/* ---- relay_verdict.c ---- */

/* What is known of a connection before anything is done for it. */
struct meeting {
    uint16_t kind;        /* enum pz_door_kind */
    bool is_tracked;      /* destination is what conntrack knows */
    bool is_capture_port; /* of this pod, by number */
    bool is_own_address;  /* the destination's is one of the pod's; asked only for capture ports */
    bool is_unchanged;    /* destination is where it arrived; asked only for capture ports */
};

/* PZ_END_COMPLETE: relay it to its original destination. Else why not. */
enum pz_end pz_relay_verdict(const struct meeting *meeting);

/* ---- relay_door.c ---- */

/* Accepts one connection and begins its flow. Returns whether there may be more. */
bool pz_door_ready(struct thread *t, struct place *place);

/* Accepts again where descriptors had run out. */
void pz_door_resume(struct thread *t);

/* TCP_NODELAY, keepalive as Istio's ztunnel has it (src/config.rs): after 180 s, each 180 s, 9
 * times; and a close() is an RST. */
void pz_door_options(int fd);

/* No event will come for it any more in this thread. */
void pz_door_leave(struct thread *t, struct place *place);

/* ---- relay_flow.c ---- */

/* A flow between SOURCE_FD, owned from now on, and nobody yet. NULL: no memory; it is closed. */
struct flow *pz_flow_new(struct thread *t, struct place *place, int source_fd);

/* The destination has been called, on DESTINATION_FD, owned from now on. */
void pz_flow_connecting(struct thread *t, struct flow *flow, int destination_fd);

/* epoll has EVENTS for a side. */
void pz_flow_event(struct thread *t, struct source *side, uint32_t events);

/* Goes on where a turn was used up. */
void pz_flow_continue(struct thread *t);

/* close() says RST, else FIN. */
void pz_reset_on_close(int fd, bool is_on);

/* Ends it: both sides get RST, unless END is COMPLETE. */
void pz_flow_end(struct thread *t, struct flow *flow, enum pz_end end, int error);

/* Ends all flows of a pod; NULL: of all. */
void pz_flow_end_all(struct thread *t, const struct pz_pod *pod, enum pz_end end);

/* Ends those whose time is over, and notes when the next one's is. */
void pz_flow_sweep(struct thread *t);

/* Frees those that ended: no event of this turn is left. */
void pz_flow_bury(struct thread *t);

/* ---- relay_pump.c ---- */

enum pump {
    PUMP_WAIT,  /* for an event */
    PUMP_MORE,  /* its share of this turn is used up */
    PUMP_DONE,  /* the FIN was passed on */
    PUMP_BROKEN /* errno says how; *broken which side */
};

/* Moves what can be moved from side FROM to the other. */
enum pump pz_pump(struct thread *t, struct flow *flow, int from, int *broken);

/* Lets go of what was read from a side and not delivered. */
void pz_pump_discard(struct thread *t, struct side *side);

/* The free pipes of a thread. */
int pz_pipes_init(struct thread *t);
void pz_pipes_free(struct thread *t);

/* ---- relay_journal.c ---- */

struct journal *pz_journal_new(const struct pz_relay_settings *settings);
void pz_journal_free(struct journal *journal);

/* Takes over a label. Never blocks for the reader: with the journal full an event is lost. */
void pz_journal_add(struct journal *journal, const struct pz_flow_event *event,
                    struct label *label);

uint64_t pz_journal_lost(struct journal *journal);
int pz_journal_next(struct journal *journal, struct pz_batch *batch, int timeout_ms);
void pz_journal_wake(struct journal *journal);

struct label *pz_label_new(const uint8_t *name, size_t name_size, const uint8_t *space,
                           size_t space_size);
struct label *pz_label_hold(struct label *label);
void pz_label_drop(struct label *label);

/* ---- relay_log.c ---- */

/* Bytes that a line has at most, beside the label's. */
enum { LINE_ROOM = 640 };

/* Writes the line of an event; returns its bytes, the newline among them. */
size_t pz_log_line(char *line, const struct pz_flow_event *event, const struct label *label,
                   bool json);

/* Escapes as JSON does, between quotes; returns the bytes. OUT: room for 6 * SIZE + 2. */
size_t pz_log_quote(char *out, const uint8_t *text, size_t size);

#endif
