/*
 * inject.h: makes the Nth call of a libc function fail.
 *
 * Theory of operation: the linker's --wrap=NAME sends every call of NAME from our objects to
 * __wrap_NAME, which counts and either fails or calls the real one. Calls inside libc are not
 * touched. The list of names for the linker is in the Makefile. A close() that fails has closed
 * all the same, as Linux does.
 */
#ifndef INJECT_H
#define INJECT_H

#include <stdbool.h>

enum call {
    CALL_ACCEPT4,
    CALL_BIND,
    CALL_CALLOC,
    CALL_CLOSE,
    CALL_CONNECT,
    CALL_EPOLL_CREATE1,
    CALL_EPOLL_CTL,
    CALL_EPOLL_WAIT,
    CALL_EVENTFD,
    CALL_FCNTL,
    CALL_FLOCK,
    CALL_FSTAT,
    CALL_FSTATFS,
    CALL_GETSOCKNAME,
    CALL_GETSOCKOPT,
    CALL_IOCTL,
    CALL_LISTEN,
    CALL_MALLOC,
    CALL_MKDIR,
    CALL_MOUNT,
    CALL_OPEN,
    CALL_PIPE2,
    CALL_POLL,
    CALL_PTHREAD_CREATE,
    CALL_READ,
    CALL_REALLOC,
    CALL_RECV,
    CALL_RECVMSG,
    CALL_SEND,
    CALL_SENDMSG,
    CALL_SETNS,
    CALL_SETSOCKOPT,
    CALL_SHUTDOWN,
    CALL_SOCKET,
    CALL_SPLICE,
    CALL_STATX,
    CALL_SYSCALL,
    CALL_UMOUNT2,
    CALL_UNLINK,
    CALL_UNSHARE,
    CALL_WRITE,
    CALLS
};

/* From now on counts; the NTH call (from 1) of CALL fails with ERROR. Several calls may be armed.
 */
void inject(enum call call, int nth, int error);

/* From now on HOOK runs before each call of CALL, in the thread that makes it. NULL: no more. */
void at_call(enum call call, void (*hook)(void));

/* From now on FAILS is asked about every call, with the address to which it returns; true: it fails
 * with *ERROR. NULL: no more. */
void at_every_call(bool (*fails)(enum call call, const void *back, int *error));

/* Where at_every_call() asks about a setsockopt(): its option. */
int option_asked(void);

/* The libc function, such as "accept4". */
const char *call_name(enum call call);

/* Nothing fails any more; counts from 0. */
void inject_nothing(void);

/* How often CALL was made since inject_nothing(), or since it was armed. */
int calls_of(enum call call);

#endif
