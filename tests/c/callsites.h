/*
 * callsites.h: every call of libc in the core, as the compiler left it.
 *
 * Theory of operation: the Makefile renames the text of csrc/NAME.c to a section core_NAME, whose
 * bounds the linker names, and has callsites.sh list the relocations of that section against libc.
 * So the list is complete by construction: a call that is added to csrc is in it.
 */
#ifndef CALLSITES_H
#define CALLSITES_H

#include <stddef.h>
#include <stdint.h>

struct core_text {
    const char *file; /* without csrc/ and .c */
    const char *start, *end;
};

struct call_site {
    const char *file;
    const char *name;
    uintptr_t back; /* where it returns to, from the start of the file's text */
};

extern const struct core_text CORE_TEXTS[];
extern const struct call_site CALL_SITES[];
extern const size_t NCORE_TEXTS, NCALL_SITES;

#endif
