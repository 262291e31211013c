"""The arrows of docs/design.md: who imports whom, read from the syntax tree of every module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import REPOSITORY

PACKAGE = REPOSITORY / "pyztun"
ROOMS = ("cni", "ztunnel", "tools")
SHARED = ("protocol", "service", "testing")

# Higher imports lower, never the other way, and never its own rank.
RANKS = {
    "errors": 0,
    "_core": 0,
    "_relay": 0,
    "fds": 1,
    "stdio": 1,
    "native": 2,
    "addresses": 3,
    "waits": 3,
    "channel": 3,
    "socketfile": 3,
    "dial": 4,
    "netns": 5,
    "sockets": 6,
    "aio": 6,
    "types": 7,  # names what arguments may be; the others import it for the type checker alone
}
UNDER_TESTING = {"netns", "channel"}
PURE = (
    "errors",
    "cni.agent.pace",
    "cni.agent.requests",
    "cni.agent.status",
    "cni.agent.uids",
    "cni.agent.views",
    "cni.arguments",
    "cni.capture.rules",
    "cni.capture.wire",
    "cni.commands.words",
    "protocol",
    "protocol.netlink",
    "protocol.seed",
    "protocol.zds",
    "protocol.zds_agent",
    "protocol.zds_pb2",
    "protocol.zds_ztunnel",
)
READS_CORE = ("native",)


def modules() -> list[str]:
    """Every module of the package by its name behind `pyztun.`; the package itself is ""."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def source(module: str) -> Path:
    base = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The absolute names of what is imported anywhere in a module, in functions too.

    `from pyztun.cni import oneshot` names the module pyztun.cni.oneshot, not only pyztun.cni.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            assert node.module is not None
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in whole if name.removeprefix("pyztun.") in known]
            yield from inner
            if len(inner) < len(whole):
                yield node.module


def imports_of(module: str) -> set[str]:
    """What a module imports: ours without `pyztun.`, all others with a dot before the name."""
    known = {*modules(), "_core", "_relay"}
    names = set(imported(ast.parse(source(module).read_text()), known))
    return {
        name.partition("pyztun.")[2] if name.startswith("pyztun.") else f".{name}"
        for name in names
        if name != "pyztun"
    }


def room(module: str) -> str:
    """cni, ztunnel, tools, protocol, service or testing; "" for the library."""
    top = module.partition(".")[0]
    return top if top in (*ROOMS, *SHARED) else ""


def test_every_module_was_found() -> None:
    assert {"", "native", "cni.main", "ztunnel.receiver", "protocol.seed"} <= set(modules())
    assert "native" in imports_of("netns")
    assert ".sys" in imports_of("cni.main")
    assert {"cni.oneshot", "cni.arguments"} <= imports_of("cni.main")


@pytest.mark.parametrize("module", [name for name in modules() if room(name) in ROOMS])
def test_rooms_do_not_import_each_other(module: str) -> None:
    others = {name for name in ROOMS if name != room(module)}
    assert not {name for name in imports_of(module) if room(name) in others}


@pytest.mark.parametrize("module", [name for name in modules() if room(name) == "protocol"])
def test_protocol_imports_errors_and_itself_only(module: str) -> None:
    ours = {name for name in imports_of(module) if not name.startswith(".")}
    assert {name for name in ours if room(name) != "protocol"} <= {"errors"}


@pytest.mark.parametrize("module", [name for name in modules() if room(name) == "service"])
def test_service_imports_the_library_and_itself_only(module: str) -> None:
    ours = {name for name in imports_of(module) if not name.startswith(".")}
    assert {room(name) for name in ours} <= {"service", ""}


@pytest.mark.parametrize("module", modules())
def test_testing_is_on_top_of_the_library_and_below_nothing(module: str) -> None:
    ours = {name for name in imports_of(module) if not name.startswith(".")}
    if room(module) == "testing":
        assert {name for name in ours if room(name) not in ("testing", "protocol")} <= UNDER_TESTING
    else:
        assert not {name for name in ours if room(name) == "testing"}


@pytest.mark.parametrize("module", [name for name in modules() if room(name) == ""])
def test_library_imports_no_room(module: str) -> None:
    assert not {name for name in imports_of(module) if room(name)}


@pytest.mark.parametrize("module", [name for name in modules() if room(name) == "" and name])
def test_library_imports_downwards(module: str) -> None:
    ours = {name for name in imports_of(module) if not name.startswith(".")} - {"types"}
    assert module in RANKS, "a new module of the library needs its rank here"
    assert {name for name in ours if RANKS[name] >= RANKS[module]} == set()


@pytest.mark.parametrize("module", modules())
def test_only_native_imports_the_extension(module: str) -> None:
    touches = bool(imports_of(module) & {"_core", "_relay"})
    assert touches == (module in READS_CORE)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_touch_neither_socket_nor_os(module: str) -> None:
    outside = {name[1:].partition(".")[0] for name in imports_of(module) if name.startswith(".")}
    assert not outside & {"socket", "os", "select", "subprocess", "pathlib", "fcntl", "asyncio"}


@pytest.mark.parametrize("module", modules())
def test_the_main_thread_never_moves_in_python(module: str) -> None:
    """setns() is called by C alone: no ctypes, no os.setns, no os.unshare anywhere."""
    text = source(module).read_text()
    names = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert not names & {"setns", "unshare"}
    assert ".ctypes" not in imports_of(module)
