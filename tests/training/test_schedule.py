"""Schedules: the rate of each step, trainings cut short, and when a budget of time is spent."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeimpute.training.schedule import Schedule, TimeBudget, shortened

steps = st.integers(0, 2000)


def test_the_rate_warms_up_and_falls():
    schedule = Schedule(1000, 1, 2.0)
    rates = [schedule.rate(step) for step in range(1001)]
    peak = rates.index(max(rates))
    assert 40 <= peak <= 60
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 * 2.0)


@given(st.integers(1, 2000), st.floats(1e-5, 1.0))
def test_no_rate_is_above_the_peak_or_negative(n_steps, peak):
    schedule = Schedule(n_steps, 1, peak)
    assert all(0 < schedule.rate(step) <= peak * (1 + 1e-9) for step in range(n_steps))


@given(st.lists(steps, min_size=1, max_size=3), st.integers(1, 3000))
def test_shortened_schedules_have_no_more_steps_than_allowed(lengths, max_iter):
    for refit in (0.0, 0.3):
        schedules = [Schedule(n, 32, 1e-3, refit=refit) for n in lengths]
        short = shortened(schedules, max_iter)
        assert sum(s.steps for s in short) + short[-1].for_refit(short[-1].steps).steps <= max_iter
        assert all(new.steps <= old.steps for new, old in zip(short, schedules, strict=True))
        if sum(lengths) + int(refit * lengths[-1]) <= max_iter:
            assert short == schedules
        elif not refit:  # each stage keeps its share, up to the step that rounding costs it
            assert sum(s.steps for s in short) > max_iter - len(lengths)
    assert shortened(schedules, None) == schedules


def test_a_refit_is_as_long_as_the_training_was_good_for():
    schedule = Schedule(400, 64, 1e-2, refit=0.3)
    assert [schedule.for_refit(best).steps for best in (0, 100, 400)] == [0, 30, 120]
    assert schedule.for_refit(100).learning_rate < schedule.learning_rate


def test_a_budget_without_a_limit_ends_by_an_interrupt_alone():
    budget = TimeBudget()
    assert not budget.is_spent()
    budget.interrupted = True
    assert budget.is_spent()
    assert budget.is_spent(0.0)


def test_a_budget_is_spent_share_by_share():
    budget = TimeBudget(3600)
    assert not budget.is_spent(0.5)
    assert budget.is_spent(0.0)
    short = TimeBudget(0.01)
    time.sleep(0.02)
    assert short.is_spent()
    assert short.elapsed() >= 0.02


def test_a_stage_begins_while_its_share_is_left():
    budget = TimeBudget(3600)
    assert budget.allows("early", 0.5)
    assert budget.left_out == []
    assert not budget.allows("late", 0.0)
    assert not budget.allows("late", 0.0)
    assert budget.left_out == ["late"]  # once, however often it is asked for
    assert not budget.allows("late", 0.5)  # what is left out stays out
    assert budget.allows("early", 0.5)


def test_after_an_interrupt_no_stage_begins():
    budget = TimeBudget()
    budget.interrupted = True
    assert not budget.allows("networks", 0.9)
    assert budget.left_out == ["networks"]
