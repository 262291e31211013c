"""Bodies, queries and the JSON that is shown: pure functions."""

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyztun.cni.agent import requests, views
from pyztun.cni.agent.requests import Refusal

WHOLE = {
    "netns": "/run/netns/a",
    "descriptor": "/proc/7/fd/3",
    "uid": "u",
    "name": "n",
    "namespace": "ns",
    "service_account": "sa",
    "capture": "none",
    "labels": {"k": "v"},
    "timeout": 2.5,
}


def refused(body: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        views.wanted(body, 7)
    assert caught.value.code == requests.BAD_REQUEST
    return caught.value.reason


def test_every_field_is_taken() -> None:
    wanted, timeout = views.wanted(json.dumps(WHOLE).encode(), 7)
    assert {**wanted._asdict(), "timeout": timeout} == {**WHOLE, "peer_pid": 7}
    assert set(WHOLE) == set(views.FIELDS)


def test_what_is_left_out_has_its_default() -> None:
    wanted, timeout = views.wanted(b'{"netns": "a"}', 7)
    assert timeout == views.DEFAULT_TIMEOUT
    assert wanted == requests.Wanted("a", peer_pid=7)


@pytest.mark.parametrize("field", [name for name in WHOLE if name not in ("labels", "timeout")])
@pytest.mark.parametrize("value", [1, None, True, [], {}])
def test_a_wrong_type_is_named(field: str, value: object) -> None:
    reason = refused(json.dumps({**WHOLE, field: value}).encode())
    assert reason == f"{field} is not a string"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"netns"', "not a JSON object"),
        (b"{}", "netns is missing"),
        (b'{"nets": "a"}', "unknown field 'nets'"),
        (b'{"netns": "a", "netns": "b"}', "'netns' is there twice"),
        (b'{"netns": "a", "timeout": NaN}', "NaN is no number"),
        (b'{"netns": "a", "timeout": 1e999}', "at most"),
        (b'{"netns": "a", "timeout": 0}', "above 0"),
        (b'{"netns": "a", "timeout": -1}', "above 0"),
        (b'{"netns": "a", "timeout": 601}', "at most 600"),
        (b'{"netns": "a", "timeout": true}', "timeout is not a number"),
        (b'{"netns": "a", "timeout": "2"}', "timeout is not a number"),
        (b'{"netns": "a", "timeout": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"netns": "a", "labels": []}', "labels is not an object"),
        (b'{"netns": "a", "labels": {"k": 1}}', "labels has a value"),
        (b'{"netns": "a", "labels": {"k": "a", "k": "b"}}', "'k' is there twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 60000, "the body is n"),
        (
            b'{"netns":' * 7000,
            "the body is n",
        ),  # nested too deeply, or no JSON, by Python's version
    ],
    ids=lambda part: repr(part[:30]),
)
def test_refused_bodies(body: bytes, why: str) -> None:
    assert why in refused(body)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(Refusal):
        views.wanted(body, 7)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(views.FIELDS) | st.text(max_size=5), JSON))
def test_any_object_is_read_or_refused(given_object: dict[str, object]) -> None:
    body = json.dumps(given_object).encode()
    try:
        wanted, timeout = views.wanted(body, 7)
    except Refusal:
        return
    assert set(given_object) <= set(views.FIELDS)
    assert wanted.netns == given_object["netns"]
    assert 0 < timeout <= views.MAX_TIMEOUT


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", {}), ("timeout=3", {"timeout": "3"}), ("timeout=", {"timeout": ""})],
)
def test_queries(text: str, expected: dict[str, str]) -> None:
    assert views.query(text, ("timeout",)) == expected


@pytest.mark.parametrize(
    "text", ["x=1", "timeout", "timeout=1&timeout=2", "=", "&", "&".join(["timeout=1"] * 20)]
)
def test_refused_queries(text: str) -> None:
    with pytest.raises(Refusal):
        views.query(text, ("timeout",))


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "601", "nan", "inf", "1e999"])
def test_refused_timeouts_of_a_query(text: str) -> None:
    with pytest.raises(Refusal, match="timeout"):
        views.query_timeout({"timeout": text})


def test_timeouts_of_a_query() -> None:
    assert views.query_timeout({}) == views.DEFAULT_TIMEOUT
    assert math.isclose(views.query_timeout({"timeout": "0.25"}), 0.25)


def test_every_code_has_a_status() -> None:
    codes = {
        value
        for module in (requests, views)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value not in requests.CAPTURES
    }
    assert codes == set(views.STATUSES)


def test_an_error_is_one_line_of_bounded_length() -> None:
    shown = views.error("refused", "\x1b[31mred\r\n\u202e" + "x" * 10000)
    reason = str(shown["reason"])
    assert reason.isprintable()
    assert len(reason) == views.MAX_REASON


def test_bytes_that_are_no_utf8_are_encoded_all_the_same() -> None:
    raw = views.encode({"netns": "/run/\udcff"})
    assert raw.isascii()
    assert json.loads(raw) == {"netns": "/run/\udcff"}


def test_a_moment() -> None:
    assert views.moment(1769851800.9) == "2026-01-31T09:30:00Z"
