/*
 * sweep.c: see sweep.h.
 */
#include "sweep.h"

#include "callsites.h"
#include "harness.h"
#include "inject.h"
#include "support.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MAX_SITES = 512,
    PASSES = 3,
    ERRORS = 8,
    MAX_ROOM = 64,
    PATIENCE_MS = 5000,
    TIME_LIMIT_S = 20
};

/* What each call may report here and now; no EBADF or EFAULT, which would be our own mistake. */
static const int MAY_REPORT[CALLS][ERRORS] = {
    [CALL_ACCEPT4] = {EMFILE, ENFILE, ENOMEM, ENOBUFS, ECONNABORTED, EINTR, EAGAIN},
    [CALL_BIND] = {EADDRINUSE, EACCES, ENOMEM},
    [CALL_CALLOC] = {ENOMEM},
    [CALL_CLOSE] = {EINTR, EIO},
    [CALL_CONNECT] = {ECONNREFUSED, ENOENT, EACCES, EAGAIN, EINTR, ENOMEM},
    [CALL_EPOLL_CREATE1] = {EMFILE, ENFILE, ENOMEM},
    [CALL_EPOLL_CTL] = {ENOSPC, ENOMEM},
    [CALL_EPOLL_WAIT] = {EINTR},
    [CALL_EVENTFD] = {EMFILE, ENFILE, ENOMEM},
    [CALL_FCNTL] = {EMFILE, EPERM},
    [CALL_FLOCK] = {EAGAIN, EINTR, ENOLCK},
    [CALL_FSTAT] = {EIO, ENOMEM},
    [CALL_FSTATFS] = {EIO, ENOSYS},
    [CALL_GETSOCKNAME] = {ENOBUFS},
    [CALL_GETSOCKOPT] = {ENOPROTOOPT, ENOMEM},
    [CALL_IOCTL] = {ENOTTY, EPERM, EMFILE, ENFILE},
    [CALL_LISTEN] = {EADDRINUSE, ENOBUFS},
    [CALL_MALLOC] = {ENOMEM},
    [CALL_MKDIR] = {ENOSPC, EROFS, EACCES, EEXIST},
    [CALL_MOUNT] = {EPERM, ENOMEM, ENOSPC},
    [CALL_OPEN] = {EMFILE, ENFILE, ENOSPC, EROFS, ENOENT, EINTR},
    [CALL_PIPE2] = {EMFILE, ENFILE},
    [CALL_POLL] = {EINTR, ENOMEM},
    [CALL_PTHREAD_CREATE] = {EAGAIN, EPERM},
    [CALL_READ] = {EAGAIN, EINTR},
    [CALL_REALLOC] = {ENOMEM},
    [CALL_RECV] = {ECONNRESET, EAGAIN, EINTR, ENOMEM},
    [CALL_RECVMSG] = {ECONNRESET, EAGAIN, EINTR, ENOMEM},
    [CALL_SEND] = {EPIPE, ECONNRESET, EAGAIN, EINTR, ENOBUFS},
    [CALL_SENDMSG] = {EPIPE, ETOOMANYREFS, EAGAIN, EINTR, ENOBUFS},
    [CALL_SETNS] = {EPERM, ENOMEM, EINVAL},
    [CALL_SETSOCKOPT] = {EPERM, ENOPROTOOPT, ENOMEM},
    [CALL_SHUTDOWN] = {ENOTCONN},
    [CALL_SOCKET] = {EMFILE, ENFILE, EAFNOSUPPORT, ENOBUFS},
    [CALL_SPLICE] = {EPIPE, ECONNRESET, EAGAIN, EINTR, ENOMEM},
    [CALL_STATX] = {ENOMEM, EIO},
    [CALL_SYSCALL] = {EPERM, EMFILE, ENFILE, ESRCH, EBADF, ENOSYS},
    [CALL_UMOUNT2] = {EBUSY, EPERM},
    [CALL_UNLINK] = {EROFS, EIO},
    [CALL_UNSHARE] = {ENOSPC, EPERM, ENOMEM},
    [CALL_WRITE] = {EAGAIN, EPIPE},
};

/* One for the whole program, in memory that its children share. */
struct notes {
    atomic_int passed[MAX_SITES]; /* in this run */
    atomic_bool failed[MAX_SITES];
    atomic_int call[MAX_SITES]; /* enum call of a site that was passed */
    atomic_int plan_site, plan_nth, plan_error;
    atomic_bool hit;
    atomic_int begun, ended; /* sweeps */
    atomic_bool away;        /* the thread was not at home at that moment */
};

static struct notes *notes;
static uint64_t home;

void start_sweeps(void)
{
    notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (notes == MAP_FAILED || NCALL_SITES > MAX_SITES)
        fail_at(__FILE__, __LINE__, "no memory for %zu call sites", NCALL_SITES);
}

/* ---- which call is it ---- */

static int site_of(const char *back)
{
    for (size_t t = 0; t < NCORE_TEXTS; t++) {
        const struct core_text *text = &CORE_TEXTS[t];
        if (back < text->start || back > text->end)
            continue;
        for (size_t i = 0; i < NCALL_SITES; i++)
            if (CALL_SITES[i].back == (uintptr_t)(back - text->start) &&
                strcmp(CALL_SITES[i].file, text->file) == 0)
                return (int)i;
        fail_at(__FILE__, __LINE__, "a call in %s.c that callsites.sh has not found", text->file);
    }
    return -1; /* the test's own */
}

static bool is_its_turn(enum call call, const void *back, int *error)
{
    int site = site_of(back);

    if (site < 0)
        return false;
    atomic_store(&notes->call[site], (int)call);
    int now = atomic_fetch_add(&notes->passed[site], 1) + 1;
    if (site != atomic_load(&notes->plan_site) || now != atomic_load(&notes->plan_nth))
        return false;
    if (call == CALL_SETNS)
        atomic_store(&notes->away, netns_here() != home);
    atomic_store(&notes->failed[site], true);
    atomic_store(&notes->hit, true);
    *error = atomic_load(&notes->plan_error);
    return true;
}

static void plan(int site, int nth, int error)
{
    for (size_t i = 0; i < NCALL_SITES; i++)
        atomic_store(&notes->passed[i], 0);
    atomic_store(&notes->plan_site, site);
    atomic_store(&notes->plan_nth, nth);
    atomic_store(&notes->plan_error, error);
    atomic_store(&notes->hit, false);
    atomic_store(&notes->away, false);
}

/* ---- one run ---- */

struct attempt {
    const struct scenario *scenario;
    struct pz_failure failure;
    int result;
    int room; /* of the fd table; -1: as it is */
};

static void operate(void *argument)
{
    struct attempt *attempt = argument;
    uint64_t before = netns_here();

    home = before;
    attempt->failure = (struct pz_failure){-1, -2};
    at_every_call(is_its_turn);
    if (attempt->room >= 0)
        fill_fd_table(attempt->room);
    attempt->result = attempt->scenario->run(&attempt->failure);
    if (attempt->room >= 0)
        empty_fd_table();
    at_every_call(NULL);
    CHECK_EQ(netns_here(), before);
}

/* Everything but the judgement of the result. */
static struct attempt attempt_once(const struct scenario *scenario, int room)
{
    struct attempt attempt = {.scenario = scenario, .room = room};

    remember_state();
    scenario->set_up();
    if (scenario->in_worker)
        in_worker(operate, &attempt);
    else
        operate(&attempt);
    inject_nothing();
    scenario->tear_down(attempt.result);
    expect_state();
    return attempt;
}

static bool is_as_expected(const struct scenario *scenario, int result)
{
    return scenario->expected < 0 ? result == scenario->expected : result >= 0;
}

/* ---- what must come of it ---- */

static bool fits(const char *wanted, const char *name)
{
    return wanted == NULL || strcmp(wanted, name) == 0;
}

static struct rule rule_for(const struct scenario *scenario, const struct rule *rules,
                            const struct call_site *site, int error)
{
    const struct rule *rule = rules;

    if (scenario->resists)
        return (struct rule){.outcome = SERVES};
    for (; rule->why != NULL; rule++)
        if (fits(rule->scenario, scenario->name) && fits(rule->file, site->file) &&
            fits(rule->call, site->name) && (rule->error == 0 || rule->error == error))
            return *rule;
    return (struct rule){.outcome = FAILS};
}

static void judge(const struct attempt *attempt, const struct rule *rule, int error,
                  const char *call)
{
    bool served = is_as_expected(attempt->scenario, attempt->result);
    bool failed = attempt->result == -error;

    switch (rule->outcome) {
    case SERVES:
        if (!served)
            fail_at(__FILE__, __LINE__, "%d instead of a success", attempt->result);
        return;
    case SKIPPED: return;
    case EITHER:
        CHECK(served || failed || (rule->number != 0 && attempt->result == -rule->number));
        return;
    case BECOMES: CHECK_EQ(attempt->result, -rule->number); return;
    case FAILS: break;
    }
    CHECK_EQ(attempt->result, -error);
    if (attempt->failure.step == -1)
        return;
    const char *named = rule->step != NULL ? rule->step : call;
    const char *step = pz_step_name(attempt->failure.step);
    if (strncmp(step, named, strlen(named)) != 0)
        fail_at(__FILE__, __LINE__, "the step is %s, not %s", step, named);
}

/* ---- one failure ---- */

struct trial {
    const struct scenario *scenario;
    const struct rule *rules;
    int site, nth, error;
};

static void try_once(void *argument)
{
    const struct trial *trial = argument;
    const struct call_site *site = &CALL_SITES[trial->site];

    in_row("%s, %s() no. %d in %s.c: %s", trial->scenario->name, site->name, trial->nth, site->file,
           strerror(trial->error));
    plan(trial->site, trial->nth, trial->error);
    struct attempt attempt = attempt_once(trial->scenario, -1);
    if (!atomic_load(&notes->hit))
        return; /* threads took another course this time */
    if (atomic_load(&notes->away))
        fail_at(__FILE__, __LINE__, "lost in a pod and alive");
    struct rule rule = rule_for(trial->scenario, trial->rules, site, trial->error);
    judge(&attempt, &rule, trial->error, site->name);
}

/* A thread that is ending may hold a lock of ASan, which a fork would copy as held; and TSan lets a
 * child start threads only if its parent had one. It has two of its own here. */
static void wait_until_alone(void)
{
#ifdef __SANITIZE_THREAD__
    enum { ALONE = 3, NAMES_OF_DIRECTORY = 2 };
#else
    enum { ALONE = 1, NAMES_OF_DIRECTORY = 2 };
#endif
    int64_t give_up = clock_ms() + PATIENCE_MS;
    struct stat tasks;

    while (stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink > ALONE + NAMES_OF_DIRECTORY) {
        CHECK(clock_ms() < give_up);
        sched_yield();
    }
}

static void try_without_core(void *trial)
{
    struct rlimit none = {0, 0};

    alarm(TIME_LIMIT_S);
    setrlimit(RLIMIT_CORE, &none);
    try_once(trial);
}

static void try_apart(struct trial *trial)
{
    char said[512];

    wait_until_alone();
    int status = in_child(try_without_core, trial, said, sizeof said);

    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && atomic_load(&notes->away))
        CHECK(strstr(said, "cannot return to the home netns") != NULL);
    else if (status != 0)
        fail_at(__FILE__, __LINE__, "%s: status %d: %s", trial->scenario->name, status, said);
}

static bool may_fail_in(const struct scenario *scenario, const char *file)
{
    size_t length = strlen(file);

    for (const char *at = scenario->files; at != NULL && (at = strstr(at, file)) != NULL; at++)
        if ((at == scenario->files || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return scenario->files == NULL;
}

void sweep(const struct scenario *scenario, const struct rule *rules)
{
    int passed[MAX_SITES];

    atomic_fetch_add(&notes->begun, 1);
    in_row("%s, undisturbed", scenario->name);
    plan(-1, 0, 0);
    struct attempt first = attempt_once(scenario, -1);
    if (!is_as_expected(scenario, first.result))
        fail_at(__FILE__, __LINE__, "%d: %s", first.result, pz_step_name(first.failure.step));
    for (size_t i = 0; i < NCALL_SITES; i++)
        passed[i] = atomic_load(&notes->passed[i]);
    for (int site = 0; site < (int)NCALL_SITES; site++) {
        enum call call = (enum call)atomic_load(&notes->call[site]);
        if (!may_fail_in(scenario, CALL_SITES[site].file))
            continue;
        for (int nth = 1; nth <= passed[site] && nth <= PASSES; nth++)
            for (int i = 0; i < ERRORS && MAY_REPORT[call][i] != 0; i++) {
                struct trial trial = {scenario, rules, site, nth, MAY_REPORT[call][i]};
                if (rule_for(scenario, rules, &CALL_SITES[site], trial.error).outcome == SKIPPED)
                    continue;
                if (call == CALL_SETNS)
                    try_apart(&trial);
                else
                    try_once(&trial);
            }
    }
    atomic_fetch_add(&notes->ended, 1);
}

void sweep_fd_table(const struct scenario *scenario)
{
    struct attempt attempt = {.result = -EMFILE};

    plan(-1, 0, 0);
    for (int room = 0; attempt.result == -EMFILE; room++) {
        in_row("%s, room for %d descriptors", scenario->name, room);
        CHECK(room < MAX_ROOM);
        attempt = attempt_once(scenario, room);
        if (room == 0)
            CHECK_EQ(attempt.result, -EMFILE);
    }
    if (!is_as_expected(scenario, attempt.result))
        fail_at(__FILE__, __LINE__, "%d: %s", attempt.result, pz_step_name(attempt.failure.step));
}

/* ---- nothing was left out ---- */

static bool is_wrapped(const char *name)
{
    for (int call = 0; call < CALLS; call++)
        if (strcmp(call_name((enum call)call), name) == 0)
            return true;
    return false;
}

static const struct exempt *exemption(const struct exempt *exempt, size_t n,
                                      const struct call_site *site)
{
    for (size_t i = 0; i < n; i++)
        if (fits(exempt[i].file, site->file) && strcmp(exempt[i].call, site->name) == 0)
            return &exempt[i];
    return NULL;
}

void expect_all_swept(const struct exempt *exempt, size_t n)
{
    bool used[MAX_SITES] = {false};
    int missing = 0;

    if (atomic_load(&notes->begun) == 0 || atomic_load(&notes->begun) > atomic_load(&notes->ended))
        skip("the sweeps did not come to their end");
    for (size_t i = 0; i < NCALL_SITES; i++) {
        const struct call_site *site = &CALL_SITES[i];
        const struct exempt *row = exemption(exempt, n, site);
        if (row != NULL)
            used[row - exempt] = true;
        if (row != NULL || atomic_load(&notes->failed[i]))
            continue;
        missing++;
        fprintf(stderr, "%s.c calls %s() (+0x%zx): %s\n", site->file, site->name,
                (size_t)site->back,
                is_wrapped(site->name) ? "no scenario of test_faults makes it fail"
                                       : "neither wrapped by inject.c nor exempt in test_faults.c");
    }
    for (size_t i = 0; i < n; i++)
        if (!used[i] && exempt[i].file != NULL) /* the others depend on the compiler */
            fail_at(__FILE__, __LINE__, "nothing calls %s(), for which there is a row",
                    exempt[i].call);
    CHECK_EQ(missing, 0);
}
