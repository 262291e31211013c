/*
 * relay_site.h: a captured pod, its relay, and the two ends of what is relayed.
 *
 * Theory of operation: the pod has loopback alone. Client and server are both in it, and a few
 * rules, those of the product cut down to what matters here, bring the client to the relay by the
 * port that it calls. Sockets of the pod are made by the test's thread, which stays at home, and do
 * not block. Without the program `nft` a test that needs a captured pod is skipped.
 */
#ifndef RELAY_SITE_H
#define RELAY_SITE_H

#include "relay.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    OUTBOUND_PORT = 15001,
    INBOUND_PORT = 15006,
    HBONE_PORT = 15008,
    SOCKS5_PORT = 15080,
    /* Called in the pod: what comes of it. */
    OUT_PORT = 8000,         /* to 8089: redirected to OUTBOUND_PORT */
    SILENT_PORT = 8090,      /* likewise, but the relay's SYN is dropped until silence_ends() */
    UNREACHABLE_PORT = 8091, /* likewise, but the relay is told that there is no such host */
    IN_PORT = 8100,          /* to 8199: redirected to INBOUND_PORT */
    DOORS = 5,
    RELAY_MARK = 0x539,
    POD_ID = 77
};

/* At these addresses capture ports are redirected, too: the first to OUTBOUND_PORT, the second to
 * INBOUND_PORT. NOT_OURS is an address of nobody that is routed to lo, redirected as the first. */
#define OUR_ADDRESS "198.51.100.1"
#define LOOP_OUT    "127.0.0.3"
#define LOOP_IN     "127.0.0.4"
#define NOT_OURS    "192.0.2.1"

struct relay_site {
    struct pz_relay *relay;
    struct pz_pod *pod;
    struct pz_door doors[DOORS]; /* outbound v4, outbound v6, inbound dual-stack, HBONE, SOCKS5 */
    struct pz_batch batch;
    uint32_t heard; /* of the batch */
    int netns;
};

/* Two threads, four pipes each, no limits of time but that of connecting, a log in text. */
struct pz_relay_settings relay_settings(void);

/* ---- the parts ---- */

bool has_nft(void);
/* unmet() without namespaces; skip() without nft. */
int new_captured_pod(void);
/* Buffers of sockets that are made from now on hold some 64 KiB. */
void shrink_buffers(int netns);
/* The same of those for sending alone, but where SO_SNDBUF says else; or as they were. */
void shrink_send_buffers(int netns, bool are_small);
/* The relay's SYNs to SILENT_PORT arrive from now on; the kernel sends one a second. */
void silence_ends(int netns);
void open_listeners(struct relay_site *site);
void close_listeners(const struct relay_site *site);
struct pz_relay *new_relay(const struct pz_relay_settings *settings);
struct pz_pod *take_pod(const struct relay_site *site, uint64_t id, const char *name);

/* ---- all of it ---- */

/* A captured pod called "name" in "space", taken. */
struct relay_site open_relay(struct pz_relay_settings settings);
/* The same with a pod of the caller, who keeps it. */
struct relay_site open_relay_in(int netns, struct pz_relay_settings settings);
/* Frees the relay, whatever it does, closes the listeners and the pod. */
void close_relay(struct relay_site *site);

/* ---- sockets in the pod ---- */

/* A listener at IP, 4 or 6, with backlog 128. */
int serve_in_pod(int netns, const char *ip, uint16_t port);
/* The parts of call_in_pod(): a socket, which is made in a thread of its own; its connect(). */
int socket_in_pod(int netns, const char *ip);
void call_with(int sock, const char *ip, uint16_t port);
/* Its connection is under way. */
int call_in_pod(int netns, const char *ip, uint16_t port);
/* It is there: whom it has reached is another matter. */
int dial_in_pod(int netns, const char *ip, uint16_t port);
/* What the relay has brought. */
int answer_call(int listener);

struct talk {
    int client, server;
};

/* Through the relay, from end to end. */
struct talk open_talk(const struct relay_site *site, const char *ip, uint16_t port);
void close_talk(struct talk talk);

void expect_pass(int from, int to, const char *text);
/* The stream ends here, as its sender ended it. */
void expect_fin(int sock);
/* The stream is cut, whatever came before. */
void expect_rst(int sock);
/* close() that says RST. */
void reset(int sock);

/* ---- bulk: byte N of a stream is known ---- */

struct flood {
    uint64_t sent, heard;
};

/* Sends until the kernel takes no more, or the stream has SIZE bytes. False: it takes no more. */
bool flood_on(struct flood *flood, int sock, uint64_t size);
/* Reads what is there and checks it. False: there is nothing now. *error: 0, or how the stream has
 * ended: EPIPE by FIN, or errno. */
bool drain_on(struct flood *flood, int sock, int *error);
/* Sends until nothing moves any more. */
void flood_until_stuck(struct flood *flood, int sock);
/* SIZE bytes from one to the other, all of them right; the sender says FIN where ENDS. */
void expect_flood(int from, int to, uint64_t size, bool ends);

/* ---- what the relay tells ---- */

struct pz_flow_event hear_event(struct relay_site *site);
struct pz_flow_event expect_end_of_flow(struct relay_site *site, enum pz_end end);
void expect_no_event(struct relay_site *site);
struct pz_relay_counters relay_counters(const struct relay_site *site);
/* Times that a thread has stopped accepting, for whichever reason. */
uint64_t relay_pauses(const struct relay_site *site);
/* Until so many connections are relayed now. */
void await_flows(const struct relay_site *site, uint64_t flows);
bool is_address(const struct pz_address *address, const char *ip, uint16_t port);

#endif
