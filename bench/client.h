/*
 * client.h: what the files of the client share.
 */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

/* Sleeps. */
void rest(long us);

/* The words behind "agent"; see client_zds.c. Returns the exit status. */
int be_agent(int argc, char **argv);

#endif
