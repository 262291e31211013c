/*
 * faults.h: the operations of the core in which every call fails once, by subject.
 */
#ifndef FAULTS_H
#define FAULTS_H

#include "sweep.h"

struct scenarios {
    const struct scenario *all;
    size_t n;
};

struct scenarios message_scenarios(void); /* fdpass.c */
struct scenarios netns_scenarios(void);   /* netns.c, visit.c, listen.c, netns_create.c */
struct scenarios service_scenarios(void); /* handoff.c, responder.c, closer.c */
struct scenarios zds_scenarios(void);     /* zds.c */
struct scenarios relay_scenarios(void);   /* relay*.c */

/* What all of them use: a captured pod. Skips the test where there can be none. */
void prepare_relay_faults(void);
void end_relay_faults(void);

#endif
