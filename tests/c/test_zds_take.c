/*
 * test_zds_take.c: the listeners of an Add and its ACK, in one call.
 *
 * Theory of operation: real netns; where the listeners are is asked of the kernel, and the agent's
 * end of the pair has the ACK exactly when there are listeners. Older kernels, which tell no cookie
 * without a socket or none at all, are played by a failing ioctl() and getsockopt().
 */
#include "internal.h"

#include "agent.h"
#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <string.h>
#include <sys/socket.h>

enum { PORT = 15008, LISTENERS = 3 };

/* The numbers of ioctl() in pz_netns_inspect(): the kind, then the cookie. */
enum { ASK_COOKIE = 2 };

static int take(struct line *line, int home, int *fds, struct pz_failure *failure)
{
    struct pz_listener wanted[LISTENERS];

    for (int i = 0; i < LISTENERS; i++) {
        wanted[i] = on_loopback((uint16_t)(PORT + i));
        fds[i] = 4711;
    }
    return pz_zds_take(line->sock, &line->request, home, wanted, LISTENERS, fds, failure);
}

/* An Add of a fresh pod, which is returned, has arrived. */
static int bring_add(struct line *line)
{
    int pod = new_pod();

    tell_add(line, pod);
    expect_add(line, hear_agent(line), pod);
    return pod;
}

static void expect_listeners(const int *fds, int pod)
{
    for (int i = 0; i < LISTENERS; i++) {
        CHECK_EQ(netns_of_socket(fds[i]), netns_of(pod));
        CHECK_EQ(port_of(fds[i]), PORT + i);
        CHECK_EQ(pz_is_listening(fds[i]), 1);
        CHECK(is_cloexec(fds[i]));
    }
}

/* All that the test and its request hold. */
static void close_taken(const struct line *line, const int *fds, int pod)
{
    pz_close_all(fds, LISTENERS);
    pz_close_all((int[]){line->request.fd, pod}, 2);
}

static void take_and_verify(struct line *line, int home)
{
    int fds[LISTENERS], pod = bring_add(line);

    CHECK_EQ(take(line, home, fds, NULL), 0);
    CHECK_EQ(line->request.unsent, 0);
    CHECK_EQ(line->request.cookie, cookie_of(pod));
    expect_ack(line);
    expect_listeners(fds, pod);
    close_taken(line, fds, pod);
}

static void take_at_home(void *line)
{
    int home = pz_netns_home();

    CHECK_EQ(pz_netns_prove_home(home), 0);
    take_and_verify(line, -1);
    take_and_verify(line, home);
    close(home);
}

static void listeners_and_ack_in_one_call(void)
{
    need_namespaces();
    struct line line = open_line();
    in_row("main");
    take_and_verify(&line, -1);
    in_row("worker");
    in_worker(take_at_home, &line);
    close_line(&line);
}

/* ---- cookies ---- */

static void an_older_kernel_tells_the_cookie_of_a_socket(void)
{
    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], pod = new_pod();
    tell_add(&line, pod);
    inject(CALL_IOCTL, ASK_COOKIE, ENOTTY);
    expect_add(&line, hear_agent(&line), pod);
    inject_nothing();
    CHECK_EQ(line.request.cookie, 0);
    CHECK_EQ(take(&line, -1, fds, NULL), 0);
    CHECK_EQ(line.request.cookie, cookie_of(pod));
    expect_ack(&line);
    close_taken(&line, fds, pod);
    close_line(&line);
}

static void a_kernel_without_cookies_is_named_by_inode(void)
{
    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], pod = new_pod();
    tell_add(&line, pod);
    inject(CALL_IOCTL, ASK_COOKIE, ENOTTY);
    expect_add(&line, hear_agent(&line), pod);
    inject(CALL_GETSOCKOPT, 1, ENOPROTOOPT);
    CHECK_EQ(take(&line, -1, fds, NULL), 0);
    inject_nothing();
    CHECK_EQ(line.request.cookie, netns_of(pod));
    expect_ack(&line);
    close_taken(&line, fds, pod);
    close_line(&line);
}

/* ---- no listeners, no ACK ---- */

static void expect_none(const struct line *line, const int *fds)
{
    for (int i = 0; i < LISTENERS; i++)
        CHECK_EQ(fds[i], -1);
    expect_no_answer(line);
}

/* Nothing is sent then, so that the caller can say why; the netns stays his, to try again. */
static void a_failed_take_leaves_the_answer_to_the_caller(void)
{
    struct pz_failure failure = {0};
    struct pz_listener second = on_loopback(PORT + 1);

    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], taken, pod = bring_add(&line);
    CHECK_EQ(pz_listen(pod, -1, &second, 1, &taken, NULL), 0);
    CHECK_EQ(take(&line, -1, fds, &failure), -EADDRINUSE);
    CHECK_EQ(failure.step, PZ_STEP_BIND);
    CHECK_EQ(failure.index, 1);
    expect_none(&line, fds);
    close(taken);
    CHECK_EQ(take(&line, -1, fds, &failure), 0);
    expect_ack(&line);
    expect_listeners(fds, pod);
    close_taken(&line, fds, pod);
    close_line(&line);
}

static void a_take_of_no_netns(void)
{
    struct pz_failure failure = {0};

    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], file = open_file();
    tell_add(&line, file);
    CHECK_EQ(hear_agent(&line), PZ_ZDS_MESSAGE);
    CHECK_EQ(take(&line, -1, fds, &failure), -EBADF);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    expect_none(&line, fds);
    close(file);
    close_line(&line);
}

static void a_take_of_no_listeners(void)
{
    struct pz_failure failure = {0};

    need_namespaces();
    struct line line = open_line();
    int fd = -1, pod = bring_add(&line);
    CHECK_EQ(pz_zds_take(line.sock, &line.request, -1, NULL, 0, &fd, &failure), -EINVAL);
    CHECK_EQ(failure.step, PZ_STEP_ARGUMENT);
    expect_no_answer(&line);
    pz_close_all((int[]){line.request.fd, pod}, 2);
    close_line(&line);
}

/* ---- an ACK that does not go out: the listeners are there all the same ---- */

static void an_agent_that_has_gone(void)
{
    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], pod = bring_add(&line);
    close(line.agent);
    CHECK_EQ(take(&line, -1, fds, NULL), 0);
    CHECK_EQ(line.request.unsent, -EPIPE);
    CHECK_EQ(line.request.cookie, cookie_of(pod));
    expect_listeners(fds, pod);
    close_taken(&line, fds, pod);
    line.agent = open_file();
    close_line(&line);
}

/* So many answers unread that there is no room for two bytes. */
static void an_agent_that_reads_nothing(void)
{
    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], unread = 0, pod = bring_add(&line);
    char got[8];
    while (send(line.sock, ACK, ACK_SIZE, MSG_DONTWAIT) == ACK_SIZE)
        unread++;
    CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(take(&line, -1, fds, NULL), 0);
    CHECK_EQ(line.request.unsent, -EAGAIN);
    expect_listeners(fds, pod);
    while (unread-- > 0)
        CHECK_EQ(recv(line.agent, got, sizeof got, MSG_DONTWAIT), ACK_SIZE);
    expect_no_answer(&line);
    close_taken(&line, fds, pod);
    take_and_verify(&line, -1); /* whoever reads again is told again */
    close_line(&line);
}

static void a_signal_before_the_ack(void)
{
    need_namespaces();
    struct line line = open_line();
    int fds[LISTENERS], pod = bring_add(&line);
    inject(CALL_SEND, 1, EINTR);
    CHECK_EQ(take(&line, -1, fds, NULL), 0);
    CHECK_EQ(calls_of(CALL_SEND), 2);
    inject_nothing();
    CHECK_EQ(line.request.unsent, 0);
    expect_ack(&line);
    close_taken(&line, fds, pod);
    close_line(&line);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(listeners_and_ack_in_one_call),
        TEST(an_older_kernel_tells_the_cookie_of_a_socket),
        TEST(a_kernel_without_cookies_is_named_by_inode),
        TEST(a_failed_take_leaves_the_answer_to_the_caller),
        TEST(a_take_of_no_netns),
        TEST(a_take_of_no_listeners),
        TEST(an_agent_that_has_gone),
        TEST(an_agent_that_reads_nothing),
        TEST(a_signal_before_the_ack),
    };

    return run_tests("zds.c: take", tests, COUNT(tests));
}
