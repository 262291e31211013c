/*
 * relay_site.c: see relay_site.h.
 */
#include "relay_site.h"

#include "relay_internal.h"

#include "harness.h"
#include "support.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

enum { PATIENCE_MS = 5000, STUCK_MS = 30, CHUNK = 64 * 1024 };

/* ---- the pod ---- */

static const char RULES[] =
    "table inet t {\n"
    "chain raw { type filter hook output priority -300; policy accept;\n"
    "  meta l4proto tcp meta mark & 0xfff == 0x539 ct original zone set 1337\n}\n"
    "chain nat { type nat hook output priority -101; policy accept;\n"
    "  meta mark & 0xfff == 0x539 accept\n"
    "  tcp dport 8000-8091 redirect to :15001\n"
    "  tcp dport 8100-8199 redirect to :15006\n"
    "  ip daddr { " LOOP_OUT ", " NOT_OURS " } tcp dport 15000-15099 redirect to :15001\n"
    "  ip daddr " LOOP_IN " tcp dport 15000-15099 redirect to :15006\n}\n"
    "chain deaf { type filter hook input priority 0; policy accept;\n"
    "  tcp dport 8091 meta mark & 0xfff == 0x539 reject with icmpx type host-unreachable\n"
    "  tcp dport 8090 drop\n}\n}\n";

static const char HEARING[] = "flush chain inet t deaf\n";

/* What runs in a process of its own, moved to a pod. */
struct errand {
    int netns;
    const char *text;
};

static _Noreturn void run_nft(const struct errand *errand)
{
    int ends[2];
    size_t size = strlen(errand->text);

    if (setns(errand->netns, CLONE_NEWNET) == -1 || pipe(ends) == -1 ||
        write(ends[1], errand->text, size) != (ssize_t)size || dup2(ends[0], 0) == -1)
        _exit(1);
    close(ends[0]);
    close(ends[1]);
    execlp("nft", "nft", "-f", "-", NULL);
    _exit(errno == ENOENT ? 77 : 1);
}

static int load(int netns, const char *text)
{
    struct errand errand = {netns, text};
    int status = 0;

    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        run_nft(&errand);
    CHECK_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void ask_nft(void *unused)
{
    (void)unused;
    if (freopen("/dev/null", "w", stdout) != NULL)
        execlp("nft", "nft", "--version", NULL);
    _exit(1);
}

bool has_nft(void)
{
    return in_child(ask_nft, NULL, NULL, 0) == 0;
}

static void set_four(struct sockaddr *out, const char *ip)
{
    struct sockaddr_in four = {.sin_family = AF_INET};

    CHECK_EQ(inet_pton(AF_INET, ip, &four.sin_addr), 1);
    memcpy(out, &four, sizeof four);
}

/* NOT_OURS is beyond lo, and lo has an address from which it can be called. */
static void lead_astray(void *unused)
{
    static char lo[] = "lo";
    struct ifreq alias = {.ifr_name = "lo:1"};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_HOST, .rt_dev = lo};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    (void)unused;
    set_four(&alias.ifr_addr, OUR_ADDRESS);
    set_four(&route.rt_dst, NOT_OURS);
    set_four(&route.rt_genmask, "255.255.255.255");
    CHECK_EQ(ioctl(sock, SIOCSIFADDR, &alias), 0);
    CHECK_EQ(ioctl(sock, SIOCADDRT, &route), 0);
    close(sock);
}

int new_captured_pod(void)
{
    need_namespaces();
    int netns = new_pod(), status = load(netns, RULES);

    visit(netns, lead_astray, NULL);

    if (status == 77)
        skip("there is no program nft");
    CHECK_EQ(status, 0);
    return netns;
}

void silence_ends(int netns)
{
    CHECK_EQ(load(netns, HEARING), 0);
}

static void put_in(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void shrink_sending(void *unused)
{
    (void)unused;
    put_in("/proc/sys/net/ipv4/tcp_wmem", "4096 65536 65536");
}

static void grow_sending(void *unused)
{
    (void)unused;
    put_in("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 4194304");
}

static void shrink(void *unused)
{
    put_in("/proc/sys/net/ipv4/tcp_rmem", "4096 65536 65536");
    shrink_sending(unused);
}

void shrink_buffers(int netns)
{
    visit(netns, shrink, NULL);
}

void shrink_send_buffers(int netns, bool are_small)
{
    visit(netns, are_small ? shrink_sending : grow_sending, NULL);
}

/* ---- addresses ---- */

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static union address address_of(const char *ip, uint16_t port, socklen_t *size)
{
    union address a = {.six = {0}};

    if (strchr(ip, ':') == NULL) {
        a.four.sin_family = AF_INET;
        a.four.sin_port = htons(port);
        CHECK_EQ(inet_pton(AF_INET, ip, &a.four.sin_addr), 1);
        *size = sizeof a.four;
    } else {
        a.six.sin6_family = AF_INET6;
        a.six.sin6_port = htons(port);
        CHECK_EQ(inet_pton(AF_INET6, ip, &a.six.sin6_addr), 1);
        *size = sizeof a.six;
    }
    return a;
}

bool is_address(const struct pz_address *address, const char *ip, uint16_t port)
{
    char text[INET6_ADDRSTRLEN] = "";

    inet_ntop(address->family == 4 ? AF_INET : AF_INET6, address->ip, text, sizeof text);
    return strcmp(text, ip) == 0 && address->port == port;
}

/* ---- the relay ---- */

struct pz_relay_settings relay_settings(void)
{
    return (struct pz_relay_settings){.threads = 2,
                                      .max_flows = 1000,
                                      .max_pipes = 4,
                                      .mark = RELAY_MARK,
                                      .connect_ms = PATIENCE_MS,
                                      .log = 1};
}

static int listener_in_pod(int netns, const char *ip, uint16_t port, uint32_t flags)
{
    struct pz_listener wanted = {
        .family = strchr(ip, ':') == NULL ? 4 : 6, .backlog = 128, .port = port};
    struct pz_failure failure = {0};
    int fd = -1;

    wanted.flags = flags | PZ_NONBLOCK;
    CHECK_EQ(inet_pton(wanted.family == 4 ? AF_INET : AF_INET6, ip, wanted.address), 1);
    CHECK_EQ(pz_listen(netns, -1, &wanted, 1, &fd, &failure), 0);
    return fd;
}

int serve_in_pod(int netns, const char *ip, uint16_t port)
{
    return listener_in_pod(netns, ip, port, PZ_REUSEADDR | PZ_V6ONLY);
}

void open_listeners(struct relay_site *site)
{
    static const struct {
        const char *ip;
        uint32_t flags;
        uint16_t kind, port;
    } doors[DOORS] = {
        {"0.0.0.0", 0, PZ_DOOR_OUTBOUND, OUTBOUND_PORT},
        {"::", PZ_V6ONLY, PZ_DOOR_OUTBOUND, OUTBOUND_PORT},
        {"::", 0, PZ_DOOR_INBOUND, INBOUND_PORT},
        {"0.0.0.0", 0, PZ_DOOR_HBONE, HBONE_PORT},
        {"::", 0, PZ_DOOR_SOCKS5, SOCKS5_PORT},
    };

    for (int i = 0; i < DOORS; i++)
        site->doors[i] = (struct pz_door){
            listener_in_pod(site->netns, doors[i].ip, doors[i].port, PZ_REUSEADDR | doors[i].flags),
            doors[i].kind, doors[i].port};
}

void close_listeners(const struct relay_site *site)
{
    for (int i = 0; i < DOORS; i++)
        close(site->doors[i].listener);
}

struct pz_relay *new_relay(const struct pz_relay_settings *settings)
{
    int error = 99;
    struct pz_relay *relay = pz_relay_new(settings, &error);

    CHECK_EQ(error, 0);
    CHECK(relay != NULL);
    return relay;
}

struct pz_pod *take_pod(const struct relay_site *site, uint64_t id, const char *name)
{
    int error = 99;
    struct pz_pod *pod =
        pz_relay_take(site->relay, site->netns, site->doors, DOORS, id, (const uint8_t *)name,
                      strlen(name), (const uint8_t *)"space", 5, &error);

    CHECK_EQ(error, 0);
    CHECK(pod != NULL);
    return pod;
}

struct relay_site open_relay_in(int netns, struct pz_relay_settings settings)
{
    struct relay_site site = {.netns = netns};

    open_listeners(&site);
    site.relay = new_relay(&settings);
    site.pod = take_pod(&site, POD_ID, "name");
    return site;
}

struct relay_site open_relay(struct pz_relay_settings settings)
{
    return open_relay_in(new_captured_pod(), settings);
}

void close_relay(struct relay_site *site)
{
    pz_relay_free(site->relay);
    close_listeners(site);
    close(site->netns);
}

/* ---- sockets in the pod ---- */

int socket_in_pod(int netns, const char *ip)
{
    int family = strchr(ip, ':') == NULL ? AF_INET : AF_INET6;
    int sock = pz_socket(netns, -1, family, SOCK_STREAM | SOCK_NONBLOCK, 0, NULL);

    CHECK(sock >= 0);
    return sock;
}

void call_with(int sock, const char *ip, uint16_t port)
{
    socklen_t size;
    union address a = address_of(ip, port, &size);

    CHECK(connect(sock, &a.any, size) == 0 || errno == EINPROGRESS);
}

int call_in_pod(int netns, const char *ip, uint16_t port)
{
    int sock = socket_in_pod(netns, ip);

    call_with(sock, ip, port);
    return sock;
}

int dial_in_pod(int netns, const char *ip, uint16_t port)
{
    int sock = call_in_pod(netns, ip, port);

    /* An error of it stays: SO_ERROR would take it away from whoever reads. */
    CHECK((await(sock, POLLOUT) & POLLOUT) != 0);
    return sock;
}

int answer_call(int listener)
{
    CHECK((await(listener, POLLIN) & POLLIN) != 0);
    int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    CHECK(sock >= 0);
    return sock;
}

struct talk open_talk(const struct relay_site *site, const char *ip, uint16_t port)
{
    int listener = serve_in_pod(site->netns, ip, port);
    struct talk talk = {.client = dial_in_pod(site->netns, ip, port)};

    talk.server = answer_call(listener);
    close(listener);
    return talk;
}

void close_talk(struct talk talk)
{
    close(talk.client);
    close(talk.server);
}

void expect_pass(int from, int to, const char *text)
{
    char got[256];
    size_t size = strlen(text);
    int error = 99;

    CHECK_EQ(send(from, text, size, MSG_NOSIGNAL), size);
    CHECK_EQ(hear(to, got, size, &error), size);
    CHECK(memcmp(got, text, size) == 0);
}

static int end_of(int sock)
{
    static char rest[CHUNK];
    int error = 99;

    while (hear(sock, rest, sizeof rest, &error) == sizeof rest)
        continue;
    return error;
}

void expect_fin(int sock)
{
    CHECK_EQ(end_of(sock), 0);
}

void expect_rst(int sock)
{
    int error = end_of(sock);

    CHECK(error == ECONNRESET || error == EPIPE);
}

void reset(int sock)
{
    struct linger at_once = {1, 0};

    CHECK_EQ(setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    close(sock);
}

/* ---- bulk ---- */

/* Of a period that no buffer size shares. */
static const uint8_t *stream_at(uint64_t place)
{
    enum { PERIOD = 65521 };
    static uint8_t bytes[PERIOD + CHUNK];

    if (bytes[1] == 0)
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(i % PERIOD * 2654435761U >> 13 | 1);
    return bytes + place % PERIOD;
}

bool flood_on(struct flood *flood, int sock, uint64_t size)
{
    while (flood->sent < size) {
        uint64_t left = size - flood->sent;
        ssize_t sent = send(sock, stream_at(flood->sent), left < CHUNK ? left : CHUNK,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent == -1)
            return false;
        flood->sent += (uint64_t)sent;
    }
    return true;
}

bool drain_on(struct flood *flood, int sock, int *error)
{
    static _Thread_local uint8_t got[CHUNK];
    ssize_t size;

    *error = 0;
    while ((size = recv(sock, got, sizeof got, MSG_DONTWAIT)) > 0) {
        CHECK(memcmp(got, stream_at(flood->heard), (size_t)size) == 0);
        flood->heard += (uint64_t)size;
    }
    if (size == -1 && errno == EAGAIN)
        return false;
    *error = size == 0 ? EPIPE : errno;
    return true;
}

static bool is_ready(int sock, short events, int timeout_ms)
{
    struct pollfd waited = {.fd = sock, .events = events};

    return poll(&waited, 1, timeout_ms) == 1;
}

void flood_until_stuck(struct flood *flood, int sock)
{
    do
        CHECK(!flood_on(flood, sock, UINT64_MAX));
    while (errno == EAGAIN && is_ready(sock, POLLOUT, STUCK_MS));
}

void expect_flood(int from, int to, uint64_t size, bool ends)
{
    struct flood flood = {0, 0};
    int64_t give_up = clock_ms() + 4 * PATIENCE_MS;
    bool said = false;
    int error = 0;

    for (;;) {
        struct pollfd waited[2] = {{.fd = from, .events = POLLOUT}, {.fd = to, .events = POLLIN}};
        CHECK(clock_ms() < give_up);
        if (!said && flood_on(&flood, from, size)) {
            said = true;
            if (ends)
                CHECK_EQ(shutdown(from, SHUT_WR), 0);
        }
        if (drain_on(&flood, to, &error))
            break;
        if (flood.heard == size && !ends)
            break;
        CHECK(poll(waited + said, 2 - said, PATIENCE_MS) > 0);
    }
    CHECK_EQ(flood.heard, size);
    CHECK_EQ(error, ends ? EPIPE : 0);
}

/* ---- what the relay tells ---- */

/* Asked for with a wake each time: one that waits for an event also waits for more of them. */
struct pz_flow_event hear_event(struct relay_site *site)
{
    int64_t give_up = clock_ms() + PATIENCE_MS;

    while (site->heard == site->batch.n) {
        CHECK(clock_ms() < give_up);
        site->heard = 0;
        pz_relay_wake(site->relay);
        if (pz_relay_next(site->relay, &site->batch, 0) == 0)
            sched_yield();
    }
    return site->batch.events[site->heard++];
}

struct pz_flow_event expect_end_of_flow(struct relay_site *site, enum pz_end end)
{
    struct pz_flow_event event = hear_event(site);

    CHECK_EQ(event.end, end);
    return event;
}

void expect_no_event(struct relay_site *site)
{
    CHECK_EQ(site->heard, site->batch.n);
    pz_relay_wake(site->relay);
    site->heard = 0;
    CHECK_EQ(pz_relay_next(site->relay, &site->batch, PATIENCE_MS), 0);
}

struct pz_relay_counters relay_counters(const struct relay_site *site)
{
    struct pz_relay_counters now;

    pz_relay_counters(site->relay, &now);
    return now;
}

uint64_t relay_pauses(const struct relay_site *site)
{
    struct pz_relay_counters now = relay_counters(site);

    return now.paused + now.held_back;
}

void await_flows(const struct relay_site *site, uint64_t flows)
{
    int64_t give_up = clock_ms() + PATIENCE_MS;

    while (relay_counters(site).flows != flows) {
        CHECK(clock_ms() < give_up);
        sched_yield();
    }
}
