/*
 * harness.c: see harness.h.
 */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    SKIPPED = 77,
    TIME_LIMIT_S = 60,
    MAX_OPEN = 512,
    LINK = 64,
    NOBODY_UID = 4242,
    SIGNAL_EVERY_MS = 2
};

static const char *current_test;
static char current_dir[64];
static char current_row[128];

/* ---- results ---- */

void in_row(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(current_row, sizeof current_row, format, arguments);
    va_end(arguments);
}

_Noreturn void fail_at(const char *file, int line, const char *format, ...)
{
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s:%d: %s%s%s: %s\n", file, line, current_test, current_row[0] ? ", " : "",
            current_row, text);
    _exit(1);
}

static const char *error_text(long long value)
{
    return value < 0 && value > -4096 ? strerror((int)-value) : "";
}

void check_equal(const char *file, int line, const char *got_text, long long got,
                 const char *expected_text, long long expected)
{
    if (got != expected)
        fail_at(file, line, "%s is %lld %s, not %s = %lld", got_text, got, error_text(got),
                expected_text, expected);
}

_Noreturn void skip(const char *reason)
{
    printf("  skip  %s: %s\n", current_test, reason);
    fflush(stdout);
    _exit(SKIPPED);
}

_Noreturn void unmet(const char *reason)
{
    const char *required = getenv("PYZTUN_REQUIRE_ROOT");

    if (required != NULL && strcmp(required, "1") == 0)
        fail_at(__FILE__, __LINE__, "PYZTUN_REQUIRE_ROOT=1, but: %s", reason);
    skip(reason);
}

const char *test_dir(void)
{
    return current_dir;
}

/* ---- what a test must leave as it was ---- */

struct open_fd {
    int fd;
    char target[LINK];
};

struct state {
    struct open_fd fds[MAX_OPEN];
    size_t nfds;
    char netns[LINK];
};

static void read_link(const char *path, char *target)
{
    ssize_t length = readlink(path, target, LINK - 1);

    target[length > 0 ? length : 0] = '\0';
}

static void observe(struct state *state)
{
    DIR *table = opendir("/proc/self/fd");
    const struct dirent *entry;

    CHECK(table != NULL);
    state->nfds = 0;
    while ((entry = readdir(table)) != NULL) {
        char path[64];
        int fd = (int)strtol(entry->d_name, NULL, 10);
        if (entry->d_name[0] == '.' || fd == dirfd(table))
            continue;
        CHECK(state->nfds < MAX_OPEN);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        state->fds[state->nfds].fd = fd;
        read_link(path, state->fds[state->nfds++].target);
    }
    closedir(table);
    read_link("/proc/thread-self/ns/net", state->netns);
}

static void compare(const struct state *before, const struct state *after)
{
    if (strcmp(before->netns, after->netns) != 0)
        fail_at(__FILE__, __LINE__, "ended in %s, not at home in %s", after->netns, before->netns);
    for (size_t i = 0; i < after->nfds; i++) {
        const struct open_fd *fd = &after->fds[i];
        if (i >= before->nfds || before->fds[i].fd != fd->fd ||
            strcmp(before->fds[i].target, fd->target) != 0)
            fail_at(__FILE__, __LINE__, "descriptor %d (%s) was not there before", fd->fd,
                    fd->target);
    }
    if (after->nfds < before->nfds)
        fail_at(__FILE__, __LINE__, "descriptor %d (%s) is gone", before->fds[after->nfds].fd,
                before->fds[after->nfds].target);
}

static struct state remembered;

void remember_state(void)
{
    observe(&remembered);
}

void expect_state(void)
{
    static struct state now;

    observe(&now);
    compare(&remembered, &now);
}

/* ---- the run ---- */

static _Noreturn void run_here(const struct test *test)
{
    static struct state before, after;

    alarm(TIME_LIMIT_S);
    observe(&before);
    test->run();
    current_row[0] = '\0';
    observe(&after);
    compare(&before, &after);
    exit(0); /* with the leak check of ASan, which may still change the status */
}

static int remove_entry(const char *path, const struct stat *file, int kind, struct FTW *place)
{
    (void)file, (void)kind, (void)place;
    return remove(path);
}

/* Returns 0, 1 or SKIPPED. */
static int run_apart(const struct test *test)
{
    int status = 0;

    current_test = test->name;
    snprintf(current_dir, sizeof current_dir, "/tmp/pyztun-ctest.XXXXXX");
    if (mkdtemp(current_dir) == NULL)
        fail_at(__FILE__, __LINE__, "mkdtemp: %s", strerror(errno));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        run_here(test);
    waitpid(child, &status, 0);
    nftw(current_dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == SKIPPED))
        return WEXITSTATUS(status);
    if (WIFSIGNALED(status))
        printf("  FAIL  %s: killed: %s\n", test->name, strsignal(WTERMSIG(status)));
    else
        printf("  FAIL  %s\n", test->name);
    return 1;
}

/* With PYZTUN_CTEST set only the tests run whose name, or whose subject, contains it. */
static bool is_wanted(const char *subject, const struct test *test)
{
    const char *part = getenv("PYZTUN_CTEST");

    return part == NULL || strstr(test->name, part) != NULL || strstr(subject, part) != NULL;
}

int run_tests(const char *subject, const struct test *tests, size_t n)
{
    int passed = 0, skipped = 0, failed = 0;

    printf("%s\n", subject);
    for (size_t i = 0; i < n; i++) {
        if (!is_wanted(subject, &tests[i]))
            continue;
        int result = run_apart(&tests[i]);
        passed += result == 0;
        skipped += result == SKIPPED;
        failed += result == 1;
        if (result == 0)
            printf("  ok    %s\n", tests[i].name);
    }
    printf("%s: %d passed, %d skipped, %d failed\n", subject, passed, skipped, failed);
    if (failed > 0)
        return 1;
    return passed == 0 && skipped > 0 ? SKIPPED : 0;
}

/* ---- tools ---- */

static void try_namespaces(void *unused)
{
    (void)unused;
    _exit(unshare(CLONE_NEWNET | CLONE_NEWNS) == 0 ? 0 : 1);
}

void need_namespaces(void)
{
    if (in_child(try_namespaces, NULL, NULL, 0) != 0)
        unmet("needs CAP_SYS_ADMIN, for namespaces of its own");
}

static int change_user(void)
{
    if (setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID) == -1)
        return -1;
    return setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID);
}

static void try_other_user(void *unused)
{
    (void)unused;
    _exit(geteuid() == 0 && change_user() == 0 ? 0 : 1);
}

void need_other_user(void)
{
    if (in_child(try_other_user, NULL, NULL, 0) != 0)
        unmet("needs root and a second uid");
}

void become_nobody(void)
{
    CHECK_EQ(change_user(), 0);
}

struct job {
    void (*body)(void *);
    void *argument;
};

static void *do_job(void *argument)
{
    const struct job *job = argument;

    job->body(job->argument);
    return NULL;
}

void in_worker(void (*body)(void *), void *argument)
{
    struct job job = {body, argument};
    pthread_t worker;

    CHECK_EQ(pthread_create(&worker, NULL, do_job, &job), 0);
    CHECK_EQ(pthread_join(worker, NULL), 0);
}

static void read_to_end(int fd, char *text, size_t size)
{
    size_t length = 0;
    ssize_t got;

    while (length < size - 1 && (got = read(fd, text + length, size - 1 - length)) > 0)
        length += (size_t)got;
    text[length] = '\0';
    close(fd);
}

int in_child(void (*body)(void *), void *argument, char *text, size_t size)
{
    int ends[2] = {-1, -1}, status = 0;

    if (text != NULL)
        CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (text != NULL)
            dup2(ends[1], STDERR_FILENO);
        body(argument);
        _exit(0);
    }
    if (text != NULL) {
        close(ends[1]);
        read_to_end(ends[0], text, size);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

int start_child(void (*body)(void *), void *argument)
{
    fflush(stdout);
    pid_t child = fork();

    CHECK(child != -1);
    if (child == 0) {
        body(argument);
        _exit(0);
    }
    return child;
}

int end_child(int child)
{
    int status = 0;

    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

static timer_t signal_timer;

static void do_nothing(int number)
{
    (void)number;
}

void start_signals(void)
{
    struct sigaction action = {.sa_handler = do_nothing};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec every = {.it_interval.tv_nsec = SIGNAL_EVERY_MS * 1000000,
                               .it_value.tv_nsec = SIGNAL_EVERY_MS * 1000000};

    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &signal_timer), 0);
    CHECK_EQ(timer_settime(signal_timer, 0, &every, NULL), 0);
}

void stop_signals(void)
{
    timer_delete(signal_timer);
}

static int fillers[MAX_OPEN];
static size_t nfillers;
static struct rlimit limit_before;

void fill_fd_table(int room)
{
    struct rlimit low;
    int fd;

    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit_before), 0);
    low = limit_before;
    low.rlim_cur = MAX_OPEN;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
    nfillers = 0;
    while ((fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)) != -1)
        fillers[nfillers++] = fd;
    CHECK_EQ(errno, EMFILE);
    while (room-- > 0)
        close(fillers[--nfillers]);
}

void empty_fd_table(void)
{
    while (nfillers > 0)
        close(fillers[--nfillers]);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit_before), 0);
}
