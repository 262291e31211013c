"""The rules of a captured pod, as text for nft. Pure.

Their meaning is that of Istio's in-pod rules, so that any ztunnel finds what it expects. They are
one table of our own, IPv4 and IPv6 always: a family that is switched on later is captured already.

What differs from Istio's, and why:

- `mark the flow` matches the original direction alone. The SYN-ACK of ztunnel comes back over lo
  with its mark too, and would tag the application's own outbound flows.
- ztunnel's connections have a conntrack zone of their own. They use the very tuples that redirected
  ones use; where the port coincides too, the SYN would be translated back to our own listener.
- The priority of nat is one before everybody's (dstnat, -100): of two nat chains at the same
  priority it is chance which one decides. A pod's own dnat acts on what ztunnel sends instead.
- Guards. A connection from before has its conntrack entry and never meets a nat rule; with
  nf_conntrack_tcp_loose=0 that is so even after a flush. So all TCP is reset that is neither
  translated to us, nor ztunnel's, nor local.
- What comes from outside is for a socket of ztunnel, which has the mark, or is reset. Any process
  may listen on our ports while ztunnel is down, and beside it with SO_REUSEPORT and the same uid.
- What ztunnel sends to its own ports is reset. Rules of the pod's owner (an Istio sidecar has such)
  may send its connections back to it, and each would make another until none is left.
- What ztunnel sends over lo loses its mark on arrival. With tcp_fwmark_accept, which uid 0 of the
  pod may set without any capability, a socket that the application accepts would inherit it.
- All of 127.0.0.0/8 is left alone on its way in: a neighbour may send it to our device, and the
  translation comes before the kernel drops it as a martian.
- No TCP is forwarded: what comes for others is redirected to us, but for what was there before.
- What is tagged for ztunnel never leaves the pod, also while `ip rule` is missing. Nor does what
  was translated to 127.0.0.1: a socket that is bound to a device (SO_BINDTODEVICE, which needs no
  privilege; IPv6 link-local) is routed out of that device even so.
"""

from __future__ import annotations

from typing import Final

TABLE: Final = "inet pyztun"

MARK: Final = 0x539
"""SO_MARK of every socket of ztunnel."""
FLOW_MARK: Final = 0x111
"""conntrack mark of a connection from ztunnel to the application, and mark of its answers."""
CARRIED: Final = 0x222
"""conntrack mark of all else that ztunnel carries. A flush spares what has a mark."""
MASK: Final = 0xFFF
KEEP: Final = 0xFFFFFFFF ^ MASK
"""The bits of a conntrack mark that are not ours."""
ZONE: Final = 1337

OUTBOUND, INBOUND, HBONE = 15001, 15006, 15008

ROUTE_TABLE: Final = 100
RULE_PRIORITY: Final = 32764

PROBE_IPV4: Final = "169.254.7.127"
PROBE_IPV6: Final = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"

LO: Final = 1
"""The index of lo in every netns (LOOPBACK_IFINDEX in net/core). Its name can be changed."""

RAW, MANGLE, NAT, GUARD = -300, -150, -101, 10

SETTLED: Final = "settled"
"""An empty chain that comes last, after conntrack was flushed.

Whoever is killed in between leaves a table without it, and the next one sees that the flush is
still due. It is added and not taken away, since a commit that deletes anything waits for a grace
period of RCU: some 7 ms instead of a quarter.
"""

_OURS = f"meta mark & {MASK:#x} == {MARK:#x}"
_NOT_OURS = f"meta mark & {MASK:#x} != {MARK:#x}"
_TAGGED = f"meta mark & {MASK:#x} == {FLOW_MARK:#x}"
_TRANSLATED = "meta l4proto tcp ct status dnat ct reply proto-src"
_RST = "tcp flags & rst == rst"
_CARRY = f"ct mark & {MASK:#x} == 0 ct mark set ct mark | {CARRIED:#x}"
_PORTS = f"{OUTBOUND}, {INBOUND}, {HBONE}"
_SOMEBODY_ELSES = f"socket mark & {MASK:#x} != {MARK:#x}"
"""No match where there is no socket, or one that is not whole: TIME_WAIT, or the handshake's."""

_CHAINS = f"""\
	chain raw_output {{
		type filter hook output priority {RAW}; policy accept;
		meta l4proto tcp {_OURS} ct original zone set {ZONE}
	}}
	chain mark_prerouting {{
		type filter hook prerouting priority {MANGLE}; policy accept;
		{_OURS} ct direction original ct mark set ct mark & {KEEP:#x} | {FLOW_MARK:#x}
	}}
	chain mark_output {{
		type route hook output priority {MANGLE}; policy accept;
		ct mark & {MASK:#x} == {FLOW_MARK:#x} meta mark set ct mark
	}}
	chain nat_prerouting {{
		type nat hook prerouting priority {NAT}; policy accept;
		meta l4proto tcp ip saddr {PROBE_IPV4} accept
		meta l4proto tcp ip6 saddr {PROBE_IPV6} accept
		ip daddr != 127.0.0.0/8 tcp dport != {HBONE} {_NOT_OURS} counter redirect to :{INBOUND}
		ip6 daddr != ::1 tcp dport != {HBONE} {_NOT_OURS} counter redirect to :{INBOUND}
	}}
	chain nat_output {{
		type nat hook output priority {NAT}; policy accept;
		meta l4proto tcp ip daddr {PROBE_IPV4} accept
		meta l4proto tcp ip6 daddr {PROBE_IPV6} accept
		meta l4proto tcp {_TAGGED} accept
		meta oif {LO} ip daddr != 127.0.0.1 accept
		meta oif {LO} ip6 daddr != ::1 accept
		meta l4proto tcp ip daddr != 127.0.0.1 {_NOT_OURS} counter redirect to :{OUTBOUND}
		meta l4proto tcp ip6 daddr != ::1 {_NOT_OURS} counter redirect to :{OUTBOUND}
	}}
	chain guard_output {{
		type filter hook output priority {GUARD}; policy accept;
		meta l4proto tcp {_OURS} {_CARRY}
		{_TRANSLATED} {OUTBOUND} {_CARRY}
		meta oif {LO} accept
		meta l4proto != tcp accept
		{_OURS} accept
		{_TAGGED} accept
		{_TRANSLATED} {OUTBOUND} accept
		{_TRANSLATED} {INBOUND} accept
		ip daddr {PROBE_IPV4} accept
		ip6 daddr {PROBE_IPV6} accept
		{_RST} accept
		counter reject with tcp reset
	}}
	chain guard_refuse {{
		counter reject with tcp reset
	}}
	chain guard_input {{
		type filter hook input priority {GUARD}; policy accept;
		meta iif {LO} {_OURS} ct direction original tcp dport {{ {_PORTS} }} goto guard_refuse
		meta iif {LO} {_OURS} meta mark set meta mark & {KEEP:#x}
		meta iif {LO} accept
		meta l4proto != tcp accept
		{_RST} accept
		ip saddr {PROBE_IPV4} accept
		ip6 saddr {PROBE_IPV6} accept
		{_SOMEBODY_ELSES} goto guard_refuse
		tcp dport {HBONE} accept
		{_TRANSLATED} {OUTBOUND} accept
		{_TRANSLATED} {INBOUND} {_CARRY}
		{_TRANSLATED} {INBOUND} accept
		ct direction reply accept
		goto guard_refuse
	}}
	chain guard_forward {{
		type filter hook forward priority {GUARD}; policy accept;
		meta l4proto != tcp accept
		{_RST} accept
		counter reject with tcp reset
	}}
	chain guard_postrouting {{
		type filter hook postrouting priority {GUARD}; policy accept;
		meta oif != {LO} meta l4proto tcp {_TAGGED} counter drop
		meta oif != {LO} ct direction original {_TRANSLATED} {OUTBOUND} counter drop
	}}
"""

_TABLE = f"table {TABLE} {{\n{_CHAINS}}}\n"

REMOVE: Final = f"add table {TABLE}\ndelete table {TABLE}\n"
"""Removes the table; that it is not there is no error."""

CREATE: Final = f"create table {TABLE}\n{_TABLE}"
"""Puts all but SETTLED where there is no such table."""

REPLACE: Final = f"{REMOVE}{_TABLE}"
"""The same, whatever was there under that name. One transaction, as each of these texts."""

SETTLE: Final = f"add chain {TABLE} {SETTLED}\n"

LIST: Final = f"list table {TABLE}\n"
