/*
 * sweep.h: runs an operation once for every call of libc that it makes, and that call fails.
 *
 * Theory of operation: the first run counts what is called at which place in the core. Then, for
 * each place, each time that it was passed (the first few) and each error that the call may report,
 * the operation runs again with that one failure. What the result must be is in a table of rules,
 * the first row that fits counts; what must hold besides (descriptors, the netns of the thread) is
 * the same for all. A setns() that fails in a pod must end the process, so each failure of it
 * happens in a child.
 */
#ifndef SWEEP_H
#define SWEEP_H

#include "pyztun.h"

#include <stdbool.h>

enum outcome {
    FAILS,   /* the result is -errno of the call, and the step, where there is one, names it */
    SERVES,  /* the result is as without the failure */
    EITHER,  /* one of these, or -rule.number where there is one; the scenario looks closer */
    BECOMES, /* the result is -rule.number */
    SKIPPED, /* not tried: why */
};

/* NULL, 0: any. */
struct rule {
    const char *scenario, *file, *call;
    int error;
    enum outcome outcome;
    int number;       /* BECOMES, EITHER */
    const char *step; /* FAILS: the step has this name instead of the call's */
    const char *why;
};

struct scenario {
    const char *name;
    const char *files; /* only calls of these files fail, separated by blanks; NULL: of all */
    void (*set_up)(void);
    int (*run)(struct pz_failure *failure); /* nothing else fails: only the core's calls do */
    void (*tear_down)(int result);
    int expected;   /* the result of the undisturbed run; 0: none below 0 */
    bool in_worker; /* not on the main thread */
    bool resists;   /* a service and its client: no single failure may show in the result */
    bool opens;     /* makes descriptors: sweep_fd_table() knows it */
};

/* Before run_tests(): what the tests, each in a process of its own, find is kept together. */
void start_sweeps(void);

void sweep(const struct scenario *scenario, const struct rule *rules);

/* Runs it with room for no descriptor, for one, and so on until it succeeds. */
void sweep_fd_table(const struct scenario *scenario);

/* Fails a test unless each call site of the core has failed in some sweep, or a row says why not.
 */
struct exempt {
    const char *file; /* NULL: all */
    const char *call;
    const char *why;
};
void expect_all_swept(const struct exempt *exempt, size_t n);

#endif
