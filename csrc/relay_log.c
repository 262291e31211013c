/*
 * relay_log.c: a line of the access log, as Istio's ztunnel writes it (src/proxy/metrics.rs).
 *
 * Theory of operation: pure, formatted in the reader's thread, never in one that relays. Fields
 * that we do not know are left out, as ztunnel does: of the other end we know the address alone.
 * bytes_sent is what the workload of this log line sent for an outbound connection, and what its
 * client was sent for an inbound one; bytes_recv the other direction (ztunnel has it so).
 */
#include "relay_internal.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

struct text {
    char *at;
    bool json;
};

static void put(struct text *out, const char *text)
{
    size_t size = strlen(text);

    memcpy(out->at, text, size);
    out->at += size;
}

/* A field: KEY=VALUE, or "KEY":VALUE behind a comma. VALUE is quoted where it has to be. */
static void field(struct text *out, const char *key, const char *value)
{
    put(out, out->json ? ",\"" : " ");
    put(out, key);
    put(out, out->json ? "\":" : "=");
    put(out, value);
}

static void number(struct text *out, const char *key, uint64_t value)
{
    char digits[24];

    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    field(out, key, digits);
}

static void quoted(struct text *out, const char *key, const char *value)
{
    char text[168];

    snprintf(text, sizeof text, "\"%s\"", value);
    field(out, key, text);
}

static void address(struct text *out, const char *key, const struct pz_address *a)
{
    char ip[INET6_ADDRSTRLEN], text[64];

    if (a->family == 0 ||
        inet_ntop(a->family == 4 ? AF_INET : AF_INET6, a->ip, ip, sizeof ip) == NULL)
        return;
    snprintf(text, sizeof text, a->family == 4 ? "%s:%u" : "[%s]:%u", ip, (unsigned)a->port);
    if (out->json)
        quoted(out, key, text);
    else
        field(out, key, text);
}

static void moment(struct text *out, uint64_t us)
{
    time_t seconds = (time_t)(us / 1000000);
    struct tm utc;
    char text[64];

    gmtime_r(&seconds, &utc);
    size_t size = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + size, sizeof text - size, ".%06uZ", (unsigned)(us % 1000000));
    put(out, text);
}

static const char *reason(const struct pz_flow_event *event)
{
    switch ((enum pz_end)event->end) {
    case PZ_END_COMPLETE: return NULL;
    case PZ_END_RESET_BY_SOURCE: return "connection reset by the source";
    case PZ_END_RESET_BY_DESTINATION: return "connection reset by the destination";
    case PZ_END_CONNECT_FAILED: return "connection failed";
    case PZ_END_CONNECT_TIMEOUT: return "connection timed out";
    case PZ_END_IDLE: return "connection idle for too long";
    case PZ_END_HALF_CLOSED: return "connection half-closed for too long";
    case PZ_END_WORKLOAD_GONE: return "connection closed due to workload removal";
    case PZ_END_DRAINED: return "connection closed due to connection drain";
    case PZ_END_BROKEN: return "connection broken";
    case PZ_END_NO_HBONE: return "HBONE is not supported";
    case PZ_END_LOOP: return "the destination is a port of the proxy itself";
    case PZ_END_DIRECT: return "not redirected, but made to a port of the proxy";
    case PZ_END_NO_MARK: return "no SO_MARK or IP_TRANSPARENT without CAP_NET_ADMIN or CAP_NET_RAW";
    }
    return "unknown";
}

static void why(struct text *out, const struct pz_flow_event *event)
{
    const char *text = reason(event);
    char whole[152], name[64];

    if (text == NULL)
        return;
    if (event->error == 0) {
        quoted(out, "error", text);
        return;
    }
    const char *error = strerror_r(event->error, name, sizeof name);
    snprintf(whole, sizeof whole, "%.72s: %.40s (os error %d)", text, error, event->error);
    quoted(out, "error", whole);
}

static void head(struct text *out, const struct pz_flow_event *event, bool is_refused)
{
    const char *level = is_refused ? "warn" : event->end == PZ_END_COMPLETE ? "info" : "error";
    const char *message = is_refused ? "connection failed" : "connection complete";

    put(out, out->json ? "{\"level\":\"" : "");
    if (out->json) {
        put(out, level);
        put(out, "\",\"time\":\"");
        moment(out, event->ended_us);
        put(out, "\",\"scope\":\"access\",\"message\":\"");
        put(out, message);
        put(out, "\"");
        return;
    }
    moment(out, event->ended_us);
    put(out, "\t");
    put(out, level);
    put(out, "\taccess\t");
    put(out, message);
    put(out, "\t");
}

size_t pz_log_line(char *line, const struct pz_flow_event *event, const struct label *label,
                   bool json)
{
    struct text out = {line, json};
    bool outbound = event->kind == PZ_DOOR_OUTBOUND || event->kind == PZ_DOOR_SOCKS5;
    bool is_refused = event->end >= PZ_END_NO_HBONE;
    char duration[32];

    head(&out, event, is_refused);
    char *first = out.at;
    address(&out, "src.addr", &event->source);
    if (outbound && !is_refused) {
        field(&out, "src.workload", label->name);
        field(&out, "src.namespace", label->space);
    }
    address(&out, "dst.addr", &event->destination);
    if (!outbound && !is_refused) {
        field(&out, "dst.workload", label->name);
        field(&out, "dst.namespace", label->space);
    }
    quoted(&out, "direction", outbound ? "outbound" : "inbound");
    if (!is_refused) {
        number(&out, "bytes_sent", event->bytes[outbound ? 0 : 1]);
        number(&out, "bytes_recv", event->bytes[outbound ? 1 : 0]);
        snprintf(duration, sizeof duration, "%llums",
                 (unsigned long long)(event->duration_us / 1000));
        quoted(&out, "duration", duration);
    }
    why(&out, event);
    if (!json) { /* the tab stands for the first blank */
        memmove(first, first + 1, (size_t)(out.at - first - 1));
        out.at--;
    }
    put(&out, json ? "}\n" : "\n");
    return (size_t)(out.at - line);
}

size_t pz_log_quote(char *out, const uint8_t *text, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    char *at = out;

    *at++ = '"';
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = text[i];
        if (byte >= 0x20 && byte != '"' && byte != '\\' && byte != 0x7f) {
            *at++ = (char)byte;
            continue;
        }
        *at++ = '\\';
        if (byte == '"' || byte == '\\') {
            *at++ = (char)byte;
        } else {
            memcpy(at, "u00", 3);
            at[3] = hex[byte >> 4];
            at[4] = hex[byte & 15];
            at += 5;
        }
    }
    *at++ = '"';
    return (size_t)(at - out);
}
