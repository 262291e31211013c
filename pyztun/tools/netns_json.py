"""The census as data; docs/netns-ls.md describes each field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyztun.tools.census import Census, Netns


def described(census: Census) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The values of "netns" and "unreadable"."""
    return [_netns(census, each) for each in census.netns], census.unreadable.as_list()


def _netns(census: Census, one: Netns) -> dict[str, Any]:
    return {
        "cookie": one.cookie,
        "inode": one.inode,
        "home": one.is_home,
        "names": sorted(one.names),
        "paths": sorted(one.paths),
        "processes": [
            {"pid": pid, "command": census.commands.get(pid, "")} for pid in one.processes
        ],
        "listening": None if one.listening is None else _listening(census, one),
        "pinned_by": [
            {"pid": pin.pid, "fd": pin.fd, "kind": pin.kind, "tid": pin.tid, "path": pin.path}
            for pin in one.pinned_by
        ],
    }


def _listening(census: Census, one: Netns) -> list[dict[str, Any]]:
    return [
        {
            "proto": place.proto,
            "address": place.address,
            "port": place.port,
            "interface": place.interface,
            "pids": pids,
        }
        for place, pids in census.listening(one)
    ]
