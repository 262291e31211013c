"""The service: one line for everybody who connects."""

import socket
import threading
from collections.abc import Callable
from types import TracebackType

SECONDS_TO_TAKE_AN_ANSWER = 5.0


class HealthService:
    """Answers on a listening socket until it is closed, from a thread of its own.

    :param listener: a listening TCP socket, which the service closes in the end. Where it comes
        from does not matter: another network namespace, systemd, socket.create_server().
    :param check: returns why the program is not healthy, or None. It runs once per connection.
    """

    def __init__(self, listener: socket.socket, check: Callable[[], str | None]) -> None:
        self._listener = listener
        self._check = check
        self._thread = threading.Thread(target=self._serve, name="health")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except ConnectionAbortedError:  # the client has gone already
                continue
            except OSError:  # close() has shut the listener down
                return
            with client:
                self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        reason = self._check()
        line = "ok\n" if reason is None else f"failing: {reason}\n"
        client.settimeout(SECONDS_TO_TAKE_AN_ANSWER)
        try:
            client.sendall(line.encode())
        except OSError:
            return

    def close(self) -> None:
        """Stops the service and waits until its thread has ended."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> "HealthService":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
