"""What callers ask of the agent, and how it says no: the contract between core.py and control.py.

Pure. Everything here is bounded and checked before a descriptor is opened for it.
"""

from __future__ import annotations

from typing import NamedTuple

from pyztun.protocol import zds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from pyztun.cni.agent.workload import Workload

BAD_REQUEST: Final = "bad-request"
HOME_NETNS: Final = "home-netns"
INITIAL_NETNS: Final = "initial-netns"
NETNS_TAKEN: Final = "netns-taken"
NO_SUCH_NETNS: Final = "no-such-netns"
NOT_A_NETNS: Final = "not-a-netns"
NOT_PERMITTED: Final = "not-permitted"
NO_SUCH_WORKLOAD: Final = "no-such-workload"
AMBIGUOUS: Final = "ambiguous"
NO_ZTUNNEL: Final = "no-ztunnel"
REFUSED: Final = "refused"
TIMEOUT: Final = "timeout"
BUSY: Final = "busy"
LIMIT: Final = "limit"
SUPERSEDED: Final = "superseded"
STORAGE: Final = "storage"
RULES: Final = "rules"
SHUTTING_DOWN: Final = "shutting-down"

REDIRECT: Final = "redirect"
NO_CAPTURE: Final = "none"
CAPTURES = (REDIRECT, NO_CAPTURE)
MAX_REFERENCE = 4096
"""Bytes: PATH_MAX."""
MAX_LABELS, MAX_LABEL = 64, 256
NO_LABELS: Mapping[str, str] = {}


class Wanted(NamedTuple):
    """A workload as a caller asks for it.

    :ivar netns: the reference as the user wrote it; a path is absolute, since ours is another
        working directory.
    :ivar descriptor: ``/proc/PID/fd/N`` of the caller, where it holds that netns open.
    :ivar peer_pid: the caller by SO_PEERCRED; whose descriptor it must be.
    :ivar uid: None derives it from the reference.
    :ivar name: None takes the last part of the reference.
    """

    netns: str
    descriptor: str | None = None
    peer_pid: int | None = None
    uid: str | None = None
    name: str | None = None
    namespace: str = "default"
    service_account: str = "default"
    capture: str = REDIRECT
    labels: Mapping[str, str] = NO_LABELS


class Refusal(Exception):
    """The agent says no, or not yet.

    :ivar code: a word for machines, one of the constants above.
    :ivar reason: one line for people.
    :ivar workload: as it is now, where the intent was kept all the same.
    :ivar reset: connections of the pod from before were reset all the same.
    """

    def __init__(self, code: str, reason: str, workload: Workload | None = None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.workload = code, reason, workload
        self.reset = False


def check(wanted: Wanted) -> None:
    """Refuses what could not be stored, sent or shown. Refusal."""
    if not wanted.netns or len(wanted.netns) > MAX_REFERENCE:
        raise Refusal(BAD_REQUEST, f"netns is not 1 to {MAX_REFERENCE} characters long")
    if "\0" in wanted.netns or not _is_path_text(wanted.netns):
        raise Refusal(BAD_REQUEST, "netns contains what no path can")
    for field in ("uid", "name", "namespace", "service_account"):
        _check_text(field, getattr(wanted, field))
    if wanted.capture not in CAPTURES:
        known = " or ".join(CAPTURES)
        raise Refusal(BAD_REQUEST, f"capture {wanted.capture!r} is not {known}")
    if len(wanted.labels) > MAX_LABELS:
        raise Refusal(BAD_REQUEST, f"more than {MAX_LABELS} labels")
    for key, value in wanted.labels.items():
        if not key or max(len(key), len(value)) > MAX_LABEL:
            raise Refusal(BAD_REQUEST, f"a label is empty or longer than {MAX_LABEL} characters")
        _check_text("a label", key)
        _check_text("a label", value, may_be_empty=True)


def _is_path_text(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _check_text(what: str, text: str | None, may_be_empty: bool = False) -> None:
    if text is None:
        return
    if not text and not may_be_empty:
        raise Refusal(BAD_REQUEST, f"{what} is empty")
    # Log lines and tables hold it in one line; UTF-8 has no lone surrogates.
    if text and not text.isprintable():
        raise Refusal(BAD_REQUEST, f"{what} contains a character that cannot be printed")


def check_size(uid: str, info: zds.WorkloadInfo) -> None:
    """Refuses names that do not fit into a message of ZDS. Refusal."""
    try:
        zds.encode(zds.Add(uid, info))
    except ValueError as error:
        raise Refusal(BAD_REQUEST, f"uid and names are too long for ZDS: {error}") from None
