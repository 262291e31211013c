"""The rules in a captured pod, as texts for nft. Pure.

Both contenders get the rules that `pyztun-cni add` applies. These tell a proxy's own connections by
their mark. HAProxy marks its outgoing sockets from 3.0 on only, so a rule before all
others does it, by its uid. A uid belongs to a socket: a packet that leaves when its socket is
closed has none, and would be rejected. HAProxy closes after both sides have said FIN, when none is
left to send; nothing was rejected, retransmitted or left over in conntrack in 80,000 connections.
HAProxy is spared the one rule that asks a socket for its mark, which costs ours a look-up a packet.
"""

from __future__ import annotations

from pyztun.cni.capture import rules

OURS = rules.CREATE
"""For a proxy whose sockets carry the mark."""

PROXY_UID = 65534

_WITHOUT_SOCKET_MARK = "".join(
    line for line in OURS.splitlines(keepends=True) if "socket mark" not in line
)

HAPROXY = f"""{_WITHOUT_SOCKET_MARK}
table inet pyztun_bench {{
	chain mark_output {{
		type filter hook output priority {rules.RAW - 1}; policy accept;
		meta l4proto tcp meta skuid {PROXY_UID} meta mark set {rules.MARK:#x}
	}}
}}
"""
"""For a proxy that runs as :data:`PROXY_UID`."""
