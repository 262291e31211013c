/*
 * test_relay_log.c: the lines of the access log, to the byte, and the room that they take.
 */
#include "relay_internal.h"

#include "harness.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

enum { ERRNOS = 134 };

static struct label *label_of(const char *name, const char *space)
{
    struct label *label =
        pz_label_new((const uint8_t *)name, strlen(name), (const uint8_t *)space, strlen(space));

    CHECK(label != NULL);
    return label;
}

static struct pz_address address(const char *ip, uint16_t port)
{
    struct pz_address a = {.port = port, .family = strchr(ip, ':') == NULL ? 4 : 6};

    CHECK_EQ(inet_pton(a.family == 4 ? AF_INET : AF_INET6, ip, a.ip), 1);
    return a;
}

static void expect_line(const struct pz_flow_event *event, const struct label *label, bool json,
                        const char *expected)
{
    char line[2 * LINE_ROOM] = "";
    size_t size = pz_log_line(line, event, label, json);

    line[size] = '\0';
    if (strcmp(line, expected) != 0)
        fail_at(__FILE__, __LINE__, "\n%snot\n%s", line, expected);
}

static struct pz_flow_event complete(void)
{
    return (struct pz_flow_event){.kind = PZ_DOOR_OUTBOUND,
                                  .ended_us = 1700000000000042,
                                  .duration_us = 12999,
                                  .bytes = {11, 22},
                                  .source = address("10.1.2.3", 40000),
                                  .destination = address("10.9.8.7", 80),
                                  .opened = 1};
}

static void a_complete_connection(void)
{
    struct label *label = label_of("web-0", "default");
    struct pz_flow_event event = complete();

    expect_line(&event, label, false,
                "2023-11-14T22:13:20.000042Z\tinfo\taccess\tconnection complete\t"
                "src.addr=10.1.2.3:40000 src.workload=\"web-0\" src.namespace=\"default\" "
                "dst.addr=10.9.8.7:80 direction=\"outbound\" bytes_sent=11 bytes_recv=22 "
                "duration=\"12ms\"\n");
    expect_line(&event, label, true,
                "{\"level\":\"info\",\"time\":\"2023-11-14T22:13:20.000042Z\","
                "\"scope\":\"access\",\"message\":\"connection complete\","
                "\"src.addr\":\"10.1.2.3:40000\",\"src.workload\":\"web-0\","
                "\"src.namespace\":\"default\",\"dst.addr\":\"10.9.8.7:80\","
                "\"direction\":\"outbound\",\"bytes_sent\":11,\"bytes_recv\":22,"
                "\"duration\":\"12ms\"}\n");
    event.kind = PZ_DOOR_INBOUND;
    event.source = address("fd00::1", 40000);
    event.destination = address("2001:db8::2", 443);
    expect_line(&event, label, false,
                "2023-11-14T22:13:20.000042Z\tinfo\taccess\tconnection complete\t"
                "src.addr=[fd00::1]:40000 dst.addr=[2001:db8::2]:443 dst.workload=\"web-0\" "
                "dst.namespace=\"default\" direction=\"inbound\" bytes_sent=22 bytes_recv=11 "
                "duration=\"12ms\"\n");
    expect_line(&event, label, true,
                "{\"level\":\"info\",\"time\":\"2023-11-14T22:13:20.000042Z\","
                "\"scope\":\"access\",\"message\":\"connection complete\","
                "\"src.addr\":\"[fd00::1]:40000\",\"dst.addr\":\"[2001:db8::2]:443\","
                "\"dst.workload\":\"web-0\",\"dst.namespace\":\"default\","
                "\"direction\":\"inbound\",\"bytes_sent\":22,\"bytes_recv\":11,"
                "\"duration\":\"12ms\"}\n");
    pz_label_drop(label);
}

static void one_that_failed(void)
{
    struct label *label = label_of("web-0", "default");
    struct pz_flow_event event = complete();

    event.end = PZ_END_CONNECT_FAILED;
    event.error = ECONNREFUSED;
    event.bytes[0] = event.bytes[1] = event.opened = 0;
    expect_line(
        &event, label, false,
        "2023-11-14T22:13:20.000042Z\terror\taccess\tconnection complete\t"
        "src.addr=10.1.2.3:40000 src.workload=\"web-0\" src.namespace=\"default\" "
        "dst.addr=10.9.8.7:80 direction=\"outbound\" bytes_sent=0 bytes_recv=0 "
        "duration=\"12ms\" error=\"connection failed: Connection refused (os error 111)\"\n");
    event.end = PZ_END_RESET_BY_SOURCE;
    event.error = 0;
    expect_line(&event, label, true,
                "{\"level\":\"error\",\"time\":\"2023-11-14T22:13:20.000042Z\","
                "\"scope\":\"access\",\"message\":\"connection complete\","
                "\"src.addr\":\"10.1.2.3:40000\",\"src.workload\":\"web-0\","
                "\"src.namespace\":\"default\",\"dst.addr\":\"10.9.8.7:80\","
                "\"direction\":\"outbound\",\"bytes_sent\":0,\"bytes_recv\":0,"
                "\"duration\":\"12ms\",\"error\":\"connection reset by the source\"}\n");
    pz_label_drop(label);
}

/* Of whose it is nothing is said, as ztunnel does; and a destination may not be known. */
static void one_that_is_refused(void)
{
    struct label *label = label_of("web-0", "default");
    struct pz_flow_event event = complete();

    event.end = PZ_END_NO_HBONE;
    event.kind = PZ_DOOR_HBONE;
    event.destination = (struct pz_address){.family = 0};
    expect_line(&event, label, false,
                "2023-11-14T22:13:20.000042Z\twarn\taccess\tconnection failed\t"
                "src.addr=10.1.2.3:40000 direction=\"inbound\" error=\"HBONE is not supported\"\n");
    event.kind = PZ_DOOR_OUTBOUND;
    event.end = PZ_END_NO_MARK;
    event.error = EPERM;
    event.source = (struct pz_address){.family = 0};
    expect_line(&event, label, false,
                "2023-11-14T22:13:20.000042Z\twarn\taccess\tconnection failed\t"
                "direction=\"outbound\" error=\"no SO_MARK or IP_TRANSPARENT without CAP_NET_ADMIN "
                "or CAP_NET_RAW: Operation not permitted (os error 1)\"\n");
    expect_line(&event, label, true,
                "{\"level\":\"warn\",\"time\":\"2023-11-14T22:13:20.000042Z\","
                "\"scope\":\"access\",\"message\":\"connection failed\",\"direction\":\"outbound\","
                "\"error\":\"no SO_MARK or IP_TRANSPARENT without CAP_NET_ADMIN "
                "or CAP_NET_RAW: Operation not permitted (os error 1)\"}\n");
    pz_label_drop(label);
}

static void a_name_cannot_forge_a_line(void)
{
    struct label *label = label_of("a\"b\\c\nd\te\x7f\x01\x1b[31m", "\xc3\xa4 b=\"c\"");

    CHECK_EQ(strcmp(label->name, "\"a\\\"b\\\\c\\u000ad\\u0009e\\u007f\\u0001\\u001b[31m\""), 0);
    CHECK_EQ(strcmp(label->space, "\"\xc3\xa4 b=\\\"c\\\"\""), 0);
    pz_label_drop(label);
    label = label_of("", "");
    CHECK_EQ(strcmp(label->name, "\"\""), 0);
    CHECK_EQ(strcmp(label->space, "\"\""), 0);
    pz_label_drop(label);
}

/* ASan sees a byte too much: the label has just the room that the worst needs. */
static void the_worst_name_has_room(void)
{
    uint8_t worst[1000];
    struct label *label;

    for (size_t size = 0; size <= sizeof worst; size += size < 8 ? 1 : 31) {
        memset(worst, 1, sizeof worst);
        label = pz_label_new(worst, size, worst, sizeof worst - size);
        CHECK(label != NULL);
        CHECK_EQ(strlen(label->name), 6 * size + 2);
        CHECK_EQ(strlen(label->space), 6 * (sizeof worst - size) + 2);
        pz_label_drop(label);
    }
    /* A NUL does not cut it short. */
    label = pz_label_new((const uint8_t *)"a\0b", 3, worst, 0);
    CHECK_EQ(strcmp(label->name, "\"a\\u0000b\""), 0);
    pz_label_drop(label);
}

static bool is_one_json_object(const char *line, size_t size)
{
    bool in_string = false;

    for (size_t i = 0; i < size; i++) {
        if ((uint8_t)line[i] < 0x20 && i != size - 1)
            return false;
        if (line[i] == '\\')
            i++;
        else if (line[i] == '"')
            in_string = !in_string;
    }
    return !in_string && line[0] == '{' && size > 2 && memcmp(line + size - 2, "}\n", 2) == 0;
}

static size_t worst_line(unsigned end, uint16_t kind, const char *ip, int error, bool json)
{
    struct label *label = label_of("\x01\x02\"", "namespace");
    size_t room = LINE_ROOM + strlen(label->name) + strlen(label->space);
    struct pz_flow_event event = {.ended_us = UINT64_MAX,
                                  .duration_us = UINT64_MAX,
                                  .bytes = {UINT64_MAX, UINT64_MAX},
                                  .kind = kind,
                                  .end = (uint16_t)end,
                                  .error = error};
    char *line = malloc(room); /* ASan sees what is beyond */

    CHECK(line != NULL);
    if (ip != NULL)
        event.source = event.destination = address(ip, 65535);
    size_t size = pz_log_line(line, &event, label, json);
    in_row("end %u kind %u error %d", end, kind, error);
    CHECK(size <= room);
    CHECK(memchr(line, '\n', size) == line + size - 1);
    if (json)
        CHECK(is_one_json_object(line, size));
    free(line);
    pz_label_drop(label);
    return size;
}

static size_t larger(size_t one, size_t other)
{
    return one > other ? one : other;
}

/* As much as there can be of each field: LINE_ROOM and the label's bytes hold it. */
static void no_line_is_longer_than_its_room(void)
{
    static const char *const ips[] = {"abcd:abcd:abcd:abcd:abcd:abcd:abcd:abcd", "255.255.255.255",
                                      "::ffff:255.255.255.255", NULL};
    size_t longest = 0;

    for (unsigned end = 0; end <= PZ_END_NO_MARK + 1; end++)
        for (int json = 0; json < 2; json++) {
            for (uint16_t kind = 0; kind <= PZ_DOOR_SOCKS5; kind++)
                for (size_t ip = 0; ip < COUNT(ips); ip++)
                    longest = larger(longest, worst_line(end, kind, ips[ip], INT32_MIN, json));
            for (int error = 0; error < ERRNOS; error++)
                longest = larger(longest, worst_line(end, PZ_DOOR_INBOUND, ips[0], error, json));
        }
    CHECK(longest > LINE_ROOM / 2); /* it was no test of short lines */
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_complete_connection),   TEST(one_that_failed),
        TEST(one_that_is_refused),     TEST(a_name_cannot_forge_a_line),
        TEST(the_worst_name_has_room), TEST(no_line_is_longer_than_its_room),
    };

    return run_tests("relay_log.c", tests, COUNT(tests));
}
