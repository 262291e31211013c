/*
 * netns.c: which netns is this, and sockets in another one.
 *
 * Theory of operation
 *
 * A socket belongs for life to the netns in which socket(2) ran; bind, listen and every option may
 * follow from anywhere. So the calling thread is away only between two setns(2) calls with nothing
 * but socket() between them, and everything that can fail in interesting ways happens at home.
 *
 * setns() moves one thread, not the process. Two kinds of caller are told apart:
 *  - any thread but the main one goes itself and comes back. If it cannot, the process aborts: a
 * thread lost in a pod must never run another line of Python. Since that would be a harsh answer to
 * a mere lack of privilege, the way home is proven before leaving (setns(home) needs CAP_SYS_ADMIN
 * over the owner of home; a process in a child user namespace can enter pods that it made and not
 * return).
 *  - the main thread stays, because /proc/PID/ns/net is its netns: while it is away, every observer
 * takes the whole process for a part of the pod. A helper thread goes and never returns: it ends
 * there.
 *
 * Recognising a netns: an fd from a stranger may be a device whose ioctl() does something, or a
 * file of a FUSE server that never answers fstat() or fstatfs(). statx() with AT_STATX_DONT_SYNC
 * answers from the inode in memory. nsfs has one superblock, so its device number proves the type,
 * and only then is the ioctl asked for the kind.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

/* linux/nsfs.h of older systems lacks some of these; the numbers are kernel ABI. */
enum {
    GET_USERNS = 0xb701,    /* NS_GET_USERNS, Linux 4.9 */
    GET_NSTYPE = 0xb703,    /* NS_GET_NSTYPE, Linux 4.11 */
    GET_OWNER_UID = 0xb704, /* NS_GET_OWNER_UID, Linux 4.11 */
    NETNS_COOKIE = 71       /* SO_NETNS_COOKIE, Linux 5.14 */
};
#define GET_ID _IOR(0xb7, 13, uint64_t) /* NS_GET_ID, Linux 6.18 */

int pz_netns_home(void)
{
    long fd = PZ_RETRY(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));

    return fd == -1 ? -errno : (int)fd;
}

int pz_nsfs_device(uint64_t *dev)
{
    struct statfs filesystem;
    struct stat file;
    PZ_SCOPED home = pz_netns_home();

    if (home < 0)
        return home;
    if (fstatfs(home, &filesystem) == -1 || fstat(home, &file) == -1)
        return -errno;
    if (filesystem.f_type != NSFS_MAGIC)
        return -EIO;
    *dev = file.st_dev;
    return 0;
}

int pz_netns_inspect(int fd, uint64_t nsfs_dev, struct pz_netns_info *info)
{
    struct statx file;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &file) == -1)
        return -errno;
    info->dev = makedev(file.stx_dev_major, file.stx_dev_minor);
    info->ino = file.stx_ino;
    info->id = 0;
    if (info->dev != nsfs_dev)
        return -EINVAL;
    int kind = ioctl(fd, GET_NSTYPE);
    if (kind == -1)
        return -errno;
    if (kind != CLONE_NEWNET)
        return -EINVAL;
    if (ioctl(fd, GET_ID, &info->id) == -1)
        info->id = 0;
    return 0;
}

int pz_netns_owner(int fd, uint32_t *uid)
{
    PZ_SCOPED owner = ioctl(fd, GET_USERNS);

    if (owner == -1 || ioctl(owner, GET_OWNER_UID, uid) == -1)
        return -errno;
    return 0;
}

int pz_netns_prove_home(int home_fd)
{
    return setns(home_fd, CLONE_NEWNET) == -1 ? -errno : 0;
}

int pz_socket_cookie(int sock, uint64_t *cookie)
{
    socklen_t size = sizeof *cookie;

    return getsockopt(sock, SOL_SOCKET, NETNS_COOKIE, cookie, &size) == -1 ? -errno : 0;
}

/* What an excursion is to bring back: N sockets made by socket(family, type). */
struct errand {
    int netns_fd;
    const struct pz_listener *wanted;
    size_t n;
    int *fds;
    struct pz_failure *failure;
    int result;
};

static int make_sockets(const struct errand *errand)
{
    for (size_t i = 0; i < errand->n; i++) {
        const struct pz_listener *one = &errand->wanted[i];
        int type = SOCK_STREAM | SOCK_CLOEXEC | (one->flags & PZ_NONBLOCK ? SOCK_NONBLOCK : 0);
        int fd = socket(one->family == 4 ? AF_INET : AF_INET6, type, 0);
        if (fd == -1) {
            int error = errno;
            pz_close_all(errand->fds, i);
            return pz_fail(errand->failure, PZ_STEP_SOCKET, (int)i, error);
        }
        errand->fds[i] = fd;
    }
    return 0;
}

/* One line and the end. No stdio stream: another thread may hold its lock. */
static _Noreturn void lost_in_pod(int error)
{
    char line[96];
    int length = snprintf(line, sizeof line,
                          "pyztun: cannot return to the home netns (errno %d); aborting\n", error);

    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) == -1)
        abort();
    abort();
}

/* Runs in the calling thread, whose home is proven. */
static int go_and_return(const struct errand *errand, int home_fd)
{
    if (setns(errand->netns_fd, CLONE_NEWNET) == -1)
        return pz_fail(errand->failure, PZ_STEP_SETNS, -1, errno);
    int rc = make_sockets(errand);
    if (setns(home_fd, CLONE_NEWNET) == -1)
        lost_in_pod(errno);
    return rc;
}

/* Runs in a helper thread, which ends in the pod. */
static void *go_and_stay(void *argument)
{
    struct errand *errand = argument;

    if (setns(errand->netns_fd, CLONE_NEWNET) == -1)
        errand->result = pz_fail(errand->failure, PZ_STEP_SETNS, -1, errno);
    else
        errand->result = make_sockets(errand);
    return NULL;
}

static bool on_main_thread(void)
{
    return syscall(SYS_gettid) == getpid();
}

/* Fetches sockets from the pod by whichever way suits the calling thread. */
static int run_errand(struct errand *errand, int home_fd)
{
    PZ_SCOPED opened = -1;

    if (home_fd < 0 && on_main_thread()) {
        int rc = pz_in_helper_thread(go_and_stay, errand);
        return rc < 0 ? pz_fail(errand->failure, PZ_STEP_THREAD, -1, -rc) : errand->result;
    }
    if (home_fd < 0) {
        opened = home_fd = pz_netns_home();
        if (home_fd < 0)
            return pz_fail(errand->failure, PZ_STEP_OPEN_HOME, -1, -home_fd);
        int rc = pz_netns_prove_home(home_fd);
        if (rc < 0)
            return pz_fail(errand->failure, PZ_STEP_PROVE_HOME, -1, -rc);
    }
    return go_and_return(errand, home_fd);
}

int pz_listen(int netns_fd, int home_fd, const struct pz_listener *wanted, size_t n, int *out_fds,
              struct pz_failure *failure)
{
    if (n == 0 || n > PZ_MAX_LISTENERS)
        return pz_fail(failure, PZ_STEP_ARGUMENT, -1, EINVAL);
    for (size_t i = 0; i < n; i++)
        if (wanted[i].family != 4 && wanted[i].family != 6)
            return pz_fail(failure, PZ_STEP_ARGUMENT, (int)i, EAFNOSUPPORT);
    struct errand errand = {netns_fd, wanted, n, out_fds, failure, 0};
    int rc = run_errand(&errand, home_fd);
    if (rc == 0) {
        for (size_t i = 0; i < n && rc == 0; i++)
            rc = pz_make_listening(out_fds[i], &wanted[i], (int)i, failure);
        if (rc < 0)
            pz_close_all(out_fds, n);
    }
    for (size_t i = 0; i < n && rc < 0; i++)
        out_fds[i] = -1;
    return rc;
}

int pz_netns_cookie(int netns_fd, int home_fd, uint64_t *cookie, struct pz_failure *failure)
{
    if (ioctl(netns_fd, GET_ID, cookie) == 0)
        return 0;
    static const struct pz_listener any_socket = {.family = 4};
    int fd = -1;
    struct errand errand = {netns_fd, &any_socket, 1, &fd, failure, 0};
    int rc = run_errand(&errand, home_fd);
    if (rc < 0)
        return rc;
    rc = pz_socket_cookie(fd, cookie);
    close(fd);
    return rc < 0 ? pz_fail(failure, PZ_STEP_COOKIE, -1, -rc) : 0;
}
