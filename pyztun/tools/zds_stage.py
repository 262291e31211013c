"""The stage of the demo of the ZDS form: a node with three pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyztun.tools.node_stage import NodeStage

if TYPE_CHECKING:
    from pyztun.tools.stage import Pod


class ZdsStage(NodeStage):
    """See NodeStage."""

    def __init__(self) -> None:
        super().__init__("web", "db", "cache")

    @property
    def web(self) -> Pod:
        return self._pods["web"]

    @property
    def db(self) -> Pod:
        return self._pods["db"]

    @property
    def cache(self) -> Pod:
        return self._pods["cache"]
