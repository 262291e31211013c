"""`pyztun-cni agent` whose podside does what a test tells it: agent_scripted.py
SOCKET SECONDS OPTIONS...

The agent is the real one but for the command of its podside, which is this file again, and for the
seconds that it gives a request. That one
hands its end of the agent's channel to whoever listens on SOCKET, and from then on is but a process
that can be killed: it ends when the connection does. See agent_podside.py.
"""

import socket
import sys

PODSIDE = "--podside"


def serve(path: str, seconds: str, options: list[str]) -> int:
    """The agent."""
    from pyztun.cni.agent import podside, podside_process, service

    podside_process.COMMAND = (sys.executable, __file__, PODSIDE, path)
    podside.DEADLINE = float(seconds)
    return service.main(options)


def hand_over(path: str, fd: int) -> int:
    """Podside; the status with which it ends is the last byte that it is told."""
    with socket.socket(socket.AF_UNIX) as test:
        test.connect(path)
        with socket.socket(fileno=fd) as channel:
            socket.send_fds(test, [b"x"], [channel.fileno()])
        return (test.recv(1) or b"\0")[0]


if __name__ == "__main__":
    if sys.argv[1] == PODSIDE:
        sys.exit(hand_over(sys.argv[2], int(sys.argv[3])))
    sys.exit(serve(sys.argv[1], sys.argv[2], sys.argv[3:]))
