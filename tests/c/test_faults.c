/*
 * test_faults.c: each libc call of the core fails once, and nothing is lost by it.
 *
 * Theory of operation: the scenarios are in faults_*.c, the engine in sweep.c. The rules say what a
 * failure comes to where that is not simply the caller's error. What no scenario made fail is
 * looked for at the end, in a list that is taken from the compiled core: a new syscall without a
 * scenario is named there.
 */
#include "faults.h"

#include "harness.h"
#include "relay_site.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>

static const struct rule RULES[] = {
    {NULL, NULL, "close", 0, SERVES, 0, NULL, "Linux has released the number, whatever it says"},
    {NULL, NULL, "open", EINTR, SERVES, 0, NULL, "asked again"},
    {NULL, NULL, "sendmsg", EINTR, SERVES, 0, NULL, "asked again"},
    {NULL, NULL, "sendmsg", EAGAIN, SERVES, 0, NULL, "waits for room"},
    {NULL, NULL, "recvmsg", EINTR, SERVES, 0, NULL, "asked again"},
    {NULL, NULL, "recvmsg", EAGAIN, SERVES, 0, NULL, "waits for a message"},
    {NULL, "visit", "syscall", 0, SERVES, 0, NULL, "gettid() cannot fail; what if it did"},
    {"send without room", NULL, "sendmsg", 0, EITHER, 0, NULL, "it is asked twice or more"},
    {NULL, "fdpass", "connect", EAGAIN, BECOMES, ETIMEDOUT, NULL, "the backlog stayed full"},
    {"new receiver", "closer", "pthread_create", 0, FAILS, 0, NULL, "no closer, no receiver"},
    {"cookie", "netns", "ioctl", 0, SERVES, 0, NULL, "a socket in the netns tells it too"},
    {"cookie, old kernel", "netns", "ioctl", 0, SERVES, 0, NULL, "it has failed anyway"},
    {"cookie, old kernel, worker", "netns", "ioctl", 0, SERVES, 0, NULL, "it has failed anyway"},
    {"inspect", "netns", "ioctl", 0, EITHER, 0, NULL, "the kind must be told, the cookie may"},
    {"pin", "netns_create", "mkdir", EEXIST, BECOMES, ENOENT, NULL, "the mount fails, then"},
    {NULL, "netns_create", "flock", 0, SERVES, 0, NULL, "tried again, and done without it"},
    {"pin", "netns_create", "open", 0, EITHER, 0, NULL, "the lock is done without, the name not"},
    {"pin without the lock", "netns_create", "open", 0, EITHER, 0, NULL, "likewise"},
    {"pin without the lock", "netns_create", "mkdir", EEXIST, BECOMES, ENOENT, NULL, "likewise"},
    {"pin that fails", "netns_create", "open", 0, EITHER, 0, NULL, "likewise"},
    {"pin that fails", "netns_create", "unlink", 0, SERVES, 0, NULL, "the first error is told"},
    {"pin that fails", "netns_create", "mkdir", EEXIST, BECOMES, ENOENT, NULL, "likewise"},
    {"take", "handoff", NULL, 0, SERVES, 0, NULL, "a peer that has gone is no error"},
    {"take, old kernel", "handoff", NULL, 0, SERVES, 0, NULL, "a peer that has gone is no error"},
    {"take, old kernel", "netns", "getsockopt", 0, SERVES, 0, NULL, "the inode is the number"},
    {NULL, "zds", "poll", 0, SERVES, 0, NULL, "asked again until the time is up"},
    {NULL, "zds", "send", 0, SERVES, 0, NULL, "listeners that the agent does not know of are told"},
    {"ZDS Add", "netns", "ioctl", 0, EITHER, 0, NULL, "the kind must be told, the cookie may"},
    {"ZDS take, old kernel", "netns", "getsockopt", 0, SERVES, 0, NULL, "the inode is the number"},
    {"relay new", NULL, "epoll_wait", 0, SERVES, 0, NULL, "a thread goes on"},
    {"relay new", NULL, "read", 0, SERVES, 0, NULL, "a thread goes on"},
    {"relay new", NULL, NULL, 0, FAILS, 0, NULL, "all else is needed"},
    {"relay take", "relay", "epoll_ctl", 0, FAILS, 0, NULL, "a door that nobody would see"},
    {NULL, "relay", "calloc", 0, FAILS, 0, NULL, "no pod"},
    {NULL, "relay_journal", "malloc", 0, FAILS, 0, NULL, "no label"},
    {NULL, "relay", "write", 0, SKIPPED, 0, NULL, "an eventfd of ours is never full"},
    {NULL, "relay_journal", "write", 0, SKIPPED, 0, NULL, "an eventfd of ours is never full"},
    {NULL, "relay_pump", NULL, EAGAIN, SKIPPED, 0, NULL, "the kernel makes an edge behind it"},
    {"relay drop", "relay_door", "epoll_ctl", 0, SKIPPED, 0, NULL, "what was added can be deleted"},
    {"relay finish", "relay_door", "epoll_ctl", 0, SKIPPED, 0, NULL, "likewise"},
    {"relay in", "relay_door", "accept4", 0, SKIPPED, 0, NULL, "tried in: relay out"},
    {"relay loop", "relay_door", "accept4", 0, SKIPPED, 0, NULL, "tried in: relay out"},
    {"relay nobody", "relay_door", "accept4", 0, SKIPPED, 0, NULL, "tried in: relay out"},
    {"relay for one", "relay_door", "epoll_ctl", ENOSPC, SERVES, 0, NULL, "tried again"},
    {"relay for one", NULL, NULL, 0, SKIPPED, 0, NULL, "tried in: relay out; or slow and alike"},
    {NULL, "relay_flow", "setsockopt", 0, EITHER, EPROTO, NULL, "SO_LINGER cannot: FIN, not RST"},
    {NULL, "relay", NULL, 0, SERVES, 0, NULL, "told by an event"},
    {NULL, "relay_door", NULL, 0, SERVES, 0, NULL, "told by an event"},
    {NULL, "relay_flow", NULL, 0, SERVES, 0, NULL, "told by an event"},
    {NULL, "relay_journal", NULL, 0, SERVES, 0, NULL, "told by an event"},
    {NULL, "relay_pump", NULL, 0, SERVES, 0, NULL, "told by an event"},
    {0},
};

static const struct exempt EXEMPT[] = {
    {"visit", "write", "the last words before abort(): test_visit closes stderr for it"},
    {"visit", "syscall", "gettid() cannot fail"},
    {"relay", "write", "to an eventfd, which is never full"},
    {"relay_door", "epoll_ctl", "the one that deletes cannot fail: the others do in relay for one"},
    {"relay_journal", "write", "to an eventfd, which is never full"},
    {NULL, "abort", "does not return"},
    {NULL, "clock_gettime", "cannot fail with a clock that exists and an address of ours"},
    {NULL, "close", "failing changes nothing, and the compiler makes many of one"},
    {NULL, "free", "no syscall that could fail"},
    {NULL, "geteuid", "cannot fail"},
    {NULL, "getpid", "cannot fail"},
    {NULL, "gmtime_r", "no syscall: a year beyond int cannot be"},
    {NULL, "inet_ntop", "no syscall: a family that there is, into an array that has room"},
    {NULL, "memcmp", "no syscall"},
    {NULL, "memcpy", "no syscall"},
    {NULL, "memmove", "no syscall"},
    {NULL, "sched_yield", "cannot fail"},
    {NULL, "memset", "no syscall"},
    {NULL, "snprintf", "no syscall: into an array"},
    {NULL, "strerror_r", "no syscall: the one of GNU always has a text"},
    {NULL, "strftime", "no syscall: into an array that has room"},
    {NULL, "strlen", "no syscall"},
    {NULL, "sigfillset", "no syscall"},
    {NULL, "pthread_cond_broadcast", "always 0 in glibc"},
    {NULL, "pthread_cond_destroy", "always 0 in glibc"},
    {NULL, "pthread_cond_init", "always 0 in glibc"},
    {NULL, "pthread_cond_signal", "always 0 in glibc"},
    {NULL, "pthread_cond_timedwait", "ETIMEDOUT alone, which ends the wait"},
    {NULL, "pthread_cond_wait", "fails for a mutex that is not held, our own mistake"},
    {NULL, "pthread_condattr_destroy", "always 0 in glibc"},
    {NULL, "pthread_condattr_init", "always 0 in glibc"},
    {NULL, "pthread_condattr_setclock", "fails for a clock that does not exist"},
    {NULL, "pthread_detach", "fails for a thread that is none, our own mistake"},
    {NULL, "pthread_join", "fails for a thread that is none, our own mistake"},
    {NULL, "pthread_mutex_destroy", "fails for a mutex that is held, our own mistake"},
    {NULL, "pthread_mutex_init", "always 0 in glibc"},
    {NULL, "pthread_mutex_lock", "fails for a kind of mutex that we have not"},
    {NULL, "pthread_mutex_unlock", "fails for a kind of mutex that we have not"},
    {NULL, "pthread_sigmask", "fails for a how that does not exist"},
};

static void own_mounts(void)
{
    need_namespaces();
    CHECK_EQ(unshare(CLONE_NEWNS), 0);
    CHECK_EQ(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
}

static void sweep_all(struct scenarios scenarios)
{
    for (size_t i = 0; i < scenarios.n; i++)
        sweep(&scenarios.all[i], RULES);
}

static void sweep_tables(struct scenarios scenarios)
{
    for (size_t i = 0; i < scenarios.n; i++)
        if (scenarios.all[i].opens)
            sweep_fd_table(&scenarios.all[i]);
}

static void each_call_of_messages(void)
{
    sweep_all(message_scenarios());
}

static void each_call_of_netns(void)
{
    own_mounts();
    sweep_all(netns_scenarios());
}

static void each_call_of_services(void)
{
    need_namespaces();
    sweep_all(service_scenarios());
}

static void each_call_of_zds(void)
{
    need_namespaces();
    sweep_all(zds_scenarios());
}

static void each_call_of_relay(void)
{
    prepare_relay_faults();
    sweep_all(relay_scenarios());
    end_relay_faults();
}

static void a_full_fd_table(void)
{
    own_mounts();
    sweep_tables(message_scenarios());
    sweep_tables(netns_scenarios());
    sweep_tables(service_scenarios());
    sweep_tables(zds_scenarios());
}

/* The last one: it looks at what the others did. */
static void nothing_is_left_out(void)
{
    if (getenv("PYZTUN_CTEST") != NULL)
        skip("only some of the sweeps ran (PYZTUN_CTEST)");
    need_namespaces();
    if (!has_nft())
        skip("the sweeps of the relay want the program nft");
    expect_all_swept(EXEMPT, COUNT(EXEMPT));
}

int main(void)
{
    static const struct test tests[] = {
        TEST(each_call_of_messages), TEST(each_call_of_netns), TEST(each_call_of_services),
        TEST(each_call_of_zds),      TEST(each_call_of_relay), TEST(a_full_fd_table),
        TEST(nothing_is_left_out),
    };

    start_sweeps();
    return run_tests("faults", tests, COUNT(tests));
}
