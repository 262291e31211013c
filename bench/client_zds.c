/*
 * client_zds.c: the one node agent that measures every ztunnel in the same way.
 *
 * Usage: client agent SOCKET HELD NETNS_FD...
 *
 * Listens on SOCKET, says "listening" and waits for a ztunnel to dial. Its snapshot are the first
 * HELD netns, each Add sent once the one before it was acknowledged, as Istio's agent does it. Then
 * it says how long that took, in nanoseconds from the Hello to the ACK of SnapshotSent.
 *
 * After that it reads lines "N PAUSE_US" from stdin and does N cycles with the other netns, in
 * turn: Add, Del, pause. Answers with N times on one line, in nanoseconds from sending an Add to
 * its ACK. Del and pause are not timed; client.c says what the pause is for. Every Add has a uid of
 * its own, as long as that of a Kubernetes pod. Ends with its stdin.
 *
 * Any failure, a NACK too, ends the program with a line on stderr.
 */
#include "client.h"
#include "common.h"

#include <sys/un.h>
#include <unistd.h>

enum { MAX_ANSWER = 1024, MAX_REQUEST = 128, UID_SIZE = 36, UID_ROOM = 64 };

/* Fields of protobuf, all shorter than 128 bytes. */
struct message {
    unsigned char bytes[MAX_REQUEST];
    size_t size;
};

static void put(struct message *into, unsigned char tag, const void *content, size_t size)
{
    must(size < MAX_REQUEST && into->size + 2 + size <= MAX_REQUEST, "message too long");
    into->bytes[into->size++] = tag;
    into->bytes[into->size++] = (unsigned char)size;
    memcpy(into->bytes + into->size, content, size);
    into->size += size;
}

static void put_text(struct message *into, unsigned char tag, const char *text)
{
    put(into, tag, text, strlen(text));
}

/* A request that consists of the field TAG, whose content is BODY. */
static struct message wrapped(unsigned char tag, const struct message *body)
{
    struct message request = {.size = 0};

    put(&request, tag, body->bytes, body->size);
    return request;
}

static struct message add_of(const char *uid)
{
    struct message info = {.size = 0}, body = {.size = 0};

    put_text(&info, 0x0a, "workload");
    put_text(&info, 0x12, "default");
    put_text(&info, 0x1a, "default");
    put_text(&body, 0x0a, uid);
    put(&body, 0x12, info.bytes, info.size);
    return wrapped(0x0a, &body);
}

static struct message del_of(const char *uid)
{
    struct message body = {.size = 0};

    put_text(&body, 0x12, uid);
    return wrapped(0x12, &body);
}

static void name_workload(char uid[UID_ROOM], unsigned long number)
{
    int size = snprintf(uid, UID_ROOM, "5f1d7a84-0c5e-4b6f-9d3a-%012lx", number);

    must(size == UID_SIZE, "uid");
}

static void expect_ack(int ztunnel)
{
    unsigned char answer[MAX_ANSWER];
    ssize_t got = recv(ztunnel, answer, sizeof answer, 0);

    must(got >= 0, "recv");
    if (got == 2 && memcmp(answer, "\x0a\x00", 2) == 0)
        return;
    for (ssize_t i = 0; i < got; i++) /* a NACK is a text with a few bytes of protobuf before it */
        if (answer[i] < ' ' || answer[i] > '~')
            answer[i] = ' ';
    fprintf(stderr, got == 0 ? "ztunnel closed the connection\n" : "ztunnel refused: %.*s\n",
            (int)got, (const char *)answer);
    exit(1);
}

static void ask(int ztunnel, const struct message *request)
{
    must(send(ztunnel, request->bytes, request->size, MSG_NOSIGNAL) == (ssize_t)request->size,
         "send");
    expect_ack(ztunnel);
}

/* Nanoseconds from the Add to its ACK. */
static long timed_add(int ztunnel, const char *uid, int netns)
{
    struct message request = add_of(uid);
    long begin = now_ns();

    send_with_fd(ztunnel, request.bytes, request.size, netns);
    expect_ack(ztunnel);
    return now_ns() - begin;
}

static int wait_for_ztunnel(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    char hello[MAX_ANSWER];

    must(listener >= 0, "socket");
    must(strlen(path) < sizeof address.sun_path, "path too long");
    strcpy(address.sun_path, path);
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, path);
    must(listen(listener, 1) == 0, path);
    puts("listening");
    fflush(stdout);
    int ztunnel = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    must(ztunnel >= 0, "accept");
    must(recv(ztunnel, hello, sizeof hello, 0) == 2, "recv Hello");
    close(listener);
    return ztunnel;
}

/* Nanoseconds from the Hello to the end of the snapshot. */
static long timed_snapshot(int ztunnel, char **netns, int held, unsigned long *number)
{
    static const struct message done = {{0x1a, 0x00}, 2};
    char uid[UID_ROOM];
    long begin = now_ns();

    for (int i = 0; i < held; i++) {
        name_workload(uid, (*number)++);
        timed_add(ztunnel, uid, atoi(netns[i]));
    }
    ask(ztunnel, &done);
    return now_ns() - begin;
}

static long timed_cycle(int ztunnel, int netns, unsigned long number, long pause_us)
{
    char uid[UID_ROOM];

    name_workload(uid, number);
    long took = timed_add(ztunnel, uid, netns);
    struct message del = del_of(uid);
    ask(ztunnel, &del);
    rest(pause_us);
    return took;
}

int be_agent(int argc, char **argv)
{
    unsigned long number = 0;
    int cycles;
    long pause_us;

    int held = argc < 2 ? -1 : atoi(argv[1]);
    if (held < 0 || argc < 2 + held) {
        fprintf(stderr, "usage: client agent SOCKET HELD NETNS_FD...\n");
        return 2;
    }
    int ztunnel = wait_for_ztunnel(argv[0]);
    printf("%ld\n", timed_snapshot(ztunnel, argv + 2, held, &number));
    fflush(stdout);
    char **others = argv + 2 + held;
    int n = argc - 2 - held;
    while (scanf("%d %ld", &cycles, &pause_us) == 2) {
        must(n > 0, "no netns to do cycles with");
        for (int i = 0; i < cycles; i++, number++)
            printf("%ld ", timed_cycle(ztunnel, atoi(others[i % n]), number, pause_us));
        puts("");
        fflush(stdout);
    }
    return 0;
}
