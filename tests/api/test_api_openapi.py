"""openapi.json, docs/api.md and the code say the same, and answers are as they are described."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import FakeAgent, Reply
from schema import faults

from pyztun.cni.agent import requests, views
from pyztun.cni.agent.connection import BOUNDS, Bounds
from pyztun.cni.agent.control import openapi
from pyztun.cni.agent.requests import Wanted
from pyztun.cni.agent.status import ZtunnelStatus
from pyztun.cni.agent.workload import PENDING, Workload
from support import REPOSITORY

PAGE = (REPOSITORY / "docs/api.md").read_text()
DOCUMENT: dict[str, Any] = openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
METHODS = ("get", "post", "delete", "put", "patch")


@pytest.fixture
def agent(directory: Path) -> Iterator[FakeAgent]:
    with FakeAgent(directory, Bounds(drain=0.2, flush=0.2)) as made:
        yield made


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of each that is described."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield method.upper(), path, item[method]


def test_it_is_served(agent: FakeAgent) -> None:
    assert agent.ask("GET", "/v1/openapi.json").body == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_its_paths_are_those_of_the_code(agent: FakeAgent) -> None:
    routes = {(method, path) for path, each in agent.control.routes.items() for method in each}
    assert {(method, path) for method, path, _ in operations()} == routes


def test_its_fields_of_a_request_are_those_of_the_code() -> None:
    wanted = SCHEMAS["Wanted"]
    assert tuple(wanted["properties"]) == views.FIELDS
    assert set(Wanted._fields) - {"peer_pid"} | {"timeout"} == set(views.FIELDS)
    for field, default in Wanted._field_defaults.items():
        if field in wanted["properties"] and isinstance(default, str):
            assert wanted["properties"][field]["default"] == default
    seconds = wanted["properties"]["timeout"]
    assert (seconds["default"], seconds["maximum"]) == (views.DEFAULT_TIMEOUT, views.MAX_TIMEOUT)
    assert wanted["properties"]["capture"]["enum"] == list(requests.CAPTURES)
    assert wanted["properties"]["netns"]["maxLength"] == requests.MAX_REFERENCE


def test_its_codes_are_those_of_the_code() -> None:
    assert SCHEMAS["Error"]["properties"]["error"]["enum"] == list(views.STATUSES)
    named = set()
    for _, _, operation in operations():
        for status, answer in operation["responses"].items():
            if status != "200":
                codes = answer["description"].split(", ")
                assert {views.STATUSES[code] for code in codes} == {int(status)}
                named |= set(codes)
    everywhere = {views.NO_SUCH_PATH, views.METHOD_NOT_ALLOWED}
    assert named == set(views.STATUSES) - everywhere


def described(method: str, path: str, reply: Reply) -> None:
    """Fails unless an answer is as it is described."""
    (operation,) = [each for m, p, each in operations() if (m, p) == (method, path)]
    answer = operation["responses"][str(reply.status)]
    if reply.status != 200:
        assert reply.body["error"] in answer["description"].split(", ")
    schema = answer["content"]["application/json"]["schema"]
    assert faults(reply.body, schema, DOCUMENT) == []


ONE = "/v1/workloads/{key}"


def test_answers_are_as_described(agent: FakeAgent) -> None:
    body = {"netns": "/run/a", "uid": "u", "labels": {"k": "v"}, "timeout": 3.5}
    assert faults(body, SCHEMAS["Wanted"], DOCUMENT) == []
    described("POST", "/v1/workloads", agent.ask("POST", "/v1/workloads", body))
    described("GET", "/v1/workloads", agent.ask("GET", "/v1/workloads"))
    described("GET", ONE, agent.ask("GET", "/v1/workloads/u"))
    agent.core.ztunnels = (
        ZtunnelStatus(1, 7, 0, 1.5, "steady", True, 1, None, {"u": "no"}),
        ZtunnelStatus(2, 8, 0, 1.5, "hello", False, 0, "Hello", {}),
    )
    described("GET", "/v1/status", agent.ask("GET", "/v1/status"))
    agent.core.unconfirmed = (1,)
    described("DELETE", ONE, agent.ask("DELETE", "/v1/workloads/u"))
    described("DELETE", ONE, agent.ask("DELETE", "/v1/workloads/u"))
    described("GET", ONE, agent.ask("GET", "/v1/workloads/u"))
    described("POST", "/v1/workloads", agent.ask("POST", "/v1/workloads", {"netns": 3}))
    described("GET", "/v1/openapi.json", agent.ask("GET", "/v1/openapi.json"))


def test_a_kept_intent_is_as_described(agent: FakeAgent) -> None:
    async def refuse(workload: Workload) -> None:
        workload.set_state(PENDING, "no")
        raise requests.Refusal(requests.NO_ZTUNNEL, "no", workload)

    agent.core.before_ack = refuse
    described("POST", "/v1/workloads", agent.add())


def test_a_cookie_of_64_bits_is_an_integer(agent: FakeAgent) -> None:
    agent.add(uid="u")
    agent.core.workloads["u"].cookie = 2**64 - 1
    shown = agent.ask("GET", "/v1/workloads/u")
    assert shown.body["cookie"] == 18446744073709551615
    described("GET", ONE, shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Error", {"error": "nonsense", "reason": ""}),
        ("Error", {"error": "busy"}),
        ("Wanted", {"netns": "a", "more": 1}),
        ("Wanted", {"netns": "a", "timeout": 0}),
        ("Wanted", {"netns": "a", "labels": {"k": 1}}),
        ("Wanted", {"netns": 1}),
        ("Deleted", {"workload": {}, "unconfirmed": ["1"]}),
    ],
)
def test_the_check_itself_can_fail(name: str, value: dict[str, Any]) -> None:
    assert faults(value, SCHEMAS[name], DOCUMENT) != []


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_has_every_operation_code_and_field() -> None:
    for method, path, _ in operations():
        assert f"`{method} {path}`" in PAGE
    codes = dict(re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert codes == {code: str(status) for code, status in views.STATUSES.items()}
    for name in ("Workload", "Wanted", "Ztunnel", "Status"):
        for field in SCHEMAS[name]["properties"]:
            assert f"`{field}`" in PAGE, f"{name}.{field}"


def test_the_page_has_the_bounds() -> None:
    for text in (
        f"{BOUNDS.body // 1024} KiB",
        f"| requests in work | {BOUNDS.requests} |",
        f"| connections | {BOUNDS.connections} |",
        f"{BOUNDS.deadline:g} s",
        f"{BOUNDS.idle:g} s",
        f"{BOUNDS.drain:g} s",
        f"at most {views.MAX_TIMEOUT:g}",
    ):
        assert text in PAGE, text


def test_its_examples_of_json_are_as_described() -> None:
    blocks = re.findall(r"^```json (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in blocks} == {"Wanted", "Workload", "Error", "Status"}
    for name, text in blocks:
        assert faults(json.loads(text), SCHEMAS[name], DOCUMENT) == [], name
