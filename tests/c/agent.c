/*
 * agent.c: see agent.h.
 */
#include "agent.h"

#include "harness.h"
#include "internal.h"
#include "support.h"

#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { PATIENCE_MS = 5000, UID_AT = 4, UNTOUCHED = 4711 };

const char ADD[] = "\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01m\x1a\x01s";
const char DEL[] = "\x12\x03\x12\x01u";
const char ACCENT[] = "\x0a\x07\x0a\x03u\xc3\xa9\x12\x00";
const char ACK[] = "\x0a\x00";
_Static_assert(sizeof ADD == ADD_SIZE + 1, "as it says");
_Static_assert(sizeof DEL == DEL_SIZE + 1, "as it says");
_Static_assert(sizeof ACCENT == ACCENT_SIZE + 1, "as it says");
_Static_assert(sizeof ACK == ACK_SIZE + 1, "as it says");

static void forget_fds(struct line *line)
{
    for (int i = 0; i < LISTENERS; i++)
        line->fds[i] = UNTOUCHED;
}

struct line open_line(void)
{
    struct line line = {.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    int ends[2], error = 99;

    CHECK(line.wake >= 0);
    unix_pair(SOCK_SEQPACKET, ends);
    line.sock = ends[0];
    line.agent = ends[1];
    forget_fds(&line);
    line.zds = pz_zds_new(line.wake, &error);
    CHECK_EQ(error, 0);
    CHECK(line.zds != NULL);
    return line;
}

void close_line(struct line *line)
{
    pz_zds_free(line->zds);
    pz_close_all((int[]){line->sock, line->agent, line->wake}, 3);
}

void tell(const struct line *line, const void *message, size_t size, const int *fds, size_t nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(PZ_KERNEL_MAX_FDS * sizeof(int))];
    } control = {.bytes = {0}};
    /* sendmsg() only reads; iovec has no const form. */
    struct iovec bytes = {.iov_base = (void *)(uintptr_t)message, .iov_len = size};
    struct msghdr packet = {.msg_iov = &bytes, .msg_iovlen = 1};

    CHECK(nfds <= PZ_KERNEL_MAX_FDS);
    if (nfds > 0) {
        packet.msg_control = control.bytes;
        packet.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, nfds * sizeof(int));
    }
    CHECK_EQ(sendmsg(line->agent, &packet, MSG_NOSIGNAL | MSG_DONTWAIT), size);
}

void tell_add(const struct line *line, int netns)
{
    tell_add_of(line, ADD[UID_AT], netns);
}

void tell_add_of(const struct line *line, char uid, int netns)
{
    char message[ADD_SIZE];

    memcpy(message, ADD, ADD_SIZE);
    message[UID_AT] = uid;
    tell(line, message, ADD_SIZE, &netns, 1);
}

void serve_adds(struct line *line, int home_fd)
{
    for (int i = 0; i < LISTENERS; i++)
        line->wanted[i] = on_loopback((uint16_t)(PORT + i));
    CHECK_EQ(pz_zds_serve(line->zds, home_fd, line->wanted, LISTENERS, line->fds, &line->failure),
             0);
}

int hear_agent(struct line *line)
{
    memset(&line->request, 0xa5, sizeof line->request);
    line->failure = (struct pz_failure){0};
    forget_fds(line);
    return pz_zds_next(line->zds, line->sock, PATIENCE_MS, 1, &line->request);
}

static void expect_netns(const struct line *line, int netns)
{
    const struct pz_zds_request *request = &line->request;
    struct pz_add add = {{UID_AT, 9, 12, 15}, {1, 1, 1, 1}};

    CHECK_EQ(request->nfds, 1);
    CHECK_EQ(request->not_netns, 0);
    CHECK_EQ(request->lost, 0);
    CHECK(request->fd >= 0);
    CHECK(is_same_file(request->fd, netns));
    CHECK(is_cloexec(request->fd));
    CHECK_EQ(request->inode, netns_of(netns));
    CHECK_EQ(request->size, ADD_SIZE);
    for (int i = 0; i < ADD_SIZE; i++)
        CHECK(i == UID_AT || request->message[i] == (uint8_t)ADD[i]);
    CHECK(memcmp(&request->add, &add, sizeof add) == 0);
}

void expect_add(const struct line *line, int event, int netns)
{
    CHECK_EQ(event, PZ_ZDS_ADD);
    expect_netns(line, netns);
    CHECK_EQ(line->request.unsent, 0);
    for (int i = 0; i < LISTENERS; i++)
        CHECK_EQ(line->fds[i], line->request.failed < 0 ? -1 : UNTOUCHED);
}

void expect_taken(const struct line *line, int event, int netns)
{
    CHECK_EQ(event, PZ_ZDS_TAKEN);
    expect_netns(line, netns);
    CHECK_EQ(line->request.failed, 0);
    CHECK(line->request.cookie != 0);
    for (int i = 0; i < LISTENERS; i++) {
        CHECK_EQ(netns_of_socket(line->fds[i]), netns_of(netns));
        CHECK_EQ(port_of(line->fds[i]), PORT + i);
        CHECK_EQ(pz_is_listening(line->fds[i]), 1);
        CHECK(is_cloexec(line->fds[i]));
    }
}

void close_brought(struct line *line)
{
    if (line->request.fd >= 0)
        close(line->request.fd);
    for (int i = 0; i < LISTENERS; i++)
        if (line->fds[i] >= 0 && line->fds[i] != UNTOUCHED)
            close(line->fds[i]);
}

void expect_ack(const struct line *line)
{
    char got[8];

    CHECK_EQ(recv(line->agent, got, sizeof got, MSG_DONTWAIT), ACK_SIZE);
    CHECK(memcmp(got, ACK, ACK_SIZE) == 0);
    expect_no_answer(line);
}

void expect_no_answer(const struct line *line)
{
    char got[8];

    CHECK_EQ(recv(line->agent, got, sizeof got, MSG_DONTWAIT), -1);
    CHECK_EQ(errno, EAGAIN);
}

uint64_t cookie_of(int netns)
{
    uint64_t cookie = 0;

    return pz_netns_cookie(netns, -1, &cookie, NULL) == 0 ? cookie : 0;
}

bool ends_soon(int read_end)
{
    return await(read_end, 0) & POLLHUP;
}
