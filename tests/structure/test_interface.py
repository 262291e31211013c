"""One truth for the interface: the header, the stub and the built module name the same things."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

import pyztun
from pyztun import native, waits
from support import REPOSITORY

CSRC = REPOSITORY / "csrc"
BEGIN, END = "/* cdef: begin */", "/* cdef: end */"


MODULES = {"_core": "pyztun.h", "_relay": "relay.h"}


def cdef(module: str) -> str:
    """The text between the markers of its header, without comments."""
    text = (CSRC / MODULES[module]).read_text().split(BEGIN)[1].split(END)[0]
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def declared(module: str) -> set[str]:
    """Constants, enumerators and functions of the cut header; structs have no name in `lib`."""
    text = cdef(module)
    names = set(re.findall(r"#define\s+(\w+)", text))
    for body in re.findall(r"enum\s+\w+\s*\{(.*?)\}", text, flags=re.DOTALL):
        names |= set(re.findall(r"\b(PZ_\w+)\s*(?:=[^,]*)?(?:,|$)", body.strip()))
    without_bodies = re.sub(r"\{.*?\}", "", text, flags=re.DOTALL)
    return names | set(re.findall(r"\b(pz_\w+)\s*\(", without_bodies))


def stub(module: str) -> ast.ClassDef:
    tree = ast.parse((REPOSITORY / f"pyztun/{module}.pyi").read_text())
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Lib")


def stubbed(module: str) -> set[str]:
    lib = stub(module)
    names = {node.name for node in lib.body if isinstance(node, ast.FunctionDef)}
    for node in lib.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize(
    ("module", "known"),
    [("_core", {"pz_listen", "PZ_WHY_FD_TABLE"}), ("_relay", {"pz_relay_take", "PZ_END_LOOP"})],
)
def test_stub_names_what_the_header_declares(module: str, known: set[str]) -> None:
    assert known <= declared(module)
    assert stubbed(module) == declared(module)


@pytest.mark.parametrize("module", MODULES)
def test_module_has_what_the_header_declares(module: str) -> None:
    built = importlib.import_module(f"pyztun.{module}")
    assert set(dir(built.lib)) == declared(module)


@pytest.mark.parametrize("module", MODULES)
def test_stub_has_as_many_parameters_as_the_header(module: str) -> None:
    body = stub(module).body
    counts = {n.name: len(n.args.args) - 1 for n in body if isinstance(n, ast.FunctionDef)}
    text = re.sub(r"\{.*?\}", "", cdef(module), flags=re.DOTALL)
    header = {
        name: 0 if arguments.strip() == "void" else arguments.count(",") + 1
        for name, arguments in re.findall(r"\b(pz_\w+)\s*\(([^)]*)\)", text)
    }
    assert counts == header


def test_every_step_has_a_name() -> None:
    core = importlib.import_module("pyztun._core")
    steps = {
        name: getattr(core.lib, name) for name in declared("_core") if name.startswith("PZ_STEP_")
    }
    texts = [core.ffi.string(core.lib.pz_step_name(step)).decode() for step in steps.values()]
    assert len(set(texts)) == len(steps)
    assert texts.count("call") == 1
    assert core.ffi.string(core.lib.pz_step_name(-7)) == b"call"


def test_build_lists_every_c_file() -> None:
    """An unlisted source is not compiled, an unlisted header does not rebuild."""
    tree = ast.parse((REPOSITORY / "build.py").read_text())
    lists = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if node.targets[0].id in ("CORE", "RELAY", "HEADERS"):
            lists[node.targets[0].id] = set(ast.literal_eval(node.value))
    assert lists["CORE"] | lists["RELAY"] == {f"csrc/{path.name}" for path in CSRC.glob("*.c")}
    assert lists["HEADERS"] == {f"csrc/{path.name}" for path in CSRC.glob("*.h")}


def test_no_file_is_too_long() -> None:
    """A file has one subject; 600 lines are the limit that docs/design.md sets."""
    patterns = ("pyztun/**/*.py", "pyztun/**/*.pyi", "csrc/*", "tests/**/*.py", "tests/**/*.c")
    found = [path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.is_file()]
    assert len(found) > 30
    lengths = {str(path): len(path.read_text().splitlines()) for path in found}
    assert {path: count for path, count in lengths.items() if count > 600} == {}


def test_public_names_all_load() -> None:
    assert pyztun.__all__ == sorted(pyztun.__all__)
    assert dir(pyztun) == pyztun.__all__
    for name in pyztun.__all__:
        assert getattr(pyztun, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pyztun.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_are_typed_as_they_load() -> None:
    """What a type checker sees (under TYPE_CHECKING) is what __getattr__ loads."""
    tree = ast.parse((REPOSITORY / "pyztun/__init__.py").read_text())
    seen: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyztun."):
            seen |= {alias.name: str(node.module) for alias in node.names}
    assert set(seen) == set(pyztun.__all__) - {"__version__"}
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(pyztun, name)


def test_exceptions_have_one_root() -> None:
    names = [n for n in pyztun.__all__ if n != "__version__"]
    kinds = [getattr(pyztun, n) for n in names]
    raised = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseException)]
    assert len(raised) == 11
    assert all(issubclass(kind, pyztun.PyztunError) for kind in raised)
    assert issubclass(pyztun.MissingCapability, PermissionError)
    assert issubclass(pyztun.NetnsGone, FileNotFoundError)


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import sys, pyztun; print(*(m for m in sys.modules if m.startswith('pyztun')))"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == ["pyztun"]


def test_constants_of_python_are_those_of_c() -> None:
    core = importlib.import_module("pyztun._core")
    assert (native.MAX_FDS, native.MAX_LISTENERS) == (250, 64)
    flags = [native.REUSEADDR, native.REUSEPORT, native.TRANSPARENT, native.FREEBIND]
    flags += [native.V6ONLY, native.NONBLOCK]
    assert sum(flags) == 63
    assert (core.lib.PZ_EVENT_TAKE, core.lib.PZ_EVENT_LIST) == (waits.TAKE, waits.LIST) == (1, 4)
