/*
 * pyztun.h: the whole native interface of pyztun._core.
 *
 * One file is the truth for three readers: the C compiler checks every definition against it,
 * build.py cuts the text between the two markers out of it for cffi, and people read it.  Between
 * the markers stands only what pycparser takes: C99 types, enums, plain integer #defines,
 * prototypes, structs.
 *
 * Conventions, for every function:
 *
 * - Result: >= 0 on success, -errno on failure.
 *
 * - Descriptors: what a function takes it borrows; what it returns the caller owns. On failure
 *   everything that it made or received is closed. Each is close-on-exec from birth.
 *
 * - Threads: no mutable globals, so any function may run in any thread at any time; but a handle
 *   (struct pz_handoff, struct pz_responder) belongs to the threads that its comment names.
 *
 * - Blocking: none unless said. timeout_ms: -1 waits for ever, 0 does not wait. A wait that a
 *   signal ends returns -EINTR with nothing lost: the caller runs its handlers and calls again.
 *
 * - struct pz_failure: may be NULL; written only by a call that fails.
 */
#ifndef PYZTUN_H
#define PYZTUN_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* The kernel carries at most SCM_MAX_FD = 253 descriptors in one message; we promise 250. */
#define PZ_MAX_FDS 250
/* Listeners that one excursion into a netns can make. */
#define PZ_MAX_LISTENERS 64

/* Which step of a call failed; pz_step_name() gives the name of its syscall. */
enum pz_step {
    PZ_STEP_NONE,
    PZ_STEP_ARGUMENT,
    PZ_STEP_OPEN_HOME,
    PZ_STEP_PROVE_HOME,
    PZ_STEP_SETNS,
    PZ_STEP_SOCKET,
    PZ_STEP_SO_REUSEADDR,
    PZ_STEP_SO_REUSEPORT,
    PZ_STEP_TRANSPARENT,
    PZ_STEP_FREEBIND,
    PZ_STEP_V6ONLY,
    PZ_STEP_SO_MARK,
    PZ_STEP_BIND,
    PZ_STEP_LISTEN,
    PZ_STEP_COOKIE,
    PZ_STEP_THREAD,
    PZ_STEP_UNSHARE,
    PZ_STEP_LOOPBACK,
    PZ_STEP_MKDIR,
    PZ_STEP_CREATE,
    PZ_STEP_MOUNT
};

struct pz_failure {
    int32_t step;  /* enum pz_step */
    int32_t index; /* which listener (0-based), -1 where no single one is to blame */
};

/* A static string such as "setns" or "setsockopt(SO_MARK)"; "call" for an unknown number. */
const char *pz_step_name(int step);

/* ---- fdpass.c: one message with descriptors, both directions ---- */

/*
 * Sends one message on a Unix socket: LEN >= 1 bytes with NFDS (0..PZ_MAX_FDS) descriptors on the
 * first. The descriptors stay the caller's.  Waits up to timeout_ms for room.  Never raises
 * SIGPIPE. Returns the bytes taken (on a stream possibly fewer than LEN: go on with the rest and no
 * fds). -EINVAL LEN is 0, -E2BIG too many fds, -ETIMEDOUT, -EINTR, -EPIPE, -ECONNRESET, -EMSGSIZE,
 * -EBADF, -ETOOMANYREFS too many fds in flight for this user.
 */
int pz_send(int sock, const uint8_t *data, size_t len, const int *fds, size_t nfds, int timeout_ms);

/*
 * Receives one message of up to CAP >= 1 bytes and up to MAX_FDS (0..PZ_MAX_FDS) descriptors; their
 * number goes to *nfds, and the caller owns them.  Returns the bytes, 0 at the end of the stream (a
 * zero-length seqpacket is indistinguishable from it and is taken for it).
 * -EPROTO more fds than MAX_FDS, -EMSGSIZE a longer message than CAP (seqpacket) or lost control
 * data, -EMFILE our fd table was full: in each case every received descriptor is closed and the
 * message is lost. -ETIMEDOUT, -EINTR, -ECONNRESET, -EINVAL, -E2BIG.
 */
int pz_recv(int sock, uint8_t *buf, size_t cap, int *fds, size_t max_fds, size_t *nfds,
            int timeout_ms);

/*
 * Connects a new Unix socket to PATH (type: SOCK_STREAM = 1 or SOCK_SEQPACKET = 5) and returns it.
 * Waits up to timeout_ms while the listener's backlog is full.
 * -ETIMEDOUT, -EINTR, -ENAMETOOLONG, -ENOENT, -ECONNREFUSED, -EACCES, -EPROTOTYPE (wrong type),
 * -EMFILE.
 */
int pz_unix_connect(const char *path, int type, int timeout_ms);

/* ---- netns.c: identity of a netns ---- */

struct pz_netns_info {
    uint64_t dev; /* st_dev of nsfs, the same for every namespace of the machine */
    uint64_t ino; /* unique among living namespaces; reused after death */
    uint64_t id; /* the cookie, never reused in one boot; 0 where the kernel (< 6.18) needs a socket
                    to tell */
};

/* Writes the device number of nsfs, by which pz_netns_inspect() recognises a namespace. -EIO no
 * nsfs there. */
int pz_nsfs_device(uint64_t *dev);

/*
 * Checks that FD refers to a network namespace and writes its identity.  Asks the file's own
 * filesystem nothing before it is known to be nsfs, so a hostile fd can neither block nor be
 * triggered. -EBADF, -EINVAL not a network namespace.
 */
int pz_netns_inspect(int fd, uint64_t nsfs_dev, struct pz_netns_info *info);

/* Writes the uid that owns the netns' user namespace. -EPERM that lies outside our own. */
int pz_netns_owner(int fd, uint32_t *uid);

/* Opens the netns in which the calling thread is. -EMFILE, -ENFILE, -ENOENT no /proc. */
int pz_netns_home(void);

/* setns(HOME) without having left: 0 if the calling thread could come home, -EPERM if not. */
int pz_netns_prove_home(int home_fd);

/*
 * Moves the calling thread into a netns, where it stays until the next call: on the main thread the
 * whole process is seen there. For podside alone, a process of one thread whose work is in pods.
 * -EPERM needs CAP_SYS_ADMIN, -EINVAL not a network namespace, -EBADF.
 */
int pz_netns_move(int netns_fd);

/* Writes the netns cookie of a socket (SO_NETNS_COOKIE, Linux 5.14). -ENOPROTOOPT older kernel,
 * -ENOTSOCK. */
int pz_socket_cookie(int sock, uint64_t *cookie);

/*
 * Opens the netns to which SOCK, a socket of any family, belongs: SIOCGSKNS, Linux 4.10. Asks
 * nothing of an fd that is no socket. -ENOTSOCK, -EPERM needs CAP_NET_ADMIN over that netns,
 * -EMFILE.
 */
int pz_socket_netns(int sock);

/*
 * A duplicate of descriptor FD of the process of PIDFD (Linux 5.6). -EPERM needs CAP_SYS_PTRACE
 * over it, -EBADF it has no such descriptor, -ESRCH it has ended, -ENOSYS, -EMFILE.
 */
int pz_pidfd_getfd(int pidfd, int fd);

/* ---- visit.c and listen.c: sockets in another netns ---- */

enum pz_listener_flag {
    PZ_REUSEADDR = 1,
    PZ_REUSEPORT = 2,
    PZ_TRANSPARENT =
        4, /* IP_TRANSPARENT or IPV6_TRANSPARENT: CAP_NET_ADMIN or CAP_NET_RAW over the pod */
    PZ_FREEBIND = 8,
    PZ_V6ONLY = 16, /* IPv6 only; without it an IPv6 listener is dual-stack whatever the pod's
                       sysctl says */
    PZ_NONBLOCK = 32,
    PZ_DGRAM = 64 /* a bound UDP socket instead of a TCP listener */
};

struct pz_listener {
    uint8_t address[16]; /* network byte order; IPv4 in the first four */
    uint32_t scope_id;   /* IPv6 link-local: interface index in the pod */
    uint32_t mark;       /* SO_MARK, 0 = none */
    uint32_t flags;      /* enum pz_listener_flag */
    int32_t backlog;
    uint16_t port;   /* host byte order, 0 = any */
    uint16_t family; /* 4 or 6 */
};

/*
 * Makes N (1..PZ_MAX_LISTENERS) listeners in the netns NETNS_FD, all or none, and writes them to
 * out_fds.  One excursion for all of them.  The calling thread is back in the netns where it was
 * found before this returns; if it cannot come back the process aborts with one line on stderr.
 * HOME_FD: the calling thread's own netns, kept by the caller and proven with
 * pz_netns_prove_home(), or -1 to open and prove it in this call.  With -1 on the main thread a
 * helper thread makes the sockets: /proc/PID/ns/net shows the main thread, which therefore never
 * leaves. A kept HOME_FD is the caller's word that it is another thread: asking the kernel costs
 * two syscalls, 2 to 3 % of three listeners. -EPERM at PZ_STEP_SETNS needs CAP_SYS_ADMIN, at
 * PZ_STEP_PROVE_HOME home could not be re-entered. -EADDRINUSE, -EADDRNOTAVAIL, -EACCES,
 * -EAFNOSUPPORT, -EMFILE, -EINVAL. On failure out_fds holds -1s.
 */
int pz_listen(int netns_fd, int home_fd, const struct pz_listener *wanted, size_t n, int *out_fds,
              struct pz_failure *failure);

/*
 * Makes one socket in the netns NETNS_FD by socket(FAMILY, TYPE, PROTOCOL) and returns it, with the
 * same care for the calling thread. At PZ_STEP_SOCKET: -EAFNOSUPPORT this netns has no such family,
 * -EPROTONOSUPPORT, -EPERM a raw or packet socket needs CAP_NET_RAW over the netns, -EMFILE.
 */
int pz_socket(int netns_fd, int home_fd, int family, int type, int protocol,
              struct pz_failure *failure);

/* 1 if SOCK still listens, 0 if root in its netns has destroyed it (ss -K). -ENOTSOCK. */
int pz_is_listening(int sock);

/*
 * Writes the cookie of a netns: NS_GET_ID where the kernel has it, else from a socket made in it
 * (which then needs what pz_listen() needs). HOME_FD as in pz_listen(). -ENOPROTOOPT before
 * Linux 5.14.
 */
int pz_netns_cookie(int netns_fd, int home_fd, uint64_t *cookie, struct pz_failure *failure);

/* ---- netns_create.c: a fresh netns without the caller moving ---- */

/* A new netns with loopback up, made by a helper thread; returns its fd. -EPERM needs
 * CAP_SYS_ADMIN, -ENOSPC. */
int pz_netns_create(struct pz_failure *failure);

/*
 * Gives the netns a name as `ip netns add` does: DIR (made and shared if need be) and the bind
 * mount PATH, which must not exist. -EEXIST, -EPERM.
 */
int pz_netns_pin(int netns_fd, const char *dir, const char *path, struct pz_failure *failure);

/* Undoes the mount of pz_netns_pin(); the empty file at PATH remains for the caller to unlink. */
int pz_netns_unpin(const char *path);

/* ---- handoff.c: the native wait of the seed form's receiver ---- */

/* What pz_handoff_next() returns. The first four are also the request bytes on the wire. */
enum pz_event {
    PZ_EVENT_TAKE = 1,
    PZ_EVENT_RELEASE = 2,
    PZ_EVENT_RELEASE_COOKIE = 3,
    PZ_EVENT_LIST = 4,
    PZ_EVENT_MALFORMED = 5, /* request.why says how; answer and close */
    PZ_EVENT_DENIED = 6,    /* the peer's uid may not ask; answer and close */
    PZ_EVENT_WOKEN = 7,     /* the wake fd is readable */
    PZ_EVENT_QUIET = 8      /* the drain is over */
};

enum pz_why {
    PZ_WHY_BYTE = 1,      /* an unknown request byte */
    PZ_WHY_FDS = 2,       /* a wrong number of descriptors */
    PZ_WHY_COOKIE = 3,    /* not 1..20 digits that fit 64 bits, then a newline */
    PZ_WHY_TRUNCATED = 4, /* the peer closed in the middle of a request */
    PZ_WHY_LATE = 5,      /* the deadline passed in the middle of a request */
    PZ_WHY_FD_TABLE = 6   /* our fd table was full: descriptors were lost */
};

struct pz_request {
    uint64_t inode;  /* of the netns that fd refers to */
    uint64_t cookie; /* of it, 0 where the kernel cannot tell yet; or of PZ_EVENT_RELEASE_COOKIE */
    uint32_t peer;   /* for pz_handoff_answer() */
    int32_t fd;      /* TAKE, RELEASE: the netns, owned by the caller; else -1 */
    int32_t not_netns; /* TAKE, RELEASE: 0, or the -errno of pz_netns_inspect(), and fd is -1 */
    int32_t pid;       /* SO_PEERCRED of the peer, as of its connect() */
    uint32_t uid;
    uint32_t gid;
    uint32_t why;  /* PZ_EVENT_MALFORMED: enum pz_why */
    uint32_t byte; /* PZ_WHY_BYTE: the byte */
    uint32_t nfds; /* PZ_WHY_FDS: how many came */
};

struct pz_handoff_limits {
    uint32_t max_peers;   /* connections at a time; when full the longest idle one is closed */
    uint32_t deadline_ms; /* for a whole request, from accept or from the last answer */
    uint32_t max_unsent;  /* bytes of answers that peers have not read yet, over all peers */
};

struct pz_handoff_counters {
    uint64_t accepted;
    uint64_t evicted; /* longest idle peer closed to make room */
    uint64_t expired; /* closed at the deadline, in a request or idle */
    uint64_t accept_errors;
    uint32_t peers;
};

struct pz_handoff;

/*
 * A receiver over LISTENER (a listening Unix stream socket, borrowed, set non-blocking) that peers
 * with uid 0, our own uid, or one of UIDS may use.  WAKE (an eventfd, borrowed) ends a wait.  One
 * thread only. NULL on failure, with -errno in *error.
 */
struct pz_handoff *pz_handoff_new(int listener, int wake, const struct pz_handoff_limits *limits,
                                  const uint32_t *uids, size_t nuids, int *error);

/*
 * Blocks until one complete request (or another event) is there and returns an enum pz_event. Every
 * event but WOKEN and QUIET must be answered before the next call; an unanswered peer is closed.
 */
int pz_handoff_next(struct pz_handoff *h, struct pz_request *request);

/*
 * Answers the peer of the last event; with CLOSE_AFTER the connection ends behind the answer. Never
 * blocks: what the peer does not read is kept (bounded) and sent as it reads.  A vanished peer is
 * no error.  Returns 0.
 */
int pz_handoff_answer(struct pz_handoff *h, uint32_t peer, const uint8_t *text, size_t len,
                      int close_after);

/*
 * Serves a PZ_EVENT_TAKE whose fd is a netns in one call: makes the listeners as pz_listen() does
 * and answers the peer with the LEN bytes of READY, the cookie in decimal and a newline. Completes
 * request->cookie where the kernel tells it only now (by the inode before Linux 5.14). Returns 0
 * with out_fds, or what pz_listen() returns, and then nothing is answered.
 */
int pz_handoff_take(struct pz_handoff *h, struct pz_request *request, int home_fd,
                    const struct pz_listener *wanted, size_t n, int *out_fds, const uint8_t *ready,
                    size_t len, struct pz_failure *failure);

/*
 * From now on pz_handoff_next() serves what is already queued and waits only for peers that are
 * reading their answers; then, or when timeout_ms have passed, it returns QUIET.
 */
void pz_handoff_drain(struct pz_handoff *h, int timeout_ms);

void pz_handoff_counters(const struct pz_handoff *h, struct pz_handoff_counters *out);

/* Closes every peer; LISTENER and WAKE stay the caller's. */
void pz_handoff_free(struct pz_handoff *h);

/* ---- responder.c: what the seed form's listeners answer ---- */

struct pz_responder;

/* A responder with at most MAX_CONNECTIONS, each for at most deadline_ms. WAKE (eventfd, borrowed)
 * ends a run. */
struct pz_responder *pz_responder_new(int wake, uint32_t max_connections, uint32_t deadline_ms,
                                      int *error);

/* Starts to accept on N non-blocking listeners (borrowed). All or none. Any thread, also during a
 * run. */
int pz_responder_watch(struct pz_responder *r, const int *listeners, size_t n);

/* Stops accepting on them; call it before closing them. Any thread, also during a run. */
void pz_responder_forget(struct pz_responder *r, const int *listeners, size_t n);

/* Blocks and answers `ok` to all until WAKE is readable. One thread only. Returns 0. */
int pz_responder_run(struct pz_responder *r);

/* After a run: accepts and answers what is queued on the listeners, for timeout_ms at most. Returns
 * 0. */
int pz_responder_accept_queued(struct pz_responder *r, int timeout_ms);

/*
 * After the listeners were forgotten: waits up to timeout_ms until the last connection is closed.
 * Returns how many were still open.
 */
int pz_responder_finish(struct pz_responder *r, int timeout_ms);

void pz_responder_free(struct pz_responder *r);

/* ---- zds_add.c: the one message whose speed counts ---- */

/* Bytes of a ZDS message: Istio's programs have buffers of this size. */
#define PZ_ZDS_MAX_MESSAGE 1024

enum pz_add_text {
    PZ_ADD_UID,
    PZ_ADD_NAME,
    PZ_ADD_NAMESPACE,
    PZ_ADD_SERVICE_ACCOUNT,
    PZ_ADD_TEXTS
};

/* Where the texts of an Add lie in the message; a missing one has no bytes. */
struct pz_add {
    uint16_t at[4];
    uint16_t size[4];
};

/*
 * Reads a WorkloadRequest if it is a plain Add: the fields that we know, each at most once and in
 * the order of their numbers, with a uid, an info and nothing but ASCII. Returns 1, or 0 for all
 * else: that is for protobuf to read.
 */
int pz_add_read(const uint8_t *message, size_t size, struct pz_add *add);

/* ---- zds.c: the native wait of ztunnel's end of a ZDS connection ---- */

/* What pz_zds_next() returns. */
enum pz_zds_event {
    PZ_ZDS_ADD = 1, /* a plain Add, with the netns of a pod as its only descriptor; unanswered */
    PZ_ZDS_MESSAGE = 2, /* any other message, to be read and answered by the caller */
    PZ_ZDS_CLOSED = 3,  /* the connection is over; request.lost says why, 0: the agent closed it */
    PZ_ZDS_WOKEN = 4,   /* the wake fd is readable */
    PZ_ZDS_DUE = 5,     /* timeout_ms have passed */
    PZ_ZDS_TAKEN = 6    /* an Add as above: the listeners are there and the ACK is sent */
};

struct pz_zds_request {
    uint64_t inode;  /* of the netns that fd refers to */
    uint64_t cookie; /* of it, 0 where the kernel cannot tell yet; TAKEN: never 0, see below */
    int32_t fd;      /* the only descriptor, if it is a netns: owned by the caller; else -1 */
    int32_t
        not_netns;  /* the only descriptor was none: -errno of pz_netns_inspect(), it is closed */
    int32_t lost;   /* -EMFILE our fd table was full, -EMSGSIZE bytes were lost; CLOSED: why */
    int32_t failed; /* ADD: -errno of pz_listen(), if it was tried and failed just now, else 0 */
    int32_t unsent; /* TAKEN: 0, or -errno with which the ACK did not go out */
    uint32_t nfds;  /* how many descriptors came; where it is not 1 all are closed */
    uint32_t size;  /* bytes of message */
    struct pz_add add; /* ADD, TAKEN */
    uint8_t message[1024];
};

struct pz_zds;

/* WAKE: an eventfd, borrowed. One thread only. NULL on failure, with -errno in *error. */
struct pz_zds *pz_zds_new(int wake, int *error);

/*
 * From now on pz_zds_next() may take an Add: with pz_listen() and these arguments, all of them
 * borrowed until Z is freed. -EINVAL N is not 1..PZ_MAX_LISTENERS.
 */
int pz_zds_serve(struct pz_zds *z, int home_fd, const struct pz_listener *wanted, size_t n,
                 int *out_fds, struct pz_failure *failure);

/*
 * An Add of this netns or of this UID (SIZE bytes; 0: of the netns alone) is not taken, but the
 * caller's to decide, until pz_zds_forget() has undone it: as often as it was said, with the same
 * two. Others may then not be taken either, where their hashes are the same.
 */
void pz_zds_know(struct pz_zds *z, uint64_t inode, const uint8_t *uid, size_t size);
void pz_zds_forget(struct pz_zds *z, uint64_t inode, const uint8_t *uid, size_t size);

/*
 * Blocks until SOCK (a connected Unix seqpacket socket, borrowed) has a message, WAKE is readable
 * or timeout_ms have passed, and returns an enum pz_zds_event. WAKE goes first. With SOCK -1 it
 * waits for the other two.
 *
 * With has_room a plain Add is taken after pz_zds_serve(), if neither its netns nor its uid is
 * known: the listeners are made as pz_listen() does, then the ACK is sent, without waiting. The
 * event is PZ_ZDS_TAKEN, the caller owns out_fds, and the cookie is complete (the inode before
 * Linux 5.14). Where pz_listen() fails nothing is sent and the event is PZ_ZDS_ADD.
 */
int pz_zds_next(struct pz_zds *z, int sock, int timeout_ms, int has_room,
                struct pz_zds_request *request);

/*
 * Ends a connection and takes ownership of its descriptor, which another thread closes: what its
 * peer sent and nobody read may hold up whoever closes it. What we sent can still be read there,
 * behind one ECONNRESET where a packet without bytes kept us from reading the rest.
 */
void pz_zds_hang_up(struct pz_zds *z, int sock);

void pz_zds_free(struct pz_zds *z);

/* cdef: end */

#endif
