"""Where and from which seed a fit runs: generators of its own, one seed from any random state, a device tried out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vaeimpute.training.runtime import draw_seed, make_generator, progress, resolve_device

RECORD = {"step": 50, "error": 0.25, "seconds": 1.0}


def test_a_generator_is_its_seed_and_nothing_else():
    state = torch.get_rng_state()
    torch.manual_seed(5)
    one = torch.rand(4, generator=make_generator(3))
    torch.manual_seed(6)
    again, other = (torch.rand(4, generator=make_generator(seed)) for seed in (3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.set_rng_state(state)
    make_generator(0).manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_generators_of_two_threads_do_not_meet():
    def numbers(seed):
        generator = make_generator(seed)
        return torch.stack([torch.rand(3, generator=generator) for _ in range(200)])

    alone = [numbers(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(numbers, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("random_state", [0, 12345])
def test_a_seed_follows_from_the_random_state(random_state):
    assert draw_seed(random_state) == draw_seed(random_state) == draw_seed(np.random.RandomState(random_state))
    assert draw_seed(random_state) != draw_seed(random_state + 1)
    state = np.random.RandomState(random_state)
    assert draw_seed(state) != draw_seed(state)  # a generator moves on, as scikit-learn has it


def test_without_a_random_state_seeds_are_fresh_and_numpys_own_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert len({draw_seed(None) for _ in range(5)}) == 5
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_device_is_tried_out():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("abacus", "meta:what", "meta"):
        with pytest.raises(ValueError, match=rf"device='{device}' cannot be used here: .+ Use device='auto'\."):
            resolve_device(device)
        assert resolve_device(device, or_cpu=True) == torch.device("cpu")


def test_progress_is_silent_unless_it_is_wanted(capsys):
    with progress(0) as on_evaluation:
        on_evaluation("joint", RECORD, 100)
    assert capsys.readouterr() == ("", "")


def test_progress_without_rich_is_a_line_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("vaeimpute.training.runtime.find_spec", lambda name: None)
    with progress(1) as on_evaluation:
        on_evaluation("joint", RECORD, 100)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "joint: step 50 of 100, held-out error 0.2500, 1.0 s\n")
