/*
 * test_visit.c: visits to a pod that end at home, or end the process.
 *
 * Theory of operation: where a socket belongs is asked of the kernel by a way of its own
 * (SIOCGSKNS), not by the functions under test. Every test runs in a process of its own, whose
 * first thread is a main thread; in_worker() makes the other kind. The return that fails happens in
 * a child, whose stderr and death are looked at.
 */
#include "internal.h"

#include "harness.h"
#include "inject.h"
#include "support.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { VISITS = 500, PORT = 15008 };

static int home_fd(void)
{
    int fd = pz_netns_home();

    CHECK(fd >= 0);
    return fd;
}

/* ---- visits ---- */

struct listening {
    int pod, home;
    int result;
    struct pz_failure failure;
};

static void listen_once(void *argument)
{
    struct listening *it = argument;
    struct pz_listener wanted = on_loopback(PORT);
    uint64_t before = netns_here(), main_before = netns_of_main();
    int fd = -1;

    it->failure = (struct pz_failure){-1, -2};
    it->result = pz_listen(it->pod, it->home, &wanted, 1, &fd, &it->failure);
    CHECK_EQ(netns_here(), before);
    CHECK_EQ(netns_of_main(), main_before);
    if (it->result < 0)
        return;
    CHECK_EQ(netns_of_socket(fd), netns_of(it->pod));
    CHECK(is_cloexec(fd));
    close(fd);
}

static void any_thread_can_make_a_listener(void)
{
    need_namespaces();
    struct listening it = {.pod = new_pod(), .home = -1};
    in_row("main");
    listen_once(&it);
    CHECK_EQ(it.result, 0);
    in_row("worker");
    in_worker(listen_once, &it);
    CHECK_EQ(it.result, 0);
    in_row("worker with a home");
    it.home = home_fd();
    CHECK_EQ(pz_netns_prove_home(it.home), 0);
    in_worker(listen_once, &it);
    CHECK_EQ(it.result, 0);
    close(it.home);
    close(it.pod);
}

static void a_thread_in_another_netns_stays_there(void)
{
    need_namespaces();
    struct listening it = {.pod = new_pod(), .home = -1};
    int elsewhere = new_pod();
    visit(elsewhere, listen_once, &it);
    CHECK_EQ(it.result, 0);
    CHECK(netns_of_main() != netns_of(elsewhere));
    close(elsewhere);
    close(it.pod);
}

struct watcher {
    atomic_bool stop;
    atomic_int looks;
    atomic_int strange;
    uint64_t home;
};

static void *watch_main(void *argument)
{
    struct watcher *watcher = argument;

    while (!atomic_load(&watcher->stop)) {
        if (netns_of_main() != watcher->home)
            atomic_fetch_add(&watcher->strange, 1);
        atomic_fetch_add(&watcher->looks, 1);
    }
    return NULL;
}

static void look_before_leaving(struct watcher *watcher)
{
    int looks = atomic_load(&watcher->looks);

    while (atomic_load(&watcher->looks) < looks + 2)
        sched_yield();
}

static void main_is_never_seen_away(void)
{
    need_namespaces();
    struct listening it = {.pod = new_pod(), .home = -1};
    struct watcher watcher = {.home = netns_of_main()};
    int back = home_fd();
    pthread_t thread;

    CHECK_EQ(pthread_create(&thread, NULL, watch_main, &watcher), 0);
    look_before_leaving(&watcher);
    for (int i = 0; i < VISITS; i++) {
        listen_once(&it);
        CHECK_EQ(it.result, 0);
    }
    CHECK_EQ(atomic_load(&watcher.strange), 0);
    /* The watcher does see main where it is away. */
    CHECK_EQ(setns(it.pod, CLONE_NEWNET), 0);
    look_before_leaving(&watcher);
    CHECK(atomic_load(&watcher.strange) > 0);
    atomic_store(&watcher.stop, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(setns(back, CLONE_NEWNET), 0);
    close(back);
    close(it.pod);
}

static void *listen_often(void *argument)
{
    struct listening *it = argument;

    for (int i = 0; i < VISITS / 4; i++) {
        struct pz_listener wanted[3] = {on_loopback(0), on_loopback6(0), on_loopback(0)};
        int fds[3];
        CHECK_EQ(pz_listen(it->pod, it->home, wanted, 3, fds, NULL), 0);
        for (int j = 0; j < 3; j++)
            CHECK_EQ(netns_of_socket(fds[j]), netns_of(it->pod));
        pz_close_all(fds, 3);
    }
    return NULL;
}

static void threads_do_not_disturb_each_other(void)
{
    enum { THREADS = 4 };
    struct listening its[THREADS];
    pthread_t threads[THREADS];

    need_namespaces();
    for (int i = 0; i < THREADS; i++) {
        its[i] = (struct listening){.pod = new_pod(), .home = -1};
        CHECK_EQ(pthread_create(&threads[i], NULL, listen_often, &its[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        close(its[i].pod);
    }
}

static void expect_signals_blocked(void)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD};
    sigset_t mask;

    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    for (size_t i = 0; i < COUNT(numbers); i++)
        CHECK_EQ(sigismember(&mask, numbers[i]), 1);
}

/* The helper thread of the main thread takes no signal, and the mask of the caller is as before. */
static void signals_stay_with_the_caller(void)
{
    sigset_t mask, after;

    need_namespaces();
    struct listening it = {.pod = new_pod(), .home = -1};
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, &mask, NULL), 0);
    at_call(CALL_SETNS, expect_signals_blocked);
    start_signals();
    for (int i = 0; i < VISITS; i++) {
        listen_once(&it);
        CHECK_EQ(it.result, 0);
    }
    stop_signals();
    at_call(CALL_SETNS, NULL);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    CHECK(sigismember(&after, SIGTERM) == 1 && sigismember(&after, SIGUSR1) == 0);
    close(it.pod);
}

static uint64_t home_inode;

static void expect_home(void)
{
    CHECK_EQ(netns_here(), home_inode);
}

static void expect_away(void)
{
    CHECK(netns_here() != home_inode);
}

/* Between leaving and coming home a thread makes sockets and nothing else. */
static void only_socket_is_called_in_the_pod(void *argument)
{
    struct listening *it = argument;

    at_call(CALL_SETSOCKOPT, expect_home);
    at_call(CALL_BIND, expect_home);
    at_call(CALL_LISTEN, expect_home);
    at_call(CALL_SOCKET, expect_away);
    listen_once(it);
    CHECK_EQ(it->result, 0);
    CHECK(calls_of(CALL_SOCKET) >= 1 && calls_of(CALL_BIND) >= 1 && calls_of(CALL_LISTEN) >= 1);
    for (int call = 0; call < CALLS; call++)
        at_call((enum call)call, NULL);
}

static void everything_else_happens_at_home(void)
{
    need_namespaces();
    struct listening it = {.pod = new_pod(), .home = -1};
    home_inode = netns_here();
    in_row("main");
    only_socket_is_called_in_the_pod(&it);
    in_row("worker");
    in_worker(only_socket_is_called_in_the_pod, &it);
    close(it.pod);
}

/* ---- a fork meanwhile ---- */

static int left[2], may_return[2];

static void tell_and_wait(void)
{
    char byte = 'x';

    expect_away();
    CHECK_EQ(write(left[1], &byte, 1), 1);
    CHECK_EQ(read(may_return[0], &byte, 1), 1);
}

static void *listen_in_thread(void *argument)
{
    listen_once(argument);
    return NULL;
}

/* The child has one thread, a copy of the one that forked, and can go to the pod itself. */
static void expect_home_and_listen(void *argument)
{
    struct listening *it = argument;

    at_call(CALL_SOCKET, NULL);
    expect_home();
    CHECK_EQ(netns_of_main(), home_inode);
    listen_once(it);
    CHECK_EQ(it->result, 0);
}

static void a_fork_during_a_visit_is_at_home(void)
{
    pthread_t traveller;
    char byte = 'x';

    need_namespaces();
    struct listening it = {.pod = new_pod(), .home = -1}, of_child = it;
#ifdef __SANITIZE_THREAD__
    of_child.home = home_fd(); /* TSan cannot make a helper thread after such a fork */
#endif
    home_inode = netns_here();
    CHECK_EQ(pipe2(left, O_CLOEXEC), 0);
    CHECK_EQ(pipe2(may_return, O_CLOEXEC), 0);
    at_call(CALL_SOCKET, tell_and_wait);
    CHECK_EQ(pthread_create(&traveller, NULL, listen_in_thread, &it), 0);
    CHECK_EQ(read(left[0], &byte, 1), 1);
    CHECK_EQ(in_child(expect_home_and_listen, &of_child, NULL, 0), 0);
    CHECK_EQ(write(may_return[1], &byte, 1), 1);
    CHECK_EQ(pthread_join(traveller, NULL), 0);
    at_call(CALL_SOCKET, NULL);
    CHECK_EQ(it.result, 0);
    pz_close_all((int[]){left[0], left[1], may_return[0], may_return[1], it.pod}, 5);
    if (of_child.home >= 0)
        close(of_child.home);
}

/* ---- without the right ---- */

static void listen_as_nobody(void *argument)
{
    struct listening *it = argument;

    become_nobody();
    listen_once(it);
    CHECK_EQ(it->result, -EPERM);
    CHECK_EQ(it->failure.step, PZ_STEP_SETNS);
    in_worker(listen_once, it);
    CHECK_EQ(it->result, -EPERM);
    CHECK_EQ(it->failure.step, PZ_STEP_PROVE_HOME);
    CHECK_EQ(it->failure.index, -1);
}

static void nobody_may_not_go(void)
{
    need_namespaces();
    need_other_user();
    struct listening it = {.pod = new_pod(), .home = -1};
    CHECK_EQ(in_child(listen_as_nobody, &it, NULL, 0), 0);
    close(it.pod);
}

/* Root of a child user namespace may enter the pods that it makes and could not come home. */
static void listen_from_below(void *argument)
{
    struct listening *it = argument;

    if (unshare(CLONE_NEWUSER) == -1)
        _exit(77);
    it->pod = new_pod();
    listen_once(it);
    CHECK_EQ(it->result, 0);
    in_worker(listen_once, it);
    CHECK_EQ(it->result, -EPERM);
    CHECK_EQ(it->failure.step, PZ_STEP_PROVE_HOME);
    close(it->pod);
}

static void who_cannot_come_home_does_not_leave(void)
{
    struct listening it = {.home = -1};

    need_namespaces();
    int status = in_child(listen_from_below, &it, NULL, 0);
    if (WEXITSTATUS(status) == 77)
        skip("no user namespace to be had (never with the thread of TSan)");
    CHECK_EQ(status, 0);
}

/* ---- the failed return ---- */

struct lost {
    int pod, home;
    int nth; /* which setns() fails */
};

static void lose_the_way(void *argument)
{
    struct lost *lost = argument;
    struct pz_listener wanted[2] = {on_loopback(PORT), on_loopback(PORT + 1)};
    int fds[2];

    inject(CALL_SETNS, lost->nth, EPERM);
    pz_listen(lost->pod, lost->home, wanted, 2, fds, NULL);
    fputs("pz_listen() returned\n", stderr);
    _exit(3);
}

static void lose_the_way_in_a_worker(void *argument)
{
    struct rlimit none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
    in_worker(lose_the_way, argument);
}

static void verify_the_abort(struct lost lost)
{
    char said[512];
    int status = in_child(lose_the_way_in_a_worker, &lost, said, sizeof said);

    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), SIGABRT);
    CHECK(strncmp(said, "pyztun: ", 8) == 0);
    CHECK(strstr(said, "home") != NULL);
    CHECK_EQ(strchr(said, '\n') - said, (long long)strlen(said) - 1); /* one line */
}

static void who_cannot_come_home_aborts(void)
{
    need_namespaces();
    int pod = new_pod(), home = home_fd();
    in_row("home opened and proven by the call: prove, go, return");
    verify_the_abort((struct lost){pod, -1, 3});
    in_row("home kept by the caller: go, return");
    verify_the_abort((struct lost){pod, home, 2});
    close(home);
    close(pod);
}

static void lose_socket_and_way(void *argument)
{
    inject(CALL_SOCKET, 2, EMFILE);
    lose_the_way_in_a_worker(argument);
}

static void the_abort_comes_before_any_other_error(void)
{
    char said[512];

    need_namespaces();
    struct lost lost = {new_pod(), -1, 3};
    int status = in_child(lose_socket_and_way, &lost, said, sizeof said);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    close(lost.pod);
}

/* stderr may be closed: the process ends all the same. */
static void lose_the_way_mute(void *argument)
{
    close(STDERR_FILENO);
    lose_the_way_in_a_worker(argument);
}

static void the_abort_needs_no_stderr(void)
{
    need_namespaces();
    struct lost lost = {new_pod(), -1, 3};
    int status = in_child(lose_the_way_mute, &lost, NULL, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    close(lost.pod);
}

/* ---- each syscall fails once ---- */

struct fault {
    bool worker;
    bool keeps_home;
    enum call call;
    int nth, error, step;
    int index;
};

static const struct fault FAULTS[] = {
    {true, false, CALL_OPEN, 1, EMFILE, PZ_STEP_OPEN_HOME, -1},
    {true, false, CALL_SETNS, 1, EPERM, PZ_STEP_PROVE_HOME, -1},
    {true, false, CALL_SETNS, 2, EINVAL, PZ_STEP_SETNS, -1},
    {true, true, CALL_SETNS, 1, EPERM, PZ_STEP_SETNS, -1},
    {true, false, CALL_SOCKET, 1, EMFILE, PZ_STEP_SOCKET, 0},
    {true, false, CALL_SOCKET, 3, ENFILE, PZ_STEP_SOCKET, 2},
    {true, false, CALL_BIND, 1, EADDRINUSE, PZ_STEP_BIND, 0},
    {true, false, CALL_BIND, 3, EACCES, PZ_STEP_BIND, 2},
    {true, false, CALL_LISTEN, 2, EADDRINUSE, PZ_STEP_LISTEN, 1},
    {false, false, CALL_PTHREAD_CREATE, 1, EAGAIN, PZ_STEP_THREAD, -1},
    {false, false, CALL_SETNS, 1, EPERM, PZ_STEP_SETNS, -1},
    {false, false, CALL_SOCKET, 2, EMFILE, PZ_STEP_SOCKET, 1},
    {false, false, CALL_BIND, 2, EADDRINUSE, PZ_STEP_BIND, 1},
    {false, false, CALL_LISTEN, 3, EADDRINUSE, PZ_STEP_LISTEN, 2},
};

struct fault_run {
    const struct fault *fault;
    int pod, home;
};

static void run_fault(void *argument)
{
    const struct fault_run *run = argument;
    const struct fault *fault = run->fault;
    struct pz_listener wanted[3] = {on_loopback(PORT), on_loopback(PORT + 1),
                                    on_loopback(PORT + 2)};
    struct pz_failure failure = {-1, -2};
    int fds[3], home = fault->keeps_home ? run->home : -1;
    uint64_t before = netns_here();

    inject(fault->call, fault->nth, fault->error);
    CHECK_EQ(pz_listen(run->pod, home, wanted, 3, fds, &failure), -fault->error);
    CHECK_EQ(failure.step, fault->step);
    CHECK_EQ(failure.index, fault->index);
    inject(fault->call, fault->nth, fault->error);
    CHECK_EQ(pz_listen(run->pod, home, wanted, 3, fds, NULL), -fault->error);
    inject_nothing();
    CHECK_EQ(netns_here(), before);
    CHECK_EQ(pz_listen(run->pod, home, wanted, 3, fds, &failure), 0); /* nothing was left */
    pz_close_all(fds, 3);
}

static void each_fault_of_listening(void)
{
    need_namespaces();
    struct fault_run run = {.pod = new_pod(), .home = home_fd()};
    for (size_t i = 0; i < COUNT(FAULTS); i++) {
        in_row("row %zu", i);
        run.fault = &FAULTS[i];
        if (FAULTS[i].worker)
            in_worker(run_fault, &run);
        else
            run_fault(&run);
    }
    close(run.home);
    close(run.pod);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(any_thread_can_make_a_listener),
        TEST(a_thread_in_another_netns_stays_there),
        TEST(main_is_never_seen_away),
        TEST(threads_do_not_disturb_each_other),
        TEST(signals_stay_with_the_caller),
        TEST(everything_else_happens_at_home),
        TEST(a_fork_during_a_visit_is_at_home),
        TEST(nobody_may_not_go),
        TEST(who_cannot_come_home_does_not_leave),
        TEST(who_cannot_come_home_aborts),
        TEST(the_abort_comes_before_any_other_error),
        TEST(the_abort_needs_no_stderr),
        TEST(each_fault_of_listening),
    };

    return run_tests("visit.c", tests, COUNT(tests));
}
