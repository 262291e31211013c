/*
 * listen.c: turns a socket into the listener that was asked for.
 *
 * Theory of operation: this runs at home on a socket that belongs to a pod. The kernel checks
 * privilege against the owner of the socket's netns, not against where the caller stands, so each
 * option works from here exactly as it would from inside. An option that was not asked for costs no
 * syscall, except IPV6_V6ONLY, which is always set: its default is the pod's sysctl
 * net.ipv6.bindv6only.
 */
#include "internal.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

struct option {
    uint32_t flag;
    enum pz_step step;
    int level[2]; /* IPv4, IPv6 */
    int name[2];
};

static const struct option OPTIONS[] = {
    {PZ_REUSEADDR, PZ_STEP_SO_REUSEADDR, {SOL_SOCKET, SOL_SOCKET}, {SO_REUSEADDR, SO_REUSEADDR}},
    {PZ_REUSEPORT, PZ_STEP_SO_REUSEPORT, {SOL_SOCKET, SOL_SOCKET}, {SO_REUSEPORT, SO_REUSEPORT}},
    {PZ_TRANSPARENT,
     PZ_STEP_TRANSPARENT,
     {IPPROTO_IP, IPPROTO_IPV6},
     {IP_TRANSPARENT, PZ_IPV6_TRANSPARENT}},
    {PZ_FREEBIND, PZ_STEP_FREEBIND, {IPPROTO_IP, IPPROTO_IPV6}, {IP_FREEBIND, PZ_IPV6_FREEBIND}},
};

int pz_set_int(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value) == -1 ? -errno : 0;
}

static int set_options(int fd, const struct pz_listener *wanted, int index,
                       struct pz_failure *failure)
{
    int six = wanted->family == 6;

    for (size_t i = 0; i < sizeof OPTIONS / sizeof OPTIONS[0]; i++) {
        const struct option *option = &OPTIONS[i];
        if (!(wanted->flags & option->flag))
            continue;
        int rc = pz_set_int(fd, option->level[six], option->name[six], 1);
        if (rc < 0)
            return pz_fail(failure, option->step, index, -rc);
    }
    if (six) {
        int rc = pz_set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, wanted->flags & PZ_V6ONLY ? 1 : 0);
        if (rc < 0)
            return pz_fail(failure, PZ_STEP_V6ONLY, index, -rc);
    }
    if (wanted->mark != 0 &&
        setsockopt(fd, SOL_SOCKET, SO_MARK, &wanted->mark, sizeof wanted->mark) == -1)
        return pz_fail(failure, PZ_STEP_SO_MARK, index, errno);
    return 0;
}

static int bind_to(int fd, const struct pz_listener *wanted)
{
    if (wanted->family == 4) {
        struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(wanted->port)};
        memcpy(&four.sin_addr, wanted->address, sizeof four.sin_addr);
        return bind(fd, (const struct sockaddr *)&four, sizeof four);
    }
    struct sockaddr_in6 six = {
        .sin6_family = AF_INET6,
        .sin6_port = htons(wanted->port),
        .sin6_scope_id = wanted->scope_id,
    };
    memcpy(&six.sin6_addr, wanted->address, sizeof six.sin6_addr);
    return bind(fd, (const struct sockaddr *)&six, sizeof six);
}

int pz_make_listening(int fd, const struct pz_listener *wanted, int index,
                      struct pz_failure *failure)
{
    int rc = set_options(fd, wanted, index, failure);

    if (rc < 0)
        return rc;
    if (bind_to(fd, wanted) == -1)
        return pz_fail(failure, PZ_STEP_BIND, index, errno);
    if (!(wanted->flags & PZ_DGRAM) && listen(fd, wanted->backlog) == -1)
        return pz_fail(failure, PZ_STEP_LISTEN, index, errno);
    return 0;
}

int pz_is_listening(int sock)
{
    int listens = 0;
    socklen_t size = sizeof listens;

    return getsockopt(sock, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == -1 ? -errno : listens;
}
