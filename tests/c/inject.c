/*
 * inject.c: see inject.h. The counters are atomic: helper threads of the core count too.
 */
#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static struct {
    atomic_int calls;
    atomic_int nth; /* 0: never */
    atomic_int error;
    _Atomic(void (*)(void)) hook;
} armed[CALLS];

static _Atomic(bool (*)(enum call, const void *, int *)) judge;

void at_every_call(bool (*fails)(enum call, const void *, int *))
{
    atomic_store(&judge, fails);
}

void at_call(enum call call, void (*hook)(void))
{
    atomic_store(&armed[call].hook, hook);
}

void inject(enum call call, int nth, int error)
{
    atomic_store(&armed[call].nth, 0);
    atomic_store(&armed[call].calls, 0);
    atomic_store(&armed[call].error, error);
    atomic_store(&armed[call].nth, nth);
}

void inject_nothing(void)
{
    for (int call = 0; call < CALLS; call++)
        inject((enum call)call, 0, 0);
}

int calls_of(enum call call)
{
    return atomic_load(&armed[call].calls);
}

static bool fails(enum call call, const void *back)
{
    int now = atomic_fetch_add(&armed[call].calls, 1) + 1, error = 0;
    void (*hook)(void) = atomic_load(&armed[call].hook);
    bool (*asked)(enum call, const void *, int *) = atomic_load(&judge);

    if (hook != NULL)
        hook();
    if (asked != NULL && asked(call, back, &error)) {
        errno = error;
        return true;
    }
    if (now != atomic_load(&armed[call].nth))
        return false;
    errno = atomic_load(&armed[call].error);
    return true;
}

#define FAILS(call) fails(call, __builtin_return_address(0))

#define WRAP(call, type, name, parameters, failed, ...)             \
    type __real_##name parameters;                                  \
    type __wrap_##name parameters;                                  \
    type __wrap_##name parameters                                   \
    {                                                               \
        return FAILS(call) ? (failed) : __real_##name(__VA_ARGS__); \
    }

WRAP(CALL_ACCEPT4, int, accept4, (int s, struct sockaddr *a, socklen_t *n, int f), -1, s, a, n, f)
WRAP(CALL_BIND, int, bind, (int s, const struct sockaddr *a, socklen_t n), -1, s, a, n)
WRAP(CALL_CALLOC, void *, calloc, (size_t n, size_t size), NULL, n, size)
WRAP(CALL_CONNECT, int, connect, (int s, const struct sockaddr *a, socklen_t n), -1, s, a, n)
WRAP(CALL_EPOLL_CREATE1, int, epoll_create1, (int flags), -1, flags)
WRAP(CALL_EPOLL_CTL, int, epoll_ctl, (int e, int op, int fd, struct epoll_event *v), -1, e, op, fd,
     v)
WRAP(CALL_EPOLL_WAIT, int, epoll_wait, (int e, struct epoll_event *v, int n, int ms), -1, e, v, n,
     ms)
WRAP(CALL_EVENTFD, int, eventfd, (unsigned n, int flags), -1, n, flags)
WRAP(CALL_FLOCK, int, flock, (int fd, int operation), -1, fd, operation)
WRAP(CALL_FSTAT, int, fstat, (int fd, struct stat *file), -1, fd, file)
WRAP(CALL_FSTATFS, int, fstatfs, (int fd, struct statfs *fs), -1, fd, fs)
WRAP(CALL_GETSOCKNAME, int, getsockname, (int s, struct sockaddr *a, socklen_t *n), -1, s, a, n)
WRAP(CALL_GETSOCKOPT, int, getsockopt, (int s, int l, int o, void *v, socklen_t *n), -1, s, l, o, v,
     n)
WRAP(CALL_LISTEN, int, listen, (int s, int backlog), -1, s, backlog)
WRAP(CALL_MALLOC, void *, malloc, (size_t size), NULL, size)
WRAP(CALL_MKDIR, int, mkdir, (const char *path, mode_t mode), -1, path, mode)
WRAP(CALL_MOUNT, int, mount,
     (const char *from, const char *to, const char *type, unsigned long f, const void *data), -1,
     from, to, type, f, data)
WRAP(CALL_PIPE2, int, pipe2, (int ends[2], int flags), -1, ends, flags)
/* Armed with error 0 it says that time is up. */
WRAP(CALL_POLL, int, poll, (struct pollfd * fds, nfds_t n, int ms), errno == 0 ? 0 : -1, fds, n, ms)
WRAP(CALL_READ, ssize_t, read, (int fd, void *to, size_t n), -1, fd, to, n)
WRAP(CALL_REALLOC, void *, realloc, (void *old, size_t size), NULL, old, size)
WRAP(CALL_RECV, ssize_t, recv, (int s, void *to, size_t n, int flags), -1, s, to, n, flags)
WRAP(CALL_RECVMSG, ssize_t, recvmsg, (int s, struct msghdr *m, int flags), -1, s, m, flags)
WRAP(CALL_SEND, ssize_t, send, (int s, const void *from, size_t n, int flags), -1, s, from, n,
     flags)
WRAP(CALL_SENDMSG, ssize_t, sendmsg, (int s, const struct msghdr *m, int flags), -1, s, m, flags)
WRAP(CALL_SETNS, int, setns, (int fd, int kind), -1, fd, kind)
WRAP(CALL_SHUTDOWN, int, shutdown, (int s, int how), -1, s, how)
WRAP(CALL_SOCKET, int, socket, (int family, int type, int protocol), -1, family, type, protocol)
WRAP(CALL_SPLICE, ssize_t, splice,
     (int from, off64_t *at, int to, off64_t *there, size_t n, unsigned flags), -1, from, at, to,
     there, n, flags)
WRAP(CALL_STATX, int, statx, (int d, const char *p, int f, unsigned m, struct statx *s), -1, d, p,
     f, m, s)
WRAP(CALL_UMOUNT2, int, umount2, (const char *path, int flags), -1, path, flags)
WRAP(CALL_UNLINK, int, unlink, (const char *path), -1, path)
WRAP(CALL_UNSHARE, int, unshare, (int kinds), -1, kinds)
WRAP(CALL_WRITE, ssize_t, write, (int fd, const void *from, size_t n), -1, fd, from, n)
WRAP(CALL_PTHREAD_CREATE, int, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument),
     errno, thread, attributes, body, argument)

static _Thread_local int option;

int option_asked(void)
{
    return option;
}

int __real_setsockopt(int s, int l, int o, const void *v, socklen_t n);
int __wrap_setsockopt(int s, int l, int o, const void *v, socklen_t n);
int __wrap_setsockopt(int s, int l, int o, const void *v, socklen_t n)
{
    option = o;
    return FAILS(CALL_SETSOCKOPT) ? -1 : __real_setsockopt(s, l, o, v, n);
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    if (!FAILS(CALL_CLOSE))
        return __real_close(fd);
    int error = errno;
    __real_close(fd);
    errno = error;
    return -1;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    mode_t mode = 0;

    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return FAILS(CALL_OPEN) ? -1 : __real_open(path, flags, mode);
}

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...)
{
    int argument = 0;

    if (command != F_GETFL && command != F_GETFD) {
        va_list rest;
        va_start(rest, command);
        argument = va_arg(rest, int);
        va_end(rest);
    }
    return FAILS(CALL_FCNTL) ? -1 : __real_fcntl(fd, command, argument);
}

/* Where a command takes no argument, whatever is in the register goes on to the kernel, unread. */
int __real_ioctl(int fd, unsigned long command, ...);
int __wrap_ioctl(int fd, unsigned long command, ...);
int __wrap_ioctl(int fd, unsigned long command, ...)
{
    va_list rest;

    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return FAILS(CALL_IOCTL) ? -1 : __real_ioctl(fd, command, argument);
}

/* Three arguments are what the core uses; where it gives fewer the kernel reads none. */
long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    va_list rest;

    va_start(rest, number);
    long first = va_arg(rest, long), second = va_arg(rest, long), third = va_arg(rest, long);
    va_end(rest);
    return FAILS(CALL_SYSCALL) ? -1 : __real_syscall(number, first, second, third);
}

static const char *const NAMES[CALLS] = {
    [CALL_ACCEPT4] = "accept4",
    [CALL_BIND] = "bind",
    [CALL_CALLOC] = "calloc",
    [CALL_CLOSE] = "close",
    [CALL_CONNECT] = "connect",
    [CALL_EPOLL_CREATE1] = "epoll_create1",
    [CALL_EPOLL_CTL] = "epoll_ctl",
    [CALL_EPOLL_WAIT] = "epoll_wait",
    [CALL_EVENTFD] = "eventfd",
    [CALL_FCNTL] = "fcntl",
    [CALL_FLOCK] = "flock",
    [CALL_FSTAT] = "fstat",
    [CALL_FSTATFS] = "fstatfs",
    [CALL_GETSOCKNAME] = "getsockname",
    [CALL_GETSOCKOPT] = "getsockopt",
    [CALL_IOCTL] = "ioctl",
    [CALL_LISTEN] = "listen",
    [CALL_MALLOC] = "malloc",
    [CALL_MKDIR] = "mkdir",
    [CALL_MOUNT] = "mount",
    [CALL_OPEN] = "open",
    [CALL_PIPE2] = "pipe2",
    [CALL_POLL] = "poll",
    [CALL_PTHREAD_CREATE] = "pthread_create",
    [CALL_READ] = "read",
    [CALL_REALLOC] = "realloc",
    [CALL_RECV] = "recv",
    [CALL_RECVMSG] = "recvmsg",
    [CALL_SEND] = "send",
    [CALL_SENDMSG] = "sendmsg",
    [CALL_SETNS] = "setns",
    [CALL_SETSOCKOPT] = "setsockopt",
    [CALL_SHUTDOWN] = "shutdown",
    [CALL_SOCKET] = "socket",
    [CALL_SPLICE] = "splice",
    [CALL_STATX] = "statx",
    [CALL_SYSCALL] = "syscall",
    [CALL_UMOUNT2] = "umount2",
    [CALL_UNLINK] = "unlink",
    [CALL_UNSHARE] = "unshare",
    [CALL_WRITE] = "write",
};

const char *call_name(enum call call)
{
    return NAMES[call];
}
