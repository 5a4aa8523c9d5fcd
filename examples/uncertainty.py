"""How sure is a filled cell? Draw many completed tables, read intervals from them, and pool an estimate over them.

Run ``python examples/uncertainty.py [PICTURE]``; needs matplotlib.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

from vaeimpute import VAEImputer, fit_pooled
from vaeimpute.amputation import ampute

picture = Path(sys.argv[1] if len(sys.argv) > 1 else "uncertainty.png")

# 442 patients; a third of what we know about them is lost.
table = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "progression"})
observed = ampute(table, rate=0.33, random_state=0)
incomplete = table.where(observed)

# 99 completed tables. Each is a draw from the model, given the cells that are there.
imputer = VAEImputer(random_state=0).fit(incomplete)
draws = imputer.impute(incomplete, n_imputations=99, random_state=1)
point = imputer.impute(incomplete)

# 1. An interval for each hidden cell. If the model knows what it does not know, 90% of the truth lies in 90% intervals.
hidden, truth = ~observed, table.to_numpy(float)
levels = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
coverage = []
for level in levels:
    low, high = (ends.to_numpy(float) for ends in imputer.intervals(incomplete, level=level))
    coverage.append(((low <= truth) & (truth <= high))[hidden].mean())
for level, share in zip(levels, coverage, strict=True):
    print(f"{level:.0%} intervals hold {share:.1%} of the hidden cells")


# 2. An estimate: how much does progression grow per unit of body mass, at equal age, pressure and blood lipids?
def slope_of_bmi(frame):
    """Least squares: the coefficient of 'bmi' and its squared standard error."""
    design = np.column_stack([np.ones(len(frame)), frame[["bmi", "age", "bp", "s5"]].to_numpy(float)])
    target = frame["progression"].to_numpy(float)
    coefficients = np.linalg.lstsq(design, target)[0]
    noise = ((target - design @ coefficients) ** 2).sum() / (len(design) - design.shape[1])
    return coefficients[1], noise * np.linalg.inv(design.T @ design)[1, 1]


pooled = fit_pooled(slope_of_bmi, draws).table.iloc[0]  # Rubin's rules
print(f"share of what one would know that the lost cells took: {pooled['fmi']:.0%}")

estimates = {
    "no cell lost (the truth)": slope_of_bmi(table),
    "only complete rows": slope_of_bmi(incomplete.dropna(subset=["bmi", "age", "bp", "s5", "progression"])),
    "column means": slope_of_bmi(incomplete.fillna(incomplete.mean())),
    "one best guess, taken as data": slope_of_bmi(point),
    "99 draws, pooled": (pooled["estimate"], pooled["std_error"] ** 2),
}
for name, (slope, variance) in estimates.items():
    print(f"{name:<32}{slope:6.2f} +- {1.96 * variance**0.5:.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=[1, 1.3])
left.plot([0, 1], [0, 1], color="0.6", linewidth=1)
left.plot(levels, coverage, "o-")
left.set(xlabel="interval", ylabel="share of hidden cells inside", title="Do the intervals cover?", aspect="equal")
for row, (slope, variance) in enumerate(reversed(estimates.values())):
    right.errorbar(slope, row, xerr=1.96 * variance**0.5, fmt="o", capsize=4, color="tab:blue")
right.axvline(estimates["no cell lost (the truth)"][0], color="0.6", linewidth=1)
right.set_yticks(range(len(estimates)), reversed(estimates))
right.set(xlabel="slope of bmi, with its 95% interval", title="The same regression on five versions of the table")
figure.savefig(picture, dpi=120)
print(f"picture: {picture}")
