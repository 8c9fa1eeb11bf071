"""What is decided from looks at an engine: tables of looks, and any looks at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_vllm.engine.supervise import (
    BUSY_FACTOR,
    CANARY_AFTER_S,
    HEALTHY_AGAIN_S,
    LONGEST_DELAY_S,
    LONGEST_STEP_S,
    PAUSE_TOLD_WITHIN_S,
    STOPPED_S,
    Action,
    AskPaused,
    GiveUp,
    Look,
    RankSeen,
    Restarts,
    SendCanary,
    Vigil,
    step,
)

STALL_S = 30.0
EVERY_S = 0.25
IDLE = RankSeen((0.0,), works=False)
STUCK = RankSeen((7.0,), works=True)
ALIVE = Look(EVERY_S, ranks={0: IDLE}, heard=True)


def watch(looks: list[Look], ranks: int = 1, stall_s: float | None = STALL_S) -> tuple[float, list[Action]]:
    """The seconds of looks until the engine is given up, or all of them, and every action in between."""
    vigil, passed_s, done = Vigil.begin(ranks), 0.0, []
    for look in looks:
        vigil, actions = step(vigil, look, stall_s)
        passed_s += look.step_s
        done += actions
        if any(isinstance(action, GiveUp) for action in actions):
            break
    return passed_s, done


def given_up(looks: list[Look], **more: object) -> tuple[float, GiveUp | None]:
    passed_s, done = watch(looks, **more)
    return passed_s, next((action for action in done if isinstance(action, GiveUp)), None)


def seconds(look: Look, count: float) -> list[Look]:
    return [look] * int(count / look.step_s)


def busy(count: float) -> list[Look]:
    """An engine that generates: its counters grow at each question."""
    return [
        Look(EVERY_S, ranks={0: RankSeen((float(number),), works=True)}, heard=True, computes=True)
        for number in range(int(count / EVERY_S))
    ]


def test_a_member_that_has_ended_is_the_end_at_once() -> None:
    passed_s, lost = given_up([ALIVE, replace(ALIVE, gone=("ray::RayWorkerProc (pid 7)",))])
    assert (passed_s, lost) == (2 * EVERY_S, GiveUp("ray::RayWorkerProc (pid 7) has ended"))


def test_a_lost_node_is_the_end_at_once() -> None:
    _, lost = given_up([replace(ALIVE, lost_nodes=("10.0.0.7",))])
    assert lost == GiveUp("the node 10.0.0.7 is lost")


def test_a_stopped_member_is_the_end_within_5_s_though_everything_else_looks_well() -> None:
    passed_s, lost = given_up(seconds(replace(ALIVE, stopped=("the worker",)), 10))
    assert "the worker is stopped" in lost.why
    assert STOPPED_S <= passed_s < 5


def test_a_member_that_a_tool_stops_for_a_moment_is_left_alone() -> None:
    blink = [replace(ALIVE, stopped=("the worker",)), *seconds(ALIVE, 1)]
    assert given_up(blink * 20) == (pytest.approx(20 * 1.25), None)


def test_an_idle_rank_is_asked_for_a_token_now_and_then_and_one_that_answers_lives() -> None:
    looks = []
    for _ in range(20):
        looks += seconds(ALIVE, CANARY_AFTER_S) + [replace(ALIVE, canaries_back=frozenset({0}))]
    _, done = watch(looks)
    assert 19 <= len(done) <= 20
    assert set(done) == {SendCanary(0)}


def test_an_idle_rank_whose_token_does_not_come_has_stalled() -> None:
    _, done = watch(seconds(ALIVE, 100))
    assert done[:-1] == [SendCanary(0), AskPaused()], "it is asked once"
    passed_s, lost = given_up(seconds(ALIVE, 100))
    assert lost.stalled
    assert "rank 0 has generated nothing for 30 s" in lost.why
    assert passed_s == pytest.approx(CANARY_AFTER_S + STALL_S, abs=1)


def test_requests_without_progress_are_a_stall_after_the_configured_time() -> None:
    passed_s, lost = given_up(seconds(replace(ALIVE, ranks={0: STUCK}), 100))
    assert lost.stalled
    assert passed_s == pytest.approx(STALL_S, abs=1)


def test_each_rank_is_looked_at_by_itself() -> None:
    looks = [replace(look, ranks={0: look.ranks[0], 1: STUCK}) for look in busy(100)]
    passed_s, lost = given_up(looks, ranks=2)
    assert "rank 1" in lost.why
    assert passed_s == pytest.approx(STALL_S, abs=1)


def test_a_request_that_waits_for_something_of_its_own_is_no_stall_while_the_rank_answers() -> None:
    waiting = replace(ALIVE, ranks={0: STUCK})
    looks = (seconds(waiting, 14) + [replace(waiting, canaries_back=frozenset({0}))]) * 10
    assert given_up(looks)[1] is None


def test_a_busy_engine_whose_api_server_is_starved_is_not_dead() -> None:
    silent = Look(EVERY_S, unheard=True, computes=True)
    assert given_up([*busy(5), *seconds(silent, 4 * STALL_S), *busy(5)])[1] is None


def test_a_long_silence_does_not_count_against_the_ranks_when_it_is_over() -> None:
    silent = Look(EVERY_S, unheard=True, computes=True)
    asked = replace(ALIVE, ranks={0: STUCK})
    looks = seconds(asked, 20) + seconds(silent, 60) + [asked] + seconds(asked, 5) + busy(1)
    assert given_up(looks)[1] is None


def test_a_silent_api_server_of_an_engine_that_computes_nothing_has_stalled() -> None:
    passed_s, lost = given_up(seconds(Look(EVERY_S, unheard=True), 100))
    assert lost.stalled
    assert "API server" in lost.why
    assert passed_s == pytest.approx(STALL_S, abs=1)


def test_a_silent_api_server_has_stalled_in_the_end_whatever_computes() -> None:
    passed_s, lost = given_up(seconds(Look(EVERY_S, unheard=True, computes=True), 1000))
    assert lost.stalled
    assert passed_s == pytest.approx(STALL_S * BUSY_FACTOR, abs=1)


def test_a_machine_that_stood_still_is_no_stall() -> None:
    """The looks of ten minutes come as twenty: whoever looked was held up himself."""
    assert given_up([replace(ALIVE, step_s=30.0, ranks={0: STUCK})] * 20)[1] is None


def test_a_long_prompt_makes_progress_before_its_first_token() -> None:
    """Its chunks show in the use of the cache alone."""
    looks = [
        Look(EVERY_S, ranks={0: RankSeen((0.0, number // 40), works=True)}, heard=True) for number in range(2000)
    ]
    assert given_up(looks)[1] is None


def test_a_rank_that_its_user_put_to_sleep_is_left_in_peace() -> None:
    asleep = replace(ALIVE, ranks={0: RankSeen((1.0,), works=True, sleeps=True)})
    assert watch(seconds(asleep, 300)) == (300, [])


def test_an_engine_is_asked_whether_it_is_paused_before_a_rank_of_it_is_given_up() -> None:
    stuck = replace(ALIVE, ranks={0: STUCK})
    passed_s, done = watch(seconds(stuck, STALL_S - PAUSE_TOLD_WITHIN_S + 1))
    assert done == [SendCanary(0), AskPaused()]
    paused = [*seconds(stuck, STALL_S - 1), replace(stuck, paused=True)]
    passed_s, done = watch(paused * 10)
    assert passed_s == pytest.approx(10 * STALL_S, abs=10)
    assert done == [SendCanary(0)] + [AskPaused()] * 10


def test_an_engine_that_is_paused_no_more_and_does_nothing_has_stalled() -> None:
    stuck = replace(ALIVE, ranks={0: STUCK})
    passed_s, lost = given_up([*seconds(stuck, STALL_S - 1), replace(stuck, paused=True), *seconds(stuck, 100)])
    assert lost.stalled
    assert passed_s == pytest.approx(2 * STALL_S, abs=2)


def test_a_rank_that_refuses_tokens_is_asked_no_more_and_owes_what_it_has_to_do() -> None:
    refused = [*seconds(ALIVE, CANARY_AFTER_S), replace(ALIVE, canaries_refused=frozenset({0}))]
    assert watch([*refused, *seconds(ALIVE, 300)])[1] == [SendCanary(0)]
    passed_s, lost = given_up([*refused, *seconds(replace(ALIVE, ranks={0: STUCK}), 300)])
    assert lost.stalled
    assert passed_s == pytest.approx(CANARY_AFTER_S + STALL_S, abs=1)


def test_without_a_time_for_stalls_only_what_has_ended_counts() -> None:
    stuck = replace(ALIVE, ranks={0: STUCK})
    assert watch(seconds(stuck, 300), stall_s=None) == (300, [])
    assert given_up([replace(stuck, gone=("it",))], stall_s=None)[1] is not None


SEEN = st.builds(RankSeen, st.tuples(st.integers(0, 2)), st.booleans(), st.booleans())
LOOKS = st.builds(
    Look,
    step_s=st.floats(0, 100),
    stopped=st.sampled_from([(), ("a",), ("b",)]),
    ranks=st.none() | st.dictionaries(st.integers(0, 1), SEEN),
    heard=st.booleans(),
    unheard=st.booleans(),
    computes=st.booleans(),
    canaries_back=st.frozensets(st.integers(0, 1)),
    canaries_refused=st.frozensets(st.integers(0, 1)),
    paused=st.booleans(),
)


@given(st.lists(LOOKS, max_size=60))
def test_nothing_is_given_up_before_its_time_whatever_is_seen(looks: list[Look]) -> None:
    counted_s = 0.0
    vigil = Vigil.begin(2)
    for look in looks:
        counted_s += min(look.step_s, LONGEST_STEP_S)
        vigil, actions = step(vigil, look, STALL_S)
        for action in actions:
            if isinstance(action, GiveUp):
                assert counted_s >= (STALL_S if action.stalled else STOPPED_S)
                return


@given(st.lists(LOOKS, max_size=60))
def test_a_rank_has_one_canary_out_at_a_time(looks: list[Look]) -> None:
    out: set[int] = set()
    vigil = Vigil.begin(2)
    for look in looks:
        out -= look.canaries_back | look.canaries_refused
        vigil, actions = step(vigil, look, STALL_S)
        for action in actions:
            if isinstance(action, SendCanary):
                assert action.rank not in out
                out.add(action.rank)


def test_restarts_are_counted_up_to_their_limit() -> None:
    restarts = Restarts(2)
    assert [str(restarts := restarts.next()) for _ in range(2)] == ["1/2", "2/2"]
    assert restarts.next() is None


def test_an_engine_that_was_healthy_for_long_begins_to_count_anew() -> None:
    assert Restarts(5, 4).after_health(HEALTHY_AGAIN_S) == Restarts(5)
    assert Restarts(5, 4).after_health(HEALTHY_AGAIN_S - 1) == Restarts(5, 4)


def test_the_first_restart_comes_at_once_and_the_others_at_growing_distances() -> None:
    delays = [Restarts(9, count).delay_s(chance=0.5) for count in range(1, 10)]
    assert delays[:4] == [0, 2, 4, 8]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_S


@given(st.integers(1, 50), st.floats(0, 1))
def test_no_restart_waits_longer_than_a_minute(count: int, chance: float) -> None:
    assert 0 <= Restarts(99, count).delay_s(chance) <= LONGEST_DELAY_S
