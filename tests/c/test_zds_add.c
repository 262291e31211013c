/*
 * test_zds_add.c: which messages the native reader of an Add takes, and where it finds the texts.
 *
 * Theory of operation: every message is read from memory of exactly its size, so that
 * AddressSanitizer sees a byte read behind it. The rows were written down from ZDS's .proto by
 * hand; longer messages come from the small writer below, which notes where it put each text. That
 * protobuf reads the same is for tests/ztunnel/test_add_reader.py.
 */
#include "pyztun.h"

#include "harness.h"

#include <stdlib.h>
#include <string.h>

#define MESSAGE(text) text, sizeof(text) - 1
#define GOLDEN        "\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01m\x1a\x01s"

enum { ADD = 0x0a, UID = 0x0a, INFO = 0x12, ROOM = 2048 };

static int read_exactly(const void *message, size_t size, struct pz_add *add)
{
    uint8_t *copy = malloc(size);

    CHECK(copy != NULL); /* also of no bytes: glibc gives an address, behind which nothing is */
    memcpy(copy, message, size);
    *add = (struct pz_add){{4711, 4711, 4711, 4711}, {4711, 4711, 4711, 4711}};
    int taken = pz_add_read(copy, size, add);
    free(copy);
    CHECK(taken == 0 || taken == 1);
    return taken;
}

/* ---- rows ---- */

/* A text that is missing has no bytes, wherever it is said to be. */
static const struct {
    const char *name, *message;
    size_t size;
    struct pz_add add;
} TAKEN[] = {
    {"golden", MESSAGE(GOLDEN), {{4, 9, 12, 15}, {1, 1, 1, 1}}},
    {"no texts", MESSAGE("\x0a\x05\x0a\x01u\x12\x00"), {{4}, {1}}},
    {"a name", MESSAGE("\x0a\x08\x0a\x01u\x12\x03\x0a\x01n"), {{4, 9}, {1, 1}}},
    {"a namespace", MESSAGE("\x0a\x08\x0a\x01u\x12\x03\x12\x01m"), {{4, 0, 9}, {1, 0, 1}}},
    {"an account", MESSAGE("\x0a\x08\x0a\x01u\x12\x03\x1a\x01s"), {{4, 0, 0, 9}, {1, 0, 0, 1}}},
    {"no namespace",
     MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x0a\x01n\x1a\x01s"),
     {{4, 9, 0, 12}, {1, 1, 0, 1}}},
    {"no name",
     MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x12\x01m\x1a\x01s"),
     {{4, 0, 9, 12}, {1, 0, 1, 1}}},
    {"no account", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x0a\x01n\x12\x01m"), {{4, 9, 12}, {1, 1, 1}}},
    {"empty texts, written all the same",
     MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x0a\x00\x12\x00\x1a\x00"),
     {{4}, {1}}},
    {"every byte below 128 is a letter",
     MESSAGE("\x0a\x0a\x0a\x02\x00\x7f\x12\x04\x0a\x02\x0a\x12"),
     {{4, 10}, {2, 2}}},
};

static void a_plain_add(void)
{
    for (size_t i = 0; i < COUNT(TAKEN); i++) {
        struct pz_add add;
        in_row("%s", TAKEN[i].name);
        CHECK_EQ(read_exactly(TAKEN[i].message, TAKEN[i].size, &add), 1);
        for (int text = 0; text < PZ_ADD_TEXTS; text++) {
            CHECK_EQ(add.size[text], TAKEN[i].add.size[text]);
            CHECK(add.at[text] <= TAKEN[i].size);
            if (add.size[text] > 0)
                CHECK_EQ(add.at[text], TAKEN[i].add.at[text]);
        }
    }
}

/* What protobuf has to read, or to refuse. */
static const struct {
    const char *name, *message;
    size_t size;
} LEFT[] = {
    {"nothing", MESSAGE("")},
    {"Hello", MESSAGE("\x08\x01")},
    {"Del", MESSAGE("\x12\x03\x12\x01u")},
    {"SnapshotSent", MESSAGE("\x1a\x00")},
    {"Keep", MESSAGE("\x2a\x03\x0a\x01u")},
    {"an Add of another wire type", MESSAGE("\x08\x05\x0a\x01u\x12\x00")},
    {"an empty Add", MESSAGE("\x0a\x00")},
    {"no uid", MESSAGE("\x0a\x05\x12\x03\x0a\x01n")},
    {"an empty uid", MESSAGE("\x0a\x04\x0a\x00\x12\x00")},
    {"a uid of another wire type", MESSAGE("\x0a\x04\x08\x01\x12\x00")},
    {"no info", MESSAGE("\x0a\x03\x0a\x01u")},
    {"an info of another wire type", MESSAGE("\x0a\x05\x0a\x01u\x10\x00")},
    {"info before uid", MESSAGE("\x0a\x05\x12\x00\x0a\x01u")},
    {"namespace before name", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x12\x01m\x0a\x01n")},
    {"account before namespace", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x1a\x01s\x12\x01m")},
    {"two uids", MESSAGE("\x0a\x08\x0a\x01u\x0a\x01v\x12\x00")},
    {"two infos", MESSAGE("\x0a\x07\x0a\x01u\x12\x00\x12\x00")},
    {"two names", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x0a\x01n\x0a\x01o")},
    {"two namespaces", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x12\x01m\x12\x01m")},
    {"two accounts", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x1a\x01s\x1a\x01s")},
    {"two Adds", MESSAGE("\x0a\x05\x0a\x01u\x12\x00\x0a\x05\x0a\x01u\x12\x00")},
    {"an Add, then a Keep", MESSAGE("\x0a\x05\x0a\x01u\x12\x00\x2a\x03\x0a\x01u")},
    {"a Keep, then an Add", MESSAGE("\x2a\x03\x0a\x01u\x0a\x05\x0a\x01u\x12\x00")},
    {"an unknown field before the Add", MESSAGE("\x38\x01\x0a\x05\x0a\x01u\x12\x00")},
    {"an unknown field behind the Add", MESSAGE("\x0a\x05\x0a\x01u\x12\x00\x38\x01")},
    {"an unknown field in the Add", MESSAGE("\x0a\x07\x0a\x01u\x12\x00\x38\x01")},
    {"an unknown field before the uid", MESSAGE("\x0a\x07\x38\x01\x0a\x01u\x12\x00")},
    {"an unknown field before the info", MESSAGE("\x0a\x07\x0a\x01u\x38\x01\x12\x00")},
    {"an unknown field in the info", MESSAGE("\x0a\x07\x0a\x01u\x12\x02\x38\x01")},
    {"a trust domain", MESSAGE("\x0a\x0b\x0a\x01u\x12\x06\x0a\x01n\x22\x01t")},
    {"a uid beyond ASCII", MESSAGE("\x0a\x06\x0a\x02\xc3\xa9\x12\x00")},
    {"a name beyond ASCII", MESSAGE("\x0a\x09\x0a\x01u\x12\x04\x0a\x02\xc3\xa9")},
    {"a namespace beyond ASCII", MESSAGE("\x0a\x09\x0a\x01u\x12\x04\x12\x02\xc3\xa9")},
    {"an account beyond ASCII", MESSAGE("\x0a\x09\x0a\x01u\x12\x04\x1a\x02\xc3\xa9")},
    {"a last byte of 128", MESSAGE("\x0a\x09\x0a\x01u\x12\x04\x1a\x02s\x80")},
    {"an Add of a long length", MESSAGE("\x0a\x85\x00\x0a\x01u\x12\x00")},
    {"a uid of a long length", MESSAGE("\x0a\x06\x0a\x81\x00u\x12\x00")},
    {"an info of a long length", MESSAGE("\x0a\x06\x0a\x01u\x12\x80\x00")},
    {"a name of a long length", MESSAGE("\x0a\x09\x0a\x01u\x12\x04\x0a\x81\x00n")},
    {"a length of three bytes", MESSAGE("\x0a\x85\x80\x00\x0a\x01u\x12\x00")},
    {"a length of 2 to the 32nd", MESSAGE("\x0a\x80\x80\x80\x80\x10\x0a\x01u\x12\x00")},
    {"a length of ten bytes", MESSAGE("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")},
    {"a tag of two bytes", MESSAGE("\x8a\x00\x05\x0a\x01u\x12\x00")},
    {"a uid that leaves the Add", MESSAGE("\x0a\x05\x0a\x04u\x12\x00")},
    {"an info that leaves the Add", MESSAGE("\x0a\x05\x0a\x01u\x12\x01")},
    {"a name that leaves the info", MESSAGE("\x0a\x09\x0a\x01u\x12\x03\x0a\x02no")},
    {"an Add that leaves the message", MESSAGE("\x0a\x06\x0a\x01u\x12\x00")},
    {"an Add that ends before the message", MESSAGE("\x0a\x05\x0a\x01u\x12\x00\x00")},
};

static void what_is_left_to_protobuf(void)
{
    struct pz_add add;

    for (size_t i = 0; i < COUNT(LEFT); i++) {
        in_row("%s", LEFT[i].name);
        CHECK_EQ(read_exactly(LEFT[i].message, LEFT[i].size, &add), 0);
    }
}

/* ---- every change of one byte ---- */

static bool is_letter_of_golden(size_t at)
{
    return at == 4 || at == 9 || at == 12 || at == 15;
}

/* Of a text that becomes so long that it covers whole fields behind it, these are the sizes. */
static bool covers_fields(size_t at, int byte)
{
    return (at == 8 && (byte == 4 || byte == 7)) || (at == 11 && byte == 4);
}

static void every_byte_of_the_golden_one(void)
{
    static const char golden[] = GOLDEN;

    for (size_t at = 0; at < sizeof golden - 1; at++)
        for (int byte = 0; byte <= UINT8_MAX; byte++) {
            char changed[sizeof golden - 1];
            struct pz_add add;
            bool plain = byte == golden[at] || covers_fields(at, byte) ||
                         (is_letter_of_golden(at) && byte < 128);
            in_row("byte %zu is %d", at, byte);
            memcpy(changed, golden, sizeof changed);
            changed[at] = (char)byte;
            CHECK_EQ(read_exactly(changed, sizeof changed, &add), plain);
        }
}

/* ---- a writer ---- */

struct written {
    uint8_t bytes[ROOM];
    size_t size;
    struct pz_add add;
};

static size_t size_of_field(size_t content)
{
    return content + (content < 128 ? 2 : 3);
}

static size_t size_of_text(size_t content)
{
    return content > 0 ? size_of_field(content) : 0;
}

static void write_header(struct written *to, uint8_t tag, size_t content)
{
    to->bytes[to->size++] = tag;
    if (content >= 128)
        to->bytes[to->size++] = (uint8_t)(content % 128 + 128);
    to->bytes[to->size++] = (uint8_t)(content < 128 ? content : content / 128);
}

static void write_text(struct written *to, uint8_t tag, size_t size, enum pz_add_text which)
{
    if (size > 0)
        write_header(to, tag, size);
    to->add.at[which] = (uint16_t)to->size;
    to->add.size[which] = (uint16_t)size;
    memset(to->bytes + to->size, 'a' + (int)which, size);
    to->size += size;
}

static struct written write_add(const size_t sizes[PZ_ADD_TEXTS])
{
    struct written to = {.size = 0};
    size_t info = size_of_text(sizes[PZ_ADD_NAME]) + size_of_text(sizes[PZ_ADD_NAMESPACE]) +
                  size_of_text(sizes[PZ_ADD_SERVICE_ACCOUNT]);

    write_header(&to, ADD, size_of_text(sizes[PZ_ADD_UID]) + size_of_field(info));
    write_text(&to, UID, sizes[PZ_ADD_UID], PZ_ADD_UID);
    write_header(&to, INFO, info);
    write_text(&to, 0x0a, sizes[PZ_ADD_NAME], PZ_ADD_NAME);
    write_text(&to, 0x12, sizes[PZ_ADD_NAMESPACE], PZ_ADD_NAMESPACE);
    write_text(&to, 0x1a, sizes[PZ_ADD_SERVICE_ACCOUNT], PZ_ADD_SERVICE_ACCOUNT);
    return to;
}

static void expect_found(const struct written *written)
{
    struct pz_add add;

    CHECK_EQ(read_exactly(written->bytes, written->size, &add), 1);
    for (int text = 0; text < PZ_ADD_TEXTS; text++) {
        CHECK_EQ(add.size[text], written->add.size[text]);
        if (add.size[text] > 0)
            CHECK_EQ(add.at[text], written->add.at[text]);
    }
}

/* Lengths at the edge between one byte and two, of each text and of what holds it. */
static void lengths_of_one_byte_and_of_two(void)
{
    static const size_t edges[] = {1,   2,   119, 120, 121, 122, 123, 124, 125, 126, 127,
                                   128, 129, 130, 131, 132, 255, 256, 257, 383, 384, 1000};

    for (int text = 0; text < PZ_ADD_TEXTS; text++)
        for (size_t i = 0; i < COUNT(edges); i++) {
            size_t sizes[PZ_ADD_TEXTS] = {1, 1, 1, 1};
            in_row("text %d of %zu bytes", text, edges[i]);
            sizes[text] = edges[i];
            struct written written = write_add(sizes);
            expect_found(&written);
        }
}

/* 1024 bytes are read, 1025 are none of a ZDS message, however well they are written. */
static void the_longest_message(void)
{
    int edges = 0;

    for (int text = 0; text < PZ_ADD_TEXTS; text++)
        for (size_t size = 980; size < 1020; size++) {
            size_t sizes[PZ_ADD_TEXTS] = {1, 1, 1, 1};
            struct pz_add add;
            sizes[text] = size;
            struct written written = write_add(sizes);
            in_row("text %d, a message of %zu bytes", text, written.size);
            if (written.size <= PZ_ZDS_MAX_MESSAGE)
                expect_found(&written);
            else
                CHECK_EQ(read_exactly(written.bytes, written.size, &add), 0);
            edges += written.size == PZ_ZDS_MAX_MESSAGE || written.size == PZ_ZDS_MAX_MESSAGE + 1;
        }
    CHECK_EQ(edges, 2 * PZ_ADD_TEXTS);
}

/* A part of a message is none, and neither is one with a byte more. */
static void every_truncation(void)
{
    static const size_t sizes[][PZ_ADD_TEXTS] = {
        {1, 1, 1, 1}, {1, 0, 0, 0}, {36, 20, 20, 20}, {130, 130, 130, 130}, {36, 0, 200, 0}};

    for (size_t i = 0; i < COUNT(sizes); i++) {
        struct written written = write_add(sizes[i]);
        struct pz_add add;
        for (size_t size = 0; size < written.size; size++) {
            in_row("message %zu, %zu bytes of it", i, size);
            CHECK_EQ(read_exactly(written.bytes, size, &add), 0);
        }
        for (int byte = 0; byte <= UINT8_MAX; byte++) {
            in_row("message %zu and byte %d", i, byte);
            written.bytes[written.size] = (uint8_t)byte;
            CHECK_EQ(read_exactly(written.bytes, written.size + 1, &add), 0);
        }
    }
}

static void one_byte_beyond_ascii_anywhere(void)
{
    static const size_t sizes[PZ_ADD_TEXTS] = {36, 20, 130, 20};
    struct written written = write_add(sizes);
    struct pz_add add;

    for (int text = 0; text < PZ_ADD_TEXTS; text++)
        for (size_t i = 0; i < sizes[text]; i++) {
            uint8_t *byte = &written.bytes[written.add.at[text] + i], before = *byte;
            in_row("text %d, byte %zu", text, i);
            *byte = 128;
            CHECK_EQ(read_exactly(written.bytes, written.size, &add), 0);
            *byte = 127;
            expect_found(&written);
            *byte = before;
        }
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_plain_add),
        TEST(what_is_left_to_protobuf),
        TEST(every_byte_of_the_golden_one),
        TEST(lengths_of_one_byte_and_of_two),
        TEST(the_longest_message),
        TEST(every_truncation),
        TEST(one_byte_beyond_ascii_anywhere),
    };

    return run_tests("zds_add.c", tests, COUNT(tests));
}
