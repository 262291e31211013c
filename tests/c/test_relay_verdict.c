/*
 * test_relay_verdict.c: what is done with a connection, row by row.
 */
#include "relay_internal.h"

#include "harness.h"

enum { NO, YES, ANY };

struct row {
    uint16_t kind;
    int is_tracked, is_capture_port, is_unchanged, is_own_address;
    enum pz_end verdict;
};

static const struct row ROWS[] = {
    {PZ_DOOR_HBONE, ANY, ANY, ANY, ANY, PZ_END_NO_HBONE},
    {PZ_DOOR_SOCKS5, ANY, ANY, ANY, ANY, PZ_END_NO_HBONE},
    {0, ANY, ANY, ANY, ANY, PZ_END_NO_HBONE},
    {PZ_DOOR_OUTBOUND, NO, ANY, ANY, ANY, PZ_END_DIRECT},
    {PZ_DOOR_INBOUND, NO, ANY, ANY, ANY, PZ_END_DIRECT},
    {PZ_DOOR_OUTBOUND, YES, NO, ANY, ANY, PZ_END_COMPLETE},
    {PZ_DOOR_INBOUND, YES, NO, ANY, ANY, PZ_END_COMPLETE},
    {PZ_DOOR_OUTBOUND, YES, YES, YES, ANY, PZ_END_DIRECT},
    {PZ_DOOR_INBOUND, YES, YES, YES, ANY, PZ_END_DIRECT},
    {PZ_DOOR_OUTBOUND, YES, YES, NO, YES, PZ_END_LOOP},
    {PZ_DOOR_OUTBOUND, YES, YES, NO, NO, PZ_END_COMPLETE},
    {PZ_DOOR_INBOUND, YES, YES, NO, ANY, PZ_END_LOOP},
};

static bool fits(int wanted, bool is)
{
    return wanted == ANY || wanted == (is ? YES : NO);
}

/* Each meeting there can be is in one row, and gets what the row says. */
static void each_meeting_has_its_verdict(void)
{
    static const uint16_t kinds[] = {0, PZ_DOOR_OUTBOUND, PZ_DOOR_INBOUND, PZ_DOOR_HBONE,
                                     PZ_DOOR_SOCKS5};

    for (unsigned bits = 0; bits < COUNT(kinds) * 16; bits++) {
        struct meeting meeting = {.kind = kinds[bits / 16],
                                  .is_tracked = bits & 1,
                                  .is_capture_port = bits & 2,
                                  .is_unchanged = bits & 4,
                                  .is_own_address = bits & 8};
        int found = 0;
        for (size_t i = 0; i < COUNT(ROWS); i++) {
            const struct row *row = &ROWS[i];
            if (row->kind != meeting.kind || !fits(row->is_tracked, meeting.is_tracked) ||
                !fits(row->is_capture_port, meeting.is_capture_port) ||
                !fits(row->is_unchanged, meeting.is_unchanged) ||
                !fits(row->is_own_address, meeting.is_own_address))
                continue;
            in_row("row %zu, kind %u, bits %x", i, meeting.kind, bits % 16);
            CHECK_EQ(pz_relay_verdict(&meeting), row->verdict);
            found++;
        }
        CHECK_EQ(found, 1);
    }
}

int main(void)
{
    static const struct test tests[] = {TEST(each_meeting_has_its_verdict)};

    return run_tests("relay_verdict.c", tests, COUNT(tests));
}
