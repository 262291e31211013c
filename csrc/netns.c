/*
 * netns.c: which netns is this: of a thread, of an fd, of a socket.
 *
 * Theory of operation
 *
 * An fd from a stranger may be a device whose ioctl() does something, or a file of a FUSE server
 * that never answers fstat() or fstatfs(). statx() with AT_STATX_DONT_SYNC answers from the inode
 * in memory. nsfs has one superblock, so its device number proves the type, and only then is the
 * ioctl asked for the kind. A socket is recognised by its mode, likewise.
 *
 * A netns is known by three names: the inode, unique among the living; the cookie, never reused in
 * one boot, which newer kernels tell of the fd and older ones only of a socket; and whoever holds
 * it open.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

/* linux/nsfs.h of older systems lacks some of these; the numbers are kernel ABI. */
enum {
    GET_USERNS = 0xb701,       /* NS_GET_USERNS, Linux 4.9 */
    GET_NSTYPE = 0xb703,       /* NS_GET_NSTYPE, Linux 4.11 */
    GET_OWNER_UID = 0xb704,    /* NS_GET_OWNER_UID, Linux 4.11 */
    NETNS_COOKIE = 71,         /* SO_NETNS_COOKIE, Linux 5.14 */
    GET_SOCKET_NETNS = 0x894c, /* SIOCGSKNS, Linux 4.10 */
    PIDFD_GETFD = 438          /* the syscall, Linux 5.6 */
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

int pz_netns_id(int fd, uint64_t *id)
{
    return ioctl(fd, GET_ID, id) == -1 ? -errno : 0;
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
    if (pz_netns_id(fd, &info->id) < 0)
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

int pz_netns_move(int netns_fd)
{
    return setns(netns_fd, CLONE_NEWNET) == -1 ? -errno : 0;
}

int pz_socket_cookie(int sock, uint64_t *cookie)
{
    socklen_t size = sizeof *cookie;

    return getsockopt(sock, SOL_SOCKET, NETNS_COOKIE, cookie, &size) == -1 ? -errno : 0;
}

int pz_socket_netns(int sock)
{
    struct statx file;

    if (statx(sock, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &file) == -1)
        return -errno;
    if (!S_ISSOCK(file.stx_mode))
        return -ENOTSOCK;
    int fd = ioctl(sock, GET_SOCKET_NETNS);
    return fd == -1 ? -errno : fd;
}

int pz_pidfd_getfd(int pidfd, int fd)
{
    long copy = syscall(PIDFD_GETFD, pidfd, fd, 0);

    return copy == -1 ? -errno : (int)copy;
}
