/*
 * test_netns.c: which netns is this, whose is it, where is home.
 *
 * Theory of operation: every kind of descriptor that a stranger could send is inspected. The cookie
 * is asked by every way there is and must come out the same. Visits are in test_visit.c.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { VISITS = 500, PORT = 15008 };

static uint64_t nsfs(void)
{
    uint64_t dev = 0;

    CHECK_EQ(pz_nsfs_device(&dev), 0);
    return dev;
}

static int home_fd(void)
{
    int fd = pz_netns_home();

    CHECK(fd >= 0);
    return fd;
}

/* ---- recognising ---- */

static void the_device_of_nsfs(void)
{
    struct stat file;

    CHECK_EQ(stat("/proc/self/ns/mnt", &file), 0);
    CHECK_EQ(nsfs(), file.st_dev);
}

static int open_netns(void)
{
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static int open_mntns(void)
{
    return open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
}

static int open_userns(void)
{
    return open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
}

static int open_path_only(void)
{
    return open("/proc/self/ns/net", O_PATH | O_CLOEXEC);
}

static int open_regular(void)
{
    char path[64];

    snprintf(path, sizeof path, "%s/regular", test_dir());
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static int open_directory(void)
{
    return open(test_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int open_pidfd(void)
{
    return (int)syscall(SYS_pidfd_open, getpid(), 0);
}

static int open_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int open_pipe(void)
{
    int ends[2];

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    close(ends[1]);
    return ends[0];
}

static int open_epoll(void)
{
    return epoll_create1(EPOLL_CLOEXEC);
}

static int open_eventfd(void)
{
    return eventfd(0, EFD_CLOEXEC);
}

static int open_null(void)
{
    return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int open_procfile(void)
{
    return open("/proc/self/status", O_RDONLY | O_CLOEXEC);
}

static int open_nothing(void)
{
    return -1;
}

static const struct {
    const char *name;
    int (*open)(void);
    int expected;
} KINDS[] = {
    {"a netns", open_netns, 0},
    {"a mount namespace", open_mntns, -EINVAL},
    {"a user namespace", open_userns, -EINVAL},
    {"a netns by O_PATH", open_path_only, -EBADF},
    {"a regular file", open_regular, -EINVAL},
    {"a directory", open_directory, -EINVAL},
    {"a pidfd", open_pidfd, -EINVAL},
    {"a socket", open_socket, -EINVAL},
    {"a pipe", open_pipe, -EINVAL},
    {"an epoll fd", open_epoll, -EINVAL},
    {"an eventfd", open_eventfd, -EINVAL},
    {"a device", open_null, -EINVAL},
    {"a file of procfs", open_procfile, -EINVAL},
    {"no fd", open_nothing, -EBADF},
};

static void only_a_netns_is_a_netns(void)
{
    for (size_t i = 0; i < COUNT(KINDS); i++) {
        struct pz_netns_info info;
        int fd = KINDS[i].open();
        in_row("%s", KINDS[i].name);
        CHECK(fd >= 0 || KINDS[i].open == open_nothing);
        CHECK_EQ(pz_netns_inspect(fd, nsfs(), &info), KINDS[i].expected);
        if (fd >= 0)
            close(fd);
    }
}

/* An ioctl() may do something to a stranger's device, so it is never asked one. */
static void a_stranger_is_asked_no_ioctl(void)
{
    struct pz_netns_info info;
    uint64_t dev = nsfs();
    int fd = open_null();

    inject_nothing();
    CHECK_EQ(pz_netns_inspect(fd, dev, &info), -EINVAL);
    CHECK_EQ(calls_of(CALL_IOCTL), 0);
    close(fd);
}

static void the_identity_of_a_netns(void)
{
    struct pz_netns_info one, other;

    need_namespaces();
    int pod = new_pod(), second = new_pod(), again = dup(pod);
    CHECK_EQ(pz_netns_inspect(pod, nsfs(), &one), 0);
    CHECK_EQ(one.dev, nsfs());
    CHECK_EQ(one.ino, netns_of(pod));
    CHECK_EQ(pz_netns_inspect(again, nsfs(), &other), 0);
    CHECK(memcmp(&one, &other, sizeof one) == 0);
    CHECK_EQ(pz_netns_inspect(second, nsfs(), &other), 0);
    CHECK(other.ino != one.ino && (other.id != one.id || one.id == 0));
    close(again);
    close(second);
    close(pod);
}

/* ---- the cookie ---- */

struct cookie_of_pod {
    int pod;
    uint64_t by_fd, by_socket;
};

static void ask_socket(void *argument)
{
    struct cookie_of_pod *asked = argument;
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK_EQ(pz_socket_cookie(sock, &asked->by_socket), 0);
    close(sock);
}

static void ask_fd(void *argument)
{
    struct cookie_of_pod *asked = argument;

    asked->by_fd = 0;
    CHECK_EQ(pz_netns_cookie(asked->pod, -1, &asked->by_fd, NULL), 0);
}

/* The first ioctl fails as on Linux before 6.18, where only a socket in the netns tells. */
static void ask_fd_the_old_way(void *argument)
{
    inject(CALL_IOCTL, 1, ENOTTY);
    inject(CALL_SETNS, 0, 0);
    ask_fd(argument);
    CHECK(calls_of(CALL_SETNS) >= 1);
    inject_nothing();
}

static void the_cookie_of_fd_and_socket_agree(void)
{
    struct cookie_of_pod asked;
    struct pz_netns_info info;

    need_namespaces();
    asked.pod = new_pod();
    visit(asked.pod, ask_socket, &asked);
    CHECK(asked.by_socket != 0);
    ask_fd(&asked);
    CHECK_EQ(asked.by_fd, asked.by_socket);
    ask_fd_the_old_way(&asked);
    CHECK_EQ(asked.by_fd, asked.by_socket);
    in_worker(ask_fd_the_old_way, &asked);
    CHECK_EQ(asked.by_fd, asked.by_socket);
    CHECK_EQ(pz_netns_inspect(asked.pod, nsfs(), &info), 0);
    CHECK(info.id == asked.by_socket || info.id == 0);
    close(asked.pod);
}

static void a_cookie_that_cannot_be_had(void)
{
    struct pz_failure failure = {0};
    uint64_t cookie;
    int file = open_null();

    CHECK_EQ(pz_socket_cookie(file, &cookie), -ENOTSOCK);
    CHECK_EQ(pz_socket_cookie(-1, &cookie), -EBADF);
    close(file);
    need_namespaces();
    int pod = new_pod();
    inject(CALL_IOCTL, 1, ENOTTY);
    inject(CALL_GETSOCKOPT, 1, ENOPROTOOPT);
    CHECK_EQ(pz_netns_cookie(pod, -1, &cookie, &failure), -ENOPROTOOPT);
    CHECK_EQ(failure.step, PZ_STEP_COOKIE);
    inject(CALL_IOCTL, 1, ENOTTY);
    inject(CALL_SETNS, 1, EPERM);
    CHECK_EQ(pz_netns_cookie(pod, -1, &cookie, &failure), -EPERM);
    CHECK_EQ(failure.step, PZ_STEP_SETNS);
    inject_nothing();
    close(pod);
}

/* ---- owner and home ---- */

static void ask_owner_from_below(void *argument)
{
    uint32_t uid;

    if (unshare(CLONE_NEWUSER) == -1)
        _exit(77);
    CHECK_EQ(pz_netns_owner(*(const int *)argument, &uid), -EPERM);
}

static void the_owner(void)
{
    uint32_t uid = 99;
    int file = open_null(), home = home_fd();

    CHECK(pz_netns_owner(file, &uid) < 0);
    CHECK_EQ(pz_netns_owner(-1, &uid), -EBADF);
    need_namespaces();
    int pod = new_pod();
    CHECK_EQ(pz_netns_owner(pod, &uid), 0);
    CHECK_EQ(uid, geteuid());
    close(pod);
    int status = in_child(ask_owner_from_below, &home, NULL, 0);
    close(home);
    close(file);
    if (WEXITSTATUS(status) == 77)
        skip("no user namespace to be had (never with the thread of TSan)");
    CHECK_EQ(status, 0);
}

static void home_is_where_the_thread_is(void *argument)
{
    int pod = *(const int *)argument, home = home_fd();

    CHECK(is_cloexec(home));
    CHECK_EQ(netns_of(home), netns_of(pod));
    CHECK_EQ(pz_netns_prove_home(home), 0);
    CHECK_EQ(netns_here(), netns_of(pod));
    close(home);
}

static void home_is_where_one_is_found(void)
{
    int here = home_fd();

    CHECK_EQ(netns_of(here), netns_here());
    need_namespaces();
    int pod = new_pod();
    home_is_where_the_thread_is(&here);
    visit(pod, home_is_where_the_thread_is, &pod);
    close(pod);
    close(here);
}

static void home_without_the_right(void *argument)
{
    int home = *(const int *)argument;

    become_nobody();
    CHECK_EQ(pz_netns_prove_home(home), -EPERM);
}

static void home_cannot_be_proven(void)
{
    int here = home_fd(), file = open_null();

    CHECK_EQ(pz_netns_prove_home(-1), -EBADF);
    need_namespaces();
    CHECK_EQ(pz_netns_prove_home(file), -EINVAL);
    need_other_user();
    CHECK_EQ(in_child(home_without_the_right, &here, NULL, 0), 0);
    close(file);
    close(here);
}

/* ---- moving ---- */

static void move_there_and_stay(void *argument)
{
    int pod = *(const int *)argument;

    CHECK_EQ(pz_netns_move(-1), -EBADF);
    CHECK(netns_here() != netns_of(pod));
    CHECK_EQ(pz_netns_move(pod), 0);
    CHECK_EQ(netns_here(), netns_of(pod));
}

static void move_without_the_right(void *argument)
{
    become_nobody();
    CHECK_EQ(pz_netns_move(*(const int *)argument), -EPERM);
}

static void a_thread_that_moves_stays(void)
{
    uint64_t before = netns_here();
    int file = open_null();

    need_namespaces();
    int pod = new_pod();
    CHECK_EQ(pz_netns_move(file), -EINVAL);
    in_worker(move_there_and_stay, &pod);
    CHECK_EQ(netns_here(), before);
    close(file);
    need_other_user();
    CHECK_EQ(in_child(move_without_the_right, &pod, NULL, 0), 0);
    close(pod);
}

/* ---- each syscall fails once ---- */

static int call_home(void)
{
    int fd = pz_netns_home();

    if (fd >= 0)
        close(fd);
    return fd < 0 ? fd : 0;
}

static int call_device(void)
{
    uint64_t dev;

    return pz_nsfs_device(&dev);
}

static uint64_t known_device;
static int known_netns;

static int call_inspect(void)
{
    struct pz_netns_info info;

    return pz_netns_inspect(known_netns, known_device, &info);
}

static int call_owner(void)
{
    uint32_t uid;

    return pz_netns_owner(known_netns, &uid);
}

/* EXPECTED 0: an older kernel lacks it, and the function does without. */
static const struct {
    int (*function)(void);
    enum call call;
    int nth, error, expected;
} SMALL_FAULTS[] = {
    {call_home, CALL_OPEN, 1, ENOENT, -ENOENT},
    {call_home, CALL_OPEN, 1, EINTR, 0},
    {call_device, CALL_OPEN, 1, EMFILE, -EMFILE},
    {call_device, CALL_FSTATFS, 1, EIO, -EIO},
#if __GLIBC_PREREQ(2, 33) /* before, fstat() was __fxstat() */
    {call_device, CALL_FSTAT, 1, EOVERFLOW, -EOVERFLOW},
#endif
    {call_inspect, CALL_STATX, 1, ENOSYS, -ENOSYS},
    {call_inspect, CALL_IOCTL, 1, ENOTTY, -ENOTTY},
    {call_inspect, CALL_IOCTL, 2, ENOTTY, 0},
    {call_owner, CALL_IOCTL, 1, EPERM, -EPERM},
    {call_owner, CALL_IOCTL, 2, ENOTTY, -ENOTTY},
};

static void each_fault_of_asking(void)
{
    need_namespaces();
    known_device = nsfs();
    known_netns = new_pod();
    for (size_t i = 0; i < COUNT(SMALL_FAULTS); i++) {
        in_row("row %zu", i);
        CHECK_EQ(SMALL_FAULTS[i].function(), 0);
        inject(SMALL_FAULTS[i].call, SMALL_FAULTS[i].nth, SMALL_FAULTS[i].error);
        CHECK_EQ(SMALL_FAULTS[i].function(), SMALL_FAULTS[i].expected);
        CHECK(calls_of(SMALL_FAULTS[i].call) >= SMALL_FAULTS[i].nth);
        inject_nothing();
    }
    close(known_netns);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(the_device_of_nsfs),
        TEST(only_a_netns_is_a_netns),
        TEST(a_stranger_is_asked_no_ioctl),
        TEST(the_identity_of_a_netns),
        TEST(the_cookie_of_fd_and_socket_agree),
        TEST(a_cookie_that_cannot_be_had),
        TEST(the_owner),
        TEST(home_is_where_one_is_found),
        TEST(home_cannot_be_proven),
        TEST(a_thread_that_moves_stays),
        TEST(each_fault_of_asking),
    };

    return run_tests("netns.c", tests, COUNT(tests));
}
