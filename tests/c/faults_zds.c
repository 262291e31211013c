/*
 * faults_zds.c: see faults.h.
 *
 * Theory of operation: the agent has sent its message before ztunnel's end waits, or is asked
 * behind it what it got. A failure of the receiving call is the end of the connection and is told
 * as such; one of the questions about the descriptor says that it is no netns; one of the
 * listeners leaves the Add to the caller, with request.failed; one of the ACK leaves listeners
 * behind, with request.unsent.
 */
#include "faults.h"

#include "agent.h"
#include "harness.h"
#include "inject.h"
#include "internal.h"
#include "support.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { SHORT_MS = 2 };

static struct line line;
static int pod = -1;

/* ---- the constructor ---- */

static struct pz_zds *made;

static void nothing(void)
{
}

static int new_zds(struct pz_failure *failure)
{
    int error = 99;

    (void)failure;
    made = pz_zds_new(-1, &error);
    CHECK_EQ(made == NULL, error < 0);
    CHECK(error <= 0);
    return error;
}

static void free_zds(int result)
{
    (void)result;
    pz_zds_free(made);
}

/* ---- a message ---- */

static void send_add_of_pod(void)
{
    line = open_line();
    pod = new_pod();
    tell_add(&line, pod);
}

/* What went wrong, wherever the event says it. */
static int hear_add(struct pz_failure *failure)
{
    const struct pz_zds_request *request = &line.request;
    int event = hear_agent(&line);

    (void)failure;
    CHECK(event == PZ_ZDS_ADD || event == PZ_ZDS_MESSAGE || event == PZ_ZDS_CLOSED);
    CHECK_EQ(event == PZ_ZDS_ADD, request->fd >= 0);
    CHECK_EQ(event == PZ_ZDS_CLOSED, request->size == 0);
    return request->lost != 0 ? request->lost : request->not_netns;
}

/* An error of recvmsg() has taken nothing: the message would come with the next call. */
static void expect_add_or_error(int result)
{
    if (result < 0 && line.request.size == 0)
        CHECK_EQ(hear_add(NULL), 0);
    if (line.request.fd >= 0) {
        CHECK_EQ(line.request.inode, netns_of(pod));
        CHECK(is_same_file(line.request.fd, pod));
        close(line.request.fd);
    }
    close(pod);
    close_line(&line);
}

/* ---- a stranger's descriptor ---- */

static int pipe_ends[2];

static void send_stranger(void)
{
    line = open_line();
    CHECK_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
    tell(&line, DEL, DEL_SIZE, &pipe_ends[1], 1);
    close(pipe_ends[1]);
}

/* It is closed, whatever is found out about it. */
static int hear_stranger(struct pz_failure *failure)
{
    (void)failure;
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    CHECK(line.request.not_netns < 0);
    CHECK_EQ(line.request.fd, -1);
    return ends_soon(pipe_ends[0]) ? 0 : -ETIMEDOUT;
}

static void close_stranger(int result)
{
    (void)result;
    close(pipe_ends[0]);
    close_line(&line);
}

/* The kernel drops what finds no room in the fd table, and is asked why. */
static void send_two_netns(void)
{
    line = open_line();
    pod = new_pod();
    tell(&line, ADD, ADD_SIZE, (int[]){pod, pod}, 2);
}

static int hear_with_full_table(struct pz_failure *failure)
{
    fill_fd_table(1);
    int rc = hear_add(failure);
    empty_fd_table();
    return rc;
}

/* ---- the end ---- */

/* Whatever fails, the descriptor behind the bad message ends. */
static int hang_up(struct pz_failure *failure)
{
    (void)failure;
    pz_zds_hang_up(line.zds, line.sock);
    line.sock = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return ends_soon(pipe_ends[0]) ? 0 : -ETIMEDOUT;
}

/* ---- nothing comes ---- */

static void only_open(void)
{
    line = open_line();
}

static int hear_nothing(struct pz_failure *failure)
{
    int64_t began = clock_ms();
    int event = pz_zds_next(line.zds, line.sock, SHORT_MS, 1, &line.request);

    (void)failure;
    CHECK(clock_ms() - began >= SHORT_MS);
    return event == PZ_ZDS_DUE ? 0 : -ETIMEDOUT;
}

static void only_close(int result)
{
    (void)result;
    close_line(&line);
}

/* ---- take ---- */

static void send_add_to_take(void)
{
    send_add_of_pod();
    serve_adds(&line, -1);
}

/* The cookie is the second question of the descriptor. */
static void send_add_on_old_kernel(void)
{
    send_add_to_take();
    inject(CALL_IOCTL, 2, ENOTTY);
}

static int heard;

static int take_add(struct pz_failure *failure)
{
    const struct pz_zds_request *request = &line.request;

    heard = hear_agent(&line);
    if (request->failed != 0 && failure != NULL)
        *failure = line.failure;
    return request->failed != 0      ? request->failed
           : request->not_netns != 0 ? request->not_netns
                                     : request->lost;
}

/* Of the failures of one call, that of a cookie does not show and all others do: the request says
 * which. */
static int take_add_on_old_kernel(struct pz_failure *failure)
{
    bool said = take_add(failure) < 0;

    return said == (heard != PZ_ZDS_TAKEN) ? 0 : -EPROTO;
}

/* The agent has an ACK exactly where there are listeners, or the request says why not. */
static void expect_ack_with_listeners(int result)
{
    const struct pz_zds_request *request = &line.request;

    inject_nothing();
    CHECK(heard != PZ_ZDS_TAKEN || result == 0);
    if (heard == PZ_ZDS_TAKEN)
        expect_taken(&line, heard, pod);
    else if (heard == PZ_ZDS_ADD)
        expect_add(&line, heard, pod);
    CHECK_EQ(heard != PZ_ZDS_TAKEN,
             request->failed < 0 || request->not_netns < 0 || request->lost < 0);
    if (heard == PZ_ZDS_TAKEN && request->unsent == 0)
        expect_ack(&line);
    expect_no_answer(&line);
    close_brought(&line);
    close(pod);
    close_line(&line);
}

struct scenarios zds_scenarios(void)
{
    static const struct scenario all[] = {
        {.name = "new ZDS",
         .set_up = nothing,
         .run = new_zds,
         .tear_down = free_zds,
         .opens = true},
        {.name = "ZDS Add",
         .set_up = send_add_of_pod,
         .run = hear_add,
         .tear_down = expect_add_or_error,
         .opens = true},
        {.name = "ZDS stranger",
         .files = "zds netns closer",
         .set_up = send_stranger,
         .run = hear_stranger,
         .tear_down = close_stranger,
         .resists = true},
        {.name = "ZDS end",
         .files = "zds closer",
         .set_up = send_stranger,
         .run = hang_up,
         .tear_down = close_stranger,
         .resists = true},
        {.name = "ZDS with a full table",
         .files = "fdpass zds",
         .set_up = send_two_netns,
         .run = hear_with_full_table,
         .tear_down = expect_add_or_error,
         .expected = -EMFILE},
        {.name = "ZDS silence",
         .set_up = only_open,
         .run = hear_nothing,
         .tear_down = only_close,
         .resists = true},
        {.name = "ZDS take",
         .set_up = send_add_to_take,
         .files = "listen visit zds",
         .run = take_add,
         .tear_down = expect_ack_with_listeners,
         .opens = true},
        {.name = "ZDS take, old kernel",
         .files = "netns zds",
         .set_up = send_add_on_old_kernel,
         .run = take_add_on_old_kernel,
         .tear_down = expect_ack_with_listeners,
         .in_worker = true,
         .resists = true},
    };

    return (struct scenarios){all, COUNT(all)};
}
