/*
 * test_netns_create.c: a fresh netns, and a name for it.
 *
 * Theory of operation: whatever mounts runs in a mount namespace of its own, in a directory of the
 * test, so that nothing of it is seen outside and nothing remains. What the pod looks like inside
 * is asked by a thread that visits it.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { MANY = 20, PATH = 96 };

/* ---- create ---- */

static void verify_loopback(void *unused)
{
    struct ifreq request = {.ifr_name = "lo"};
    struct if_nameindex *names = if_nameindex();
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    (void)unused;
    CHECK_EQ(ioctl(sock, SIOCGIFFLAGS, &request), 0);
    CHECK(request.ifr_flags & IFF_UP);
    CHECK(names != NULL && strcmp(names[0].if_name, "lo") == 0);
    if_freenameindex(names);
    close(sock);
}

static void create_one(void *unused)
{
    uint64_t before = netns_here(), main_before = netns_of_main();
    int pod = new_pod();

    (void)unused;
    CHECK(is_cloexec(pod));
    CHECK(netns_of(pod) != before);
    CHECK_EQ(netns_here(), before);
    CHECK_EQ(netns_of_main(), main_before);
    visit(pod, verify_loopback, NULL);
    close(pod);
}

static void a_fresh_netns_and_nobody_moved(void)
{
    need_namespaces();
    in_row("main");
    create_one(NULL);
    in_row("worker");
    in_worker(create_one, NULL);
}

static void each_is_another(void)
{
    struct pz_netns_info info[MANY];
    uint64_t nsfs;
    int pods[MANY];

    need_namespaces();
    CHECK_EQ(pz_nsfs_device(&nsfs), 0);
    for (int i = 0; i < MANY; i++) {
        pods[i] = new_pod();
        CHECK_EQ(pz_netns_inspect(pods[i], nsfs, &info[i]), 0);
        for (int j = 0; j < i; j++)
            CHECK(info[i].ino != info[j].ino);
    }
    pz_close_all(pods, MANY);
}

static void create_as_nobody(void *unused)
{
    struct pz_failure failure;

    (void)unused;
    become_nobody();
    CHECK_EQ(pz_netns_create(&failure), -EPERM);
    CHECK_EQ(failure.step, PZ_STEP_UNSHARE);
    CHECK_EQ(failure.index, -1);
}

static void nobody_may_not_create(void)
{
    need_other_user();
    CHECK_EQ(in_child(create_as_nobody, NULL, NULL, 0), 0);
}

static const struct {
    enum call call;
    int nth, error, step;
} CREATE_FAULTS[] = {
    {CALL_PTHREAD_CREATE, 1, EAGAIN, PZ_STEP_THREAD}, {CALL_UNSHARE, 1, ENOSPC, PZ_STEP_UNSHARE},
    {CALL_SOCKET, 1, EMFILE, PZ_STEP_SOCKET},         {CALL_IOCTL, 1, ENODEV, PZ_STEP_LOOPBACK},
    {CALL_IOCTL, 2, EPERM, PZ_STEP_LOOPBACK},         {CALL_OPEN, 1, ENOENT, PZ_STEP_OPEN_HOME},
};

static void each_fault_of_creating(void)
{
    need_namespaces();
    for (size_t i = 0; i < COUNT(CREATE_FAULTS); i++) {
        struct pz_failure failure = {-1, -2};
        in_row("row %zu", i);
        inject(CREATE_FAULTS[i].call, CREATE_FAULTS[i].nth, CREATE_FAULTS[i].error);
        CHECK_EQ(pz_netns_create(&failure), -CREATE_FAULTS[i].error);
        CHECK_EQ(failure.step, CREATE_FAULTS[i].step);
        CHECK_EQ(failure.index, -1);
        inject(CREATE_FAULTS[i].call, CREATE_FAULTS[i].nth, CREATE_FAULTS[i].error);
        CHECK_EQ(pz_netns_create(NULL), -CREATE_FAULTS[i].error);
        inject_nothing();
    }
}

/* ---- pin ---- */

struct names {
    char dir[PATH], one[PATH + 8], other[PATH + 8];
};

/* A mount namespace that gives nothing back, and names in it. */
static struct names private_mounts(void)
{
    struct names names;

    need_namespaces();
    CHECK_EQ(unshare(CLONE_NEWNS), 0);
    CHECK_EQ(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
    snprintf(names.dir, sizeof names.dir, "%s/netns", test_dir());
    snprintf(names.one, sizeof names.one, "%s/one", names.dir);
    snprintf(names.other, sizeof names.other, "%s/other", names.dir);
    return names;
}

static bool names_netns(const char *path, int pod)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0 && is_same_file(fd, pod);

    if (fd >= 0)
        close(fd);
    return same;
}

static bool is_mounted_shared(const char *dir)
{
    char line[1024], point[PATH + 2];
    bool shared = false;
    FILE *table = fopen("/proc/thread-self/mountinfo", "re");

    CHECK(table != NULL);
    snprintf(point, sizeof point, " %s ", dir);
    while (fgets(line, sizeof line, table) != NULL)
        if (strstr(line, point) != NULL && strstr(line, " shared:") != NULL)
            shared = true;
    fclose(table);
    return shared;
}

static void a_name_and_its_end(void)
{
    struct names names = private_mounts();
    struct stat file;
    int pod = new_pod(), second = new_pod();

    CHECK_EQ(pz_netns_pin(pod, names.dir, names.one, NULL), 0);
    CHECK(is_mounted_shared(names.dir));
    CHECK_EQ(pz_netns_pin(second, names.dir, names.other, NULL), 0);
    CHECK(names_netns(names.one, pod));
    CHECK(names_netns(names.other, second));
    uint64_t inode = netns_of(pod);
    close(pod);
    pod = open(names.one, O_RDONLY | O_CLOEXEC);
    CHECK_EQ(netns_of(pod), inode); /* the name alone kept it alive */
    CHECK_EQ(pz_netns_unpin(names.one), 0);
    CHECK_EQ(stat(names.one, &file), 0);
    CHECK(S_ISREG(file.st_mode) && file.st_size == 0 && (file.st_mode & 0777) == 0);
    CHECK_EQ(pz_netns_unpin(names.one), -EINVAL);
    CHECK_EQ(pz_netns_unpin(names.other), 0);
    close(pod);
    close(second);
}

static void a_name_that_is_taken(void)
{
    struct names names = private_mounts();
    struct pz_failure failure;
    int pod = new_pod();

    CHECK_EQ(pz_netns_pin(pod, names.dir, names.one, NULL), 0);
    CHECK_EQ(pz_netns_pin(pod, names.dir, names.one, &failure), -EEXIST);
    CHECK_EQ(failure.step, PZ_STEP_CREATE);
    CHECK_EQ(symlink("nowhere", names.other), 0);
    CHECK_EQ(pz_netns_pin(pod, names.dir, names.other, &failure), -EEXIST);
    CHECK(names_netns(names.one, pod));
    close(pod);
}

static void unpin_follows_no_link(void)
{
    struct names names = private_mounts();
    int pod = new_pod();

    CHECK_EQ(pz_netns_pin(pod, names.dir, names.one, NULL), 0);
    CHECK_EQ(symlink(names.one, names.other), 0);
    CHECK_EQ(pz_netns_unpin(names.other), -EINVAL);
    CHECK(names_netns(names.one, pod));
    CHECK_EQ(pz_netns_unpin("/nowhere/at/all"), -ENOENT);
    close(pod);
}

static void pin_as_nobody(void *argument)
{
    const struct names *names = argument;
    struct pz_failure failure;

    become_nobody();
    CHECK_EQ(pz_netns_pin(STDIN_FILENO, names->dir, names->one, &failure), -EPERM);
    CHECK_EQ(failure.step, PZ_STEP_MOUNT);
    CHECK_EQ(pz_netns_pin(STDIN_FILENO, "/proc/none", names->one, &failure), -ENOENT);
    CHECK_EQ(failure.step, PZ_STEP_MKDIR);
    CHECK_EQ(pz_netns_unpin(names->dir), -EPERM);
}

static void nobody_may_not_name(void)
{
    struct names names = private_mounts();

    need_other_user();
    CHECK_EQ(chmod(test_dir(), 0777), 0);
    CHECK_EQ(in_child(pin_as_nobody, &names, NULL, 0), 0);
}

/* On a fresh directory: mount 1 shares it (EINVAL: no mount yet), 2 makes it one, 3 shares it, 4 is
 * the name. */
static const struct {
    enum call call;
    int nth, error, step;
} PIN_FAULTS[] = {
    {CALL_MKDIR, 1, EROFS, PZ_STEP_MKDIR},  {CALL_MOUNT, 1, EPERM, PZ_STEP_MOUNT},
    {CALL_MOUNT, 2, EPERM, PZ_STEP_MOUNT},  {CALL_MOUNT, 3, ENOMEM, PZ_STEP_MOUNT},
    {CALL_MOUNT, 4, ENOSPC, PZ_STEP_MOUNT}, {CALL_OPEN, 2, EROFS, PZ_STEP_CREATE},
};

static void each_fault_of_naming(void)
{
    struct names names = private_mounts();
    int pod = new_pod();

    for (size_t i = 0; i < COUNT(PIN_FAULTS); i++) {
        struct pz_failure failure = {-1, -2};
        in_row("row %zu", i);
        inject(PIN_FAULTS[i].call, PIN_FAULTS[i].nth, PIN_FAULTS[i].error);
        CHECK_EQ(pz_netns_pin(pod, names.dir, names.one, &failure), -PIN_FAULTS[i].error);
        CHECK_EQ(failure.step, PIN_FAULTS[i].step);
        CHECK_EQ(failure.index, -1);
        inject_nothing();
        CHECK_EQ(access(names.one, F_OK), -1); /* no empty file is left */
        umount2(names.dir, MNT_DETACH);
    }
    CHECK_EQ(pz_netns_pin(pod, names.dir, names.one, NULL), 0);
    inject(CALL_UMOUNT2, 1, EBUSY);
    CHECK_EQ(pz_netns_unpin(names.one), -EBUSY);
    inject_nothing();
    close(pod);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_fresh_netns_and_nobody_moved),
        TEST(each_is_another),
        TEST(nobody_may_not_create),
        TEST(each_fault_of_creating),
        TEST(a_name_and_its_end),
        TEST(a_name_that_is_taken),
        TEST(unpin_follows_no_link),
        TEST(nobody_may_not_name),
        TEST(each_fault_of_naming),
    };

    return run_tests("netns_create.c", tests, COUNT(tests));
}
