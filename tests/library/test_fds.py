"""OwnedFd: one owner, -1 once closed, and a complaint if it is forgotten."""

import gc
import os

import pytest

from pyztun import OwnedFd
from support import leaks


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def test_close_is_idempotent_and_stores_minus_one() -> None:
    number = null()
    fd = OwnedFd(number)
    assert fd.fileno() == number
    assert repr(fd) == f"<OwnedFd {number}>"
    fd.close()
    assert fd.fileno() == -1
    assert repr(fd) == "<OwnedFd closed>"
    # The number is somebody else's now: a second close must not touch it.
    reused = null()
    assert reused == number
    fd.close()
    os.fstat(reused)
    os.close(reused)


def test_detach_hands_the_descriptor_over() -> None:
    number = null()
    fd = OwnedFd(number)
    assert fd.detach() == number
    assert fd.fileno() == -1
    fd.close()
    os.fstat(number)
    os.close(number)
    with pytest.raises(ValueError, match="closed"):
        fd.detach()


def test_with_block_closes_also_on_error() -> None:
    before = leaks.open_fds()
    with pytest.raises(KeyError), OwnedFd(null()):
        raise KeyError
    assert leaks.open_fds() == before


def test_forgotten_fd_is_closed_with_a_resource_warning() -> None:
    number = null()
    with pytest.warns(ResourceWarning, match=f"unclosed <OwnedFd {number}>"):
        OwnedFd(number)  # CPython collects it at once
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_closed_or_detached_fd_is_forgotten_in_silence() -> None:
    OwnedFd(null()).close()
    os.close(OwnedFd(null()).detach())
    gc.collect()


@pytest.mark.parametrize("number", [-1, -(2**31)])
def test_a_negative_number_is_no_descriptor(number: int) -> None:
    with pytest.raises(ValueError, match="not a file descriptor"):
        OwnedFd(number)


def test_a_holder_has_no_other_attributes() -> None:
    with OwnedFd(null()) as fd, pytest.raises(AttributeError):
        fd.closed = True  # type: ignore[attr-defined]
