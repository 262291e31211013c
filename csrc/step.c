/*
 * step.c: the names of the steps, in one place.
 *
 * Theory of operation: the switch has no default, so that -Wswitch reports a step without a name.
 */
#include "internal.h"

const char *pz_step_name(int step)
{
    switch ((enum pz_step)step) {
    case PZ_STEP_NONE: return "call";
    case PZ_STEP_ARGUMENT: return "argument";
    case PZ_STEP_OPEN_HOME: return "open(/proc/thread-self/ns/net)";
    case PZ_STEP_PROVE_HOME: return "setns(home)";
    case PZ_STEP_SETNS: return "setns";
    case PZ_STEP_SOCKET: return "socket";
    case PZ_STEP_SO_REUSEADDR: return "setsockopt(SO_REUSEADDR)";
    case PZ_STEP_SO_REUSEPORT: return "setsockopt(SO_REUSEPORT)";
    case PZ_STEP_TRANSPARENT: return "setsockopt(IP_TRANSPARENT)";
    case PZ_STEP_FREEBIND: return "setsockopt(IP_FREEBIND)";
    case PZ_STEP_V6ONLY: return "setsockopt(IPV6_V6ONLY)";
    case PZ_STEP_SO_MARK: return "setsockopt(SO_MARK)";
    case PZ_STEP_BIND: return "bind";
    case PZ_STEP_LISTEN: return "listen";
    case PZ_STEP_COOKIE: return "getsockopt(SO_NETNS_COOKIE)";
    case PZ_STEP_THREAD: return "pthread_create";
    case PZ_STEP_UNSHARE: return "unshare(CLONE_NEWNET)";
    case PZ_STEP_LOOPBACK: return "ioctl(SIOCSIFFLAGS)";
    case PZ_STEP_MKDIR: return "mkdir";
    case PZ_STEP_CREATE: return "open(O_CREAT)";
    case PZ_STEP_MOUNT: return "mount";
    }
    return "call";
}
