/*
 * fuzz.c: see fuzz.h.
 */
#include "fuzz.h"

#include "internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

uint8_t take_byte(struct input *input)
{
    return input->at < input->end ? *input->at++ : 0;
}

size_t take_bytes(struct input *input, uint8_t *to, size_t n)
{
    size_t left = (size_t)(input->end - input->at), got = n < left ? n : left;

    memcpy(to, input->at, got);
    input->at += got;
    return got;
}

/* ---- descriptors to send ---- */

enum kind { NETNS, MNTNS, DEVICE, EVENT, SOCKET, KINDS };

static int open_kind(enum kind kind)
{
    switch (kind) {
    case NETNS: return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    case MNTNS: return open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    case DEVICE: return open("/dev/null", O_RDWR | O_CLOEXEC);
    case EVENT: return eventfd(0, EFD_CLOEXEC);
    case SOCKET: return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    case KINDS: break;
    }
    return -1;
}

static int open_chosen(uint8_t choice)
{
    int fd = open_kind((enum kind)(choice % KINDS));

    MUST(fd >= 0);
    return fd;
}

size_t take_fds(struct input *input, int *fds)
{
    size_t n = take_byte(input) % (MAX_FDS_SENT + 1);

    for (size_t i = 0; i < n; i++)
        fds[i] = open_chosen(take_byte(input));
    return n;
}

struct message read_message(struct input *input)
{
    struct message message = {.nbytes = 0};

    message.nfds = take_fds(input, message.fds);
    message.nbytes = take_bytes(input, message.bytes, 1 + take_byte(input) % MAX_BYTES);
    return message;
}

void send_message(int sock, struct message *message)
{
    if (message->nbytes > 0)
        pz_send(sock, message->bytes, message->nbytes, message->fds, message->nfds, 0);
    pz_close_all(message->fds, message->nfds);
}
