/*
 * test_listen.c: the listener that was asked for, and all or none of several.
 *
 * Theory of operation: each option is read back from the kernel with getsockopt(), and must be off
 * where it was not asked for. Each test listens in a fresh pod; that a failed call leaves nothing
 * is shown by the same ports being free for the next one.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

enum {
    PORT = 15008,
    ALL_FLAGS = PZ_REUSEADDR | PZ_REUSEPORT | PZ_TRANSPARENT | PZ_FREEBIND | PZ_V6ONLY |
        PZ_NONBLOCK,
    MARK = 1337,
    V6_TRANSPARENT = 75,
    V6_FREEBIND = 78
};

static long option(int sock, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;

    CHECK_EQ(getsockopt(sock, level, name, &value, &size), 0);
    return value;
}

/* ---- flags ---- */

/* Each flag and where the kernel tells about it, for IPv4 and IPv6. */
static const struct {
    uint32_t flag;
    int level[2], name[2];
} FLAGS[] = {
    {PZ_REUSEADDR, {SOL_SOCKET, SOL_SOCKET}, {SO_REUSEADDR, SO_REUSEADDR}},
    {PZ_REUSEPORT, {SOL_SOCKET, SOL_SOCKET}, {SO_REUSEPORT, SO_REUSEPORT}},
    {PZ_TRANSPARENT, {IPPROTO_IP, IPPROTO_IPV6}, {IP_TRANSPARENT, V6_TRANSPARENT}},
    {PZ_FREEBIND, {IPPROTO_IP, IPPROTO_IPV6}, {IP_FREEBIND, V6_FREEBIND}},
};

static void verify_listener(int sock, const struct pz_listener *wanted)
{
    int six = wanted->family == 6;

    for (size_t i = 0; i < COUNT(FLAGS); i++) {
        bool on = wanted->flags & FLAGS[i].flag;
        CHECK_EQ(option(sock, FLAGS[i].level[six], FLAGS[i].name[six]) != 0, on);
    }
    if (six)
        CHECK_EQ(option(sock, IPPROTO_IPV6, IPV6_V6ONLY), (wanted->flags & PZ_V6ONLY) != 0);
    CHECK_EQ(option(sock, SOL_SOCKET, SO_DOMAIN), six ? AF_INET6 : AF_INET);
    CHECK_EQ(option(sock, SOL_SOCKET, SO_TYPE), SOCK_STREAM);
    CHECK_EQ(option(sock, SOL_SOCKET, SO_ACCEPTCONN), 1);
    CHECK_EQ(option(sock, SOL_SOCKET, SO_MARK), wanted->mark);
    CHECK_EQ((fcntl(sock, F_GETFL) & O_NONBLOCK) != 0, (wanted->flags & PZ_NONBLOCK) != 0);
    CHECK(is_cloexec(sock));
}

static void verify_address(int sock, const struct pz_listener *wanted)
{
    struct sockaddr_in6 six;
    struct sockaddr_in four;
    socklen_t size = sizeof six;

    CHECK_EQ(getsockname(sock, (struct sockaddr *)&six, &size), 0);
    if (wanted->family == 6) {
        CHECK(memcmp(&six.sin6_addr, wanted->address, 16) == 0);
        CHECK_EQ(ntohs(six.sin6_port), wanted->port);
        CHECK_EQ(six.sin6_scope_id, wanted->scope_id);
        return;
    }
    memcpy(&four, &six, sizeof four);
    CHECK(memcmp(&four.sin_addr, wanted->address, 4) == 0);
    CHECK_EQ(ntohs(four.sin_port), wanted->port);
}

static void every_set_of_flags(void)
{
    int fd;

    need_namespaces();
    int pod = new_pod();
    for (uint32_t flags = 0; flags <= ALL_FLAGS; flags++)
        for (int six = 0; six <= 1; six++) {
            /* On ::, because bound to any other address a socket becomes IPv6 only by itself. */
            struct pz_listener wanted = {.family = 6, .port = PORT, .backlog = 1};
            if (!six)
                wanted = on_loopback(PORT);
            in_row("IPv%d, flags %u", six ? 6 : 4, flags);
            wanted.flags = flags;
            wanted.mark = flags & 1 ? MARK : 0;
            CHECK_EQ(pz_listen(pod, -1, &wanted, 1, &fd, NULL), 0);
            verify_listener(fd, &wanted);
            verify_address(fd, &wanted);
            close(fd);
        }
    close(pod);
}

static void any_address_and_any_port(void)
{
    struct pz_listener wanted[2] = {{.family = 4, .backlog = 1},
                                    {.family = 6, .backlog = 1, .flags = PZ_V6ONLY}};
    int fds[2];

    need_namespaces();
    int pod = new_pod();
    CHECK_EQ(pz_listen(pod, -1, wanted, 2, fds, NULL), 0);
    CHECK(port_of(fds[0]) != 0);
    CHECK(port_of(fds[1]) != 0);
    pz_close_all(fds, 2);
    close(pod);
}

static void set_bindv6only(void *unused)
{
    int file = open("/proc/sys/net/ipv6/bindv6only", O_WRONLY | O_CLOEXEC);

    (void)unused;
    CHECK(file >= 0);
    CHECK_EQ(write(file, "1", 1), 1);
    close(file);
}

/* A dual-stack listener takes the port of IPv4 too, whatever the pod's sysctl says. */
static void without_v6only_a_listener_is_dual_stack(void)
{
    struct pz_listener six = {.family = 6, .port = PORT, .backlog = 1}, four = on_loopback(PORT);
    int fds[2];

    need_namespaces();
    int pod = new_pod();
    visit(pod, set_bindv6only, NULL);
    CHECK_EQ(pz_listen(pod, -1, &six, 1, &fds[0], NULL), 0);
    CHECK_EQ(pz_listen(pod, -1, &four, 1, &fds[1], NULL), -EADDRINUSE);
    close(fds[0]);
    six.flags = PZ_V6ONLY;
    CHECK_EQ(pz_listen(pod, -1, &six, 1, &fds[0], NULL), 0);
    CHECK_EQ(pz_listen(pod, -1, &four, 1, &fds[1], NULL), 0);
    pz_close_all(fds, 2);
    close(pod);
}

static void what_the_flags_allow(void)
{
    struct pz_listener foreign = on_loopback(PORT);
    int fds[2];

    need_namespaces();
    int pod = new_pod();
    memcpy(foreign.address, (const uint8_t[]){192, 0, 2, 1}, 4);
    CHECK_EQ(pz_listen(pod, -1, &foreign, 1, fds, NULL), -EADDRNOTAVAIL);
    foreign.flags = PZ_FREEBIND;
    CHECK_EQ(pz_listen(pod, -1, &foreign, 1, fds, NULL), 0);
    close(fds[0]);
    foreign.flags = PZ_TRANSPARENT;
    CHECK_EQ(pz_listen(pod, -1, &foreign, 1, fds, NULL), 0);
    close(fds[0]);
    struct pz_listener shared[2] = {on_loopback(PORT), on_loopback(PORT)};
    CHECK_EQ(pz_listen(pod, -1, shared, 2, fds, NULL), -EADDRINUSE);
    shared[0].flags = shared[1].flags = PZ_REUSEPORT;
    CHECK_EQ(pz_listen(pod, -1, shared, 2, fds, NULL), 0);
    pz_close_all(fds, 2);
    close(pod);
}

struct count {
    int listener;
    int connected;
};

static void connect_until_full(void *argument)
{
    struct count *count = argument;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port_of(count->listener)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int socks[16];

    for (int i = 0; i < 16; i++) {
        socks[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        connect(socks[i], (const struct sockaddr *)&address, sizeof address);
        socklen_t size = sizeof address;
        count->connected += getpeername(socks[i], (struct sockaddr *)&address, &size) == 0;
    }
    pz_close_all(socks, 16);
}

/* A backlog of N lets N + 1 connections wait (net/ipv4: sk_acceptq_is_full() compares with >). */
static void the_backlog(void)
{
    need_namespaces();
    for (int backlog = 1; backlog <= 4; backlog++) {
        struct pz_listener wanted = on_loopback(PORT);
        struct count count = {0};
        int pod = new_pod();
        in_row("backlog %d", backlog);
        wanted.backlog = backlog;
        CHECK_EQ(pz_listen(pod, -1, &wanted, 1, &count.listener, NULL), 0);
        visit(pod, connect_until_full, &count);
        CHECK_EQ(count.connected, backlog + 1);
        close(count.listener);
        close(pod);
    }
}

/* ---- several ---- */

static void make_many(void *argument)
{
    struct pz_listener wanted[PZ_MAX_LISTENERS];
    int fds[PZ_MAX_LISTENERS], pod = *(const int *)argument;

    for (int i = 0; i < PZ_MAX_LISTENERS; i++)
        wanted[i] = i % 2 ? on_loopback6((uint16_t)(PORT + i)) : on_loopback((uint16_t)(PORT + i));
    inject_nothing();
    CHECK_EQ(pz_listen(pod, -1, wanted, PZ_MAX_LISTENERS, fds, NULL), 0);
    CHECK(calls_of(CALL_SETNS) <= 3); /* prove home, go, return; a helper thread only goes */
    for (int i = 0; i < PZ_MAX_LISTENERS; i++) {
        verify_address(fds[i], &wanted[i]);
        CHECK_EQ(netns_of_socket(fds[i]), netns_of(pod));
    }
    pz_close_all(fds, PZ_MAX_LISTENERS);
}

static void many_in_one_excursion(void)
{
    need_namespaces();
    int pod = new_pod();
    in_row("main");
    make_many(&pod);
    in_row("worker");
    in_worker(make_many, &pod);
    close(pod);
}

static void all_or_none(void *argument)
{
    struct pz_listener wanted[5], third = on_loopback(PORT + 2);
    struct pz_failure failure;
    int fds[5], taken, pod = *(const int *)argument;

    for (int i = 0; i < 5; i++)
        wanted[i] = on_loopback((uint16_t)(PORT + i));
    CHECK_EQ(pz_listen(pod, -1, &third, 1, &taken, NULL), 0);
    CHECK_EQ(pz_listen(pod, -1, wanted, 5, fds, &failure), -EADDRINUSE);
    CHECK_EQ(failure.step, PZ_STEP_BIND);
    CHECK_EQ(failure.index, 2);
    close(taken);
    CHECK_EQ(pz_listen(pod, -1, wanted, 5, fds, &failure), 0);
    pz_close_all(fds, 5);
}

static void with_the_third_of_five_taken_there_is_none(void)
{
    need_namespaces();
    int pod = new_pod();
    in_row("main");
    all_or_none(&pod);
    in_row("worker");
    in_worker(all_or_none, &pod);
    close(pod);
}

/* ---- refusals ---- */

static void bounds(void)
{
    static const size_t numbers[] = {0, PZ_MAX_LISTENERS + 1, SIZE_MAX};
    struct pz_listener wanted[PZ_MAX_LISTENERS + 1];
    struct pz_failure failure;
    int fds[PZ_MAX_LISTENERS + 1];

    for (size_t i = 0; i < COUNT(wanted); i++)
        wanted[i] = on_loopback(0);
    inject_nothing();
    for (size_t i = 0; i < COUNT(numbers); i++) {
        in_row("%zu listeners", numbers[i]);
        CHECK_EQ(pz_listen(-1, -1, wanted, numbers[i], fds, &failure), -EINVAL);
        CHECK_EQ(failure.step, PZ_STEP_ARGUMENT);
        CHECK_EQ(failure.index, -1);
    }
    CHECK_EQ(calls_of(CALL_SETNS) + calls_of(CALL_SOCKET) + calls_of(CALL_PTHREAD_CREATE), 0);
}

static void an_unknown_family(void)
{
    static const uint16_t families[] = {0, 1, 2, 5, 10, 65535};
    struct pz_failure failure;
    int fds[2];

    for (size_t i = 0; i < COUNT(families); i++) {
        struct pz_listener wanted[2] = {on_loopback(0), on_loopback(0)};
        in_row("family %u", families[i]);
        wanted[1].family = families[i];
        CHECK_EQ(pz_listen(-1, -1, wanted, 2, fds, &failure), -EAFNOSUPPORT);
        CHECK_EQ(failure.step, PZ_STEP_ARGUMENT);
        CHECK_EQ(failure.index, 1);
    }
}

static void not_a_netns(void)
{
    struct pz_listener wanted = on_loopback(0);
    struct pz_failure failure;
    int fds[1], file = open("/dev/null", O_RDONLY | O_CLOEXEC);

    need_namespaces();
    CHECK_EQ(pz_listen(file, -1, &wanted, 1, fds, &failure), -EINVAL);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    CHECK_EQ(pz_listen(-1, -1, &wanted, 1, fds, &failure), -EBADF);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    close(file);
}

static void a_full_fd_table(void)
{
    struct pz_listener wanted[3] = {on_loopback(PORT), on_loopback(PORT + 1),
                                    on_loopback(PORT + 2)};
    struct pz_failure failure;
    int fds[3];

    need_namespaces();
    int pod = new_pod();
    fill_fd_table(2);
    CHECK_EQ(pz_listen(pod, -1, wanted, 3, fds, &failure), -EMFILE);
    CHECK_EQ(failure.step, PZ_STEP_SOCKET);
    CHECK_EQ(failure.index, 2);
    CHECK_EQ(pz_listen(pod, -1, wanted, 2, fds, &failure), 0);
    pz_close_all(fds, 2);
    empty_fd_table();
    close(pod);
}

/* ---- each syscall fails once ---- */

/* Which setsockopt() it is counts from 1 with every flag on. */
static const struct {
    int family;
    enum call call;
    int nth, error, step;
} FAULTS[] = {
    {4, CALL_SETSOCKOPT, 1, ENOPROTOOPT, PZ_STEP_SO_REUSEADDR},
    {4, CALL_SETSOCKOPT, 2, ENOPROTOOPT, PZ_STEP_SO_REUSEPORT},
    {4, CALL_SETSOCKOPT, 3, EPERM, PZ_STEP_TRANSPARENT},
    {4, CALL_SETSOCKOPT, 4, ENOPROTOOPT, PZ_STEP_FREEBIND},
    {4, CALL_SETSOCKOPT, 5, EPERM, PZ_STEP_SO_MARK},
    {6, CALL_SETSOCKOPT, 1, ENOPROTOOPT, PZ_STEP_SO_REUSEADDR},
    {6, CALL_SETSOCKOPT, 2, ENOPROTOOPT, PZ_STEP_SO_REUSEPORT},
    {6, CALL_SETSOCKOPT, 3, EPERM, PZ_STEP_TRANSPARENT},
    {6, CALL_SETSOCKOPT, 4, ENOPROTOOPT, PZ_STEP_FREEBIND},
    {6, CALL_SETSOCKOPT, 5, EINVAL, PZ_STEP_V6ONLY},
    {6, CALL_SETSOCKOPT, 6, EPERM, PZ_STEP_SO_MARK},
    {4, CALL_BIND, 1, EADDRNOTAVAIL, PZ_STEP_BIND},
    {6, CALL_BIND, 1, EACCES, PZ_STEP_BIND},
    {4, CALL_LISTEN, 1, EADDRINUSE, PZ_STEP_LISTEN},
    {6, CALL_LISTEN, 1, EADDRINUSE, PZ_STEP_LISTEN},
};

static void each_fault_of_one_listener(void)
{
    struct pz_failure failure;

    need_namespaces(); /* some of the options */
    for (size_t i = 0; i < COUNT(FAULTS); i++) {
        struct pz_listener wanted = FAULTS[i].family == 6 ? on_loopback6(0) : on_loopback(0);
        int sock = socket(FAULTS[i].family == 6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
        in_row("row %zu", i);
        wanted.flags = ALL_FLAGS;
        wanted.mark = MARK;
        inject_nothing();
        inject(FAULTS[i].call, FAULTS[i].nth, FAULTS[i].error);
        CHECK_EQ(pz_make_listening(sock, &wanted, 7, &failure), -FAULTS[i].error);
        CHECK_EQ(failure.step, FAULTS[i].step);
        CHECK_EQ(failure.index, 7);
        close(sock);
    }
    inject_nothing();
}

static void what_is_not_asked_costs_no_syscall(void)
{
    struct pz_listener four = on_loopback(0), six = on_loopback6(0);
    int sock = socket(AF_INET, SOCK_STREAM, 0), sock6 = socket(AF_INET6, SOCK_STREAM, 0);

    inject_nothing();
    CHECK_EQ(pz_make_listening(sock, &four, 0, NULL), 0);
    CHECK_EQ(calls_of(CALL_SETSOCKOPT), 0);
    CHECK_EQ(pz_make_listening(sock6, &six, 0, NULL), 0);
    CHECK_EQ(calls_of(CALL_SETSOCKOPT), 1); /* IPV6_V6ONLY */
    close(sock);
    close(sock6);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(every_set_of_flags),
        TEST(any_address_and_any_port),
        TEST(without_v6only_a_listener_is_dual_stack),
        TEST(what_the_flags_allow),
        TEST(the_backlog),
        TEST(many_in_one_excursion),
        TEST(with_the_third_of_five_taken_there_is_none),
        TEST(bounds),
        TEST(an_unknown_family),
        TEST(not_a_netns),
        TEST(a_full_fd_table),
        TEST(each_fault_of_one_listener),
        TEST(what_is_not_asked_costs_no_syscall),
    };

    return run_tests("listen.c", tests, COUNT(tests));
}
