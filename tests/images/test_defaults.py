"""Defaults of the models of images: few images all tell when to stop, large ones get fewer steps."""

from __future__ import annotations

import pytest
import torch

from vaeimpute.images import defaults
from vaeimpute.images.data import Images
from vaeimpute.images.models import ConditionalImageVAE, JointImageVAE

KINDS = [JointImageVAE, ConditionalImageVAE]


def schedule_of(kind, n, shape, effort=1.0):
    nothing = torch.empty(n, 0)
    sizes = defaults.sizes(kind, Images(nothing, nothing, shape, "count", 255), inpaints=True)
    return defaults.schedule(kind(sizes), n, effort)


@pytest.mark.parametrize("kind", KINDS)
def test_more_images_get_more_steps_and_larger_ones_fewer(kind):
    few, many = (schedule_of(kind, n, (16, 16, 1)).steps for n in (10, 5000))
    assert few < many
    small, large = (schedule_of(kind, 5000, (side, side, 1)).steps for side in (8, 64))
    assert large < small
    assert schedule_of(kind, 5000, (16, 16, 1), effort=0.15).steps < many


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 50, 5000])
def test_a_training_is_evaluated_at_least_once(kind, n):
    schedule = schedule_of(kind, n, (8, 8, 1))
    assert 1 <= schedule.evaluate_every <= schedule.steps


def test_few_images_all_tell_when_to_stop():
    for n in (1, 5, 39):
        assert defaults.n_validation(n) == (0, n)  # and all are learnt from
    for n in (40, 1000, 10**6):
        kept, told = defaults.n_validation(n)
        assert kept == told
        assert 10 <= kept <= n / 4
    assert defaults.n_validation(10**6)[0] <= 256
