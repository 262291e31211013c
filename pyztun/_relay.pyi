"""The types of the cffi module. csrc/relay.h is the interface; tests compare the names with it."""

from pyztun._core import FFI, CData

class Lib:
    PZ_RELAY_MAX_THREADS: int
    PZ_RELAY_MAX_DOORS: int
    PZ_RELAY_EVENTS: int
    PZ_RELAY_BATCH: int
    PZ_DOOR_OUTBOUND: int
    PZ_DOOR_INBOUND: int
    PZ_DOOR_HBONE: int
    PZ_DOOR_SOCKS5: int
    PZ_END_COMPLETE: int
    PZ_END_RESET_BY_SOURCE: int
    PZ_END_RESET_BY_DESTINATION: int
    PZ_END_CONNECT_FAILED: int
    PZ_END_CONNECT_TIMEOUT: int
    PZ_END_IDLE: int
    PZ_END_HALF_CLOSED: int
    PZ_END_WORKLOAD_GONE: int
    PZ_END_DRAINED: int
    PZ_END_BROKEN: int
    PZ_END_NO_HBONE: int
    PZ_END_LOOP: int
    PZ_END_DIRECT: int
    PZ_END_NO_MARK: int

    def pz_relay_new(self, settings: CData, error: CData) -> CData: ...
    def pz_relay_take(
        self,
        r: CData,
        netns_fd: int,
        doors: CData,
        n: int,
        id: int,
        name: bytes,
        name_size: int,
        space: bytes,
        space_size: int,
        error: CData,
    ) -> CData: ...
    def pz_relay_rename(
        self,
        r: CData,
        pod: CData,
        name: bytes,
        name_size: int,
        space: bytes,
        space_size: int,
    ) -> int: ...
    def pz_relay_mend(self, r: CData, pod: CData, door: int, listener: int) -> int: ...
    def pz_relay_drop(self, r: CData, pod: CData) -> None: ...
    def pz_relay_close_doors(self, r: CData) -> None: ...
    def pz_relay_finish(self, r: CData, timeout_ms: int) -> int: ...
    def pz_relay_next(self, r: CData, batch: CData, timeout_ms: int) -> int: ...
    def pz_relay_wake(self, r: CData) -> None: ...
    def pz_relay_counters(self, r: CData, out: CData) -> None: ...
    def pz_relay_free(self, r: CData) -> None: ...

ffi: FFI
lib: Lib
