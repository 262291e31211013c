/*
 * test_netns_sockets.c: whose netns is a socket in, and the descriptors of another process.
 *
 * Theory of operation: sockets of many families are made in a pod, and the netns is compared with
 * the pod by inode. What is no socket must be asked nothing: a wrapped ioctl() counts.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <linux/if_packet.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* ---- the netns of a socket ---- */

static const struct {
    int family, type;
} SOCKETS[] = {
    {AF_INET, SOCK_STREAM}, {AF_INET, SOCK_DGRAM},     {AF_INET6, SOCK_STREAM},
    {AF_UNIX, SOCK_STREAM}, {AF_UNIX, SOCK_SEQPACKET}, {AF_NETLINK, SOCK_RAW},
    {AF_PACKET, SOCK_RAW},
};

static void every_socket_has_a_netns(void)
{
    need_namespaces();
    int pod = new_pod();
    for (size_t i = 0; i < COUNT(SOCKETS); i++) {
        in_row("family %d, type %d", SOCKETS[i].family, SOCKETS[i].type);
        int away = pz_socket(pod, -1, SOCKETS[i].family, SOCKETS[i].type, 0, NULL);
        int here = socket(SOCKETS[i].family, SOCKETS[i].type | SOCK_CLOEXEC, 0);
        CHECK(away >= 0 && here >= 0);
        int its_netns = pz_socket_netns(away), our_netns = pz_socket_netns(here);
        CHECK(its_netns >= 0 && our_netns >= 0);
        CHECK(is_cloexec(its_netns));
        CHECK_EQ(netns_of(its_netns), netns_of(pod));
        CHECK_EQ(netns_of(our_netns), netns_here());
        pz_close_all((int[]){away, here, its_netns, our_netns}, 4);
    }
    close(pod);
}

/* A socket pins its netns: it is found when nothing else holds it. */
static void a_socket_tells_its_netns_when_no_fd_is_left(void)
{
    need_namespaces();
    int pod = new_pod();
    uint64_t inode = netns_of(pod);
    int sock = pz_socket(pod, -1, AF_INET, SOCK_STREAM, 0, NULL);
    close(pod);
    int found = pz_socket_netns(sock);
    CHECK(found >= 0);
    CHECK_EQ(netns_of(found), inode);
    pz_close_all((int[]){sock, found}, 2);
}

static int open_tty(void)
{
    return posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
}

static int open_null(void)
{
    return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int open_dir(void)
{
    return open(test_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int open_own_netns(void)
{
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static int open_event(void)
{
    return eventfd(0, EFD_CLOEXEC);
}

static int open_epoll(void)
{
    return epoll_create1(EPOLL_CLOEXEC);
}

static int open_fifo(void)
{
    char path[64];

    snprintf(path, sizeof path, "%s/fifo", test_dir());
    CHECK_EQ(mkfifo(path, 0600), 0);
    return open(path, O_RDWR | O_CLOEXEC);
}

static int (*const NO_SOCKETS[])(void) = {open_tty,   open_null,  open_dir, open_own_netns,
                                          open_event, open_epoll, open_fifo};

static void what_is_no_socket_is_asked_nothing(void)
{
    for (size_t i = 0; i < COUNT(NO_SOCKETS); i++) {
        int fd = NO_SOCKETS[i]();
        in_row("row %zu", i);
        CHECK(fd >= 0);
        inject_nothing();
        CHECK_EQ(pz_socket_netns(fd), -ENOTSOCK);
        CHECK_EQ(calls_of(CALL_IOCTL), 0);
        close(fd);
    }
}

static void a_path_to_a_socket_is_none(void)
{
    char path[96];
    int listener = unix_listener("here", SOCK_STREAM, 1);

    snprintf(path, sizeof path, "%s/here", test_dir());
    int fd = open(path, O_PATH | O_CLOEXEC);
    CHECK(fd >= 0);
    int rc = pz_socket_netns(fd);
    CHECK(rc == -ENOTSOCK || rc == -EBADF);
    pz_close_all((int[]){fd, listener}, 2);
}

static void a_closed_descriptor_is_none(void)
{
    CHECK_EQ(pz_socket_netns(-1), -EBADF);
    CHECK_EQ(pz_socket_netns(1000), -EBADF);
}

static void ask_as_nobody(void *argument)
{
    const int *sock = argument;

    become_nobody();
    CHECK_EQ(pz_socket_netns(*sock), -EPERM);
}

static void nobody_is_not_told(void)
{
    need_namespaces();
    need_other_user();
    int pod = new_pod();
    int sock = pz_socket(pod, -1, AF_INET, SOCK_STREAM, 0, NULL);
    CHECK_EQ(in_child(ask_as_nobody, &sock, NULL, 0), 0);
    pz_close_all((int[]){sock, pod}, 2);
}

/* ---- descriptors of another process ---- */

static int open_pidfd(int pid)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

    CHECK(pidfd >= 0);
    return pidfd;
}

static void wait_at_the_gate(void *argument)
{
    const int *gate = argument;
    char byte;

    close(gate[1]);
    CHECK_EQ(read(gate[0], &byte, 1), 0);
}

static void a_copy_is_the_same_file(void)
{
    int gate[2];

    need_namespaces();
    CHECK_EQ(pipe2(gate, O_CLOEXEC), 0);
    int child = start_child(wait_at_the_gate, gate), pidfd = open_pidfd(child);
    int copy = pz_pidfd_getfd(pidfd, gate[0]);
    CHECK(copy >= 0);
    CHECK(copy != gate[0]);
    CHECK(is_cloexec(copy));
    CHECK(is_same_file(copy, gate[0]));
    close(copy);
    close(gate[1]);
    CHECK_EQ(end_child(child), 0);
    pz_close_all((int[]){gate[0], pidfd}, 2);
}

static void what_cannot_be_copied(void)
{
    int gate[2];

    need_namespaces();
    CHECK_EQ(pipe2(gate, O_CLOEXEC), 0);
    int child = start_child(wait_at_the_gate, gate), pidfd = open_pidfd(child);
    in_row("a descriptor that the process has not");
    CHECK_EQ(pz_pidfd_getfd(pidfd, 1000), -EBADF);
    CHECK_EQ(pz_pidfd_getfd(pidfd, -1), -EBADF);
    in_row("no pidfd");
    CHECK_EQ(pz_pidfd_getfd(gate[0], 0), -EBADF);
    CHECK_EQ(pz_pidfd_getfd(-1, 0), -EBADF);
    in_row("no room");
    fill_fd_table(0);
    CHECK_EQ(pz_pidfd_getfd(pidfd, gate[0]), -EMFILE);
    empty_fd_table();
    in_row("a process that has ended");
    close(gate[1]);
    CHECK_EQ(end_child(child), 0);
    CHECK_EQ(pz_pidfd_getfd(pidfd, gate[0]), -ESRCH);
    pz_close_all((int[]){gate[0], pidfd}, 2);
}

static void copy_as_nobody(void *argument)
{
    const int *pidfd = argument;

    become_nobody();
    CHECK_EQ(pz_pidfd_getfd(*pidfd, 0), -EPERM);
}

static void nobody_may_not_copy(void)
{
    need_other_user();
    int pidfd = open_pidfd(getpid());
    CHECK_EQ(in_child(copy_as_nobody, &pidfd, NULL, 0), 0);
    close(pidfd);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(every_socket_has_a_netns),
        TEST(a_socket_tells_its_netns_when_no_fd_is_left),
        TEST(what_is_no_socket_is_asked_nothing),
        TEST(a_path_to_a_socket_is_none),
        TEST(a_closed_descriptor_is_none),
        TEST(nobody_is_not_told),
        TEST(a_copy_is_the_same_file),
        TEST(what_cannot_be_copied),
        TEST(nobody_may_not_copy),
    };

    return run_tests("netns.c: sockets and descriptors", tests, COUNT(tests));
}
