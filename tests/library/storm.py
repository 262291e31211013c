"""A process in which everything happens at once, to show that no socket ever lands elsewhere.

    python storm.py ROUNDS PODS WORKERS

Workers make and close listeners in random netns and compare each socket's cookie with the one that
was asked for. Meanwhile others fork, resolve names, read /proc/self/ns/net, make sockets at home,
and start threads that do so. Prints counts as one JSON object; an error
is counted and stops nothing.
"""

import json
import os
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable

from pyztun import NetNs, PyztunError, native

counts: Counter[str] = Counter()
lock = threading.Lock()
over = threading.Event()


def tell(found: "Counter[str]") -> None:
    with lock:
        counts.update(found)


def until_over(name: str, once: Callable[[], str | None]) -> threading.Thread:
    """A thread that does ONCE again and again; what it returns is counted as wrong."""

    def body() -> None:
        found: Counter[str] = Counter()
        while not over.is_set():
            try:
                wrong = once()
            except OSError as error:
                wrong = f"{name}: {error}"
            found[f"did {name}"] += 1
            if wrong is not None:
                found[f"wrong {wrong}"] += 1
            # Left to itself one of these would keep the interpreter from the workers.
            over.wait(0.001)
        tell(found)

    thread = threading.Thread(target=body, name=name)
    thread.start()
    return thread


def work(number: int, rounds: int, pods: list[NetNs], cookies: list[int]) -> None:
    """Ports are different in each worker and round, so that no two meet."""
    found: Counter[str] = Counter()
    chance = random.Random(number)  # repeatable, not secret
    here = os.stat("/proc/thread-self/ns/net").st_ino
    specs = native.ListenerSpec("127.0.0.1", b"\x7f\0\0\1", 0, backlog=1, flags=native.REUSEADDR)
    plan = native.ListenPlan([specs])
    keeps_home = number % 2 == 0  # half the workers keep their home fd, as the services do
    with native.home() as home:
        native.prove_home(home.fileno())
        for _ in range(rounds):
            which = chance.randrange(len(pods))
            try:
                (fd,) = plan.open(pods[which].fileno(), home.fileno() if keeps_home else -1, "pod")
            except PyztunError as error:
                found[f"wrong {error}"] += 1
                continue
            found["rounds"] += 1
            if native.socket_cookie(fd.fileno()) != cookies[which]:
                found["wrong netns"] += 1
            fd.close()
    if os.stat("/proc/thread-self/ns/net").st_ino != here:
        found["wrong worker is not home"] += 1
    tell(found)


def main(rounds: int, npods: int, nworkers: int) -> int:
    home_inode = os.stat("/proc/self/ns/net").st_ino
    with NetNs.current() as current:
        home_cookie = current.cookie
    pods = [NetNs.create() for _ in range(npods)]
    cookies = [pod.cookie for pod in pods]

    def fork() -> str | None:
        """The child inherits the netns of the thread that forks."""
        pid = os.fork()
        if pid == 0:
            os._exit(0 if os.stat("/proc/self/ns/net").st_ino == home_inode else 1)
        return "child elsewhere" if os.waitpid(pid, 0)[1] else None

    def resolve() -> str | None:
        found = {each[4][0] for each in socket.getaddrinfo("localhost", 80)}
        return None if found <= {"127.0.0.1", "::1"} else f"localhost is {found}"

    def look() -> str | None:
        seen = {os.stat("/proc/self/ns/net").st_ino, os.stat(f"/proc/{os.getpid()}/ns/net").st_ino}
        return None if seen == {home_inode} else "main thread away"

    def own_socket() -> str | None:
        with socket.socket() as sock:
            return None if native.socket_cookie(sock.fileno()) == home_cookie else "socket away"

    def start_thread() -> str | None:
        seen: list[str | None] = []
        thread = threading.Thread(target=lambda: seen.append(own_socket()))
        thread.start()
        thread.join()
        return seen[0]

    others = [
        until_over(each.__name__, each) for each in (fork, resolve, look, own_socket, start_thread)
    ]
    workers = [
        threading.Thread(target=work, args=(number, rounds // nworkers, pods, cookies))
        for number in range(nworkers)
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        # The main thread makes listeners too, through its helper thread; many, to be long away.
        for listener in pods[0].listen(*[("127.0.0.1", 0)] * native.MAX_LISTENERS):
            with listener:
                if native.socket_cookie(listener.fileno()) != cookies[0]:
                    counts["wrong netns (main)"] += 1
        counts["did main"] += 1
        workers[0].join(0.001)
    for worker in workers:
        worker.join()
    over.set()
    for other in others:
        other.join()
    for pod in pods:
        pod.close()
    counts["cookies"] = len(set(cookies))
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
