/*
 * zds_add.c: reads the ZDS message whose speed counts.
 *
 * Theory of operation
 *
 * Between an Add and its ACK lies one excursion into the pod; a general protobuf reader in Python
 * would take as long as the excursion. Every writer of protobuf writes an Add the same way: fields
 * in the order of their numbers, none twice, none empty (proto3). That form, with ASCII alone, is
 * read here, field by field, in one pass; whatever deviates is left to protobuf, which decides what
 * it means. So this reader never refuses anything, and what it does accept, protobuf reads alike
 * (tests/ztunnel compares the two). Nothing is copied: the texts stay in the message.
 *
 *   0a LEN  WorkloadRequest.add
 *     0a LEN  uid
 *     12 LEN  workload_info
 *       0a LEN name   12 LEN namespace   1a LEN service_account
 */
#include "internal.h"

enum {
    ADD = 0x0a,
    UID = 0x0a,
    INFO = 0x12,
    NAME = 0x0a,
    NAMESPACE = 0x12,
    SERVICE_ACCOUNT = 0x1a,
    MORE = 0x80,     /* of a varint: another byte follows */
    VARINT_BITS = 7, /* in each byte of it */
};

/* What is left to read: bytes AT to END of a message. */
struct span {
    const uint8_t *message;
    size_t at;
    size_t end;
};

/* Reads the header of a field with this TAG, if it comes next. WITHIN is its content. */
static bool enter(struct span *span, uint8_t tag, struct span *within)
{
    if (span->end - span->at < 2 || span->message[span->at] != tag)
        return false;
    size_t at = span->at + 1;
    size_t size = span->message[at++];
    if (size >= MORE) {
        if (at == span->end || span->message[at] >= MORE || span->message[at] == 0)
            return false; /* of three bytes, or longer than it need be */
        size = (size - MORE) | (size_t)span->message[at++] << VARINT_BITS;
    }
    if (size > span->end - at)
        return false;
    *within = (struct span){span->message, at, at + size};
    span->at = at + size;
    return true;
}

/* Reads a text that may be missing: then it has no bytes. False for one that is not ASCII. */
static bool read_text(struct span *span, uint8_t tag, struct pz_add *add, enum pz_add_text which)
{
    struct span text = {span->message, span->at, span->at};

    if (enter(span, tag, &text))
        for (size_t i = text.at; i < text.end; i++)
            if (span->message[i] >= MORE)
                return false;
    add->at[which] = (uint16_t)text.at;
    add->size[which] = (uint16_t)(text.end - text.at);
    return true;
}

int pz_add_read(const uint8_t *message, size_t size, struct pz_add *add)
{
    struct span whole = {message, 0, size}, body, info;

    if (size > PZ_ZDS_MAX_MESSAGE || !enter(&whole, ADD, &body) || whole.at != whole.end)
        return 0;
    if (!read_text(&body, UID, add, PZ_ADD_UID) || add->size[PZ_ADD_UID] == 0)
        return 0;
    if (!enter(&body, INFO, &info) || body.at != body.end)
        return 0;
    return read_text(&info, NAME, add, PZ_ADD_NAME) &&
           read_text(&info, NAMESPACE, add, PZ_ADD_NAMESPACE) &&
           read_text(&info, SERVICE_ACCOUNT, add, PZ_ADD_SERVICE_ACCOUNT) && info.at == info.end;
}
