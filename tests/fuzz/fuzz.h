/*
 * fuzz.h: the input as a program: bytes, numbers, and messages with descriptors of several kinds.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_FDS_SENT = 3, MAX_BYTES = 40 };

#define MUST(condition)                                                                    \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

struct input {
    const uint8_t *at, *end;
};

/* Behind its end the input is zeros. */
uint8_t take_byte(struct input *input);
/* Up to N bytes, as many as are left; returns how many. */
size_t take_bytes(struct input *input, uint8_t *to, size_t n);

struct message {
    uint8_t bytes[MAX_BYTES];
    size_t nbytes;
    int fds[MAX_FDS_SENT];
    size_t nfds;
};

/* Opens up to MAX_FDS_SENT descriptors, each a netns, another namespace, a device or the like;
 * returns how many. The caller's. */
size_t take_fds(struct input *input, int *fds);
struct message read_message(struct input *input);

/* Sends what there is room for; the copies that stay with us are closed. */
void send_message(int sock, struct message *message);

/* fuzz_zds.c: ztunnel's end of ZDS; the reader of an Add alone. */
void drive_zds(struct input *input);
void drive_add(struct input *input);

#endif
