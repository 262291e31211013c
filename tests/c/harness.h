/*
 * harness.h: runs the tests of one program and compares what they see.
 *
 * Theory of operation: every test runs in a process of its own, so that it may lower limits, move
 * to other namespaces, take signals or abort, and a hang ends by alarm(). The parent makes an empty
 * directory for it and removes that however the test ends. Behind each test its process must have
 * the same descriptors as before, and the thread must be in the same netns.
 *
 * Exit status of a program: 0 all passed, 1 a failure, 77 everything was skipped.
 * PYZTUN_REQUIRE_ROOT=1 turns the skip of a test that lacks privilege into a failure.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(function) {#function, function}

/* For main(): runs every test, prints a line for each and a sum. */
int run_tests(const char *subject, const struct test *tests, size_t n);

/* An empty directory of this test alone. */
const char *test_dir(void);

/* Names the row of a table in failures from here on. */
__attribute__((format(printf, 1, 2))) void in_row(const char *format, ...);

__attribute__((format(printf, 3, 4))) _Noreturn void fail_at(const char *file, int line,
                                                             const char *format, ...);
void check_equal(const char *file, int line, const char *got_text, long long got,
                 const char *expected_text, long long expected);

#define CHECK(condition) ((condition) ? (void)0 : fail_at(__FILE__, __LINE__, "%s", #condition))
#define CHECK_EQ(got, expected) \
    check_equal(__FILE__, __LINE__, #got, (long long)(got), #expected, (long long)(expected))

/* Ends the test: there is nothing here to test it with. */
_Noreturn void skip(const char *reason);

/* Ends the test for want of privilege: skips, or fails under PYZTUN_REQUIRE_ROOT=1. */
_Noreturn void unmet(const char *reason);

/* unmet() unless namespaces for network and mounts can be made here. */
void need_namespaces(void);

/* unmet() unless become_nobody() works here. */
void need_other_user(void);

/* Gives up root for a uid without any capability. */
void become_nobody(void);

/* What a whole test must leave as it was, for a part of one: the descriptors and the netns. */
void remember_state(void);
void expect_state(void);

/* Runs BODY(ARGUMENT) in a thread that is not the main one, to the end. */
void in_worker(void (*body)(void *), void *argument);

/* Runs BODY(ARGUMENT) in a child, with its stderr in TEXT where that is wanted; returns the status
 * of waitpid(). */
int in_child(void (*body)(void *), void *argument, char *text, size_t size);

/* The same in two parts: runs beside the test until its status is asked for. */
int start_child(void (*body)(void *), void *argument);
int end_child(int child);

/* Sends the process SIGUSR1, which does nothing, every few milliseconds until stop_signals(). */
void start_signals(void);
void stop_signals(void);

/* Lets exactly ROOM more descriptors be opened, until empty_fd_table(). */
void fill_fd_table(int room);
void empty_fd_table(void);

#endif
