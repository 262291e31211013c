/*
 * support.h: real sockets and real netns for the tests.
 *
 * Everything that is made here is close-on-exec and belongs to the caller; what fails ends the
 * test.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include "pyztun.h"

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

/* ---- sockets ---- */

void unix_pair(int type, int ends[2]);

/* A Unix listener at a path in test_dir(), or, where NAME is NULL, at an abstract address of the
 * kernel's choice, which leaves no file. */
int unix_listener(const char *name, int type, int backlog);
int dial(int listener);

/* A non-blocking TCP listener on 127.0.0.1 with a port of the kernel's choice. */
int tcp_listener(void);
int dial_tcp(int listener);

/* Sends all, with FDS on the first byte. */
void say(int sock, const void *data, size_t size, const int *fds, size_t nfds);

/* Waits for EVENTS (poll) for at most 5 s; returns what came. */
short await(int fd, short events);

/* Reads until SIZE bytes came or the end; an end by ECONNRESET or ENOTCONN counts as 0. Returns how
 * much was read; *error says how it ended: 0 at the end of the stream or when SIZE is reached. */
size_t hear(int sock, void *buffer, size_t size, int *error);

bool is_cloexec(int fd);
bool is_same_file(int one, int other);

/* ---- namespaces ---- */

/* A fresh netns with loopback up. */
int new_pod(void);

/* The inode of a netns: of an fd, of the calling thread, of the main thread. */
uint64_t netns_of(int fd);
uint64_t netns_here(void);
uint64_t netns_of_main(void);

/* The netns to which a socket belongs (SIOCGSKNS). */
uint64_t netns_of_socket(int sock);

/* Runs BODY(ARGUMENT) in a thread that lives in NETNS, to its end. */
void visit(int netns, void (*body)(void *), void *argument);

/* A listener on 127.0.0.1:PORT as the seed form asks for it. */
struct pz_listener on_loopback(uint16_t port);
/* The same on ::1. */
struct pz_listener on_loopback6(uint16_t port);
uint16_t port_of(int sock);

/* ---- forks ---- */

struct copies {
    int client;
    int gate[2]; /* the child ends when the test closes [1] */
};

/* A fork of the process has every connection too, and keeps what we close open. */
void keep_copies(void *copies);

/* ---- time ---- */

int64_t clock_ms(void);

#endif
