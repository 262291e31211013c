"""What a process of a pod that has no capability may try: failclosed_attacker.py TRICK ARGUMENTS...

connect NAME ADDRESS PORT SOURCE-PORT   a connection with a trick; prints what comes of it
listen PORT [share]                     listens until its standard input ends; prints "listening"
                                        and then each client that it accepts, and resets
"""

from __future__ import annotations

import select
import socket
import sys

SECONDS = 10.0
FOR_NOTHING = {"device": 0.3, "link-local": 0.3, "from-loopback": 0.3, "from-the-probe": 0.3}
"""Seconds for tricks of which mostly nothing comes at all."""
SO_MARK, SO_BINDTODEVICE, IP_TRANSPARENT, IP_FREEBIND = 36, 25, 19, 15
IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
RESET = b"\1\0\0\0\0\0\0\0"
"""struct linger: close() sends an RST, and leaves nothing in TIME_WAIT."""


def connect(name: str, address: str, port: int, source: int) -> str:
    """Tries it; the error, or the first line that the other end says."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    protocol = IPPROTO_MPTCP if name == "mptcp" else 0
    try:
        with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
            sock.settimeout(FOR_NOTHING.get(name, SECONDS))
            if name != "link-local":
                prepare(sock, name, source)
            if name == "fast-open":
                sock.setblocking(True)
                sock.sendto(b"x", MSG_FASTOPEN, (address, port))
                sock.settimeout(SECONDS)
            else:
                scope = socket.if_nametoindex("eth0") if name == "link-local" else 0
                sock.connect((address, port, 0, scope) if scope else (address, port))
            return sock.recv(100).decode().partition("\n")[0] or "closed"
    except OSError as error:
        return type(error).__name__


def prepare(sock: socket.socket, name: str, source: int) -> None:
    """What is done before connect()."""
    any_address = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # beside ztunnel's listener
    if name == "mark":
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x539)
    if name == "transparent":
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    if name == "device":
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0\0")
    if name == "from-loopback":
        any_address = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
    if name == "from-the-probe":
        sock.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
        any_address = "169.254.7.127"
        if sock.family == socket.AF_INET6:
            any_address = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
    sock.bind((any_address, source))


def listen(port: int, share: bool) -> None:
    """Takes a port, of both families."""
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("::", port))
        sock.listen(100)
        print("listening", flush=True)
        while sys.stdin not in select.select([sock, sys.stdin], [], [])[0]:
            client, peer = sock.accept()
            print(peer[0].removeprefix("::ffff:"), peer[1], flush=True)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()


def main(argv: list[str]) -> int:
    """See above."""
    if argv[1] == "listen":
        listen(int(argv[2]), argv[3:] == ["share"])
    else:
        for number in range(2, len(argv), 4):
            name, address, port, source = argv[number : number + 4]
            print(name, connect(name, address, int(port), int(source)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
