/*
 * test_zds.c: the messages of a node agent and what comes with them.
 *
 * Theory of operation: seqpacket pairs, the agent's end here too. What must be closed is found by
 * the harness at the end of each test, behind pz_zds_free(), which waits for the thread that
 * closes; that it is closed without that shows at the other end of a pipe. Serving an Add is in
 * test_zds_take.c.
 */
#include "internal.h"

#include "agent.h"
#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { MANY = 100 };

static bool on_main_thread(void)
{
    return syscall(SYS_gettid) == getpid();
}

/* ---- what a message brings ---- */

static void an_add_brings_its_netns(void)
{
    need_namespaces();
    struct line line = open_line();
    for (int i = 0; i < 3; i++) {
        int pod = new_pod();
        tell_add(&line, pod);
        expect_add(&line, hear_agent(&line), pod);
        CHECK(line.request.cookie == cookie_of(pod) || line.request.cookie == 0);
        pz_close_all((int[]){line.request.fd, pod}, 2);
    }
    close_line(&line);
}

/* What an agent sends as descriptors. */
enum load {
    NONE,
    NETNS,
    PLAIN_FILE,
    MNTNS,
    DEVICE,
    UNIX_SOCKET,
    TWO_NETNS,
    NETNS_AND_FILE,
    MANY_NETNS,
    LOADS
};

static const struct {
    const char *name;
    size_t nfds;
    bool is_netns;
    int not_netns;
} EXPECTED[LOADS] = {
    [NONE] = {"no descriptor", 0, false, 0},
    [NETNS] = {"a netns", 1, true, 0},
    [PLAIN_FILE] = {"a file", 1, false, -EINVAL},
    [MNTNS] = {"another namespace", 1, false, -EINVAL},
    [DEVICE] = {"a device", 1, false, -EINVAL},
    [UNIX_SOCKET] = {"a socket", 1, false, -EINVAL},
    [TWO_NETNS] = {"two netns", 2, false, 0},
    [NETNS_AND_FILE] = {"a netns and a file", 2, false, 0},
    [MANY_NETNS] = {"as many as the kernel carries", PZ_KERNEL_MAX_FDS, false, 0},
};

/* The descriptors to send: all but the first two are copies of the first. */
static void open_load(enum load load, int fds[2])
{
    fds[0] = fds[1] = -1;
    switch (load) {
    case NONE:
    case LOADS: break;
    case NETNS:
    case TWO_NETNS:
    case NETNS_AND_FILE:
    case MANY_NETNS: fds[0] = open_netns(); break;
    case PLAIN_FILE: fds[0] = open_file(); break;
    case MNTNS: fds[0] = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC); break;
    case DEVICE: fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC); break;
    case UNIX_SOCKET: fds[0] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0); break;
    }
    if (load == NETNS_AND_FILE)
        fds[1] = open_file();
    CHECK(load == NONE || fds[0] >= 0);
}

static void tell_load(const struct line *line, const char *message, size_t size, enum load load)
{
    int fds[PZ_KERNEL_MAX_FDS] = {-1}, own[2];

    open_load(load, own);
    for (size_t i = 0; i < EXPECTED[load].nfds; i++)
        fds[i] = i == 1 && own[1] >= 0 ? own[1] : own[0];
    tell(line, message, size, fds, EXPECTED[load].nfds);
    for (int i = 0; i < 2; i++)
        if (own[i] >= 0)
            close(own[i]);
}

static void expect_load(const struct pz_zds_request *request, enum load load)
{
    CHECK_EQ(request->nfds, EXPECTED[load].nfds);
    CHECK_EQ(request->not_netns, EXPECTED[load].not_netns);
    CHECK_EQ(request->lost, 0);
    CHECK_EQ(request->fd >= 0, EXPECTED[load].is_netns);
    CHECK_EQ(request->inode, EXPECTED[load].is_netns ? netns_here() : 0);
    if (request->fd < 0)
        CHECK_EQ(request->cookie, 0);
    else
        close(request->fd);
}

static void messages_and_descriptors(void)
{
    static const struct {
        const char *message;
        size_t size;
    } rows[] = {{ADD, ADD_SIZE}, {DEL, DEL_SIZE}, {ACCENT, ACCENT_SIZE}, {"\xff", 1}, {"\0", 1}};
    struct line line = open_line();

    for (int load = NONE; load < LOADS; load++)
        for (size_t i = 0; i < COUNT(rows); i++) {
            bool is_add = rows[i].message == ADD && EXPECTED[load].is_netns;
            in_row("%s, message %zu", EXPECTED[load].name, i);
            tell_load(&line, rows[i].message, rows[i].size, (enum load)load);
            CHECK_EQ(hear_agent(&line), is_add ? PZ_ZDS_ADD : PZ_ZDS_MESSAGE);
            CHECK_EQ(line.request.size, rows[i].size);
            CHECK(memcmp(line.request.message, rows[i].message, rows[i].size) == 0);
            expect_load(&line.request, (enum load)load);
        }
    close_line(&line);
}

/* Each in its turn, with its own descriptor, whatever came before. */
static void one_message_at_a_time(void)
{
    struct line line = open_line();
    int netns = open_netns();

    for (int i = 0; i < MANY; i++) {
        tell_load(&line, DEL, DEL_SIZE, (enum load)(i % LOADS == NETNS ? NONE : i % LOADS));
        tell_add(&line, netns);
        CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
        CHECK_EQ(line.request.fd, -1);
        expect_add(&line, hear_agent(&line), netns);
        close(line.request.fd);
    }
    close(netns);
    close_line(&line);
}

/* ---- the longest message ---- */

static void tell_long(const struct line *line, size_t size, int fd)
{
    static char message[PZ_ZDS_MAX_MESSAGE + 2];

    memset(message, 'x', sizeof message);
    tell(line, message, size, &fd, fd >= 0 ? 1 : 0);
}

static void a_message_of_1024_bytes_is_whole(void)
{
    struct line line = open_line();

    tell_long(&line, PZ_ZDS_MAX_MESSAGE, -1);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    CHECK_EQ(line.request.lost, 0);
    CHECK_EQ(line.request.size, PZ_ZDS_MAX_MESSAGE);
    CHECK_EQ(line.request.message[PZ_ZDS_MAX_MESSAGE - 1], 'x');
    tell(&line, DEL, DEL_SIZE, NULL, 0);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    CHECK_EQ(line.request.size, DEL_SIZE);
    close_line(&line);
}

/* It takes its descriptor along, and the next one is whole. */
static void a_longer_message_is_cut(void)
{
    struct line line = open_line();
    int netns = open_netns();

    for (int with_fd = 0; with_fd < 2; with_fd++) {
        in_row("%d descriptors", with_fd);
        tell_long(&line, PZ_ZDS_MAX_MESSAGE + 1, with_fd ? netns : -1);
        tell_add(&line, netns);
        CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
        CHECK_EQ(line.request.lost, -EMSGSIZE);
        CHECK_EQ(line.request.nfds, with_fd);
        CHECK_EQ(line.request.fd, -1);
        CHECK_EQ(line.request.not_netns, 0);
        CHECK_EQ(line.request.size, PZ_ZDS_MAX_MESSAGE);
        expect_add(&line, hear_agent(&line), netns);
        close(line.request.fd);
    }
    close(netns);
    close_line(&line);
}

/* The first 1024 bytes of a longer message are an Add, and it is none. */
static void a_message_cut_behind_an_add(void)
{
    char message[PZ_ZDS_MAX_MESSAGE + 1] = "\x0a\xfd\x07\x0a\x01u\x12\xf7\x07\x0a\xf4\x07";
    struct line line = open_line();
    struct pz_add add;
    int netns = open_netns();

    memset(message + 12, 'n', sizeof message - 12);
    CHECK_EQ(pz_add_read((const uint8_t *)message, PZ_ZDS_MAX_MESSAGE, &add), 1);
    tell(&line, message, PZ_ZDS_MAX_MESSAGE, &netns, 1);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_ADD);
    close(line.request.fd);
    tell(&line, message, sizeof message, &netns, 1);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    CHECK_EQ(line.request.lost, -EMSGSIZE);
    CHECK_EQ(line.request.fd, -1);
    close(netns);
    close_line(&line);
}

/* ---- a full fd table ---- */

static void with_a_full_fd_table_the_message_comes_alone(void)
{
    struct line line = open_line();
    int netns = open_netns(), both[2] = {netns, netns};

    for (int room = 0; room < 2; room++) {
        in_row("room for %d of %d", room, room + 1);
        tell(&line, ADD, ADD_SIZE, both, (size_t)room + 1);
        fill_fd_table(room);
        int event = hear_agent(&line);
        CHECK_EQ(line.request.nfds, room);
        empty_fd_table();
        CHECK_EQ(event, PZ_ZDS_MESSAGE);
        CHECK_EQ(line.request.lost, -EMFILE);
        CHECK_EQ(line.request.fd, -1);
        CHECK_EQ(line.request.size, ADD_SIZE);
    }
    tell_add(&line, netns);
    expect_add(&line, hear_agent(&line), netns);
    pz_close_all((int[]){line.request.fd, netns}, 2);
    close_line(&line);
}

/* ---- descriptors of strangers ---- */

static void expect_another_thread(void)
{
    CHECK(!on_main_thread());
}

/* A close() can sleep: the thread that waits makes none. */
static void what_is_not_wanted_is_closed_elsewhere(void)
{
    struct line line = open_line();
    int ends[2], copies[2];

    for (size_t nfds = 1; nfds <= 2; nfds++) {
        in_row("%zu descriptors", nfds);
        CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
        copies[0] = copies[1] = ends[1];
        tell(&line, ADD, ADD_SIZE, copies, nfds);
        close(ends[1]);
        at_call(CALL_CLOSE, expect_another_thread);
        CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
        CHECK(ends_soon(ends[0]));
        at_call(CALL_CLOSE, NULL);
        close(ends[0]);
    }
    close_line(&line);
}

static int gate[2];

static void wait_at_the_gate(void)
{
    char byte;

    if (!on_main_thread())
        CHECK_EQ(read(gate[0], &byte, 1), 0);
}

static void a_close_that_sleeps_holds_up_nobody(void)
{
    struct line line = open_line();
    int ends[2], netns = open_netns();

    CHECK_EQ(pipe2(gate, O_CLOEXEC), 0);
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    at_call(CALL_CLOSE, wait_at_the_gate);
    tell_add(&line, ends[1]);
    close(ends[1]);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    CHECK_EQ(line.request.not_netns, -EINVAL);
    tell_add(&line, netns);
    expect_add(&line, hear_agent(&line), netns);
    at_call(CALL_CLOSE, NULL);
    close(gate[1]);
    CHECK(ends_soon(ends[0]));
    pz_close_all((int[]){line.request.fd, netns, ends[0]}, 3);
    close_line(&line);
    close(gate[0]);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(an_add_brings_its_netns),
        TEST(messages_and_descriptors),
        TEST(one_message_at_a_time),
        TEST(a_message_of_1024_bytes_is_whole),
        TEST(a_longer_message_is_cut),
        TEST(a_message_cut_behind_an_add),
        TEST(with_a_full_fd_table_the_message_comes_alone),
        TEST(what_is_not_wanted_is_closed_elsewhere),
        TEST(a_close_that_sleeps_holds_up_nobody),
    };

    return run_tests("zds.c: messages", tests, COUNT(tests));
}
