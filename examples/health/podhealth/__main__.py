"""`python -m podhealth serve HOST PORT` and `python -m podhealth probe HOST PORT`."""

import signal
import socket
import sys

from podhealth import HealthService, probe


def serve(host: str, port: int) -> int:
    """Answers `ok` until SIGTERM or SIGINT; says when it begins."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        print(f"cannot listen on {host} port {port}: {error.strerror}", file=sys.stderr)
        return 1
    with HealthService(listener, lambda: None):
        print(f"answers on {host} port {port}", flush=True)
        signal.sigwait(signals)
    return 0


def ask(host: str, port: int) -> int:
    """Prints what the service says; 0 if that is `ok`."""
    health = probe(host, port)
    print(health.text)
    return 0 if health.ok else 1


def main(arguments: list[str]) -> int:
    commands = {"serve": serve, "probe": ask}
    if len(arguments) != 3 or arguments[0] not in commands or not arguments[2].isdigit():
        print("usage: python -m podhealth serve|probe HOST PORT", file=sys.stderr)
        return 2
    return commands[arguments[0]](arguments[1], int(arguments[2]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
