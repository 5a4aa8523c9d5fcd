"""The smoother: kernel and estimates against NumPy by hand, limits of the bandwidth, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import F64, RandomTensors, given_by

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional
from vaeimpute.tables.smoother import (
    HEADS,
    N_HEADS,
    Given,
    Layout,
    Reference,
    estimate,
    gates,
    prepare,
    start_theta,
)

S, H, B, N, F = 3, N_HEADS, 7, 30, 5
WIDTHS, SLOPES = slice(0, H), slice(2 * H, 3 * H)
OF_BACKBONE = 1e-4  # weight of the linear mean beside the reference rows


@pytest.fixture
def random():
    return RandomTensors()


@pytest.fixture
def backbone(random):
    return FactorAnalysis(random.normal(F, 2), random.normal(F), 0.1 + random.uniform(F))


@pytest.fixture
def theta(random):
    return start_theta(F).double() + 0.3 * random.normal(S, 3 * H + 1, F)


def reference_of(values, known, backbone):
    """Missing cells filled by the linear VAE."""
    mean, variance = conditional(values, known, backbone)
    return Reference(torch.where(known, values, mean), torch.where(known, 0, variance), known.to(values))


@pytest.fixture
def reference(random, backbone):
    return reference_of(random.normal(N, F), random.mask(N, F, rate=0.7), backbone)


def rows_given(random, backbone, members=S, rate=0.5):
    """Some rows, whose first cell is hidden."""
    visible = random.mask(members, B, F, rate=rate)
    visible[..., 0] = False
    return given_by(torch.where(visible, random.normal(members, B, F), 0), visible.double(), backbone)


def nowhere(members=S, n=B):
    return torch.full((members, n), -1)


NUMBERS = Layout([], slice(None), torch.full((2, F), torch.nan, dtype=F64))


def estimates(theta, reference, given, own, backbone, layout=NUMBERS):
    return estimate(theta, prepare(theta, reference, layout, backbone), given, own, backbone, with_variance=True)


def weights_by_hand(theta, reference, given, own):
    """Product over the visible cells of ``N(q; mean, bandwidth^2 + variance)``, normalised without the row itself."""
    x, visible = (part.expand(S, -1, -1).numpy() for part in (given.x, given.visible))
    values, variance = reference.values.numpy(), reference.variance.numpy()
    n = len(values)
    weights = np.empty((S, x.shape[1], H, n))
    for s, b, h in np.ndindex(*weights.shape[:3]):
        o = visible[s, b] > 0
        v = np.exp(2 * theta[s, h].numpy())[o] + HEADS[h][1] * variance[:, o]
        kernel = np.prod(np.exp(-((x[s, b][o] - values[:, o]) ** 2) / (2 * v)) / np.sqrt(v), axis=1)
        kernel[np.arange(n) == own.expand(S, -1)[s, b].item()] = 0
        weights[s, b, h] = kernel / kernel.sum()
    return torch.from_numpy(weights)


@pytest.mark.parametrize("at_home", [False, True])
def test_estimates_are_those_by_hand(random, theta, reference, backbone, at_home):
    """Kernel averages of the observed cells, with a little of the linear mean, moved along the linear VAE."""
    given = rows_given(random, backbone)
    own = random.integers(N, S, B) if at_home else nowhere()
    weights = weights_by_hand(theta, reference, given, own)
    values, _, known = reference
    share = weights @ known
    mean = (weights @ (values * known) + OF_BACKBONE * given.mean.unsqueeze(2)) / (share + OF_BACKBONE)
    of_linear = (given.mean.square() + given.variance).unsqueeze(2)
    squares = (weights @ (values.square() * known) + OF_BACKBONE * of_linear) / (share + OF_BACKBONE)
    # what the linear VAE makes of the weighted mean of the reference rows, of which it sees the row's visible cells
    center, visible = weights @ values, (given.visible > 0).unsqueeze(2).expand(S, B, H, F)
    back = conditional(center.flatten(0, 2), visible.flatten(0, 2), backbone).mean.view(S, B, H, F)
    slope = torch.sigmoid(theta[:, SLOPES]).unsqueeze(1) * share / (share + OF_BACKBONE)
    ours = estimates(theta, reference, given, own, backbone)
    torch.testing.assert_close(ours.mean, mean + slope * (given.own_mean.unsqueeze(2) - back))
    torch.testing.assert_close(ours.variance, squares - mean.square())


def test_the_variance_is_only_made_where_it_is_wanted(random, theta, reference, backbone):
    given = rows_given(random, backbone)
    without = estimate(theta, prepare(theta, reference, NUMBERS, backbone), given, nowhere(), backbone)
    torch.testing.assert_close(without.mean, estimates(theta, reference, given, nowhere(), backbone).mean)
    assert not without.variance.any()


def test_a_huge_bandwidth_takes_the_mean_of_the_reference_rows(random, theta, backbone):
    theta[:, WIDTHS], theta[:, SLOPES] = 12.0, -1e3
    values = random.normal(N, F)
    reference = reference_of(values, torch.ones(N, F, dtype=torch.bool), backbone)
    given, own = rows_given(random, backbone), nowhere()
    own[:, 0] = 4
    mean = estimates(theta, reference, given, own, backbone).mean
    all_others = values[torch.arange(N) != 4].mean(0)
    torch.testing.assert_close(mean[:, 0], all_others.expand(S, H, F), rtol=0, atol=2e-3)
    torch.testing.assert_close(mean[:, 1:], values.mean(0).expand(S, B - 1, H, F), rtol=0, atol=2e-3)


def test_a_tiny_bandwidth_takes_the_nearest_row(random, theta, backbone):
    theta[:, WIDTHS], theta[:, SLOPES] = -5.0, -1e3
    values = random.normal(N, F)
    reference = reference_of(values, torch.ones(N, F, dtype=torch.bool), backbone)
    given, own = rows_given(random, backbone, rate=0.7), nowhere()
    distance = ((given.x.unsqueeze(2) - values).square() * given.visible.unsqueeze(2)).sum(-1)  # (S, B, N)
    some = given.visible.any(-1)
    own[0, 0] = distance[0, 0].argmin()
    distance[0, 0, own[0, 0]] = torch.inf
    nearest = values[distance.argmin(-1)]
    mean = estimates(theta, reference, given, own, backbone).mean
    assert some.sum() > 10
    torch.testing.assert_close(mean[some], nearest[some].unsqueeze(1).expand(-1, H, -1), rtol=0, atol=2e-3)


def test_without_slopes_estimates_are_within_the_cells_they_average(random, theta, reference, backbone):
    theta[:, SLOPES] = -1e3
    given = rows_given(random, backbone)
    mean = estimates(theta, reference, given, nowhere(), backbone).mean
    values, _, known = reference
    low, high = (torch.where(known > 0, values, end).unsqueeze(0) for end in (torch.inf, -torch.inf))
    low = torch.minimum(low.amin(1), given.mean).unsqueeze(2)  # the linear mean has a little weight
    high = torch.maximum(high.amax(1), given.mean).unsqueeze(2)
    assert (mean >= low - 1e-9).all()
    assert (mean <= high + 1e-9).all()


def test_no_row_is_evidence_of_itself(random, theta, reference, backbone):
    given = rows_given(random, backbone)
    own = torch.zeros(S, B, dtype=torch.long)
    before = estimates(theta, reference, given, own, backbone)
    moved = Reference(*(part.clone() for part in reference))
    moved.values[0] += 5
    torch.testing.assert_close(estimates(theta, moved, given, own, backbone), before)
    without = reference.at(slice(1, None))
    torch.testing.assert_close(estimates(theta, without, given, nowhere(), backbone), before)
    assert not torch.allclose(estimates(theta, moved, given, nowhere(), backbone).mean, before.mean)


def test_what_a_reference_row_has_not_is_not_averaged(random, theta, reference, backbone):
    """Its filling says how near it is, and where it stands; it is no evidence of the cell."""
    theta[:, SLOPES] = -1e3
    given = rows_given(random, backbone)
    hidden = ((reference.known == 0) & (torch.arange(F) == 0)).double()  # a cell that no row shows
    moved = reference._replace(values=reference.values + 7 * hidden)
    torch.testing.assert_close(
        estimates(theta, moved, given, nowhere(), backbone), estimates(theta, reference, given, nowhere(), backbone)
    )


def test_what_no_reference_row_has_is_left_to_the_linear_mean(random, theta, backbone):
    known = random.mask(N, F, rate=0.7)
    known[:, 0] = False
    given = rows_given(random, backbone)
    ours = estimates(theta, reference_of(random.normal(N, F), known, backbone), given, nowhere(), backbone)
    torch.testing.assert_close(ours.mean[..., 0], given.mean[..., :1].expand(-1, -1, H))
    torch.testing.assert_close(ours.variance[..., 0], given.variance[..., :1].expand(-1, -1, H))


def test_on_a_linear_table_the_estimate_is_the_conditional_mean(random, theta, backbone):
    """With a slope of one: whatever the kernel, it averages nothing but what is off the line."""
    theta[:, SLOPES] = 1e3
    visible = torch.tensor([True, True, False, True, False])
    rows, off = random.normal(2, N, F)
    on_line = conditional(rows, visible.expand(N, F), backbone).mean
    reference = reference_of(torch.where(visible, rows, on_line + off), torch.ones(N, F, dtype=torch.bool), backbone)
    x = torch.where(visible, random.normal(S, B, F), 0)
    given = given_by(x, visible.double().expand(S, B, F), backbone)
    weights = weights_by_hand(theta, reference, given, nowhere())
    expected = given.mean.unsqueeze(2) + weights @ off / (1 + OF_BACKBONE)
    ours = estimates(theta, reference, given, nowhere(), backbone).mean
    torch.testing.assert_close(ours[..., [2, 4]], expected[..., [2, 4]])


def test_the_order_of_the_reference_rows_does_not_matter(random, theta, reference, backbone):
    given, own, order = rows_given(random, backbone), random.integers(N, S, B), random.order(N)
    moved = order.argsort()[own]
    torch.testing.assert_close(
        estimates(theta, reference.at(order), given, moved, backbone),
        estimates(theta, reference, given, own, backbone),
    )


@pytest.mark.parametrize("members", [1, S])
def test_smoothers_do_not_know_of_each_other(random, theta, reference, backbone, members):
    """Each alone says what it says beside others, of rows of its own or of those that all look at."""
    given, own = rows_given(random, backbone, members), random.integers(N, members, B)
    together = estimates(theta, reference, given, own, backbone)
    for s in range(S):
        rows = slice(s, s + 1) if members > 1 else slice(0, 1)
        alone = estimates(theta[s : s + 1], reference, given.at(rows), own[rows], backbone)
        torch.testing.assert_close(tuple(part[0] for part in alone), tuple(part[s] for part in together))


def test_a_row_does_not_depend_on_its_batch(random, theta, reference, backbone):
    given, own = rows_given(random, backbone), random.integers(N, S, B)
    together = estimates(theta, reference, given, own, backbone)
    one = Given(*(part[:, 2:3] for part in given))
    torch.testing.assert_close(
        tuple(estimates(theta, reference, one, own[:, 2:3], backbone)), tuple(part[:, 2:3] for part in together)
    )


def test_gates_choose_between_the_linear_mean_and_the_heads(random, theta):
    gate = gates(theta)
    assert gate.shape == (S, 1, H + 1, F)
    assert (gate > 0).all()
    torch.testing.assert_close(gate.sum(2), torch.ones(S, 1, F, dtype=F64))
    theta[:, H : 2 * H] = -1e3
    assert torch.equal(gates(theta)[:, 0, 0], torch.ones(S, F, dtype=F64))
    theta[:, H] = 1e3
    assert torch.equal(gates(theta)[:, 0, 1], torch.ones(S, F, dtype=F64))


def test_smoothers_start_with_their_bandwidths_and_with_more_of_the_linear_mean_than_of_a_head():
    theta = start_theta(F)
    for h, (bandwidth, _) in enumerate(HEADS):
        torch.testing.assert_close(theta[h].exp(), torch.full((F,), bandwidth))
    gate = gates(theta.unsqueeze(0))[0, 0]
    assert (gate[0] > gate[1:]).all()
    assert not theta[-1].any()  # errors are those of the linear VAE


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_reference", [1, N])
@pytest.mark.parametrize("width", [-20.0, 0.0, 20.0])
def test_nothing_is_nan_or_infinite(random, backbone, dtype, rate, n_reference, width):
    backbone = backbone.to(dtype)
    theta = (start_theta(F).to(dtype).expand(S, -1, -1) + width).requires_grad_()
    reference = reference_of(
        1e3 * random.normal(n_reference, F, dtype=dtype), random.mask(n_reference, F, rate=0.5), backbone
    )
    visible = random.mask(S, B, F, rate=rate)
    x = torch.where(visible, 1e3 * random.normal(S, B, F, dtype=dtype), 0)
    given = given_by(x, visible.to(dtype), backbone)
    results = *estimates(theta, reference, given, nowhere(), backbone), gates(theta)
    assert all(tensor.isfinite().all() and tensor.dtype == dtype for tensor in results)
    (gradient,) = torch.autograd.grad(sum(tensor.sum() for tensor in results), [theta])
    assert gradient.isfinite().all()


class Levels:
    """Rows of a number, a class of 40 levels, a number, and a class of 32; a feature of a level says no or yes."""

    columns = torch.tensor([0] + 40 * [1] + [2] + 32 * [3])

    def __init__(self, random):
        self.random = random
        self.no_yes = torch.stack([-random.uniform(74), 1 + random.uniform(74)])
        self.no_yes[:, [0, 41]] = torch.nan
        self.layout = Layout.of(self.columns, self.no_yes)
        self.backbone = FactorAnalysis(0.3 * random.normal(74, 2), random.normal(74), 0.1 + random.uniform(74))

    def rows(self, *shape):
        """Values and which are observed, the levels of a class together."""
        values = self.random.normal(*shape, 74)
        for own in self.layout.classes:
            of_level = torch.eye(own.stop - own.start)[self.random.integers(own.stop - own.start, *shape)] > 0
            values[..., own] = torch.where(of_level, self.no_yes[1, own], self.no_yes[0, own])
        return values, self.random.mask(*shape, 4, rate=0.6)[..., self.columns]


def test_classes_of_many_levels_stand_together_and_others_are_the_rest(random):
    layout = Levels(random).layout
    assert layout.classes == [slice(1, 41), slice(42, 74)]
    assert layout.rest.tolist() == [0, 41]
    few = torch.tensor([0] + 31 * [1])
    assert Layout.of(few, torch.ones(2, 32)).classes == []


@pytest.mark.parametrize("members", [1, S])
def test_a_class_that_is_looked_up_is_estimated_as_its_features_are(random, members):
    """The same kernel, and where the class is hidden the same estimates and gradients."""
    table = Levels(random)
    values, known = table.rows(N)
    reference = reference_of(values, known, table.backbone)
    x, visible = table.rows(members, B)
    given = given_by(torch.where(visible, x, 0), visible.double(), table.backbone)
    theta = (start_theta(74).double() + 0.3 * random.normal(S, 3 * H + 1, 74)).requires_grad_()
    own = random.integers(N, members, B) - 1
    looked_up, plain = (
        estimates(theta, reference, given, own, table.backbone, layout)
        for layout in (table.layout, table.layout._replace(classes=[], rest=slice(None)))
    )
    of_class = torch.isin(table.columns, torch.tensor([1, 3]))
    seen = (of_class & visible).expand(S, B, 74).unsqueeze(2).expand(S, B, H, 74)
    weight = random.normal(S, B, H, 74) * ~seen
    for ours, theirs in zip(looked_up, plain, strict=True):
        torch.testing.assert_close(ours[~seen], theirs[~seen])
        torch.testing.assert_close(
            *(torch.autograd.grad((e * weight).sum(), theta, retain_graph=True) for e in (ours, theirs))
        )
    torch.testing.assert_close(looked_up.mean[seen], given.mean.unsqueeze(2).expand(S, B, H, 74)[seen])
