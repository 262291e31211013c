/*
 * test_zds_take.c: an Add that is taken: its listeners and its ACK, before the caller knows of it.
 *
 * Theory of operation: real netns; where the listeners are is asked of the kernel, and the agent's
 * end of the pair has the ACK exactly when there are listeners. Older kernels, which tell no cookie
 * without a socket or none at all, are played by a failing ioctl() and getsockopt(). Which Adds are
 * known, by their own doing or by that of another one's hash, is in test_zds_known.c.
 */
#include "internal.h"

#include "agent.h"
#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

/* The numbers of ioctl() in pz_netns_inspect(): the kind, then the cookie. */
enum { ASK_COOKIE = 2 };

/* A connection whose Adds are taken. */
static void open_taking(struct line *line)
{
    need_namespaces();
    *line = open_line();
    serve_adds(line, -1);
}

static int send_add(struct line *line)
{
    int pod = new_pod();

    tell_add(line, pod);
    return pod;
}

/* All that the test and its request hold. */
static void close_all(struct line *line, int pod)
{
    close_brought(line);
    close(pod);
}

static void take_and_verify(struct line *line)
{
    int pod = send_add(line);

    expect_taken(line, hear_agent(line), pod);
    CHECK_EQ(line->request.unsent, 0);
    CHECK_EQ(line->request.cookie, cookie_of(pod));
    expect_ack(line);
    close_all(line, pod);
}

static void take_at_home(void *line)
{
    int home = pz_netns_home();

    CHECK_EQ(pz_netns_prove_home(home), 0);
    take_and_verify(line);
    serve_adds(line, home);
    take_and_verify(line);
    close(home);
}

static void listeners_and_ack_in_one_call(void)
{
    struct line line;

    open_taking(&line);
    in_row("main");
    take_and_verify(&line);
    in_row("worker");
    in_worker(take_at_home, &line);
    close_line(&line);
}

/* ---- cookies ---- */

static void an_older_kernel_tells_the_cookie_of_a_socket(void)
{
    struct line line;

    open_taking(&line);
    int pod = send_add(&line);
    inject(CALL_IOCTL, ASK_COOKIE, ENOTTY);
    int event = hear_agent(&line);
    inject_nothing();
    expect_taken(&line, event, pod);
    CHECK_EQ(line.request.cookie, cookie_of(pod));
    expect_ack(&line);
    close_all(&line, pod);
    close_line(&line);
}

static void a_kernel_without_cookies_is_named_by_inode(void)
{
    struct line line;

    open_taking(&line);
    int pod = send_add(&line);
    inject(CALL_IOCTL, ASK_COOKIE, ENOTTY);
    inject(CALL_GETSOCKOPT, 1, ENOPROTOOPT);
    int event = hear_agent(&line);
    inject_nothing();
    expect_taken(&line, event, pod);
    CHECK_EQ(line.request.cookie, netns_of(pod));
    expect_ack(&line);
    close_all(&line, pod);
    close_line(&line);
}

/* ---- not taken ---- */

static void expect_left(struct line *line, int pod, int failed)
{
    expect_add(line, hear_agent(line), pod);
    CHECK_EQ(line->request.failed, failed);
    expect_no_answer(line);
    close(line->request.fd);
}

/* Nothing is sent then, so that the caller can say why; the netns is his, to try again. */
static void what_fails_is_left_to_the_caller(void)
{
    struct pz_listener second = on_loopback(PORT + 1);
    struct line line;
    int taken;

    open_taking(&line);
    int pod = send_add(&line);
    CHECK_EQ(pz_listen(pod, -1, &second, 1, &taken, NULL), 0);
    expect_left(&line, pod, -EADDRINUSE);
    CHECK_EQ(line.failure.step, PZ_STEP_BIND);
    CHECK_EQ(line.failure.index, 1);
    close(taken);
    tell_add(&line, pod);
    expect_taken(&line, hear_agent(&line), pod);
    expect_ack(&line);
    close_all(&line, pod);
    close_line(&line);
}

static void without_room(void)
{
    struct line line;

    open_taking(&line);
    int pod = send_add(&line);
    CHECK_EQ(pz_zds_next(line.zds, line.sock, -1, 0, &line.request), PZ_ZDS_ADD);
    CHECK_EQ(line.request.failed, 0);
    expect_no_answer(&line);
    close_all(&line, pod);
    close_line(&line);
}

static void without_listeners(void)
{
    static const struct pz_listener many[PZ_MAX_LISTENERS + 1];
    struct line line;
    int fds[PZ_MAX_LISTENERS + 1];

    need_namespaces();
    line = open_line();
    CHECK_EQ(pz_zds_serve(line.zds, -1, many, 0, fds, NULL), -EINVAL);
    CHECK_EQ(pz_zds_serve(line.zds, -1, many, PZ_MAX_LISTENERS + 1, fds, NULL), -EINVAL);
    int pod = send_add(&line);
    expect_left(&line, pod, 0);
    close(pod);
    close_line(&line);
}

/* Whatever is no plain Add with a netns. */
static void what_is_no_add(void)
{
    struct line line;

    open_taking(&line);
    int pod = new_pod(), file = open_file();
    tell(&line, DEL, DEL_SIZE, NULL, 0);
    tell(&line, ADD, ADD_SIZE, NULL, 0);
    tell(&line, ADD, ADD_SIZE, (int[]){pod, pod}, 2);
    tell(&line, ACCENT, ACCENT_SIZE, &pod, 1);
    tell(&line, DEL, DEL_SIZE, &pod, 1);
    tell_add(&line, file);
    for (int i = 0; i < 6; i++) {
        in_row("%d", i);
        CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
        CHECK_EQ(line.request.failed, 0);
        close_brought(&line);
    }
    expect_no_answer(&line);
    pz_close_all((int[]){pod, file}, 2);
    close_line(&line);
}

/* ---- one at a time, and the wake before it ---- */

static void each_call_takes_one(void)
{
    struct line line;

    open_taking(&line);
    int first = new_pod(), second = new_pod();
    tell_add_of(&line, 'a', first);
    tell_add_of(&line, 'b', second);
    expect_taken(&line, hear_agent(&line), first);
    expect_ack(&line);
    close_all(&line, first);
    expect_taken(&line, hear_agent(&line), second);
    expect_ack(&line);
    close_all(&line, second);
    close_line(&line);
}

static void nothing_is_taken_before_the_wake(void)
{
    struct line line;
    uint64_t value;

    open_taking(&line);
    int pod = send_add(&line);
    CHECK_EQ(eventfd_write(line.wake, 1), 0);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_WOKEN);
    CHECK_EQ(line.request.fd, -1);
    expect_no_answer(&line);
    CHECK_EQ(eventfd_read(line.wake, &value), 0);
    expect_taken(&line, hear_agent(&line), pod);
    expect_ack(&line);
    close_all(&line, pod);
    close_line(&line);
}

/* ---- an ACK that does not go out: the listeners are there all the same ---- */

static void an_agent_that_has_gone(void)
{
    struct line line;

    open_taking(&line);
    int pod = send_add(&line);
    close(line.agent);
    expect_taken(&line, hear_agent(&line), pod);
    CHECK_EQ(line.request.unsent, -EPIPE);
    CHECK_EQ(line.request.cookie, cookie_of(pod));
    close_all(&line, pod);
    line.agent = open_file();
    close_line(&line);
}

/* So many answers unread that there is no room for two bytes. */
static void an_agent_that_reads_nothing(void)
{
    struct line line;
    int unread = 0;
    char got[8];

    open_taking(&line);
    int pod = send_add(&line);
    while (send(line.sock, ACK, ACK_SIZE, MSG_DONTWAIT) == ACK_SIZE)
        unread++;
    CHECK_EQ(errno, EAGAIN);
    expect_taken(&line, hear_agent(&line), pod);
    CHECK_EQ(line.request.unsent, -EAGAIN);
    while (unread-- > 0)
        CHECK_EQ(recv(line.agent, got, sizeof got, MSG_DONTWAIT), ACK_SIZE);
    expect_no_answer(&line);
    close_all(&line, pod);
    take_and_verify(&line); /* whoever reads again is told again */
    close_line(&line);
}

static void a_signal_before_the_ack(void)
{
    struct line line;

    open_taking(&line);
    int pod = send_add(&line);
    inject(CALL_SEND, 1, EINTR);
    int event = hear_agent(&line);
    CHECK_EQ(calls_of(CALL_SEND), 2);
    inject_nothing();
    expect_taken(&line, event, pod);
    CHECK_EQ(line.request.unsent, 0);
    expect_ack(&line);
    close_all(&line, pod);
    close_line(&line);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(listeners_and_ack_in_one_call),
        TEST(an_older_kernel_tells_the_cookie_of_a_socket),
        TEST(a_kernel_without_cookies_is_named_by_inode),
        TEST(what_fails_is_left_to_the_caller),
        TEST(without_room),
        TEST(without_listeners),
        TEST(what_is_no_add),
        TEST(each_call_takes_one),
        TEST(nothing_is_taken_before_the_wake),
        TEST(an_agent_that_has_gone),
        TEST(an_agent_that_reads_nothing),
        TEST(a_signal_before_the_ack),
    };

    return run_tests("zds.c: take", tests, COUNT(tests));
}
