/*
 * faults_netns.c: see faults.h. After a failed call the pod has no socket of ours: the port is free
 * and out_fds holds -1s.
 */
#include "faults.h"

#include "harness.h"
#include "inject.h"
#include "internal.h"
#include "support.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { PORT = 15008, LISTENERS = 3 };

static int pod = -1, home = -1;
static int fds[LISTENERS];

static void open_pod(void)
{
    pod = new_pod();
    home = pz_netns_home();
    CHECK(home >= 0);
}

static void close_pod(void)
{
    close(home);
    close(pod);
}

/* ---- listen ---- */

static void open_pod_for_listeners(void)
{
    open_pod();
    for (int i = 0; i < LISTENERS; i++)
        fds[i] = 4711;
}

static int listen_with(int kept, struct pz_failure *failure)
{
    enum { ALL = PZ_REUSEADDR | PZ_REUSEPORT | PZ_FREEBIND | PZ_NONBLOCK };
    struct pz_listener wanted[LISTENERS] = {on_loopback(PORT), on_loopback6(PORT + 1),
                                            on_loopback(PORT + 2)};

    wanted[0].flags = ALL;
    wanted[0].mark = 7;
    wanted[1].flags = ALL | PZ_V6ONLY | PZ_TRANSPARENT;
    wanted[2].flags = PZ_DGRAM;
    return pz_listen(pod, kept, wanted, LISTENERS, fds, failure);
}

static int listen_from_here(struct pz_failure *failure)
{
    return listen_with(-1, failure);
}

static int listen_with_kept_home(struct pz_failure *failure)
{
    return listen_with(home, failure);
}

static void expect_listeners_or_none(int result)
{
    if (result < 0) {
        for (int i = 0; i < LISTENERS; i++)
            CHECK_EQ(fds[i], -1);
        CHECK_EQ(listen_from_here(NULL), 0);
    }
    for (int i = 0; i < LISTENERS; i++)
        CHECK_EQ(netns_of_socket(fds[i]), netns_of(pod));
    pz_close_all(fds, LISTENERS);
    close_pod();
}

/* ---- one socket, the cookie ---- */

static int make_socket(struct pz_failure *failure)
{
    return pz_socket(pod, -1, AF_NETLINK, SOCK_RAW, 0, failure);
}

static void expect_socket_or_none(int result)
{
    if (result >= 0) {
        CHECK_EQ(netns_of_socket(result), netns_of(pod));
        close(result);
    }
    close_pod();
}

static uint64_t cookie;

static int ask_cookie(struct pz_failure *failure)
{
    return pz_netns_cookie(pod, -1, &cookie, failure);
}

static void open_pod_of_old_kernel(void)
{
    open_pod();
    cookie = 0;
    inject(CALL_IOCTL, 1, ENOTTY);
}

static void expect_cookie(int result)
{
    uint64_t again = 0;

    CHECK_EQ(pz_netns_cookie(pod, -1, &again, NULL), 0);
    if (result >= 0)
        CHECK_EQ(cookie, again);
    close_pod();
}

/* ---- identity ---- */

static int sock = -1;
static uint64_t device;
static struct pz_netns_info info;

static void open_pod_and_socket(void)
{
    open_pod();
    CHECK_EQ(pz_nsfs_device(&device), 0);
    sock = pz_socket(pod, -1, AF_UNIX, SOCK_DGRAM, 0, NULL);
    CHECK(sock >= 0);
}

static void close_result(int result)
{
    if (result > 2) {
        CHECK(is_cloexec(result));
        close(result);
    }
    close(sock);
    close_pod();
}

static void close_all_and_forget(int result)
{
    (void)result;
    close(sock);
    close_pod();
}

static int open_home(struct pz_failure *failure)
{
    (void)failure;
    return pz_netns_home();
}

static int ask_device(struct pz_failure *failure)
{
    uint64_t dev;

    (void)failure;
    return pz_nsfs_device(&dev);
}

static int inspect_pod(struct pz_failure *failure)
{
    (void)failure;
    int rc = pz_netns_inspect(pod, device, &info);
    if (rc == 0)
        CHECK_EQ(info.ino, netns_of(pod));
    return rc;
}

static int ask_owner(struct pz_failure *failure)
{
    uint32_t uid;

    (void)failure;
    return pz_netns_owner(pod, &uid);
}

static int prove_home(struct pz_failure *failure)
{
    (void)failure;
    return pz_netns_prove_home(home);
}

static int move_home(struct pz_failure *failure)
{
    (void)failure;
    return pz_netns_move(home);
}

static int open_netns_of_socket(struct pz_failure *failure)
{
    (void)failure;
    return pz_socket_netns(sock);
}

static int pidfd = -1;

static void open_pod_and_pidfd(void)
{
    open_pod_and_socket();
    pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(pidfd >= 0);
}

static int copy_socket(struct pz_failure *failure)
{
    (void)failure;
    return pz_pidfd_getfd(pidfd, sock);
}

static void close_copy(int result)
{
    close(pidfd);
    close_result(result);
}

static int ask_listening(struct pz_failure *failure)
{
    (void)failure;
    return pz_is_listening(sock);
}

/* ---- create and pin ---- */

static void open_nothing(void)
{
}

static int create(struct pz_failure *failure)
{
    return pz_netns_create(failure);
}

static void close_created(int result)
{
    if (result >= 0) {
        CHECK(is_cloexec(result));
        close(result);
    }
}

static char dir[96], name[112];

static void open_pod_to_pin(void)
{
    open_pod();
    snprintf(dir, sizeof dir, "%s/netns", test_dir());
    snprintf(name, sizeof name, "%s/pod", dir);
}

static int pin(struct pz_failure *failure)
{
    return pz_netns_pin(pod, dir, name, failure);
}

static void unpin_and_remove(void)
{
    umount2(name, MNT_DETACH);
    unlink(name);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
    close_pod();
}

static bool exists(const char *path)
{
    struct stat file;

    return lstat(path, &file) == 0;
}

/* A name is pinned or not there. */
static void expect_pinned_or_absent(int result)
{
    CHECK_EQ(exists(name), result >= 0);
    unpin_and_remove();
}

/* The last mount of four fails, so that the name is taken back. */
static void open_pod_that_cannot_be_pinned(void)
{
    open_pod_to_pin();
    inject(CALL_MOUNT, 4, EPERM);
}

/* The compiler may make a copy of what follows for a directory that could not be locked. */
static void open_pod_to_pin_without_the_lock(void)
{
    open_pod_to_pin();
    inject(CALL_OPEN, 1, EMFILE);
}

static void forget_pin(int result)
{
    (void)result;
    unpin_and_remove();
}

static void open_pinned_pod(void)
{
    open_pod_to_pin();
    CHECK_EQ(pz_netns_pin(pod, dir, name, NULL), 0);
}

static int unpin(struct pz_failure *failure)
{
    (void)failure;
    return pz_netns_unpin(name);
}

struct scenarios netns_scenarios(void)
{
#define IDENTITY .set_up = open_pod_and_socket, .tear_down = close_result
#define ANSWER   .set_up = open_pod_and_socket, .tear_down = close_all_and_forget
#define LISTEN   .set_up = open_pod_for_listeners, .tear_down = expect_listeners_or_none
    static const struct scenario all[] = {
        {.name = "listen, main thread", LISTEN, .run = listen_from_here, .opens = true},
        {.name = "listen, worker",
         LISTEN,
         .run = listen_from_here,
         .in_worker = true,
         .opens = true},
        {.name = "listen, home kept",
         LISTEN,
         .run = listen_with_kept_home,
         .in_worker = true,
         .opens = true},
        {.name = "socket, main thread",
         .set_up = open_pod,
         .run = make_socket,
         .tear_down = expect_socket_or_none,
         .opens = true},
        {.name = "socket, worker",
         .set_up = open_pod,
         .run = make_socket,
         .tear_down = expect_socket_or_none,
         .in_worker = true,
         .opens = true},
        {.name = "cookie", .set_up = open_pod, .run = ask_cookie, .tear_down = expect_cookie},
        {.name = "cookie, old kernel",
         .set_up = open_pod_of_old_kernel,
         .run = ask_cookie,
         .tear_down = expect_cookie,
         .opens = true},
        {.name = "cookie, old kernel, worker",
         .set_up = open_pod_of_old_kernel,
         .run = ask_cookie,
         .tear_down = expect_cookie,
         .in_worker = true,
         .opens = true},
        {.name = "home", IDENTITY, .run = open_home, .opens = true},
        {.name = "device", ANSWER, .run = ask_device, .opens = true},
        {.name = "inspect", ANSWER, .run = inspect_pod},
        {.name = "owner", ANSWER, .run = ask_owner, .opens = true},
        {.name = "prove home", ANSWER, .run = prove_home, .in_worker = true},
        {.name = "move", ANSWER, .run = move_home, .in_worker = true},
        {.name = "netns of a socket", IDENTITY, .run = open_netns_of_socket, .opens = true},
        {.name = "copy of a descriptor",
         .set_up = open_pod_and_pidfd,
         .run = copy_socket,
         .tear_down = close_copy,
         .opens = true},
        {.name = "is it listening", ANSWER, .run = ask_listening},
        {.name = "create",
         .set_up = open_nothing,
         .run = create,
         .tear_down = close_created,
         .opens = true},
        {.name = "pin",
         .set_up = open_pod_to_pin,
         .run = pin,
         .tear_down = expect_pinned_or_absent,
         .opens = true},
        {.name = "pin without the lock",
         .set_up = open_pod_to_pin_without_the_lock,
         .run = pin,
         .tear_down = expect_pinned_or_absent,
         .opens = true},
        {.name = "pin that fails",
         .set_up = open_pod_that_cannot_be_pinned,
         .run = pin,
         .tear_down = forget_pin,
         .expected = -EPERM},
        {.name = "unpin", .set_up = open_pinned_pod, .run = unpin, .tear_down = forget_pin},
    };

    return (struct scenarios){all, COUNT(all)};
}
