/*
 * test_step.c: the names of the steps.
 *
 * Theory of operation: a message is built from these names, so each step must have one of its own;
 * a number from a newer or a broken caller must still give a string.
 */
#include "harness.h"
#include "pyztun.h"

#include <limits.h>
#include <string.h>

enum { LAST = PZ_STEP_MOUNT };

static void each_step_has_a_name_of_its_own(void)
{
    for (int step = PZ_STEP_NONE; step <= LAST; step++) {
        in_row("step %d", step);
        CHECK(pz_step_name(step) != NULL && pz_step_name(step)[0] != '\0');
        for (int other = PZ_STEP_NONE; other < step; other++)
            CHECK(strcmp(pz_step_name(step), pz_step_name(other)) != 0);
    }
}

static void some_names(void)
{
    CHECK(strcmp(pz_step_name(PZ_STEP_SETNS), "setns") == 0);
    CHECK(strcmp(pz_step_name(PZ_STEP_BIND), "bind") == 0);
    CHECK(strcmp(pz_step_name(PZ_STEP_SO_MARK), "setsockopt(SO_MARK)") == 0);
}

static void an_unknown_number_is_a_call(void)
{
    static const int numbers[] = {-1, LAST + 1, 9999, INT_MAX, INT_MIN};

    for (size_t i = 0; i < COUNT(numbers); i++) {
        in_row("number %d", numbers[i]);
        CHECK(strcmp(pz_step_name(numbers[i]), "call") == 0);
    }
}

int main(void)
{
    static const struct test tests[] = {
        TEST(each_step_has_a_name_of_its_own),
        TEST(some_names),
        TEST(an_unknown_number_is_a_call),
    };

    return run_tests("step.c", tests, COUNT(tests));
}
