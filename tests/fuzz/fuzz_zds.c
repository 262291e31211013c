/*
 * fuzz_zds.c: whatever an agent could do to ztunnel's end of ZDS.
 *
 * Theory of operation
 *
 * The input is a program for the agent: packets of any bytes, Adds with a few bytes wrong, packets
 * without bytes and too long ones, each with up to three descriptors, reading, closing; and for us:
 * waiting with room or without, waking, knowing and forgetting uids of Adds. What was sent is
 * remembered, and each event must be the next of it, whole or cut. The agent has exactly one ACK
 * for each Add that was taken, and none of a uid that we know or without room is.
 *
 * In a second mode the bytes go to the reader of an Add alone, from memory of exactly their size.
 * What it takes must be what it would be if we wrote the texts that it found.
 */
#include "internal.h"

#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { QUEUED = 64, LONGEST = PZ_ZDS_MAX_MESSAGE + 64, ACK_SIZE = 2, UIDS = 201 };

struct packet {
    uint8_t bytes[LONGEST];
    size_t size, nfds;
};

struct talk {
    struct pz_zds *zds;
    int sock, agent, wake;
    bool woken, agent_gone, over;
    size_t first, count; /* of the packets under way */
    size_t acks;         /* that the agent has not read */
    int fd;              /* the listener of an Add that was taken */
    /* By length: how often each uid of x's is known, and more often than a cell counts: for ever.
     */
    unsigned known[UIDS];
    bool for_ever[UIDS];
    bool knew; /* anybody */
};

static struct packet under_way[QUEUED];

/* ---- the agent ---- */

/* Closes what stays with us of PACKET's descriptors. */
static void say(struct talk *talk, const struct packet *packet, const int *fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MAX_FDS_SENT * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec bytes = {(void *)(uintptr_t)packet->bytes, packet->size};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

    if (packet->nfds > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(packet->nfds * sizeof(int));
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(packet->nfds * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, packet->nfds * sizeof(int));
    }
    if (!talk->agent_gone && talk->count < QUEUED &&
        sendmsg(talk->agent, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)packet->size)
        under_way[(talk->first + talk->count++) % QUEUED] = *packet;
    pz_close_all(fds, packet->nfds);
}

static size_t put_field(uint8_t *to, uint8_t tag, const uint8_t *content, size_t size)
{
    size_t header = 0;

    to[header++] = tag;
    if (size >= 128)
        to[header++] = (uint8_t)(size % 128 + 128);
    to[header++] = (uint8_t)(size < 128 ? size : size / 128);
    memcpy(to + header, content, size);
    return header + size;
}

/* Texts of any length, then as many bytes changed as are asked for. */
static void write_add(struct packet *packet, struct input *input)
{
    uint8_t text[UINT8_MAX], info[LONGEST], body[LONGEST];
    size_t ninfo = 0, nbody;

    memset(text, 'x', sizeof text);
    nbody = put_field(body, 0x0a, text, 1 + take_byte(input) % 200);
    for (uint8_t tag = 0x0a; tag <= 0x1a; tag = (uint8_t)(tag + 8)) {
        uint8_t size = take_byte(input);
        if (size > 0)
            ninfo += put_field(info + ninfo, tag, text, size);
    }
    nbody += put_field(body + nbody, 0x12, info, ninfo);
    packet->size = put_field(packet->bytes, 0x0a, body, nbody);
    for (int changes = take_byte(input) % 3; changes > 0; changes--) {
        size_t at = (size_t)take_byte(input) % packet->size;
        packet->bytes[at] = take_byte(input);
    }
}

static void send_one(struct talk *talk, struct input *input, uint8_t choice)
{
    struct packet packet = {.size = 0};
    int fds[MAX_FDS_SENT];

    packet.nfds = take_fds(input, fds);
    switch (choice % 4) {
    case 0: packet.size = take_bytes(input, packet.bytes, 1 + take_byte(input) % MAX_BYTES); break;
    case 1: break;
    case 2:
        packet.size = PZ_ZDS_MAX_MESSAGE - 32 + take_byte(input) % 96u;
        memset(packet.bytes, choice, packet.size);
        break;
    default: write_add(&packet, input);
    }
    say(talk, &packet, fds);
}

static void read_acks(struct talk *talk)
{
    uint8_t got[8];
    ssize_t size;

    while (!talk->agent_gone && (size = recv(talk->agent, got, sizeof got, MSG_DONTWAIT)) > 0) {
        MUST(size == ACK_SIZE && got[0] == 0x0a && got[1] == 0);
        MUST(talk->acks-- > 0);
    }
    MUST(talk->agent_gone || talk->acks == 0);
}

static void close_agent(struct talk *talk)
{
    if (!talk->agent_gone)
        close(talk->agent);
    talk->agent_gone = true;
}

/* ---- our end ---- */

static void verify_fd(const struct pz_zds_request *request)
{
    if (request->fd < 0)
        return;
    MUST(request->nfds == 1 && request->lost == 0 && request->not_netns == 0);
    MUST(request->inode != 0 && fcntl(request->fd, F_GETFD) == FD_CLOEXEC);
}

/* The message is the next that was sent. */
static void verify_message(struct talk *talk, const struct pz_zds_request *request)
{
    MUST(talk->count > 0);
    const struct packet *sent = &under_way[talk->first];
    size_t whole = sent->size < PZ_ZDS_MAX_MESSAGE ? sent->size : PZ_ZDS_MAX_MESSAGE;
    MUST(request->size == whole && request->nfds == sent->nfds);
    MUST(memcmp(request->message, sent->bytes, whole) == 0);
    MUST(request->lost == (sent->size > whole ? -EMSGSIZE : 0));
    MUST((request->nfds == 1 && request->lost == 0) ==
         (request->fd >= 0 || request->not_netns != 0));
    talk->first = (talk->first + 1) % QUEUED;
    talk->count--;
}

static void verify_add(const uint8_t *message, size_t size, const struct pz_add *add)
{
    size_t behind = 0;

    MUST(add->size[PZ_ADD_UID] > 0);
    for (int text = 0; text < PZ_ADD_TEXTS; text++) {
        if (add->size[text] == 0)
            continue;
        MUST(add->at[text] >= behind + 2 && (size_t)add->at[text] + add->size[text] <= size);
        behind = (size_t)add->at[text] + add->size[text];
        for (size_t i = add->at[text]; i < behind; i++)
            MUST(message[i] < 128);
    }
}

static void verify_end(struct talk *talk, const struct pz_zds_request *request)
{
    MUST(request->size == 0 && request->fd == -1);
    if (request->lost == 0 && talk->count > 0) { /* the connection would do for more */
        MUST(under_way[talk->first].size == 0 && under_way[talk->first].nfds == request->nfds);
        talk->first = (talk->first + 1) % QUEUED;
        talk->count--;
        return;
    }
    MUST(talk->agent_gone);
    MUST(request->lost == 0 || (request->lost == -ECONNRESET && talk->acks > 0));
    talk->over = true;
}

/* Whether the Add has a uid that we know, of those that are counted. */
static bool is_known(const struct talk *talk, const struct pz_zds_request *request)
{
    size_t size = request->add.size[PZ_ADD_UID];
    const uint8_t *uid = request->message + request->add.at[PZ_ADD_UID];

    for (size_t i = 0; i < size; i++)
        if (uid[i] != 'x')
            return false;
    return size < UIDS && (talk->known[size] > 0 || talk->for_ever[size]);
}

/* A taken one has a listener and its ACK, any other one neither. Without CAP_SYS_ADMIN all fail. */
static void verify_taken(struct talk *talk, const struct pz_zds_request *request, bool taken)
{
    if (!taken) {
        MUST(talk->fd == (request->failed < 0 ? -1 : 4711) && request->unsent == 0);
        return;
    }
    MUST(talk->fd >= 0 && request->cookie != 0 && request->failed == 0);
    MUST(request->unsent == (talk->agent_gone ? -EPIPE : 0));
    talk->acks += request->unsent == 0;
    close(talk->fd);
}

static void verify_any_add(struct talk *talk, const struct pz_zds_request *request, int event,
                           bool has_room)
{
    bool tried = event == PZ_ZDS_TAKEN || request->failed < 0;

    MUST(request->fd >= 0);
    verify_add(request->message, request->size, &request->add);
    MUST(!tried || (has_room && !is_known(talk, request)));
    MUST(tried || !has_room || talk->knew);
    verify_taken(talk, request, event == PZ_ZDS_TAKEN);
    verify_message(talk, request);
}

/* One event. Whether there may be more. */
static bool wait_once(struct talk *talk, bool has_room)
{
    struct pz_zds_request request;

    talk->fd = 4711;
    int event = pz_zds_next(talk->zds, talk->sock, 0, has_room, &request);
    MUST((event == PZ_ZDS_WOKEN) == talk->woken);
    verify_fd(&request);
    switch (event) {
    case PZ_ZDS_ADD:
    case PZ_ZDS_TAKEN: verify_any_add(talk, &request, event, has_room); break;
    case PZ_ZDS_MESSAGE: verify_message(talk, &request); break;
    case PZ_ZDS_CLOSED: verify_end(talk, &request); break;
    default:
        MUST(event == PZ_ZDS_WOKEN || event == PZ_ZDS_DUE);
        MUST(event == PZ_ZDS_WOKEN || (talk->count == 0 && !talk->agent_gone));
        return false;
    }
    if (request.fd >= 0)
        close(request.fd);
    return !talk->over;
}

static void wake_or_not(struct talk *talk)
{
    uint64_t value;

    MUST(talk->woken ? eventfd_read(talk->wake, &value) == 0 : eventfd_write(talk->wake, 1) == 0);
    talk->woken = !talk->woken;
}

/* A uid as write_add() has them. Some stay for ever. */
static void know_or_forget(struct talk *talk, struct input *input, bool knows)
{
    uint8_t text[UIDS];
    size_t size = 1 + take_byte(input) % 200u;
    unsigned times = take_byte(input) % 8 == 0 ? UINT8_MAX : 1;

    memset(text, 'x', sizeof text);
    talk->knew = true;
    if (!knows && talk->known[size] > 0) {
        pz_zds_forget(talk->zds, 1, text, size);
        talk->known[size]--;
        return;
    }
    for (unsigned i = 0; i < times; i++)
        pz_zds_know(talk->zds, 1, text, size);
    talk->known[size] += times;
    talk->for_ever[size] |= talk->known[size] >= UINT8_MAX;
}

static void act(struct talk *talk, struct input *input)
{
    uint8_t choice = take_byte(input);

    switch (choice % 8) {
    case 0: wait_once(talk, false); break;
    case 1: wait_once(talk, true); break;
    case 2: read_acks(talk); break;
    case 3:
        if (choice / 8 % 4 == 0)
            close_agent(talk);
        else
            wake_or_not(talk);
        break;
    case 4: know_or_forget(talk, input, choice / 8 % 2 == 0); break;
    default: send_one(talk, input, choice);
    }
}

void drive_zds(struct input *input)
{
    static const struct pz_listener anywhere = {
        .address = {127, 0, 0, 1}, .backlog = 1, .family = 4};
    int ends[2], error = 99;
    struct talk talk = {.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};

    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    talk.sock = ends[0];
    talk.agent = ends[1];
    talk.zds = pz_zds_new(talk.wake, &error);
    MUST(talk.zds != NULL && error == 0);
    MUST(pz_zds_serve(talk.zds, -1, &anywhere, 1, &talk.fd, NULL) == 0);
    while (input->at < input->end && !talk.over)
        act(&talk, input);
    if (talk.woken)
        wake_or_not(&talk);
    while (!talk.over && wait_once(&talk, true))
        continue;
    read_acks(&talk);
    close_agent(&talk);
    pz_zds_free(talk.zds);
    close(talk.sock);
    close(talk.wake);
}

/* ---- the reader of an Add ---- */

/* As it would be written, where no text is missing: then nothing else can be in it. */
static void verify_written(const uint8_t *message, size_t size, const struct pz_add *add)
{
    uint8_t body[LONGEST], info[LONGEST], whole[LONGEST];
    size_t ninfo = 0, nbody;

    nbody = put_field(body, 0x0a, message + add->at[PZ_ADD_UID], add->size[PZ_ADD_UID]);
    for (int text = PZ_ADD_NAME; text <= PZ_ADD_SERVICE_ACCOUNT; text++)
        if (add->size[text] > 0)
            ninfo += put_field(info + ninfo, (uint8_t)(0x02 + 8 * text), message + add->at[text],
                               add->size[text]);
        else
            return;
    nbody += put_field(body + nbody, 0x12, info, ninfo);
    MUST(put_field(whole, 0x0a, body, nbody) == size);
    MUST(memcmp(whole, message, size) == 0);
}

void drive_add(struct input *input)
{
    size_t size = (size_t)(input->end - input->at);
    struct pz_add add;

    if (pz_add_read(input->at, size, &add) == 0)
        return;
    verify_add(input->at, size, &add);
    verify_written(input->at, size, &add);
}
