"""The probe: asks a health service and tells what it said."""

import socket
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_ANSWER = 1000

Connect = Callable[[tuple[str, int], float], socket.socket]


@dataclass(frozen=True)
class Health:
    """What a probe found: ``ok`` or not, and the line or the error that says so."""

    ok: bool
    text: str


def probe(
    host: str, port: int, timeout: float = 5.0, connect: Connect = socket.create_connection
) -> Health:
    """Asks the service at host and port, for at most ``timeout`` seconds per step.

    :param connect: makes the connection; another one may start in another network namespace.
    """
    try:
        with connect((host, port), timeout) as connection:
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < LONGEST_ANSWER:
                some = connection.recv(LONGEST_ANSWER)
                if not some:
                    return Health(False, "closed without an answer")
                answer += some
    except OSError as error:
        return Health(False, error.strerror or str(error))
    text = answer.decode(errors="replace").strip()
    return Health(text == "ok", text)
