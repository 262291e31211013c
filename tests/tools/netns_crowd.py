"""Makes a crowd of netns and descriptors, runs `pyztun netns ls --json` there, and tells the time.

    unshare --mount python netns_crowd.py HOLDERS PYZTUN

Each of the HOLDERS processes makes 100 netns, half of them with a name, holds a descriptor of each
and three listeners in it, and other descriptors up to 1000. /run is private and goes with the
processes, as do all netns. Prints one JSON object: seconds, netns, fds, listening, nameless.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pyztun.netns import NetNs

NETNS, FDS = 100, 1000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def hold(number: int) -> None:
    """A holder: makes its share, says so, and waits for the end of its stdin."""
    made = [NetNs.create(f"crowd{number}-{i}" if i % 2 else None) for i in range(NETNS)]
    listeners = [
        each
        for netns in made
        for each in netns.listen(("127.0.0.1", 15001), ("127.0.0.1", 15006), ("::1", 15008))
    ]
    have = len(os.listdir("/proc/self/fd"))
    others = [os.open("/dev/null" if i % 2 else __file__, os.O_RDONLY) for i in range(FDS - have)]
    print("ready", len(made) + len(listeners) + len(others), flush=True)
    sys.stdin.read()
    os._exit(0)


def private_run() -> None:
    """A /run of our own in a mount namespace of our own."""
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (None, b"/", None, MS_REC | MS_PRIVATE, None),
        (b"tmpfs", b"/run", b"tmpfs", 0, b"mode=0755"),
    ):
        if libc.mount(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "mount")
    Path("/run/netns").mkdir()


def main(holders: int) -> None:
    private_run()
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen([sys.executable, __file__, "hold", str(i)], stdin=pipe, stdout=pipe)
        for i in range(holders)
    ]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline().startswith(b"ready"), "a holder failed"
    fds = sum(len(os.listdir(f"/proc/{each.pid}/fd")) for each in started)
    before = time.monotonic()
    words = [sys.argv[2], "netns", "ls", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - before
    for each in started:
        each.communicate()
    ours = {each.pid for each in started}
    held = [
        one
        for one in json.loads(done.stdout)["netns"]
        if any(pin["kind"] == "fd" and pin["pid"] in ours for pin in one["pinned_by"])
    ]
    found = {
        "seconds": round(seconds, 3),
        "netns": len(held),
        "fds": fds,
        "nameless": sum(not one["names"] for one in held),
        "listening": sum(len(one["listening"]) for one in held),
        "owned": sum(bool(each["pids"]) for one in held for each in one["listening"]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(int(sys.argv[2]))
    else:
        main(int(sys.argv[1]))
