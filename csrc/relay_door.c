/*
 * relay_door.c: a listener in a pod is ready: accept, find out whereto, connect.
 *
 * Theory of operation
 *
 * Every thread waits for every listener, with EPOLLEXCLUSIVE: the kernel wakes one of those that
 * sleep, which accepts one connection and keeps it. Level-triggered epoll repeats what is left.
 *
 * REDIRECT has translated the destination to our port; conntrack knows the original one and tells
 * it of the accepted socket (SO_ORIGINAL_DST), in the family of the packets: a v4 client on a
 * dual-stack listener is asked for at level IP.
 *
 * The outgoing socket is made in the pod, by the same rule as everywhere: between setns() there
 * and setns() home only socket(). It is marked, so that the pod's rules leave it alone; one that
 * cannot be marked would be redirected to us again, and is not made. Inbound it takes the client's
 * address (IP_TRANSPARENT allows one that is not ours, IP_BIND_ADDRESS_NO_PORT has connect()
 * choose the port, by the whole tuple), so that the application sees who calls.
 *
 * When descriptors run out accept() fails and the listener stays ready: epoll would report it for
 * ever. So this thread leaves the listener for PAUSE_MS; the kernel's queue keeps the clients. Who
 * had to leave first is back first: else one pod would get every place that is free again.
 */
#include "relay_internal.h"

#include <netinet/tcp.h>
#include <string.h>

/* linux/in.h and linux/netfilter_ipv4.h; kernel ABI, not in every libc's headers. */
enum {
    PAUSE_MS = 100,
    ORIGINAL_DST = 80, /* SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST */
    NO_PORT = 24,      /* IP_BIND_ADDRESS_NO_PORT, for both families at level IP */
};

union any_address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static bool is_mapped(const union any_address *a)
{
    return a->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->six.sin6_addr);
}

/* ::ffff:1.2.3.4 is 1.2.3.4. */
static void unmap(union any_address *a)
{
    if (!is_mapped(a))
        return;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = a->six.sin6_port};
    memcpy(&four.sin_addr, &a->six.sin6_addr.s6_addr[12], sizeof four.sin_addr);
    a->four = four;
}

static struct pz_address plain(const union any_address *a)
{
    struct pz_address out = {.family = 6, .port = ntohs(a->six.sin6_port)};

    if (a->any.sa_family == AF_INET) {
        out.family = 4;
        memcpy(out.ip, &a->four.sin_addr, sizeof a->four.sin_addr);
    } else {
        memcpy(out.ip, &a->six.sin6_addr, sizeof a->six.sin6_addr);
    }
    return out;
}

static bool same_ip(const struct pz_address *one, const struct pz_address *other)
{
    return one->family == other->family &&
           memcmp(one->ip, other->ip, one->family == 4 ? 4 : 16) == 0;
}

static socklen_t size_of(const union any_address *a)
{
    return a->any.sa_family == AF_INET ? sizeof a->four : sizeof a->six;
}

void pz_door_options(int fd)
{
    pz_set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    pz_set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    pz_set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 180);
    pz_set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, 180);
    pz_set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 9);
    pz_reset_on_close(fd, true);
}

/* What was in the listener's queue before it had them, which may be long ago, has none. SO_LINGER
 * is the last one. */
static bool has_options(int fd)
{
    struct linger linger = {.l_onoff = 0};
    socklen_t size = sizeof linger;

    return getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0 && linger.l_onoff;
}

/* ---- who, and whereto ---- */

/* False: conntrack does not know it. */
static bool original_destination(int fd, bool six, union any_address *destination)
{
    socklen_t size = sizeof *destination;

    memset(destination, 0, sizeof *destination);
    return getsockopt(fd, six ? IPPROTO_IPV6 : IPPROTO_IP, ORIGINAL_DST, destination, &size) == 0;
}

/* Whether the pod has that address: bind() takes no other, unless a sysctl of the pod lets it, and
 * then what may be a loop is taken for one. */
static bool is_own_address(int fd, const union any_address *address)
{
    union any_address any_port = *address;

    any_port.six.sin6_port = 0; /* where struct sockaddr_in has its port, too */
    return bind(fd, &any_port.any, size_of(&any_port)) == 0 || errno != EADDRNOTAVAIL;
}

static bool is_where_it_arrived(int fd, const struct pz_address *destination)
{
    union any_address here = {.six = {0}};
    socklen_t size = sizeof here;

    if (getsockname(fd, &here.any, &size) == -1)
        return true; /* refuse rather than loop */
    unmap(&here);
    struct pz_address local = plain(&here);
    return same_ip(&local, destination) && local.port == destination->port;
}

static bool is_capture_port(const struct pz_pod *pod, uint16_t port)
{
    for (size_t i = 0; i < pod->n; i++)
        if (pod->doors[i].port == port)
            return true;
    return false;
}

/* ---- the way out ---- */

static int make_socket(const struct thread *t, const struct pz_pod *pod, int family)
{
    return pz_socket(pod->netns_fd, t->relay->home_fd, family, SOCK_STREAM | SOCK_NONBLOCK, 0,
                     NULL);
}

/* Returns 0, or -errno: not without privilege. */
static int set_up_destination(const struct thread *t, int fd)
{
    uint32_t mark = t->relay->settings.mark;

    if (mark != 0 && setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) == -1)
        return -errno;
    pz_door_options(fd);
    return 0;
}

/* Takes the source's address; *own_source where that did not work. Returns 0 or -errno. */
static int take_source(int fd, const union any_address *source, uint16_t *own_source)
{
    bool six = source->any.sa_family == AF_INET6;
    union any_address any_port = *source;

    int rc = pz_set_int(fd, six ? IPPROTO_IPV6 : IPPROTO_IP,
                        six ? PZ_IPV6_TRANSPARENT : IP_TRANSPARENT, 1);
    if (rc < 0)
        return rc;
    pz_set_int(fd, six ? IPPROTO_IPV6 : IPPROTO_IP, six ? PZ_IPV6_FREEBIND : IP_FREEBIND, 1);
    pz_set_int(fd, IPPROTO_IP, NO_PORT, 1);
    any_port.six.sin6_port = 0;
    *own_source = bind(fd, &any_port.any, size_of(&any_port)) == -1;
    return 0;
}

static void end_unprivileged(struct thread *t, struct flow *flow, int rc)
{
    pz_flow_end(t, flow, rc == -EPERM ? PZ_END_NO_MARK : PZ_END_BROKEN, -rc);
}

/* From here on the flow owns both sockets. */
static void call_destination(struct thread *t, struct flow *flow, int fd,
                             const union any_address *source, const union any_address *destination)
{
    int rc = set_up_destination(t, fd);

    /* A pod that calls itself has its own address anyway. */
    if (rc == 0 && flow->kind == PZ_DOOR_INBOUND && !same_ip(&flow->source, &flow->destination))
        rc = take_source(fd, source, &flow->own_source);
    if (rc == 0 && connect(fd, &destination->any, size_of(destination)) == -1 &&
        errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        pz_flow_end(t, flow, PZ_END_CONNECT_FAILED, error);
    } else if (rc < 0) {
        close(fd);
        end_unprivileged(t, flow, rc);
    } else {
        pz_flow_connecting(t, flow, fd);
    }
}

static void serve(struct thread *t, struct place *place, int fd, union any_address *source)
{
    const struct door *door = place->door;
    union any_address destination;

    if (!has_options(fd))
        pz_door_options(fd);
    struct flow *flow = pz_flow_new(t, place, fd);
    if (flow == NULL)
        return;
    bool six = source->any.sa_family == AF_INET6 && !is_mapped(source);
    unmap(source);
    flow->source = plain(source);
    struct meeting meeting = {.kind = door->kind};
    meeting.is_tracked = original_destination(fd, six, &destination);
    if (meeting.is_tracked) {
        flow->destination = plain(&destination);
        meeting.is_capture_port = is_capture_port(door->pod, flow->destination.port);
    }
    if (meeting.is_capture_port)
        meeting.is_unchanged = is_where_it_arrived(fd, &flow->destination);
    enum pz_end verdict = pz_relay_verdict(&meeting);
    if (verdict != PZ_END_COMPLETE) {
        pz_flow_end(t, flow, verdict, 0);
        return;
    }
    int out = make_socket(t, door->pod, destination.any.sa_family);
    if (out < 0) {
        pz_flow_end(t, flow, PZ_END_BROKEN, -out);
        return;
    }
    if (meeting.is_capture_port) {
        meeting.is_own_address = is_own_address(out, &destination);
        verdict = pz_relay_verdict(&meeting);
        if (verdict != PZ_END_COMPLETE) {
            close(out);
            pz_flow_end(t, flow, verdict, 0);
            return;
        }
    }
    call_destination(t, flow, out, source, &destination);
}

/* ---- the listener ---- */

void pz_door_leave(struct thread *t, struct place *place)
{
    if (place->is_left)
        return;
    place->is_left = true;
    epoll_ctl(t->epoll, EPOLL_CTL_DEL, place->door->listener, NULL);
    for (struct place **at = &t->paused; *at != NULL; at = &(*at)->next_paused)
        if (*at == place) {
            *at = place->next_paused;
            if (t->paused_end == &place->next_paused)
                t->paused_end = at;
            break;
        }
    place->is_paused = false;
}

/* Root in the pod has destroyed the listener (ss -K): whoever reads the journal sees to it. */
static void lose_door(struct thread *t, struct place *place)
{
    pz_door_leave(t, place);
    pz_count(&t->counters.lost_listeners, 1);
    pz_journal_wake(t->relay->journal);
}

/* WHY: the counter of such pauses, of which the reader tells. Of a listener that was destroyed
 * accept() would tell, but only where there is room. */
static void pause_door(struct thread *t, struct place *place, _Atomic uint64_t *why)
{
    if (pz_is_listening(place->door->listener) == 0) {
        lose_door(t, place);
        return;
    }
    epoll_ctl(t->epoll, EPOLL_CTL_DEL, place->door->listener, NULL);
    if (place->is_paused)
        return;
    place->is_paused = true;
    place->next_paused = NULL;
    if (t->paused == NULL)
        t->resume_ms = t->now_ms + PAUSE_MS;
    *t->paused_end = place;
    t->paused_end = &place->next_paused;
    pz_count(why, 1);
    pz_journal_wake(t->relay->journal);
}

void pz_door_resume(struct thread *t)
{
    struct place *paused = t->paused;

    t->paused = NULL;
    t->paused_end = &t->paused;
    while (paused != NULL) {
        struct place *next = paused->next_paused;
        struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = paused};
        paused->is_paused = false;
        if (epoll_ctl(t->epoll, EPOLL_CTL_ADD, paused->door->listener, &event) == -1)
            pause_door(t, paused, &t->counters.paused);
        paused = next;
    }
}

bool pz_door_ready(struct thread *t, struct place *place)
{
    union any_address source;
    socklen_t size = sizeof source;
    struct pz_pod *pod = place->door->pod;

    if (!pz_place_take(t->relay, pod)) {
        atomic_store(&t->relay->held_back_pod, pod->id);
        pause_door(t, place, &t->counters.held_back);
        return false;
    }
    memset(&source, 0, sizeof source);
    int fd = accept4(place->door->listener, &source.any, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        serve(t, place, fd, &source);
        return true;
    }
    int error = errno;
    pz_place_leave(t->relay, pod);
    if (error == EAGAIN)
        return false;
    if (error == EINTR || error == ECONNABORTED)
        return true;
    if (error == EINVAL)
        lose_door(t, place);
    else /* no descriptors, no memory; what may last, and epoll would repeat for ever */
        pause_door(t, place, &t->counters.paused);
    return false;
}
