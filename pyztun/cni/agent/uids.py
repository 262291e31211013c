"""Which uid a workload has that was given none. Pure.

Of a path: the same for whatever netns is there, so that a replacement is the same workload. Of a
process or a descriptor, which name something else soon: the boot and the cookie.
"""

from __future__ import annotations

import uuid


def of_path(path: str) -> str:
    """
    :param path: absolute, without symbolic links; may hold bytes that are not UTF-8
        (os.fsdecode()).
    """
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))


def of_netns(boot_id: str, number: int) -> str:
    """:param number: the cookie, which means something in one boot alone; else the inode."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{boot_id}/{number}"))
