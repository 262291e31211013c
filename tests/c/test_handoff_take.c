/*
 * test_handoff_take.c: what a request tells about its netns, and listeners and answer in one call.
 *
 * Theory of operation: the peers send real netns, and files that are none. The answer is read by
 * the peer; where the listeners are is asked of the kernel. Older kernels, which tell no cookie
 * without a socket or none at all, are played by a failing ioctl() and getsockopt().
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "receiver.h"
#include "support.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PORT = 15008, LISTENERS = 3 };

static const char READY[] = "ready netns=";

/* The numbers of ioctl() in pz_netns_inspect(): the kind, then the cookie. */
enum { ASK_COOKIE = 2 };

static int send_fd(const struct site *site, const char *request, int fd)
{
    int peer = dial(site->listener);

    say(peer, request, 1, &fd, 1);
    return peer;
}

static uint64_t cookie_of(int pod)
{
    uint64_t cookie = 0;

    CHECK_EQ(pz_netns_cookie(pod, -1, &cookie, NULL), 0);
    return cookie;
}

static int take(struct site *site, int *fds, struct pz_failure *failure)
{
    struct pz_listener wanted[LISTENERS];

    for (int i = 0; i < LISTENERS; i++)
        wanted[i] = on_loopback((uint16_t)(PORT + i));
    return pz_handoff_take(site->handoff, &site->request, -1, wanted, LISTENERS, fds,
                           (const uint8_t *)READY, strlen(READY), failure);
}

static void expect_ready(int peer, uint64_t number)
{
    char line[64];

    snprintf(line, sizeof line, "%s%" PRIu64 "\n", READY, number);
    expect_text(peer, line);
}

static void a_request_names_its_netns(void)
{
    static const struct {
        const char *request;
        int event;
    } rows[] = {{"\x01", PZ_EVENT_TAKE}, {"\x02", PZ_EVENT_RELEASE}};

    need_namespaces();
    struct site site = open_site(ROOMY);
    int pod = new_pod();
    for (size_t i = 0; i < COUNT(rows); i++) {
        int peer = send_fd(&site, rows[i].request, pod);
        CHECK_EQ(next(&site), rows[i].event);
        CHECK_EQ(site.request.not_netns, 0);
        CHECK_EQ(site.request.inode, netns_of(pod));
        CHECK(site.request.cookie == cookie_of(pod) || site.request.cookie == 0);
        expect_fd(&site, pod);
        close(peer);
    }
    close(pod);
    close_site(&site);
}

static void what_is_no_netns_is_told(void)
{
    struct site site = open_site(ROOMY);
    int strangers[] = {open_file(), open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC),
                       open("/dev/null", O_RDWR | O_CLOEXEC)};

    for (size_t i = 0; i < COUNT(strangers); i++) {
        int peer = send_fd(&site, "\x01", strangers[i]);
        in_row("stranger %zu", i);
        CHECK_EQ(next(&site), PZ_EVENT_TAKE);
        CHECK_EQ(site.request.not_netns, -EINVAL);
        CHECK_EQ(site.request.inode, 0);
        CHECK_EQ(site.request.cookie, 0);
        CHECK_EQ(site.request.fd, -1);
        close(peer);
    }
    pz_close_all(strangers, COUNT(strangers));
    close_site(&site);
}

static void take_and_verify(void *argument)
{
    struct site *site = argument;
    int fds[LISTENERS], pod = new_pod(), peer = send_fd(site, "\x01", pod);

    CHECK_EQ(next(site), PZ_EVENT_TAKE);
    CHECK_EQ(take(site, fds, NULL), 0);
    CHECK_EQ(site->request.cookie, cookie_of(pod));
    expect_ready(peer, cookie_of(pod));
    for (int i = 0; i < LISTENERS; i++) {
        CHECK_EQ(netns_of_socket(fds[i]), netns_of(pod));
        CHECK_EQ(port_of(fds[i]), PORT + i);
        close(fds[i]);
    }
    close(site->request.fd);
    ask_and_be_served(site, peer);
    pz_close_all((int[]){pod, peer}, 2);
}

static void listeners_and_answer_in_one_call(void)
{
    need_namespaces();
    struct site site = open_site(ROOMY);
    in_row("main");
    take_and_verify(&site);
    in_row("worker");
    in_worker(take_and_verify, &site);
    close_site(&site);
}

static void an_older_kernel_tells_the_cookie_of_a_socket(void)
{
    need_namespaces();
    struct site site = open_site(ROOMY);
    int fds[LISTENERS], pod = new_pod(), peer = send_fd(&site, "\x01", pod);
    uint64_t cookie = cookie_of(pod);
    inject(CALL_IOCTL, ASK_COOKIE, ENOTTY);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    inject_nothing();
    CHECK_EQ(site.request.not_netns, 0);
    CHECK_EQ(site.request.cookie, 0);
    CHECK_EQ(take(&site, fds, NULL), 0);
    CHECK_EQ(site.request.cookie, cookie);
    expect_ready(peer, cookie);
    pz_close_all(fds, LISTENERS);
    pz_close_all((int[]){site.request.fd, pod, peer}, 3);
    close_site(&site);
}

static void a_kernel_without_cookies_is_named_by_inode(void)
{
    need_namespaces();
    struct site site = open_site(ROOMY);
    int fds[LISTENERS], pod = new_pod(), peer = send_fd(&site, "\x01", pod);
    inject(CALL_IOCTL, ASK_COOKIE, ENOTTY);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    inject(CALL_GETSOCKOPT, 1, ENOPROTOOPT);
    CHECK_EQ(take(&site, fds, NULL), 0);
    inject_nothing();
    expect_ready(peer, netns_of(pod));
    pz_close_all(fds, LISTENERS);
    pz_close_all((int[]){site.request.fd, pod, peer}, 3);
    close_site(&site);
}

/* Nothing is answered then, so that the caller can say why. */
static void a_failed_take_leaves_the_answer_to_the_caller(void)
{
    struct pz_failure failure = {0};

    need_namespaces();
    struct site site = open_site(ROOMY);
    struct pz_listener second = on_loopback(PORT + 1);
    int fds[LISTENERS], taken, pod = new_pod(), peer = send_fd(&site, "\x01", pod);
    CHECK_EQ(pz_listen(pod, -1, &second, 1, &taken, NULL), 0);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    CHECK_EQ(take(&site, fds, &failure), -EADDRINUSE);
    CHECK_EQ(failure.step, PZ_STEP_BIND);
    CHECK_EQ(failure.index, 1);
    close(taken);
    close(site.request.fd);
    answer(&site, "error\n", false);
    expect_text(peer, "error\n");
    say(peer, "\x01", 1, &pod, 1); /* and again, now that the port is free */
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    CHECK_EQ(take(&site, fds, &failure), 0);
    expect_ready(peer, cookie_of(pod));
    pz_close_all(fds, LISTENERS);
    pz_close_all((int[]){site.request.fd, pod, peer}, 3);
    close_site(&site);
}

static void a_take_of_no_netns(void)
{
    struct pz_failure failure = {0};

    need_namespaces();
    struct site site = open_site(ROOMY);
    int fds[LISTENERS], file = open_file(), peer = send_fd(&site, "\x01", file);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    CHECK_EQ(take(&site, fds, &failure), -EBADF);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    answer(&site, "error\n", false);
    expect_text(peer, "error\n");
    pz_close_all((int[]){file, peer}, 2);
    close_site(&site);
}

/* READY and the cookie must fit; nothing is made where they do not. */
static void the_length_of_the_answer(void)
{
    enum { FITS = 8192 - 22 };
    struct pz_listener wanted = on_loopback(PORT);
    struct pz_failure failure = {0};
    static uint8_t ready[FITS + 1], got[FITS];

    need_namespaces();
    struct site site = open_site(ROOMY);
    int fd, error, pod = new_pod(), peer = send_fd(&site, "\x01", pod);
    memset(ready, 'r', sizeof ready);
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    CHECK_EQ(pz_handoff_take(site.handoff, &site.request, -1, &wanted, 1, &fd, ready, FITS + 1,
                             &failure),
             -EMSGSIZE);
    CHECK_EQ(failure.step, PZ_STEP_ARGUMENT);
    CHECK_EQ(
        pz_handoff_take(site.handoff, &site.request, -1, &wanted, 1, &fd, ready, FITS, &failure),
        0);
    CHECK_EQ(hear(peer, got, FITS, &error), FITS);
    CHECK(memcmp(got, ready, FITS) == 0);
    pz_close_all((int[]){site.request.fd, fd, pod, peer}, 4);
    close_site(&site);
}

static void a_sender_that_did_not_wait(void)
{
    need_namespaces();
    struct site site = open_site(ROOMY);
    int fds[LISTENERS], pod = new_pod();
    close(send_fd(&site, "\x01", pod));
    CHECK_EQ(next(&site), PZ_EVENT_TAKE);
    CHECK_EQ(take(&site, fds, NULL), 0);
    settle_peers(&site, 0);
    pz_close_all(fds, LISTENERS);
    pz_close_all((int[]){site.request.fd, pod}, 2);
    close_site(&site);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_request_names_its_netns),
        TEST(what_is_no_netns_is_told),
        TEST(listeners_and_answer_in_one_call),
        TEST(an_older_kernel_tells_the_cookie_of_a_socket),
        TEST(a_kernel_without_cookies_is_named_by_inode),
        TEST(a_failed_take_leaves_the_answer_to_the_caller),
        TEST(a_take_of_no_netns),
        TEST(the_length_of_the_answer),
        TEST(a_sender_that_did_not_wait),
    };

    return run_tests("handoff.c: take", tests, COUNT(tests));
}
