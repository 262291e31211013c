/* Stands as .venv/bin/python in a copy made by scripts/build-sanitized and starts the real one with
 * the run time of the sanitizer.  Whatever starts our programs, also with an empty environment,
 * thus gets them sanitized, and nothing else: shells end by SIGSEGV with libtsan loaded.
 *
 *   -DPYTHON     the real interpreter, under any other name in the same directory
 *   -DPRELOAD    the libraries; sanitized_env.pth takes them out of the environment again
 *   -DVARIABLE, -DOPTIONS    e.g. "ASAN_OPTIONS" and its value
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <unistd.h>

static void put(const char *name, const char *value)
{
    if (setenv(name, value, 1) != 0) {
        perror("setenv");
        _exit(127);
    }
}

/* A program under test may be given libraries of its own to load: ours come first. */
static void preload(void)
{
    const char *others = getenv("LD_PRELOAD");
    char all[4096] = PRELOAD;

    if (others != NULL && strstr(others, PRELOAD) == NULL)
        snprintf(all, sizeof(all), "%s %s", PRELOAD, others);
    put("LD_PRELOAD", all);
}

int main(int argc, char **argv)
{
    (void)argc;
    preload();
    put(VARIABLE, OPTIONS);
    put("UBSAN_OPTIONS", OPTIONS);
    /* Python's own allocator would hide where a block begins and ends. */
    put("PYTHONMALLOC", "malloc");
    /* TSan wants its shadow where newer kernels put mappings at random. */
    personality(ADDR_NO_RANDOMIZE);
    execv(PYTHON, argv);
    perror(PYTHON);
    return 127;
}
