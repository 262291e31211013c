/*
 * relay_verdict.c: what to do with a connection. The one place where that is decided.
 *
 * Theory of operation: pure. What may need a syscall to know is asked before, and only where it
 * can matter (relay_door.c). A connection that we would make to ourselves would make one to
 * ourselves again, until the descriptors run out; so what is meant for a capture port is refused:
 *
 *   door        destination                                         verdict
 *   hbone, socks5  any                                              no HBONE yet
 *   any         not known to conntrack                              direct: nothing redirected it
 *   outbound    a capture port at the address where it arrived      direct
 *   outbound    a capture port at an address of the pod             loop
 *   outbound    a capture port of another machine                   relayed: it is not ours
 *   inbound     a capture port at any address                       loop (as ztunnel, RULES 4.2)
 *   any         all else                                            relayed
 */
#include "relay_internal.h"

enum pz_end pz_relay_verdict(const struct meeting *meeting)
{
    if (meeting->kind != PZ_DOOR_OUTBOUND && meeting->kind != PZ_DOOR_INBOUND)
        return PZ_END_NO_HBONE;
    if (!meeting->is_tracked)
        return PZ_END_DIRECT;
    if (!meeting->is_capture_port)
        return PZ_END_COMPLETE;
    if (meeting->is_unchanged)
        return PZ_END_DIRECT;
    if (meeting->kind == PZ_DOOR_INBOUND || meeting->is_own_address)
        return PZ_END_LOOP;
    return PZ_END_COMPLETE;
}
