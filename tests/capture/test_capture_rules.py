"""The text of the rules: numbers that ztunnel and Istio's agent share, and both families."""

from pyztun.cni.capture import rules

NUMBERS = {"0x539", "0x111", "0xfff", "15001", "15006", "15008", "1337", "-300", "-150"}


def test_the_numbers_are_those_of_istio() -> None:
    words = set(rules.REPLACE.replace(";", " ").replace(":", " ").split())
    assert words >= NUMBERS
    assert (rules.ROUTE_TABLE, rules.RULE_PRIORITY) == (100, 32764)


def test_each_text_is_of_our_table_alone() -> None:
    for text in (rules.CREATE, rules.REPLACE, rules.REMOVE, rules.SETTLE, rules.LIST):
        heads = [line for line in text.splitlines() if line and line[0] not in "\t}"]
        assert heads
        assert all("inet pyztun" in line for line in heads)


def test_what_is_said_of_ipv4_is_said_of_ipv6() -> None:
    words = rules.CREATE.split()
    assert words.count("ip") == words.count("ip6") > 5
    loopback = words.count("127.0.0.1") + words.count("127.0.0.0/8")
    assert loopback == words.count("::1") == 3
    assert words.count(rules.PROBE_IPV4) == words.count(rules.PROBE_IPV6) == 4
