"""The leak check for all tests of a project; a plugin of its own, registered if the project asks.

An autouse fixture in plugin.py would be a part of every test of everybody.
"""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _pyztun_leak_check(leak_check: object) -> None:
    """Asks for ``leak_check`` by name, so that a module which defines its own gets that one."""
