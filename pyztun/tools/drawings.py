"""The drawings of the demo: ASCII, with the real numbers, as wide as those need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = 8


def cast(home: int, pods: Sequence[tuple[str, int]]) -> list[str]:
    """Who takes part in a handoff, before anything has happened. ``pods``: (name, cookie)."""
    return boxes(
        (
            f"home: the node, netns {home}",
            "pyztun-cni ---- Unix socket ---> pyztun-ztunnel",
            "knows the pods                   listens in pods",
        ),
        *((name, f"netns {cookie}", "") for name, cookie in pods),
    )


def node(home: int, pods: Sequence[tuple[str, int]]) -> list[str]:
    """Who takes part on a node; the pods, as many as there are, in a row below."""
    upper = boxes(
        (
            f"home: the node, netns {home}",
            "pyztun-cni agent ---- Unix socket, ZDS ---- pyztun-ztunnel",
            "keeps the list of pods                      listens in pods",
        )
    )
    return [*upper, "", *boxes(*((name, f"netns {cookie}") for name, cookie in pods))]


def bridged(pods: Sequence[tuple[str, int]], addresses: Sequence[str]) -> list[str]:
    """Two pods, the second of which asks the first. ``pods``: (name, cookie)."""
    drawn = [
        _box(name, f"netns {cookie}", f"{address} eth0")
        for (name, cookie), address in zip(pods, addresses, strict=True)
    ]
    wires = [" " * 20] * len(drawn[0])
    wires[-2] = "---- the bridge ----"
    return ["".join(parts).rstrip() for parts in zip(drawn[1], wires, drawn[0], strict=True)]


def boxes(*contents: Sequence[str]) -> list[str]:
    """Boxes side by side; each is a title and as many lines as the others have."""
    drawn = [_box(*each) for each in contents]
    return ["  ".join(parts).rstrip() for parts in zip(*drawn, strict=True)]


def _box(title: str, *lines: str) -> list[str]:
    width = max(map(len, (title, *lines)))
    border = f"+{'-' * (width + 2)}+"
    return [f" {title:<{width + 3}}", border, *(f"| {line:<{width}} |" for line in lines), border]


def passing(sender: str, sent: str, receiver: str, received: str, netns: str) -> list[str]:
    """One netns, two processes, two descriptors of it."""
    wire = "  ---- Unix socket, SCM_RIGHTS ---->  "
    middle = f"--> {netns} <--".center(len(sent) + len(wire), "-")
    indent = " " * len(sender)
    return [
        f"{sender}{' ' * len(wire)}{receiver}",
        f"{sent.rjust(len(sender))}{wire}{received}",
        f"{indent[len(sent) :]}|{' ' * len(middle)}|",
        f"{indent[len(sent) :]}'{middle}'",
    ]


def tied(left: str, right: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two boxes with titles; a row that has text on both sides is an arrow from left to right."""
    widths = [max(map(len, (rows[0][side], *(row[side] for row in rows)))) for side in (0, 1)]
    widths = [max(width, len(title)) for width, title in zip(widths, (left, right), strict=True)]
    border = (" " * GAP).join(f"+{'-' * (width + 3)}+" for width in widths)
    lines = [f" {left:<{widths[0] + 4 + GAP}} {right}", border]
    for one, other in rows:
        is_arrow = bool(one and other)
        fill = "-" if is_arrow else " "
        between = "-" * (GAP - 1) + ">" if is_arrow else " " * GAP
        lines.append(f"| {f'{one} ':{fill}<{widths[0] + 2}}|{between}| {other:<{widths[1] + 2}}|")
    return [*lines, border]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns: the first to the left, the others, which are numbers, to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "    ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
