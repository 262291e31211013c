"""How the agent is: what `GET /v1/status` and `pyztun-cni status` show. Pure."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class ZtunnelStatus(NamedTuple):
    """One ztunnel that is connected.

    :ivar number: counts connections since the agent began; never used twice.
    :ivar pid: by SO_PEERCRED, like ``uid``.
    :ivar since: of the connection, in seconds of the epoch.
    :ivar phase: ``hello``, ``snapshot`` or ``steady``.
    :ivar newest: whether it is the one that gets Adds.
    :ivar acknowledged: how many workloads it has acknowledged as they are wanted now.
    :ivar awaiting: the kind of the request whose answer is due; None if none is.
    :ivar refused: the reasons of its NACKs, by the uid of the workload.
    """

    number: int
    pid: int
    uid: int
    since: float
    phase: str
    newest: bool
    acknowledged: int
    awaiting: str | None
    refused: Mapping[str, str]


class ReconcileStatus(NamedTuple):
    """The loop over all workloads: see Reconcile. Seconds; ``last_at`` is of the epoch."""

    interval: float
    passes: int
    last_at: float | None
    last_cpu: float


class DescriptorStatus(NamedTuple):
    """How many netns are held open, and for how many the fd table has room."""

    held: int
    limit: int


class PodsideStatus(NamedTuple):
    """The process that enters pods.

    :ivar pid: None while none runs: it is started for the first workload that is captured.
    :ivar restarts: how often it was started again.
    :ivar captured: how many workloads have our rules in their netns.
    :ivar repaired: how often rules were found changed and put back.
    """

    pid: int | None
    restarts: int
    captured: int
    repaired: int


class Status(NamedTuple):
    """The agent, at one moment.

    :ivar started: in seconds of the epoch.
    :ivar zds: path of the socket for ztunnels; ``control`` of that for commands.
    :ivar workloads: how many are in each state.
    :ivar ztunnels: oldest first.
    """

    version: str
    pid: int
    started: float
    boot_id: str
    zds: str
    control: str
    state_dir: str
    workloads: Mapping[str, int]
    ztunnels: tuple[ZtunnelStatus, ...]
    reconcile: ReconcileStatus
    descriptors: DescriptorStatus
    podside: PodsideStatus
