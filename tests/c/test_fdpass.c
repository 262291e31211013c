/*
 * test_fdpass.c: messages with descriptors.
 *
 * Theory of operation: socket pairs, both ends here. One descriptor, sent N times over in one
 * message, stands for N. Nothing is counted by hand at the end of a test: the harness finds every
 * descriptor that was received and not closed. Messages that pz_send() refuses to make come from
 * send_raw(). Waiting is in test_fdpass_wait.c.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { KERNEL_MAX = 253, SHORT_MS = 30, LONG_MS = 5000, BIG = 1 << 20 };

static const int TYPES[] = {SOCK_STREAM, SOCK_SEQPACKET};
static uint8_t big[BIG];

static int open_something(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0);
    return fd;
}

/* FD as often as FDS has room. */
static void repeat(int fd, int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        fds[i] = fd;
}

static void close_pair(const int ends[2])
{
    close(ends[0]);
    close(ends[1]);
}

static void send_raw(int sock, size_t size, int fd, size_t nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(KERNEL_MAX * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec bytes = {.iov_base = big, .iov_len = size};
    struct msghdr message = {.msg_iov = &bytes,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE(nfds * sizeof(int))};
    int fds[KERNEL_MAX];

    repeat(fd, fds, nfds);
    control.align.cmsg_level = SOL_SOCKET;
    control.align.cmsg_type = SCM_RIGHTS;
    control.align.cmsg_len = CMSG_LEN(nfds * sizeof(int));
    memcpy(CMSG_DATA(&control.align), fds, nfds * sizeof(int));
    CHECK_EQ(sendmsg(sock, &message, 0), size);
}

/* ---- what arrives ---- */

static void pass_and_verify(int type, size_t nfds)
{
    int ends[2], sent[PZ_MAX_FDS], got[PZ_MAX_FDS], fd = open_something();
    uint8_t text[8];
    size_t arrived = 99;

    unix_pair(type, ends);
    repeat(fd, sent, nfds);
    CHECK_EQ(pz_send(ends[0], (const uint8_t *)"hello", 5, sent, nfds, 0), 5);
    CHECK_EQ(pz_recv(ends[1], text, sizeof text, got, PZ_MAX_FDS, &arrived, 0), 5);
    CHECK(memcmp(text, "hello", 5) == 0);
    CHECK_EQ(arrived, nfds);
    for (size_t i = 0; i < arrived; i++) {
        CHECK(is_cloexec(got[i]));
        CHECK(is_same_file(got[i], fd));
        close(got[i]);
    }
    close(fd);
    close_pair(ends);
}

static const size_t COUNTS[] = {0, 1, 2, 3, 249, 250};

static void any_number_of_fds_arrives(void)
{
    for (size_t t = 0; t < COUNT(TYPES); t++)
        for (size_t i = 0; i < COUNT(COUNTS); i++) {
            in_row("type %d, %zu fds", TYPES[t], COUNTS[i]);
            pass_and_verify(TYPES[t], COUNTS[i]);
        }
}

/* How a message that is refused looks, and by what. */
struct refusal {
    size_t size, cap;
    size_t nfds, max_fds;
    int seqpacket, stream; /* the result for each type */
};

static const struct refusal REFUSALS[] = {
    {1, 8, 1, 0, -EPROTO, -EPROTO},     {1, 8, 2, 1, -EPROTO, -EPROTO},
    {1, 8, 3, 1, -EPROTO, -EPROTO},     {1, 8, 250, 1, -EPROTO, -EPROTO},
    {1, 8, 250, 249, -EPROTO, -EPROTO}, {1, 8, 251, 250, -EPROTO, -EPROTO},
    {1, 8, 253, 250, -EPROTO, -EPROTO}, {9, 8, 0, 0, -EMSGSIZE, 8},
    {9, 8, 3, 3, -EMSGSIZE, 8},         {9, 8, 3, 1, -EMSGSIZE, -EPROTO},
};

static void try_refusal(int type, const struct refusal *row)
{
    int ends[2], got[PZ_MAX_FDS], fd = open_something();
    uint8_t text[16];
    size_t arrived = 99;
    int expected = type == SOCK_STREAM ? row->stream : row->seqpacket;

    unix_pair(type, ends);
    if (row->nfds > 0)
        send_raw(ends[0], row->size, fd, row->nfds);
    else
        CHECK_EQ(send(ends[0], big, row->size, 0), row->size);
    CHECK_EQ(pz_recv(ends[1], text, row->cap, got, row->max_fds, &arrived, 0), expected);
    CHECK_EQ(arrived, expected > 0 ? row->nfds : 0);
    pz_close_all(got, arrived);
    close(fd);
    close_pair(ends);
}

static void too_much_is_refused_and_closed(void)
{
    for (size_t t = 0; t < COUNT(TYPES); t++)
        for (size_t i = 0; i < COUNT(REFUSALS); i++) {
            in_row("type %d, row %zu", TYPES[t], i);
            try_refusal(TYPES[t], &REFUSALS[i]);
        }
}

/* A message is lost with its refusal; the next one is whole. */
static void a_seqpacket_goes_on_after_a_refusal(void)
{
    int ends[2], got[1], fd = open_something();
    uint8_t text[4];
    size_t arrived;

    unix_pair(SOCK_SEQPACKET, ends);
    send_raw(ends[0], 9, fd, 3);
    say(ends[0], "next", 4, &fd, 1);
    CHECK_EQ(pz_recv(ends[1], text, 4, got, 1, &arrived, 0), -EMSGSIZE);
    CHECK_EQ(pz_recv(ends[1], text, 4, got, 1, &arrived, 0), 4);
    CHECK_EQ(arrived, 1);
    close(got[0]);
    close(fd);
    close_pair(ends);
}

/* Room in the fd table, descriptors sent, descriptors wanted. */
static const struct {
    int room;
    size_t nfds, max_fds;
} FULL[] = {{0, 1, 1}, {0, 250, 250}, {1, 2, 2}, {1, 250, 250}, {2, 3, 1}, {100, 250, 250}};

static void a_full_fd_table_closes_everything(void)
{
    for (size_t t = 0; t < COUNT(TYPES); t++)
        for (size_t i = 0; i < COUNT(FULL); i++) {
            int ends[2], got[PZ_MAX_FDS], fd = open_something();
            uint8_t text[4];
            size_t arrived = 99;
            in_row("type %d, row %zu", TYPES[t], i);
            unix_pair(TYPES[t], ends);
            send_raw(ends[0], 1, fd, FULL[i].nfds);
            fill_fd_table(FULL[i].room);
            CHECK_EQ(pz_recv(ends[1], text, 4, got, FULL[i].max_fds, &arrived, 0), -EMFILE);
            CHECK_EQ(arrived, 0);
            for (int room = 0; room < FULL[i].room; room++) {
                got[room] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
                CHECK(got[room] != -1); /* all the room is there again */
            }
            pz_close_all(got, (size_t)FULL[i].room);
            empty_fd_table();
            close(fd);
            close_pair(ends);
        }
}

static void the_end_of_the_stream(void)
{
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        int ends[2], got[1];
        uint8_t text[4];
        size_t arrived = 99;
        unix_pair(TYPES[t], ends);
        say(ends[0], "last", 4, NULL, 0);
        close(ends[0]);
        CHECK_EQ(pz_recv(ends[1], text, 4, got, 1, &arrived, -1), 4);
        CHECK_EQ(pz_recv(ends[1], text, 4, got, 1, &arrived, -1), 0);
        CHECK_EQ(arrived, 0);
        close(ends[1]);
    }
}

/* It is taken for the end, so nothing may come with it. */
static void an_empty_seqpacket_is_the_end_and_brings_nothing(void)
{
    int ends[2], got[PZ_MAX_FDS], fd = open_something();
    uint8_t text[4];
    size_t arrived = 99;

    unix_pair(SOCK_SEQPACKET, ends);
    send_raw(ends[0], 0, fd, 3);
    CHECK_EQ(pz_recv(ends[1], text, 4, got, PZ_MAX_FDS, &arrived, 0), 0);
    CHECK_EQ(arrived, 0);
    close(fd);
    close_pair(ends);
}

/* ---- sending ---- */

static void a_stream_takes_a_part_with_all_the_fds(void)
{
    int ends[2], sent[3], got[4], fd = open_something(), error;
    static uint8_t received[BIG];
    size_t arrived = 99;

    unix_pair(SOCK_STREAM, ends);
    repeat(fd, sent, 3);
    for (size_t i = 0; i < BIG; i++)
        big[i] = (uint8_t)(i * 7 >> 3);
    int taken = pz_send(ends[0], big, BIG, sent, 3, 0);
    CHECK(taken > 0 && taken < BIG);
    int first = pz_recv(ends[1], received, BIG, got, 4, &arrived, 0);
    CHECK(first > 0);
    CHECK_EQ(arrived, 3);
    pz_close_all(got, 3);
    size_t rest = (size_t)(taken - first);
    CHECK_EQ(hear(ends[1], received + first, rest, &error), rest);
    CHECK(memcmp(received, big, (size_t)taken) == 0);
    CHECK_EQ(pz_recv(ends[1], received, 1, got, 4, &arrived, 0), -ETIMEDOUT);
    close(fd);
    close_pair(ends);
}

static void read_everything(void *argument)
{
    static uint8_t received[BIG];
    int error;

    CHECK_EQ(hear(*(const int *)argument, received, BIG, &error), BIG);
}

static void *read_in_thread(void *argument)
{
    read_everything(argument);
    return NULL;
}

static void a_sender_waits_for_room(void)
{
    int ends[2];
    pthread_t reader;

    unix_pair(SOCK_STREAM, ends);
    CHECK_EQ(pthread_create(&reader, NULL, read_in_thread, &ends[1]), 0);
    say(ends[0], big, BIG, NULL, 0);
    CHECK_EQ(pthread_join(reader, NULL), 0);
    close_pair(ends);
}

static void a_bad_send_is_refused(void)
{
    int ends[2], many[PZ_MAX_FDS + 1], bad = -1, file = open_something();
    const uint8_t byte = 1;

    unix_pair(SOCK_SEQPACKET, ends);
    repeat(file, many, PZ_MAX_FDS + 1);
    CHECK_EQ(pz_send(ends[0], &byte, 0, NULL, 0, 0), -EINVAL);
    CHECK_EQ(pz_send(ends[0], &byte, 1, many, PZ_MAX_FDS + 1, 0), -E2BIG);
    CHECK_EQ(pz_send(ends[0], &byte, 1, &bad, 1, 0), -EBADF);
    CHECK_EQ(pz_send(ends[0], big, BIG, NULL, 0, 0), -EMSGSIZE);
    CHECK_EQ(pz_send(-1, &byte, 1, NULL, 0, 0), -EBADF);
    CHECK_EQ(pz_send(file, &byte, 1, NULL, 0, 0), -ENOTSOCK);
    close(ends[1]);
    CHECK_EQ(pz_send(ends[0], &byte, 1, NULL, 0, -1), -EPIPE);
    close(ends[0]);
    unix_pair(SOCK_STREAM, ends);
    close(ends[1]);
    CHECK_EQ(pz_send(ends[0], &byte, 1, NULL, 0, -1), -EPIPE); /* and no SIGPIPE */
    close(ends[0]);
    close(file);
}

static void too_many_in_flight(void)
{
    int ends[2], fds[20], fd = open_something();
    struct rlimit limit = {16, 16};
    const uint8_t byte = 1;

    need_other_user();
    become_nobody();
    unix_pair(SOCK_STREAM, ends);
    repeat(fd, fds, COUNT(fds));
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_EQ(pz_send(ends[0], &byte, 1, fds, COUNT(fds), 0), 1);
    CHECK_EQ(pz_send(ends[0], &byte, 1, fds, COUNT(fds), 0), -ETOOMANYREFS);
    close(fd);
    close_pair(ends);
}

static void a_bad_receive_is_refused(void)
{
    int ends[2], got[1], file = open_something();
    uint8_t byte;
    size_t arrived = 99;

    unix_pair(SOCK_STREAM, ends);
    CHECK_EQ(pz_recv(ends[0], &byte, 0, got, 0, &arrived, 0), -EINVAL);
    CHECK_EQ(pz_recv(ends[0], &byte, 1, got, PZ_MAX_FDS + 1, &arrived, 0), -E2BIG);
    CHECK_EQ(pz_recv(-1, &byte, 1, got, 0, &arrived, 0), -EBADF);
    CHECK_EQ(pz_recv(file, &byte, 1, got, 0, &arrived, 0), -ENOTSOCK);
    say(ends[0], "unread", 6, NULL, 0);
    close(ends[1]);
    CHECK_EQ(pz_recv(ends[0], &byte, 1, got, 0, &arrived, -1), -ECONNRESET);
    CHECK_EQ(arrived, 0);
    close(ends[0]);
    close(file);
}

/* poll() is asked for 1000 s at most; that such a piece is over is not the end of a longer wait. */
static void a_long_wait_is_not_cut(void)
{
    int ends[2];
    uint8_t byte;
    size_t arrived;

    unix_pair(SOCK_STREAM, ends);
    say(ends[0], "x", 1, NULL, 0);
    inject(CALL_RECVMSG, 1, EAGAIN);
    inject(CALL_POLL, 1, 0);
    CHECK_EQ(pz_recv(ends[1], &byte, 1, NULL, 0, &arrived, 3600 * 1000), 1);
    CHECK_EQ(calls_of(CALL_POLL), 1);
    inject(CALL_SENDMSG, 1, EAGAIN);
    inject(CALL_POLL, 1, 0);
    CHECK_EQ(pz_send(ends[0], &byte, 1, NULL, 0, 3600 * 1000), 1);
    inject_nothing();
    close_pair(ends);
}

static void an_interrupted_call_is_repeated(void)
{
    int ends[2];
    uint8_t byte = 1;
    size_t arrived;

    unix_pair(SOCK_STREAM, ends);
    inject(CALL_SENDMSG, 1, EINTR);
    inject(CALL_RECVMSG, 1, EINTR);
    CHECK_EQ(pz_send(ends[0], &byte, 1, NULL, 0, 0), 1);
    CHECK_EQ(pz_recv(ends[1], &byte, 1, NULL, 0, &arrived, 0), 1);
    CHECK_EQ(calls_of(CALL_SENDMSG), 2);
    CHECK_EQ(calls_of(CALL_RECVMSG), 2);
    inject_nothing();
    close_pair(ends);
}

/* ---- each syscall fails once ---- */

static void each_fault_of_a_message(void)
{
    int ends[2];
    uint8_t byte = 1;
    size_t arrived;

    unix_pair(SOCK_STREAM, ends);
    inject(CALL_SENDMSG, 1, ENOBUFS);
    CHECK_EQ(pz_send(ends[0], &byte, 1, NULL, 0, -1), -ENOBUFS);
    inject(CALL_RECVMSG, 1, ENOMEM);
    CHECK_EQ(pz_recv(ends[1], &byte, 1, NULL, 0, &arrived, -1), -ENOMEM);
    inject(CALL_POLL, 1, ENOMEM);
    CHECK_EQ(pz_recv(ends[1], &byte, 1, NULL, 0, &arrived, -1), -ENOMEM);
    inject_nothing();
    close_pair(ends);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(any_number_of_fds_arrives),
        TEST(too_much_is_refused_and_closed),
        TEST(a_seqpacket_goes_on_after_a_refusal),
        TEST(a_full_fd_table_closes_everything),
        TEST(the_end_of_the_stream),
        TEST(an_empty_seqpacket_is_the_end_and_brings_nothing),
        TEST(a_stream_takes_a_part_with_all_the_fds),
        TEST(a_sender_waits_for_room),
        TEST(a_bad_send_is_refused),
        TEST(too_many_in_flight),
        TEST(a_bad_receive_is_refused),
        TEST(a_long_wait_is_not_cut),
        TEST(an_interrupted_call_is_repeated),
        TEST(each_fault_of_a_message),
    };

    return run_tests("fdpass.c", tests, COUNT(tests));
}
