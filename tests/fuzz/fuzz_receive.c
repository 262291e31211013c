/*
 * fuzz_receive.c: libFuzzer drives the receiving side with whatever a peer could do.
 *
 * Theory of operation
 *
 * The input is a program for three peers of a receiver (pz_handoff): connect, send bytes with up to
 * three descriptors of several kinds, read, close, let the receiver work. One thread does it all: a
 * peer acts before the receiver is asked, and a wake fd brings the receiver back, so that an input
 * does the same each time. In a second mode the same messages go over a seqpacket or stream pair to
 * pz_recv(), in a third the bytes go to the state machine of requests alone. Two more are those of
 * ZDS, see fuzz_zds.c.
 *
 * What must hold after each step: an event has its well-formed request, an answer that a peer reads
 * is one that was given. At the end: no descriptor more than before, no time lost. Memory is
 * watched by ASan and UBSan.
 */
#include "internal.h"

#include "fuzz.h"
#include "request.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

enum {
    PEERS = 3,
    DEADLINE_MS = 60000,
    MAX_UNSENT = 1 << 19,
    MAX_ANSWER = 1 + 255 * 2048,
    PATIENCE_MS = 2000,
    MAX_EVENTS = 4096
};

/* ---- a whole receiver ---- */

struct scene {
    struct pz_handoff *handoff;
    int listener, wake;
    int peers[PEERS];
    bool asked_close; /* the next answer closes */
    size_t answer_size;
    int events;
};

/* More than the kernel takes at once, if so chosen: the receiver keeps the rest. */
static void answer(struct scene *scene, const struct pz_request *request)
{
    static uint8_t text[MAX_ANSWER];

    if (text[0] == 0)
        memset(text, 'a', sizeof text);
    pz_handoff_answer(scene->handoff, request->peer, text, scene->answer_size, scene->asked_close);
}

static void verify(const struct pz_request *request, int event)
{
    bool brings_fd = event == PZ_EVENT_TAKE || event == PZ_EVENT_RELEASE;

    MUST(event >= PZ_EVENT_TAKE && event <= PZ_EVENT_MALFORMED);
    MUST(request->peer != UINT32_MAX);
    MUST(request->pid == getpid());
    MUST(brings_fd == (request->fd >= 0 || request->not_netns != 0));
    MUST(request->fd < 0 || request->not_netns == 0);
    MUST(request->fd < 0 || (request->inode != 0 && fcntl(request->fd, F_GETFD) == FD_CLOEXEC));
    MUST((event == PZ_EVENT_MALFORMED) == (request->why != 0));
    MUST(request->why <= PZ_WHY_FD_TABLE);
    MUST(request->why != PZ_WHY_FDS || request->nfds != (request->byte == 1 || request->byte == 2));
}

/* Lets the receiver work until it finds nothing but the wake. */
static void let_work(struct scene *scene)
{
    struct pz_request request;
    uint64_t value;
    int event, quiet = 0;

    while (quiet < 2) {
        MUST(eventfd_write(scene->wake, 1) == 0);
        event = pz_handoff_next(scene->handoff, &request);
        MUST(eventfd_read(scene->wake, &value) == 0);
        MUST(++scene->events < MAX_EVENTS);
        if (event == PZ_EVENT_WOKEN) {
            quiet++;
            continue;
        }
        quiet = 0;
        verify(&request, event);
        if (request.fd >= 0)
            close(request.fd);
        if (event == PZ_EVENT_MALFORMED)
            pz_handoff_answer(scene->handoff, request.peer, (const uint8_t *)"error\n", 6, 1);
        else
            answer(scene, &request);
    }
}

static void connect_peer(struct scene *scene, int which)
{
    struct sockaddr_un address;
    socklen_t size = sizeof address;

    if (scene->peers[which] >= 0)
        return;
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    MUST(getsockname(scene->listener, (struct sockaddr *)&address, &size) == 0);
    MUST(connect(sock, (const struct sockaddr *)&address, size) == 0);
    scene->peers[which] = sock;
}

/* Answers are runs of 'a' and "error\n"; anything else would be somebody else's memory. */
static void read_answers(int sock)
{
    char text[4096];
    ssize_t got;

    while ((got = recv(sock, text, sizeof text, MSG_DONTWAIT)) > 0)
        for (ssize_t i = 0; i < got; i++)
            MUST(strchr("a\nero", text[i]) != NULL && text[i] != '\0');
}

static void close_peer(struct scene *scene, int which)
{
    if (scene->peers[which] >= 0)
        close(scene->peers[which]);
    scene->peers[which] = -1;
}

static void act(struct scene *scene, struct input *input)
{
    uint8_t choice = take_byte(input);
    int which = (choice >> 4) % PEERS;
    struct message message;

    switch (choice % 8) {
    case 0: let_work(scene); break;
    case 1: close_peer(scene, which); break;
    case 2:
        if (scene->peers[which] >= 0)
            read_answers(scene->peers[which]);
        break;
    case 3: scene->answer_size = 1 + (size_t)take_byte(input) * 2048; break;
    case 4: scene->asked_close = !scene->asked_close; break;
    case 5:
        if (scene->peers[which] >= 0)
            shutdown(scene->peers[which], choice & 8 ? SHUT_WR : SHUT_RD);
        break;
    default:
        connect_peer(scene, which);
        message = read_message(input);
        send_message(scene->peers[which], &message);
    }
}

/* The peers are gone: what they had sent is served, then nobody is seated any more. */
static void end_of_work(struct scene *scene, bool drained)
{
    struct pz_handoff_counters counters;
    struct pz_request request;

    if (drained) {
        MUST(pz_handoff_next(scene->handoff, &request) == PZ_EVENT_QUIET);
        return;
    }
    let_work(scene);
    pz_handoff_counters(scene->handoff, &counters);
    MUST(counters.peers == 0);
    MUST(counters.expired == 0);
}

static int listen_unnamed(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    MUST(bind(sock, (const struct sockaddr *)&address, sizeof address.sun_family) == 0);
    MUST(listen(sock, 2 * MAX_EVENTS) == 0);
    return sock;
}

static void drive_handoff(struct input *input)
{
    uint8_t choice = take_byte(input);
    struct pz_handoff_limits limits = {
        .max_peers = 1 + choice % PEERS, .deadline_ms = DEADLINE_MS, .max_unsent = MAX_UNSENT};
    struct scene scene = {.listener = listen_unnamed(),
                          .wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                          .peers = {-1, -1, -1},
                          .answer_size = 3};
    int error = 0;

    scene.handoff = pz_handoff_new(scene.listener, scene.wake, &limits, NULL, 0, &error);
    MUST(scene.handoff != NULL && error == 0);
    while (input->at < input->end)
        act(&scene, input);
    let_work(&scene);
    if (choice & 0x80)
        pz_handoff_drain(scene.handoff, 0);
    for (int i = 0; i < PEERS; i++)
        close_peer(&scene, i);
    end_of_work(&scene, choice & 0x80);
    pz_handoff_free(scene.handoff);
    close(scene.listener);
    close(scene.wake);
}

/* ---- one message at a time ---- */

static void drive_recv(struct input *input)
{
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};
    int ends[2];

    MUST(socketpair(AF_UNIX, types[take_byte(input) % 2] | SOCK_CLOEXEC, 0, ends) == 0);
    while (input->at < input->end) {
        struct message message = read_message(input);
        uint8_t buffer[MAX_BYTES];
        int fds[MAX_FDS_SENT];
        size_t cap = 1 + take_byte(input) % MAX_BYTES, room = take_byte(input) % (MAX_FDS_SENT + 1);
        size_t nfds = 77;
        send_message(ends[0], &message);
        int got = pz_recv(ends[1], buffer, cap, fds, room, &nfds, 0);
        MUST(got <= (int)cap);
        MUST(nfds <= room && (got > 0 || nfds == 0));
        MUST(got >= 0 || got == -ETIMEDOUT || got == -EPROTO || got == -EMSGSIZE);
        for (size_t i = 0; i < nfds; i++)
            MUST(fcntl(fds[i], F_GETFD) == FD_CLOEXEC);
        pz_close_all(fds, nfds);
    }
    pz_close_all(ends, 2);
}

/* ---- the state machine of requests ---- */

static void drive_request(struct input *input)
{
    struct pz_partial partial = {0};
    int fed = 0;

    while (input->at < input->end) {
        struct pz_request request = {0};
        uint8_t nfds = take_byte(input), byte = take_byte(input);
        int event = pz_request_feed(&partial, byte, nfds % 4 == 3 ? 0 : nfds % 4, &request);
        fed++;
        MUST(event >= 0 && event <= PZ_EVENT_MALFORMED);
        MUST(fed <= 22);
        MUST((event == PZ_EVENT_MALFORMED) == (request.why != 0));
        if (event == 0)
            continue;
        MUST(partial.kind == 0 && partial.digits == 0 && partial.cookie == 0);
        fed = 0;
    }
}

/* ---- the run ---- */

static int count_fds(void)
{
    DIR *table = opendir("/proc/self/fd");
    int n = 0;

    MUST(table != NULL);
    while (readdir(table) != NULL)
        n++;
    closedir(table);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    int before = count_fds();
    int64_t began = pz_now_ms();

    switch (take_byte(&input) % 6) {
    case 0: drive_request(&input); break;
    case 1: drive_recv(&input); break;
    case 4: drive_zds(&input); break;
    case 5: drive_add(&input); break;
    default: drive_handoff(&input); break;
    }
    MUST(count_fds() == before);
    MUST(pz_now_ms() - began < PATIENCE_MS);
    return 0;
}
