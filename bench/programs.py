"""Compiles, starts and ends the programs that are measured.

Each one ends with the with-block of its Process. What it says on stderr goes to a file and not
through a pipe: a thread of ours that reads a pipe would run in the middle of a measurement.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
PATIENCE = 60.0
"""Seconds for any answer of any program: only something that hangs takes as long."""


class BenchError(Exception):
    """The benchmark cannot go on; the text says why."""


class Skipped(Exception):
    """A row or a contender cannot be measured on this host; the text says why."""


def compiler() -> str:
    """The C compiler."""
    for name in (os.environ.get("CC", ""), "cc", "gcc"):
        if name and (path := shutil.which(name)):
            return path
    raise BenchError("no C compiler: neither $CC nor cc nor gcc is a program on PATH")


def go() -> str | None:
    """The Go command, None if there is none."""
    return shutil.which("go") or shutil.which("/usr/local/go/bin/go")


def installed(name: str) -> str:
    """The path of a command of ours, as installed beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise BenchError(f"{path} is missing: make bench installs it")
    return str(path)


class Workshop:
    """Where the programs of one run are built and where their sockets lie.

    :param directory: private to us, removed by whoever made it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sockets = 0

    @functools.cached_property
    def floor(self) -> str:
        return self._compile("floor.c", "floor_zds.c")

    @functools.cached_property
    def client(self) -> str:
        return self._compile("client.c", "client_zds.c")

    @functools.cached_property
    def relay_load(self) -> str:
        return self._compile("relay_load.c")

    @functools.cached_property
    def go_receiver(self) -> str:
        """The receiver that a stranger would write in Go, from the peers of the tests. Skipped."""
        if go() is None:
            raise Skipped("Go is not installed")
        script = HERE.parent / "tests" / "support" / "peers.py"
        if not script.exists():
            raise Skipped(f"{script} is missing")
        built = _run([sys.executable, str(script), str(self.directory / "peers")])
        for line in built.splitlines():
            if line.endswith("/go/ztunnel_emulator"):
                return line
        raise BenchError(f"{script} built no Go receiver")

    def socket_path(self) -> str:
        """A path where nothing is yet."""
        self._sockets += 1
        return str(self.directory / f"{self._sockets}.sock")

    def _compile(self, *sources: str) -> str:
        """The program, which has the name of its first source."""
        program = str(self.directory / sources[0].removesuffix(".c"))
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"]
        _run([compiler(), *flags, "-o", program, *(str(HERE / source) for source in sources)])
        return program


def _run(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{argv[0]} failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Process:
    """A program that runs until the with-block ends.

    :param inherited: descriptors that it gets under the same numbers, borrowed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        inherited: Sequence[int] = (),
        talks: bool = True,
    ) -> None:
        """:param talks: whether its stdout is read by :meth:`line`; else it goes to /dev/null."""
        self.name = Path(argv[0]).name
        handle, path = tempfile.mkstemp(".err", self.name, directory)
        self._errors = Path(path)
        with open(handle, "wb") as errors:
            self._process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
                stderr=errors,
                pass_fds=inherited,
                bufsize=0,
                # An interrupt from the keyboard reaches us alone; what we started we end.
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._unread = b""

    def line(self) -> str:
        """The next line of its stdout. BenchError if it ends before, or takes too long."""
        out = self._process.stdout
        assert out is not None
        while b"\n" not in self._unread:
            if not select.select([out], [], [], PATIENCE)[0]:
                raise BenchError(f"{self.name} says nothing for {PATIENCE:.0f} s")
            more = os.read(out.fileno(), 65536)
            if not more:
                raise self.failure()
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def ask(self, command: str) -> list[float]:
        """Sends one line; returns the numbers that it answers with."""
        into = self._process.stdin
        assert into is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended is told by line()
            into.write(command.encode() + b"\n")
        return [float(word) for word in self.line().split()]

    def said(self) -> str:
        """All that it has said on stderr so far; the last line may not be whole."""
        return self._errors.read_text(errors="replace")

    def blame(self, error: BenchError) -> BenchError:
        """What really went wrong when another program met ERROR: our own end, if we ended."""
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return error
        return self.failure()

    def failure(self) -> BenchError:
        """Why it ended."""
        code = self._process.wait(PATIENCE)
        why = "\n".join(self.said().strip().splitlines()[-3:]) or "no reason given"
        return BenchError(f"{self.name} ended with {code}: {why}")

    def close(self) -> None:
        """Ends it, by force if it does not listen."""
        self._process.terminate()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _blamed(process: Process) -> Iterator[Process]:
    """The process; what fails within the block because it ended is told as its end."""
    try:
        yield process
    except BenchError as error:
        raise process.blame(error) from error


@contextlib.contextmanager
def receiver(
    argv: Sequence[str], shop: Workshop, inherited: Sequence[int] = ()
) -> Iterator[Process]:
    """A program that says "listening" on stdout: the floor or the receiver in Go, our agent."""
    with Process(argv, shop.directory, inherited=inherited) as process:
        if (line := process.line()) != "listening":
            raise BenchError(f"{process.name} said {line!r} instead of 'listening'")
        with _blamed(process):
            yield process


@contextlib.contextmanager
def dialler(argv: Sequence[str], shop: Workshop) -> Iterator[Process]:
    """A program that dials an agent and says nothing to us: the floor of ZDS."""
    with Process(argv, shop.directory, talks=False) as process, _blamed(process):
        yield process


@contextlib.contextmanager
def ztunnel(words: Sequence[str], shop: Workshop) -> Iterator[Process]:
    """The real `pyztun-ztunnel WORDS...`, ready: it says so to NOTIFY_SOCKET."""
    with notifying([installed("pyztun-ztunnel"), *words], shop) as process:
        yield process


@contextlib.contextmanager
def notifying(argv: Sequence[str], shop: Workshop) -> Iterator[Process]:
    """A service of ours that has said READY=1 to NOTIFY_SOCKET."""
    with contextlib.ExitStack() as stack:
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        address = shop.socket_path()
        notify.bind(address)
        env = {**os.environ, "NOTIFY_SOCKET": address}
        process = stack.enter_context(Process(argv, shop.directory, env=env, talks=False))
        ended = os.pidfd_open(process.pid)
        stack.callback(os.close, ended)
        readable = select.select([notify.fileno(), ended], [], [], PATIENCE)[0]
        if notify.fileno() not in readable:
            raise process.failure() if readable else BenchError(f"{process.name} does not start")
        with _blamed(process):
            yield process
