/*
 * sabotage.c: one fault in libc, for LD_PRELOAD.  SABOTAGE names it; without it nothing changes.
 *
 * Independent of how pyztun-ztunnel is written: whatever it calls, the kernel's part of it is not
 * done, or is done otherwise, and the program believes that all went well.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NSFS 0x6e736673

static int is(const char *fault)
{
    const char *asked = getenv("SABOTAGE");
    return asked != NULL && strcmp(asked, fault) == 0;
}

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* Of the main thread, which never leaves home. */
static int is_home(int fd)
{
    struct stat home, other;
    return stat("/proc/self/ns/net", &home) == 0 && fstat(fd, &other) == 0 &&
           home.st_ino == other.st_ino;
}

static int is_netns(int fd)
{
    struct statfs filesystem;
    return fstatfs(fd, &filesystem) == 0 && filesystem.f_type == NSFS;
}

static int is_tcp_listener(int fd)
{
    int family = 0, listening = 0;
    socklen_t size = sizeof(int);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) == 0 &&
           (family == AF_INET || family == AF_INET6) &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening;
}

int setns(int fd, int type)
{
    static __thread int away;

    if (is("dies in the pod") && !is_home(fd))
        _exit(9);
    if (is("listens at home") && !is_home(fd))
        return 0;
    if (is("stays in the pod") && is_home(fd) && away)
        return 0;
    away = !is_home(fd);
    return ((int (*)(int, int))real("setns"))(fd, type);
}

/* ztunnel's, to the address of a client: no listener binds port 0. */
static int is_source(const struct sockaddr *address)
{
    return (address->sa_family == AF_INET || address->sa_family == AF_INET6) &&
           ((const struct sockaddr_in *)address)->sin_port == 0;
}

int bind(int fd, const struct sockaddr *address, socklen_t size)
{
    struct sockaddr_in other;
    struct sockaddr_in6 other6;
    struct sockaddr_nl deaf = {.nl_family = AF_NETLINK};

    if (is("own source") && is_source(address))
        return 0;
    if (is("hears no news") && address->sa_family == AF_NETLINK)
        address = (const struct sockaddr *)&deaf;
    if (address->sa_family == AF_INET6 && size == sizeof other6) {
        memcpy(&other6, address, sizeof other6);
        if (is("another port") && other6.sin6_port == htons(15008))
            other6.sin6_port = htons(15002);
        address = (const struct sockaddr *)&other6;
    }
    if (address->sa_family == AF_INET && size == sizeof other) {
        memcpy(&other, address, sizeof other);
        if (is("another port") && other.sin_port == htons(15008))
            other.sin_port = htons(15002);
        if (is("every address"))
            other.sin_addr.s_addr = htonl(INADDR_ANY);
        address = (const struct sockaddr *)&other;
    }
    return ((int (*)(int, const struct sockaddr *, socklen_t))real("bind"))(fd, address, size);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    typedef int call(int, struct sockaddr *, socklen_t *, int);
    int accepted = ((call *)real("accept4"))(fd, address, size, flags);

    if (accepted >= 0 && is("says nothing") && is_tcp_listener(fd)) {
        const struct linger gently = {0}; /* no RST, which is what an accepted socket inherits */
        setsockopt(accepted, SOL_SOCKET, SO_LINGER, &gently, sizeof gently);
        close(accepted);
        return ((call *)real("accept4"))(fd, address, size, flags);
    }
    return accepted;
}

/* Keeps open what the program believes to have closed. */
int close(int fd)
{
    static int listeners;

    if (is("keeps the fd") && is_netns(fd) && !is_home(fd))
        return 0;
    if (is_tcp_listener(fd)) {
        listeners++;
        if (is("keeps listening") || (is("keeps the second pod") && listeners > 3))
            return 0;
    }
    return ((int (*)(int))real("close"))(fd);
}
