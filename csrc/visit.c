/*
 * visit.c: sockets in another netns.
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
 */
#include "internal.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* The arguments of one socket() call. */
struct kind {
    int family;
    int type;
    int protocol;
};

/* What an excursion is to bring back: N sockets. */
struct errand {
    int netns_fd;
    const struct kind *kinds;
    size_t n;
    int *fds;
    struct pz_failure *failure;
    int result;
};

static int make_sockets(const struct errand *errand)
{
    for (size_t i = 0; i < errand->n; i++) {
        const struct kind *one = &errand->kinds[i];
        int fd = socket(one->family, one->type | SOCK_CLOEXEC, one->protocol);
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

static struct kind kind_of(const struct pz_listener *wanted)
{
    int type = wanted->flags & PZ_DGRAM ? SOCK_DGRAM : SOCK_STREAM;

    return (struct kind){
        .family = wanted->family == 4 ? AF_INET : AF_INET6,
        .type = wanted->flags & PZ_NONBLOCK ? type | SOCK_NONBLOCK : type,
    };
}

int pz_listen(int netns_fd, int home_fd, const struct pz_listener *wanted, size_t n, int *out_fds,
              struct pz_failure *failure)
{
    if (n == 0 || n > PZ_MAX_LISTENERS)
        return pz_fail(failure, PZ_STEP_ARGUMENT, -1, EINVAL);
    struct kind kinds[PZ_MAX_LISTENERS];
    struct errand errand = {netns_fd, kinds, n, out_fds, failure, 0};
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (wanted[i].family != 4 && wanted[i].family != 6)
            rc = pz_fail(failure, PZ_STEP_ARGUMENT, (int)i, EAFNOSUPPORT);
        kinds[i] = kind_of(&wanted[i]);
    }
    if (rc == 0)
        rc = run_errand(&errand, home_fd);
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

int pz_socket(int netns_fd, int home_fd, int family, int type, int protocol,
              struct pz_failure *failure)
{
    struct kind kind = {family, type, protocol};
    int fd = -1;
    struct errand errand = {netns_fd, &kind, 1, &fd, failure, 0};
    int rc = run_errand(&errand, home_fd);

    return rc < 0 ? rc : fd;
}

int pz_netns_cookie(int netns_fd, int home_fd, uint64_t *cookie, struct pz_failure *failure)
{
    if (pz_netns_id(netns_fd, cookie) == 0)
        return 0;
    PZ_SCOPED fd = pz_socket(netns_fd, home_fd, AF_INET, SOCK_STREAM, 0, failure);
    if (fd < 0)
        return fd;
    int rc = pz_socket_cookie(fd, cookie);
    return rc < 0 ? pz_fail(failure, PZ_STEP_COOKIE, -1, -rc) : 0;
}
