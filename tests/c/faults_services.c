/*
 * faults_services.c: see faults.h.
 *
 * Theory of operation: a receiver and a responder run in threads of their own, and a client wants
 * something of them. A single failure may cost it its connection, which it sees, and then it comes
 * again; it may never wait in vain, be answered wrongly or need a third attempt.
 */
#include "faults.h"

#include "harness.h"
#include "inject.h"
#include "internal.h"
#include "receiver.h"
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { PORT = 15008, SEATS = 16, DEADLINE_MS = 20000, ATTEMPTS = 2 };

static int listener = -1, wake = -1, error;
static const struct pz_handoff_limits LIMITS = {
    .max_peers = SEATS, .deadline_ms = DEADLINE_MS, .max_unsent = 1 << 26};

static void open_ends(void)
{
    listener = unix_listener(NULL, SOCK_STREAM, 64);
    wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(wake >= 0);
}

static void close_ends(void)
{
    close(listener);
    close(wake);
}

/* ---- constructors ---- */

static struct pz_handoff *handoff;
static struct pz_responder *responder;

static int new_handoff(struct pz_failure *failure)
{
    const uint32_t uids[2] = {1, 2};

    (void)failure;
    error = 0;
    handoff = pz_handoff_new(listener, wake, &LIMITS, uids, 2, &error);
    CHECK_EQ(handoff == NULL, error < 0);
    return error;
}

static void free_handoff(int result)
{
    (void)result;
    pz_handoff_free(handoff);
    close_ends();
}

static int new_responder(struct pz_failure *failure)
{
    (void)failure;
    error = 0;
    responder = pz_responder_new(wake, SEATS, DEADLINE_MS, &error);
    CHECK_EQ(responder == NULL, error < 0);
    return error;
}

static void free_responder(int result)
{
    (void)result;
    pz_responder_free(responder);
    close_ends();
}

/* ---- the receiver ---- */

static struct large large;
static pthread_t service;
static int pod = -1;

static void take(struct pz_request *request)
{
    struct pz_listener wanted[2] = {on_loopback(PORT), on_loopback(PORT + 1)};
    int fds[2];

    int rc = pz_handoff_take(handoff, request, -1, wanted, 2, fds, (const uint8_t *)"ok ", 3, NULL);
    CHECK_EQ(rc, 0); /* its own calls fail in another scenario */
    pz_close_all(fds, 2);
    close(request->fd);
}

static void refuse(const struct pz_request *request)
{
    pz_close_all(&request->fd, request->fd >= 0 ? 1 : 0);
    pz_handoff_answer(handoff, request->peer, (const uint8_t *)"error\n", 6, 1);
}

static void *serve(void *unused)
{
    struct pz_request request;
    int event;

    (void)unused;
    while ((event = pz_handoff_next(handoff, &request)) != PZ_EVENT_WOKEN) {
        if (event == PZ_EVENT_TAKE && request.fd >= 0)
            take(&request);
        else if (event == PZ_EVENT_LIST)
            pz_handoff_answer(handoff, request.peer, large.text, large.size, 0);
        else
            refuse(&request);
    }
    return NULL;
}

static void start_receiver(void)
{
    open_ends();
    pod = new_pod();
    large = new_large();
    CHECK_EQ(new_handoff(NULL), 0);
    CHECK_EQ(pthread_create(&service, NULL, serve, NULL), 0);
}

static void stop_receiver(int result)
{
    CHECK_EQ(eventfd_write(wake, 1), 0);
    CHECK_EQ(pthread_join(service, NULL), 0);
    free(large.text);
    close(pod);
    free_handoff(result);
}

/* What a client wants, and what it must be told. */
struct wish {
    const char *bytes;
    size_t nbytes, nfds;
    const char *told; /* how the answer begins */
    size_t size;      /* of the whole answer; 0: a line */
};

static bool send_with(int sock, const struct wish *wish, int fd)
{
    int sent[2] = {fd, fd};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof sent)];
    } control = {.bytes = {0}};
    struct iovec bytes = {(void *)(uintptr_t)wish->bytes, wish->nbytes};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

    if (wish->nfds > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(wish->nfds * sizeof(int));
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(wish->nfds * sizeof(int));
        memcpy(CMSG_DATA(&control.align), sent, wish->nfds * sizeof(int));
    }
    return sendmsg(sock, &message, MSG_NOSIGNAL) == (ssize_t)wish->nbytes;
}

static bool send_wish(int sock, const struct wish *wish)
{
    return send_with(sock, wish, pod);
}

/* Whether the whole answer came. What came instead must be the end of the connection. */
static bool is_granted(int sock, const struct wish *wish)
{
    static char answer[1 << 21];
    size_t got = 0;
    int how = 0;

    if (!send_wish(sock, wish))
        return false;
    CHECK(wish->size < sizeof answer);
    if (wish->size > 0)
        got = hear(sock, answer, wish->size, &how);
    else
        while (got < sizeof answer && hear(sock, answer + got, 1, &how) == 1)
            if (answer[got++] == '\n')
                break;
    CHECK(how != ETIMEDOUT);
    if (got < wish->size || got == 0 || (wish->size == 0 && answer[got - 1] != '\n'))
        return false;
    CHECK(memcmp(answer, wish->told, strlen(wish->told)) == 0);
    return true;
}

static int want(const struct wish *wish)
{
    for (int i = 0; i < ATTEMPTS; i++) {
        int sock = dial(listener);
        bool granted = is_granted(sock, wish);
        close(sock);
        if (granted)
            return 0;
    }
    return -ETIMEDOUT;
}

/* A connection that stays: silent while others come, and then asks twice. */
static int stay_and_want(const struct wish *wish)
{
    int sock = dial(listener);
    int rc = want(wish);
    bool stayed = is_granted(sock, wish) && is_granted(sock, wish);

    close(sock);
    return rc == 0 && !stayed ? want(wish) : rc;
}

/* A descriptor that the receiver has no use for is closed, whatever failed: the pipe ends. */
static int send_stranger(void)
{
    const struct wish wish = {"\x01", 1, 1, "", 0};
    int ends[2], sock = dial(listener);

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    send_with(sock, &wish, ends[1]);
    close(ends[1]);
    short came = await(ends[0], 0);
    close(ends[0]);
    close(sock);
    return came & POLLHUP ? 0 : -ETIMEDOUT;
}

static int use_receiver(struct pz_failure *failure)
{
    const struct wish wishes[] = {
        {"\x01", 1, 1, "ok ", 0},
        {"\x04", 1, 0, "", large.size},
        {"\x02", 1, 1, "error\n", 0},
        {"\x04\x01\x09", 3, 2, "error\n", 0}, /* with two descriptors, and bytes unread */
        {"\x03zz\x01\x01", 5, 0, "error\n", 0},
    };
    int rc = 0;

    (void)failure;
    for (size_t i = 0; i < COUNT(wishes) && rc == 0; i++)
        rc = want(&wishes[i]);
    if (rc == 0)
        rc = send_stranger();
    return rc == 0 ? stay_and_want(&wishes[0]) : rc;
}

/* ---- take: listeners and answer in one call ---- */

static struct pz_request request;
static int peer = -1;
static int fds[2];

static void bring(const struct wish *wish, int event)
{
    open_ends();
    pod = new_pod();
    CHECK_EQ(new_handoff(NULL), 0);
    peer = dial(listener);
    CHECK(send_wish(peer, wish));
    CHECK_EQ(pz_handoff_next(handoff, &request), event);
}

static void bring_request(void)
{
    const struct wish wish = {"\x01", 1, 1, "", 0};

    bring(&wish, PZ_EVENT_TAKE);
    CHECK(request.fd >= 0);
}

static void bring_request_of_old_kernel(void)
{
    bring_request();
    request.cookie = 0;
}

static int take_request(struct pz_failure *failure)
{
    struct pz_listener wanted[2] = {on_loopback(PORT), on_loopback(PORT + 1)};

    return pz_handoff_take(handoff, &request, -1, wanted, 2, fds, (const uint8_t *)"ok ", 3,
                           failure);
}

/* What could not be sent at once goes out as soon as the receiver waits. */
static void let_it_send(void)
{
    struct pz_request none;
    uint64_t value;

    for (int i = 0; i < 3; i++) {
        CHECK_EQ(eventfd_write(wake, 1), 0);
        CHECK_EQ(pz_handoff_next(handoff, &none), PZ_EVENT_WOKEN);
        CHECK_EQ(eventfd_read(wake, &value), 0);
    }
}

/* The peer has an answer exactly when there are listeners, unless its connection ended. */
static void expect_answer_with_listeners(int result)
{
    char byte;

    if (result >= 0)
        let_it_send();
    ssize_t got = recv(peer, &byte, 1, MSG_DONTWAIT);

    if (result >= 0) {
        CHECK(got == 1 || got == 0);
        CHECK(request.cookie != 0);
        pz_close_all(fds, 2);
    } else {
        CHECK(got == -1 && errno == EAGAIN);
    }
    close(peer);
    close(request.fd);
    close(pod);
    free_handoff(result);
}

/* ---- an answer that does not fit ---- */

static void bring_list(void)
{
    const struct wish wish = {"\x04", 1, 0, "", 0};

    large = new_large();
    bring(&wish, PZ_EVENT_LIST);
}

static int answer_much(struct pz_failure *failure)
{
    (void)failure;
    return pz_handoff_answer(handoff, request.peer, large.text, large.size, 0);
}

/* The whole answer comes, or the end. */
static int read_all_of_it(struct pz_failure *failure)
{
    static uint8_t part[1 << 16];
    size_t size = 0;
    ssize_t got = -1;

    (void)failure;
    for (int quiet = 0; size < large.size && quiet < 2;) {
        let_it_send();
        while ((got = recv(peer, part, sizeof part, MSG_DONTWAIT)) > 0) {
            CHECK(size + (size_t)got <= large.size);
            CHECK(memcmp(part, large.text + size, (size_t)got) == 0);
            size += (size_t)got;
            quiet = 0;
        }
        if (got == 0)
            break;
        quiet++;
    }
    return size == large.size || got == 0 ? 0 : -ETIMEDOUT;
}

static void close_reader(int result)
{
    free(large.text);
    close(peer);
    close(pod);
    free_handoff(result);
}

static void expect_all_of_it(int result)
{
    CHECK_EQ(read_all_of_it(NULL), 0);
    close_reader(result);
}

static void bring_list_and_answer(void)
{
    bring_list();
    CHECK_EQ(answer_much(NULL), 0);
}

/* ---- the responder ---- */

static int tcp[2];

static void open_tcp(void)
{
    open_ends();
    CHECK_EQ(new_responder(NULL), 0);
    for (int i = 0; i < 2; i++)
        tcp[i] = tcp_listener();
}

static void close_tcp(int result)
{
    pz_close_all(tcp, 2);
    free_responder(result);
}

static int watch_both(struct pz_failure *failure)
{
    (void)failure;
    return pz_responder_watch(responder, tcp, 2);
}

/* A failed watch() watches none: all of them can be watched then. */
static void expect_both_or_none(int result)
{
    if (result < 0)
        CHECK_EQ(watch_both(NULL), 0);
    close_tcp(result);
}

static void *respond(void *unused)
{
    (void)unused;
    CHECK_EQ(pz_responder_run(responder), 0);
    return NULL;
}

static void start_responder(void)
{
    open_tcp();
    CHECK_EQ(watch_both(NULL), 0);
    CHECK_EQ(pthread_create(&service, NULL, respond, NULL), 0);
}

static bool is_told_ok(int sock)
{
    char text[8];
    int how;

    return hear(sock, text, sizeof text, &how) == 3 && how == 0 && memcmp(text, "ok\n", 3) == 0;
}

static int call_responder(int where)
{
    for (int i = 0; i < ATTEMPTS; i++) {
        int sock = dial_tcp(where);
        bool told = is_told_ok(sock);
        close(sock);
        if (told)
            return 0;
    }
    return -ETIMEDOUT;
}

static int use_responder(struct pz_failure *failure)
{
    (void)failure;
    int talker = dial_tcp(tcp[0]);
    send(talker, "hello", 5, MSG_NOSIGNAL);
    int rc = call_responder(tcp[0]);
    if (rc == 0)
        rc = call_responder(tcp[1]);
    close(talker);
    pz_responder_forget(responder, tcp, 1);
    return rc == 0 ? pz_responder_watch(responder, tcp, 1) : rc;
}

static void stop_responder(int result)
{
    CHECK_EQ(eventfd_write(wake, 1), 0);
    CHECK_EQ(pthread_join(service, NULL), 0);
    close_tcp(result);
}

/* watch() after forget() may fail, which the caller is told (EEXIST: forget() could not forget);
 * the rest may not. */
static int use_responder_and_watch(struct pz_failure *failure)
{
    int rc = use_responder(failure);

    return rc == -ENOSPC || rc == -ENOMEM || rc == -EEXIST ? 0 : rc;
}

/* After a run: what is queued is answered, then the connections end. */
static void stop_with_queue(void)
{
    open_tcp();
    CHECK_EQ(watch_both(NULL), 0);
    peer = dial_tcp(tcp[0]);
}

static int serve_queue(struct pz_failure *failure)
{
    (void)failure;
    pz_responder_accept_queued(responder, DEADLINE_MS);
    pz_responder_forget(responder, tcp, 2);
    shutdown(peer, SHUT_WR);
    return pz_responder_finish(responder, DEADLINE_MS);
}

/* The client is told or sees the end; it does not wait for ever. */
static void close_queue(int result)
{
    char text[8];
    int how;

    close_tcp(result);
    hear(peer, text, sizeof text, &how);
    CHECK(how != ETIMEDOUT);
    close(peer);
}

/* The first accept() finds no descriptor and nobody is there to make room. */
static void stop_with_queue_and_full_table(void)
{
    stop_with_queue();
    inject(CALL_ACCEPT4, 1, EMFILE);
}

/* Root in the pod has destroyed the listener. */
static void stop_with_destroyed_listener(void)
{
    stop_with_queue();
    inject(CALL_ACCEPT4, 1, EINVAL);
}

struct scenarios service_scenarios(void)
{
#define QUEUE .run = serve_queue, .tear_down = close_queue, .resists = true
    static const struct scenario all[] = {
        {.name = "new receiver",
         .set_up = open_ends,
         .run = new_handoff,
         .tear_down = free_handoff,
         .opens = true},
        {.name = "new responder",
         .set_up = open_ends,
         .run = new_responder,
         .tear_down = free_responder,
         .opens = true},
        {.name = "receiver",
         .files = "handoff fdpass closer seats",
         .set_up = start_receiver,
         .run = use_receiver,
         .tear_down = stop_receiver,
         .resists = true},
        {.name = "take",
         .set_up = bring_request,
         .run = take_request,
         .tear_down = expect_answer_with_listeners},
        {.name = "take, old kernel",
         .files = "netns handoff",
         .set_up = bring_request_of_old_kernel,
         .run = take_request,
         .tear_down = expect_answer_with_listeners,
         .in_worker = true},
        {.name = "answer",
         .set_up = bring_list,
         .run = answer_much,
         .tear_down = expect_all_of_it,
         .resists = true},
        {.name = "rest of an answer",
         .set_up = bring_list_and_answer,
         .run = read_all_of_it,
         .tear_down = close_reader,
         .resists = true},
        {.name = "watch", .set_up = open_tcp, .run = watch_both, .tear_down = expect_both_or_none},
        {.name = "responder",
         .set_up = start_responder,
         .run = use_responder_and_watch,
         .tear_down = stop_responder,
         .resists = true},
        {.name = "queue", .set_up = stop_with_queue, QUEUE},
        {.name = "queue of a destroyed listener", .set_up = stop_with_destroyed_listener, QUEUE},
        {.name = "queue and a full table", .set_up = stop_with_queue_and_full_table, QUEUE},
    };

    return (struct scenarios){all, COUNT(all)};
}
