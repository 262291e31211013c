/*
 * test_visit_socket.c: one socket of any kind in another netns, and bound UDP sockets.
 *
 * Theory of operation: what was asked for is read back from the socket (SO_DOMAIN, SO_TYPE,
 * SO_PROTOCOL), its netns by SIOCGSKNS.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

enum { PORT = 15353, NO_FAMILY = 4000 };

static int option(int sock, int name)
{
    int value = -1;
    socklen_t size = sizeof value;

    CHECK_EQ(getsockopt(sock, SOL_SOCKET, name, &value, &size), 0);
    return value;
}

/* ---- pz_socket ---- */

static const struct {
    int family, type, protocol;
} KINDS[] = {
    {AF_INET, SOCK_STREAM, IPPROTO_TCP},
    {AF_INET, SOCK_DGRAM, IPPROTO_UDP},
    {AF_INET, SOCK_RAW, IPPROTO_ICMP},
    {AF_INET6, SOCK_STREAM, IPPROTO_TCP},
    {AF_INET6, SOCK_DGRAM, IPPROTO_UDP},
    {AF_UNIX, SOCK_STREAM, 0},
    {AF_UNIX, SOCK_SEQPACKET, 0},
    {AF_NETLINK, SOCK_RAW, NETLINK_ROUTE},
    {AF_NETLINK, SOCK_DGRAM, NETLINK_SOCK_DIAG},
    {AF_PACKET, SOCK_DGRAM, 0},
};

struct site {
    int pod, home; /* home: -1 to have the call open it */
};

static void make_each_kind(void *argument)
{
    const struct site *site = argument;
    uint64_t before = netns_here(), main_before = netns_of_main();

    for (size_t i = 0; i < COUNT(KINDS); i++) {
        struct pz_failure failure = {-1, -2};
        int sock = pz_socket(site->pod, site->home, KINDS[i].family, KINDS[i].type,
                             KINDS[i].protocol, &failure);
        in_row("kind %zu", i);
        CHECK(sock >= 0);
        CHECK_EQ(failure.step, -1); /* written only by a call that fails */
        CHECK_EQ(option(sock, SO_DOMAIN), KINDS[i].family);
        CHECK_EQ(option(sock, SO_TYPE), KINDS[i].type);
        CHECK_EQ(option(sock, SO_PROTOCOL), KINDS[i].protocol);
        CHECK(is_cloexec(sock));
        CHECK_EQ(netns_of_socket(sock), netns_of(site->pod));
        CHECK_EQ(netns_here(), before);
        CHECK_EQ(netns_of_main(), main_before);
        close(sock);
    }
}

static void any_kind_from_any_thread(void)
{
    need_namespaces();
    struct site site = {new_pod(), -1};
    make_each_kind(&site);
    in_worker(make_each_kind, &site);
    site.home = pz_netns_home();
    CHECK(site.home >= 0);
    in_worker(make_each_kind, &site);
    close(site.home);
    close(site.pod);
}

static void nonblocking_as_asked(void)
{
    need_namespaces();
    int pod = new_pod();
    int sock = pz_socket(pod, -1, AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, NULL);
    char byte;
    CHECK(sock >= 0);
    CHECK(is_cloexec(sock));
    CHECK_EQ(recv(sock, &byte, 1, 0), -1);
    CHECK(errno == ENOTCONN || errno == EAGAIN);
    CHECK_EQ(option(sock, SO_TYPE), SOCK_STREAM);
    pz_close_all((int[]){sock, pod}, 2);
}

static void fail_from_here(void *argument)
{
    static const struct {
        int family, type, protocol, error;
    } rows[] = {
        {NO_FAMILY, SOCK_STREAM, 0, EAFNOSUPPORT},
        {-1, SOCK_STREAM, 0, EAFNOSUPPORT},
        {AF_INET, SOCK_STREAM, IPPROTO_UDP, EPROTONOSUPPORT},
        {AF_INET, 9, 0, ESOCKTNOSUPPORT},
        {AF_INET, SOCK_STREAM | 1 << 30, 0, EINVAL},
        {AF_UNIX, SOCK_STREAM, 77, EPROTONOSUPPORT},
    };
    const struct site *site = argument;
    uint64_t before = netns_here();

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct pz_failure failure = {-1, -2};
        in_row("row %zu", i);
        CHECK_EQ(pz_socket(site->pod, -1, rows[i].family, rows[i].type, rows[i].protocol, &failure),
                 -rows[i].error);
        CHECK_EQ(failure.step, PZ_STEP_SOCKET);
        CHECK_EQ(failure.index, 0);
        CHECK_EQ(netns_here(), before);
    }
}

static void what_the_netns_has_not_is_told(void)
{
    need_namespaces();
    struct site site = {new_pod(), -1};
    fail_from_here(&site);
    in_worker(fail_from_here, &site);
    close(site.pod);
}

static void who_asks_for_no_netns(void)
{
    struct pz_failure failure = {-1, -2};
    int gate[2];

    need_namespaces();
    unix_pair(SOCK_STREAM, gate);
    CHECK_EQ(pz_socket(gate[0], -1, AF_INET, SOCK_STREAM, 0, &failure), -EINVAL);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    CHECK_EQ(pz_socket(-1, -1, AF_INET, SOCK_STREAM, 0, &failure), -EBADF);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    pz_close_all(gate, 2);
}

static void make_as_nobody(void *argument)
{
    const struct site *site = argument;
    struct pz_failure failure = {-1, -2};

    become_nobody();
    CHECK_EQ(pz_socket(site->pod, -1, AF_INET, SOCK_STREAM, 0, &failure), -EPERM);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
}

static void nobody_may_not(void)
{
    need_namespaces();
    need_other_user();
    struct site site = {new_pod(), -1};
    CHECK_EQ(in_child(make_as_nobody, &site, NULL, 0), 0);
    close(site.pod);
}

/* ---- PZ_DGRAM ---- */

static struct pz_listener udp(uint16_t port, uint32_t flags)
{
    struct pz_listener wanted = on_loopback(port);

    wanted.flags = PZ_DGRAM | flags;
    return wanted;
}

static void udp_is_bound_and_not_listened_on(void)
{
    need_namespaces();
    int pod = new_pod(), fds[3];
    struct pz_listener wanted[3] = {udp(PORT, 0), on_loopback6(PORT), on_loopback(PORT)};
    wanted[1].flags = PZ_DGRAM | PZ_NONBLOCK;
    inject_nothing();
    CHECK_EQ(pz_listen(pod, -1, wanted, 3, fds, NULL), 0); /* UDP and TCP have ports of their own */
    CHECK_EQ(calls_of(CALL_LISTEN), 1);
    for (int i = 0; i < 3; i++) {
        in_row("socket %d", i);
        CHECK_EQ(option(fds[i], SO_TYPE), i < 2 ? SOCK_DGRAM : SOCK_STREAM);
        CHECK_EQ(pz_is_listening(fds[i]), i == 2);
        CHECK_EQ(port_of(fds[i]), PORT);
        CHECK_EQ(netns_of_socket(fds[i]), netns_of(pod));
        CHECK(is_cloexec(fds[i]));
    }
    pz_close_all(fds, 3);
    close(pod);
}

struct datagram {
    uint16_t port;
};

static void send_one(void *argument)
{
    const struct datagram *datagram = argument;
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(datagram->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK_EQ(sendto(sock, "hello", 5, 0, (const struct sockaddr *)&to, sizeof to), 5);
    close(sock);
}

static void a_datagram_arrives_in_the_pod(void)
{
    need_namespaces();
    int pod = new_pod(), fd;
    struct pz_listener wanted = udp(0, 0);
    char text[8];
    CHECK_EQ(pz_listen(pod, -1, &wanted, 1, &fd, NULL), 0);
    struct datagram datagram = {port_of(fd)};
    CHECK(datagram.port != 0);
    visit(pod, send_one, &datagram);
    CHECK(await(fd, POLLIN) != 0);
    CHECK_EQ(recv(fd, text, sizeof text, MSG_DONTWAIT), 5);
    CHECK(memcmp(text, "hello", 5) == 0);
    pz_close_all((int[]){fd, pod}, 2);
}

static void a_taken_udp_port_is_told(void)
{
    need_namespaces();
    int pod = new_pod(), first, fds[2];
    struct pz_listener wanted[2] = {udp(PORT, 0), udp(PORT, 0)};
    struct pz_failure failure = {-1, -2};
    CHECK_EQ(pz_listen(pod, -1, wanted, 2, fds, &failure), -EADDRINUSE);
    CHECK_EQ(failure.step, PZ_STEP_BIND);
    CHECK_EQ(failure.index, 1);
    CHECK(fds[0] == -1 && fds[1] == -1);
    CHECK_EQ(pz_listen(pod, -1, wanted, 1, &first, NULL), 0); /* nothing was left */
    wanted[0].flags |= PZ_REUSEPORT;
    wanted[1].flags |= PZ_REUSEPORT;
    wanted[0].port = wanted[1].port = PORT + 1;
    CHECK_EQ(pz_listen(pod, -1, wanted, 2, fds, NULL), 0);
    pz_close_all((int[]){fds[0], fds[1], first, pod}, 4);
}

/* ---- arguments ---- */

static void a_wrong_family_leaves_no_number_behind(void)
{
    struct pz_listener wanted[2] = {on_loopback(0), on_loopback(0)};
    struct pz_failure failure = {-1, -2};
    int fds[2] = {4711, 4711};

    wanted[1].family = 10;
    CHECK_EQ(pz_listen(0, -1, wanted, 2, fds, &failure), -EAFNOSUPPORT);
    CHECK_EQ(failure.step, PZ_STEP_ARGUMENT);
    CHECK_EQ(failure.index, 1);
    CHECK(fds[0] == -1 && fds[1] == -1);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(any_kind_from_any_thread),
        TEST(nonblocking_as_asked),
        TEST(what_the_netns_has_not_is_told),
        TEST(who_asks_for_no_netns),
        TEST(nobody_may_not),
        TEST(udp_is_bound_and_not_listened_on),
        TEST(a_datagram_arrives_in_the_pod),
        TEST(a_taken_udp_port_is_told),
        TEST(a_wrong_family_leaves_no_number_behind),
    };

    return run_tests("visit.c: sockets of any kind", tests, COUNT(tests));
}
