/*
 * netns_create.c: a fresh netns, and a name for it.
 *
 * Theory of operation: unshare(CLONE_NEWNET) moves the thread that calls it. A helper thread does
 * it, sets loopback up, opens its own netns and ends; the fd alone keeps the netns alive. A name is
 * what `ip netns add` makes of it: an empty file with the nsfs inode mounted over it, in a
 * directory that is a shared mount of its own, so that the mount and its removal reach every mount
 * namespace.
 */
#include "internal.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

struct birth {
    struct pz_failure *failure;
    int result; /* the fd, or -errno */
};

static int loopback_up(struct pz_failure *failure)
{
    struct ifreq request = {.ifr_name = "lo"};
    PZ_SCOPED sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (sock == -1)
        return pz_fail(failure, PZ_STEP_SOCKET, -1, errno);
    if (ioctl(sock, SIOCGIFFLAGS, &request) == -1)
        return pz_fail(failure, PZ_STEP_LOOPBACK, -1, errno);
    request.ifr_flags |= IFF_UP;
    if (ioctl(sock, SIOCSIFFLAGS, &request) == -1)
        return pz_fail(failure, PZ_STEP_LOOPBACK, -1, errno);
    return 0;
}

static void *be_born(void *argument)
{
    struct birth *birth = argument;

    if (unshare(CLONE_NEWNET) == -1) {
        birth->result = pz_fail(birth->failure, PZ_STEP_UNSHARE, -1, errno);
        return NULL;
    }
    birth->result = loopback_up(birth->failure);
    if (birth->result < 0)
        return NULL;
    birth->result = pz_netns_home();
    if (birth->result < 0)
        pz_fail(birth->failure, PZ_STEP_OPEN_HOME, -1, -birth->result);
    return NULL;
}

int pz_netns_create(struct pz_failure *failure)
{
    struct birth birth = {failure, 0};
    int rc = pz_in_helper_thread(be_born, &birth);

    return rc < 0 ? pz_fail(failure, PZ_STEP_THREAD, -1, -rc) : birth.result;
}

/*
 * Two processes that find no mount on DIR would each make one, one on top of the other. This lock,
 * which `ip netns add` takes too, lets them do it in turn. Everybody may read the directory, so a
 * stranger may hold the lock for ever: after some tries we go on without it. Returns the fd that
 * holds it, or -1.
 */
static int lock_directory(const char *dir)
{
    enum { TRIES = 1000 };
    long lock = PZ_RETRY(open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC));

    for (int i = 0; lock != -1 && i < TRIES; i++) {
        if (flock((int)lock, LOCK_EX | LOCK_NB) == 0)
            break;
        sched_yield();
    }
    return (int)lock;
}

static int share_directory(const char *dir)
{
    PZ_SCOPED lock = lock_directory(dir);

    if (mount("", dir, "none", MS_SHARED | MS_REC, NULL) == 0)
        return 0;
    /* EINVAL: not a mount point yet. */
    if (errno != EINVAL || mount(dir, dir, "none", MS_BIND | MS_REC, NULL) == -1)
        return -errno;
    return mount("", dir, "none", MS_SHARED | MS_REC, NULL) == -1 ? -errno : 0;
}

int pz_netns_pin(int netns_fd, const char *dir, const char *path, struct pz_failure *failure)
{
    char source[32];

    if (mkdir(dir, 0755) == -1 && errno != EEXIST)
        return pz_fail(failure, PZ_STEP_MKDIR, -1, errno);
    int rc = share_directory(dir);
    if (rc < 0)
        return pz_fail(failure, PZ_STEP_MOUNT, -1, -rc);
    long file = PZ_RETRY(open(path, O_RDONLY | O_CLOEXEC | O_CREAT | O_EXCL, 0));
    if (file == -1)
        return pz_fail(failure, PZ_STEP_CREATE, -1, errno);
    close((int)file);
    snprintf(source, sizeof source, "/proc/self/fd/%d", netns_fd);
    if (mount(source, path, "none", MS_BIND, NULL) == -1) {
        int error = errno;
        unlink(path);
        return pz_fail(failure, PZ_STEP_MOUNT, -1, error);
    }
    return 0;
}

int pz_netns_unpin(const char *path)
{
    return umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == -1 ? -errno : 0;
}
