"""Whose turn it is, and the progress bar: nothing but the turns runs during a measurement."""

import io
import threading

from rich.console import Console

from bench import progress, rounds


def test_every_contender_has_one_turn_in_every_round() -> None:
    calls: list[str] = []

    def turn_of(name: str) -> rounds.Turn:
        def turn() -> list[float]:
            calls.append(name)
            return [float(len(calls)), 1000.0, 0.0]

        return turn

    names = ["a", "b", "c"]
    samples = rounds.interleave("row", {name: turn_of(name) for name in names}, 4)
    assert [len(samples[name]) for name in names] == [4, 4, 4]
    played = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(played) == 4 + rounds.WARM_UP
    assert all(sorted(order) == names for order in played)
    assert len({tuple(order) for order in played}) > 1, "the order is drawn anew"
    # The median of a turn's batch is kept, and the warm-up is not.
    kept = sorted(value for values in samples.values() for value in values)
    assert kept == [float(n) for n in range(3 * rounds.WARM_UP + 1, len(calls) + 1)]


def test_the_bar_is_drawn_between_the_steps_by_no_thread() -> None:
    shown = io.StringIO()
    threads = threading.active_count()
    console = Console(file=shown, force_terminal=True, width=100)
    with progress.bar("listen", 3, console) as step:
        before = shown.getvalue()
        assert threading.active_count() == threads
        step("warm-up")
        step("rounds")
        assert threading.active_count() == threads
    assert before != shown.getvalue()
    assert "listen: rounds" in shown.getvalue()
    assert "2/3" in shown.getvalue()


def test_no_bar_where_there_is_no_terminal() -> None:
    shown = io.StringIO()
    with progress.bar("listen", 1, Console(file=shown)) as step:
        step("rounds")
    assert shown.getvalue() == ""
