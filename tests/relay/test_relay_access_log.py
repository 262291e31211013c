"""The access log says what happened: to a file, to stderr, in both forms; and it stops nothing."""

import fcntl
import os
import re
import socket
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pyztun.ztunnel import access_log
from support import relay_access
from support.relay_access import Entry, read_json, read_text
from support.relay_node import FAMILIES, INBOUND_ONLY, OUTBOUND_ONLY, Node, Pair
from support.relay_traffic import (
    PORT,
    answering,
    carries,
    echo,
    ends,
    fate,
    joined,
    listening,
    port_of,
    read_to_end,
    reset,
    until,
)
from support.relay_traffic import dial as connect

FORMS = pytest.mark.parametrize("form", ["human", "json"])
READERS = {"human": read_text, "json": read_json}
F_SETPIPE_SZ = 1031


def entries(path: Path, form: str, count: int) -> list[Entry]:
    """Waits for so many lines in a file, each of them whole, and reads them."""

    def lines() -> list[str]:
        return path.read_text().split("\n")[:-1]

    assert until(lambda: len(lines()) >= count), path.read_text()
    assert len(lines()) == count
    return [READERS[form](line) for line in lines()]


def at(address: str, port: int) -> str:
    """As the log writes it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def rest_of(found: Entry) -> Entry:
    """Without what is another each time, whose form is checked."""
    time = datetime.fromisoformat(found.pop("time").replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - time).total_seconds()) < 60
    assert re.fullmatch(r"\d+ms", found.pop("duration"))
    return found


# ---- what it says --------------------------------------------------------------------------------


@FORMS
def test_both_forms_in_a_file(own_node: Node, directory: Path, form: str) -> None:
    """A line for each connection of each pod, in ztunnel's words."""
    log = directory / "log"
    log.write_text("")
    daemon = own_node.begin("--access-log", str(log), "--log-format", form)
    with own_node.pair() as pair:
        client_name, server_name = pair.uids
        for family in (0, 1):
            here, there = pair.addresses(family)
            log.write_text("")
            with joined(pair.client.netns, pair.server.netns, there) as (client, server):
                port = port_of(client)
                onward = server.getpeername()[1]
                client.sendall(b"request")
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(server) == b"request"
                server.sendall(b"a longer answer")
                server.shutdown(socket.SHUT_WR)
                assert read_to_end(client) == b"a longer answer"
            found = {each["direction"]: rest_of(each) for each in entries(log, form, 2)}
            same = {"level": "info", "message": "connection complete", "dst.addr": at(there, PORT)}
            assert found["outbound"] == {
                **same,
                "src.addr": at(here, port),
                "src.workload": client_name,
                "src.namespace": "default",
                "direction": "outbound",
                "bytes_sent": "8",  # seven, and one as it was joined
                "bytes_recv": "16",
            }
            source = found["inbound"].pop("src.addr")
            assert found["inbound"] == {
                **same,
                "dst.workload": server_name,
                "dst.namespace": "default",
                "direction": "inbound",
                "bytes_sent": "16",  # to the client
                "bytes_recv": "8",
            }
            # The relay's own port there: what the application sees is made after it.
            assert source.rpartition(":")[0] == at(here, 0).rpartition(":")[0]
            assert onward > 0
        # A shared log, and one rotated by copying and truncating, need it appended.
        assert log.stat().st_size == len(log.read_bytes())
        assert not [line for line in daemon.stderr.all() if "access" in line.split("\t")]


@FORMS
def test_errors_in_both_forms(own_node: Node, directory: Path, form: str) -> None:
    log = directory / "log"
    own_node.begin("--access-log", str(log), "--log-format", form)
    with own_node.pair(OUTBOUND_ONLY) as pair:
        there = pair.server.ipv4
        assert fate(pair.client.netns, there)[0] == "reset"
        assert fate(pair.client.netns, "127.0.0.1", 15008)[0] == "reset"
        with joined(pair.client.netns, pair.server.netns, there) as (client, server):
            server.sendall(b"cut")
            assert client.recv(3) == b"cut"
            reset(server)
            assert ends(client) == "reset"
        failed, refused, cut = entries(log, form, 3)
        assert (failed["level"], failed["message"]) == ("error", "connection complete")
        assert failed["error"] == "connection failed: Connection refused (os error 111)"
        assert (failed["bytes_sent"], failed["bytes_recv"]) == ("0", "0")
        assert (refused["level"], refused["message"]) == ("warn", "connection failed")
        assert refused["error"] == "HBONE is not supported"
        assert "bytes_sent" not in refused
        assert (cut["level"], cut["error"]) == ("error", "connection reset by the destination")
        assert (cut["bytes_sent"], cut["bytes_recv"]) == ("1", "4")


@FORMS
def test_names_that_have_to_be_escaped(own_node: Node, directory: Path, form: str) -> None:
    names = ['quoted "name" \\ end', "tab\there", "naïve ☃", "a=b c", "\x7f"]
    log = directory / "log"
    own_node.begin("--access-log", str(log), "--log-format", form)
    with own_node.pair(INBOUND_ONLY) as pair:
        uid, netns = pair.uids[1], pair.server.netns
        for count, name in enumerate(names, start=1):
            assert own_node.connection.add(uid, netns, name=name, namespace=name[::-1]).ok
            with joined(pair.client.netns, netns, pair.server.ipv4):
                pass
            found = entries(log, form, count)[-1]
            assert (found["dst.workload"], found["dst.namespace"]) == (name, name[::-1])


def test_a_connection_keeps_the_name_of_its_beginning(pair: Pair) -> None:
    uid = pair.uids[0]
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, _):
        port = port_of(client)
        assert pair.node.connection.add(uid, pair.client.netns, name="renamed").ok
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4, 81) as (other, _):
            later = port_of(other)
    daemon = pair.node.daemon
    assert relay_access.entry(daemon, "outbound", port)["src.workload"] == uid
    assert relay_access.entry(daemon, "outbound", later)["src.workload"] == "renamed"


@FAMILIES
def test_a_workload_that_is_removed(pair: Pair, family: int) -> None:
    _, there = pair.addresses(family)
    with joined(pair.client.netns, pair.server.netns, there) as (client, _):
        port = port_of(client)
        pair.node.delete(pair.uids[0])
        assert ends(client) == "reset"
    found = relay_access.entry(pair.node.daemon, "outbound", port, "error")
    assert found["error"] == "connection closed due to workload removal"
    assert found["src.workload"] == pair.uids[0]


def test_what_is_cut_at_the_end_is_in_the_log(own_node: Node, directory: Path) -> None:
    log = directory / "log"
    daemon = own_node.begin("--access-log", str(log), "--drain", "0")
    with own_node.pair(OUTBOUND_ONLY) as pair:
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4):
            assert daemon.stop() == 0
        (found,) = entries(log, "human", 1)
        assert found["error"] == "connection closed due to connection drain"


# ---- where it goes -------------------------------------------------------------------------------


def test_off_is_no_log(own_node: Node, directory: Path) -> None:
    daemon = own_node.begin("--access-log", "off")
    with own_node.pair() as pair:
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4):
            pass
        assert fate(pair.client.netns, pair.server.ipv4)[0] == "reset"
    assert daemon.stop() == 0
    assert not [line for line in daemon.stderr.all() if "src.addr" in line]
    assert not os.path.exists(directory / "off")


def test_a_file_that_cannot_be_opened(own_node: Node, directory: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="ended with 1 before READY"):
        own_node.begin("--access-log", str(directory / "no" / "log"))


def test_a_full_pipe_on_stderr_stops_no_traffic(own_node: Node) -> None:
    """Lines are lost and counted; where somebody reads again, it says how many."""
    reader, writer = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reader)
        fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
        os.set_blocking(reader, False)
        daemon = own_node.begin("--drain", "0", output=writer)
        os.close(writer)
        with (
            own_node.pair() as pair,
            listening(pair.server.netns, pair.server.ipv4) as listener,
            answering(listener, echo),
        ):
            began = time.monotonic()
            while time.monotonic() - began < 2 * access_log.PATIENCE:
                with connect(pair.client.netns, pair.server.ipv4) as client:
                    client.settimeout(2)
                    client.sendall(b"hello")
                    assert client.recv(5) == b"hello"
            with joined(pair.client.netns, pair.server.netns, pair.server.ipv4, 81) as both:
                assert all(carries(*both) for _ in range(100))
                seen = Said(reader, pair)
                assert until(lambda: seen.so_far("access-log-dropped")), seen.text
        assert daemon.stop() == 0


class Said:
    """What comes out of a pipe."""

    def __init__(self, reader: int, pair: Pair) -> None:
        self._reader, self._pair, self.text = reader, pair, ""

    def so_far(self, word: str) -> bool:
        """Whether it has said the word; another connection ends, of which it may say it."""
        with suppress(BlockingIOError):
            self.text += os.read(self._reader, 65536).decode()
        fate(self._pair.client.netns, self._pair.server.ipv4, 9)
        return word in self.text


def test_the_limits_of_a_pipe() -> None:
    """Lines as whole pieces of what a pipe takes at once, for its readers' sake."""
    lines = b"".join(b"%d %s\n" % (number, b"x" * 300) for number in range(100))
    rest, pieces = lines, []
    while rest:
        pieces.append(access_log._piece(rest))
        rest = rest[len(pieces[-1]) :]
    assert b"".join(pieces) == lines
    assert all(piece.endswith(b"\n") and len(piece) <= 4096 for piece in pieces)
