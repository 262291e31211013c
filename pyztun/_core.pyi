"""The types of the cffi module. csrc/pyztun.h is the interface; tests compare the names with it."""

from collections.abc import Callable, Sequence
from typing import Any

class CData:
    """Any C value. Fields and elements are checked by cffi when they are used."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: object) -> None: ...
    def __getitem__(self, index: int) -> Any: ...
    def __setitem__(self, index: int, value: object) -> None: ...
    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...
    def __add__(self, elements: int) -> CData: ...

class Buffer:
    def __getitem__(self, index: slice) -> bytes: ...
    def __setitem__(self, index: slice, value: bytes) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class FFI:
    NULL: CData
    def from_buffer(self, ctype: str, source: object) -> CData: ...
    def new(self, ctype: str, init: object = ...) -> CData: ...
    def buffer(self, cdata: CData, size: int = ...) -> Buffer: ...
    def string(self, cdata: CData) -> bytes: ...
    def gc(self, cdata: CData, destructor: Callable[[CData], None]) -> CData: ...
    def release(self, cdata: CData) -> None: ...

class Lib:
    PZ_MAX_FDS: int
    PZ_MAX_LISTENERS: int
    PZ_STEP_NONE: int
    PZ_STEP_ARGUMENT: int
    PZ_STEP_OPEN_HOME: int
    PZ_STEP_PROVE_HOME: int
    PZ_STEP_SETNS: int
    PZ_STEP_SOCKET: int
    PZ_STEP_SO_REUSEADDR: int
    PZ_STEP_SO_REUSEPORT: int
    PZ_STEP_TRANSPARENT: int
    PZ_STEP_FREEBIND: int
    PZ_STEP_V6ONLY: int
    PZ_STEP_SO_MARK: int
    PZ_STEP_BIND: int
    PZ_STEP_LISTEN: int
    PZ_STEP_COOKIE: int
    PZ_STEP_THREAD: int
    PZ_STEP_UNSHARE: int
    PZ_STEP_LOOPBACK: int
    PZ_STEP_MKDIR: int
    PZ_STEP_CREATE: int
    PZ_STEP_MOUNT: int
    PZ_REUSEADDR: int
    PZ_REUSEPORT: int
    PZ_TRANSPARENT: int
    PZ_FREEBIND: int
    PZ_V6ONLY: int
    PZ_NONBLOCK: int
    PZ_DGRAM: int
    PZ_EVENT_TAKE: int
    PZ_EVENT_RELEASE: int
    PZ_EVENT_RELEASE_COOKIE: int
    PZ_EVENT_LIST: int
    PZ_EVENT_MALFORMED: int
    PZ_EVENT_DENIED: int
    PZ_EVENT_WOKEN: int
    PZ_EVENT_QUIET: int
    PZ_WHY_BYTE: int
    PZ_WHY_FDS: int
    PZ_WHY_COOKIE: int
    PZ_WHY_TRUNCATED: int
    PZ_WHY_LATE: int
    PZ_WHY_FD_TABLE: int
    PZ_ZDS_MAX_MESSAGE: int
    PZ_ADD_UID: int
    PZ_ADD_NAME: int
    PZ_ADD_NAMESPACE: int
    PZ_ADD_SERVICE_ACCOUNT: int
    PZ_ADD_TEXTS: int
    PZ_ZDS_ADD: int
    PZ_ZDS_MESSAGE: int
    PZ_ZDS_CLOSED: int
    PZ_ZDS_WOKEN: int
    PZ_ZDS_DUE: int

    def pz_step_name(self, step: int) -> CData: ...
    def pz_send(
        self,
        sock: int,
        data: CData | bytes,
        length: int,
        fds: Sequence[int],
        nfds: int,
        timeout_ms: int,
    ) -> int: ...
    def pz_recv(
        self,
        sock: int,
        buf: CData,
        cap: int,
        fds: CData,
        max_fds: int,
        nfds: CData,
        timeout_ms: int,
    ) -> int: ...
    def pz_unix_connect(self, path: bytes, kind: int, timeout_ms: int) -> int: ...
    def pz_nsfs_device(self, dev: CData) -> int: ...
    def pz_netns_inspect(self, fd: int, nsfs_dev: int, info: CData) -> int: ...
    def pz_netns_owner(self, fd: int, uid: CData) -> int: ...
    def pz_netns_home(self) -> int: ...
    def pz_netns_prove_home(self, home_fd: int) -> int: ...
    def pz_socket_cookie(self, sock: int, cookie: CData) -> int: ...
    def pz_socket_netns(self, sock: int) -> int: ...
    def pz_pidfd_getfd(self, pidfd: int, fd: int) -> int: ...
    def pz_listen(
        self, netns_fd: int, home_fd: int, wanted: CData, n: int, out_fds: CData, failure: CData
    ) -> int: ...
    def pz_socket(
        self, netns_fd: int, home_fd: int, family: int, kind: int, protocol: int, failure: CData
    ) -> int: ...
    def pz_is_listening(self, sock: int) -> int: ...
    def pz_netns_cookie(
        self, netns_fd: int, home_fd: int, cookie: CData, failure: CData
    ) -> int: ...
    def pz_netns_create(self, failure: CData) -> int: ...
    def pz_netns_pin(self, netns_fd: int, directory: bytes, path: bytes, failure: CData) -> int: ...
    def pz_netns_unpin(self, path: bytes) -> int: ...
    def pz_handoff_new(
        self,
        listener: int,
        wake: int,
        limits: CData,
        uids: Sequence[int],
        nuids: int,
        error: CData,
    ) -> CData: ...
    def pz_handoff_next(self, handoff: CData, request: CData) -> int: ...
    def pz_handoff_answer(
        self, handoff: CData, peer: int, text: bytes, length: int, close_after: int
    ) -> int: ...
    def pz_handoff_take(
        self,
        handoff: CData,
        request: CData,
        home_fd: int,
        wanted: CData,
        n: int,
        out_fds: CData,
        ready: bytes,
        length: int,
        failure: CData,
    ) -> int: ...
    def pz_handoff_drain(self, handoff: CData, timeout_ms: int) -> None: ...
    def pz_handoff_counters(self, handoff: CData, out: CData) -> None: ...
    def pz_handoff_free(self, handoff: CData) -> None: ...
    def pz_responder_new(
        self, wake: int, max_connections: int, deadline_ms: int, error: CData
    ) -> CData: ...
    def pz_responder_watch(self, responder: CData, listeners: Sequence[int], n: int) -> int: ...
    def pz_responder_forget(self, responder: CData, listeners: Sequence[int], n: int) -> None: ...
    def pz_responder_run(self, responder: CData) -> int: ...
    def pz_responder_accept_queued(self, responder: CData, timeout_ms: int) -> int: ...
    def pz_responder_finish(self, responder: CData, timeout_ms: int) -> int: ...
    def pz_responder_free(self, responder: CData) -> None: ...
    def pz_add_read(self, message: bytes, size: int, add: CData) -> int: ...
    def pz_zds_new(self, wake: int, error: CData) -> CData: ...
    def pz_zds_next(self, zds: CData, sock: int, timeout_ms: int, request: CData) -> int: ...
    def pz_zds_take(
        self,
        sock: int,
        request: CData,
        home_fd: int,
        wanted: CData,
        n: int,
        out_fds: CData,
        failure: CData,
    ) -> int: ...
    def pz_zds_free(self, zds: CData) -> None: ...

ffi: FFI
lib: Lib
