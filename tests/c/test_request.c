/*
 * test_request.c: the bytes of the seed form's requests.
 *
 * Theory of operation: a pure state machine, so it is fed everything: every first byte with several
 * numbers of descriptors, every byte after 0x03, and cookies at the edges of 64 bits. Whatever ends
 * a request must leave nothing of it behind.
 */
#include "request.h"

#include "harness.h"

#include <string.h>

static void expect_nothing_left(const struct pz_partial *partial)
{
    CHECK_EQ(partial->kind, 0);
    CHECK_EQ(partial->digits, 0);
    CHECK_EQ(partial->cookie, 0);
}

/* Feeds TEXT; returns the first event and how many bytes it took. */
static int feed(const char *text, size_t size, struct pz_request *request, size_t *taken)
{
    struct pz_partial partial = {0};
    int event = 0;

    *request = (struct pz_request){.fd = -1};
    for (*taken = 0; *taken < size && event == 0; (*taken)++)
        event = pz_request_feed(&partial, (uint8_t)text[*taken], 0, request);
    if (event != 0)
        expect_nothing_left(&partial);
    return event;
}

static int expected_event(int byte, size_t nfds, uint32_t *why)
{
    bool brings_fd = byte == PZ_EVENT_TAKE || byte == PZ_EVENT_RELEASE;

    *why = 0;
    if (byte < PZ_EVENT_TAKE || byte > PZ_EVENT_LIST)
        *why = PZ_WHY_BYTE;
    else if (nfds != (brings_fd ? 1 : 0))
        *why = PZ_WHY_FDS;
    if (*why != 0)
        return PZ_EVENT_MALFORMED;
    return byte == PZ_EVENT_RELEASE_COOKIE ? 0 : byte;
}

static void every_first_byte(void)
{
    static const size_t counts[] = {0, 1, 2, 253};

    for (int byte = 0; byte <= UINT8_MAX; byte++)
        for (size_t i = 0; i < COUNT(counts); i++) {
            struct pz_partial partial = {0};
            struct pz_request request = {0};
            uint32_t why;
            int event = expected_event(byte, counts[i], &why);
            in_row("byte %d, %zu fds", byte, counts[i]);
            CHECK_EQ(pz_request_feed(&partial, (uint8_t)byte, counts[i], &request), event);
            CHECK_EQ(request.why, why);
            CHECK_EQ(request.byte, byte);
            CHECK_EQ(request.nfds, counts[i]);
            if (event != 0)
                expect_nothing_left(&partial);
        }
}

static void every_byte_of_a_cookie(void)
{
    for (int byte = 0; byte <= UINT8_MAX; byte++) {
        char text[3] = {PZ_EVENT_RELEASE_COOKIE, '4', (char)byte};
        struct pz_request request;
        size_t taken;
        int event = byte == '\n'                 ? PZ_EVENT_RELEASE_COOKIE
                    : byte >= '0' && byte <= '9' ? 0
                                                 : PZ_EVENT_MALFORMED;
        in_row("byte %d", byte);
        CHECK_EQ(feed(text, sizeof text, &request, &taken), event);
        CHECK_EQ(request.why, event == PZ_EVENT_MALFORMED ? PZ_WHY_COOKIE : 0);
        CHECK_EQ(request.cookie, event == PZ_EVENT_RELEASE_COOKIE ? 4 : 0);
    }
}

/* A cookie of 0 stands for one that is refused, at the byte TAKEN. */
static const struct {
    const char *text;
    uint64_t cookie;
    size_t taken;
} COOKIES[] = {
    {"1\n", 1, 3},
    {"18446744073709551615\n", UINT64_MAX, 22},
    {"09223372036854775808\n", 9223372036854775808u, 22},
    {"00000000000000000001\n", 1, 22},
    {"18446744073709551616\n", 0, 21},
    {"18446744073709551620\n", 0, 21},
    {"99999999999999999999\n", 0, 21},
    {"000000000000000000001\n", 0, 22},
    {"\n", 0, 2},
    {" 1\n", 0, 2},
    {"+1\n", 0, 2},
    {"1\r\n", 0, 3},
};

static void cookies(void)
{
    for (size_t i = 0; i < COUNT(COOKIES); i++) {
        struct pz_request request;
        char text[32] = {PZ_EVENT_RELEASE_COOKIE};
        size_t taken;
        in_row("cookie %zu", i);
        strcpy(text + 1, COOKIES[i].text);
        int event = feed(text, strlen(text), &request, &taken);
        CHECK_EQ(event, COOKIES[i].cookie ? PZ_EVENT_RELEASE_COOKIE : PZ_EVENT_MALFORMED);
        CHECK_EQ(request.cookie, COOKIES[i].cookie);
        CHECK_EQ(taken, COOKIES[i].taken);
        CHECK_EQ(request.byte, PZ_EVENT_RELEASE_COOKIE);
    }
}

static void a_descriptor_never_comes_with_a_cookie(void)
{
    for (size_t nfds = 1; nfds <= 2; nfds++) {
        struct pz_partial partial = {.kind = PZ_EVENT_RELEASE_COOKIE, .digits = 1, .cookie = 4};
        struct pz_request request = {0};
        CHECK_EQ(pz_request_feed(&partial, '2', nfds, &request), PZ_EVENT_MALFORMED);
        CHECK_EQ(request.why, PZ_WHY_FDS);
        CHECK_EQ(request.nfds, nfds);
        expect_nothing_left(&partial);
    }
}

int main(void)
{
    static const struct test tests[] = {
        TEST(every_first_byte),
        TEST(every_byte_of_a_cookie),
        TEST(cookies),
        TEST(a_descriptor_never_comes_with_a_cookie),
    };

    return run_tests("request.c", tests, COUNT(tests));
}
