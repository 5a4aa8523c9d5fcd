"""Find anomalous rows with a guarantee, say which of their cells are wrong, and what they should be.

Run ``python examples/detect_outliers.py [PICTURE]``; needs matplotlib.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

from vaeimpute import VAEOutlierDetector
from vaeimpute.amputation import ampute

picture = Path(sys.argv[1] if len(sys.argv) > 1 else "detect_outliers.png")

# Ten mean measurements of 569 tumours; a tenth of the cells is lost. We learn what benign ones look like.
data = load_breast_cancer(as_frame=True)
table = data.data.iloc[:, :10].rename(columns=lambda name: name.removeprefix("mean "))
table = table.where(ampute(table, rate=0.1, random_state=0))
benign = table[data.target == 1].sample(frac=1, random_state=0)
malignant = table[data.target == 0].sample(30, random_state=0)
known, unseen = benign[:250], benign[250:]
detector = VAEOutlierDetector(random_state=0).fit(known)

# 1. Of what we select, at most a fifth should be benign after all.
mixed = np.r_[np.zeros(len(unseen), bool), np.ones(len(malignant), bool)]
rows = pd.concat([unseen, malignant])
chosen = detector.select(rows, fdr=0.2)
print(f"selected {chosen.sum()}: {mixed[chosen].sum()} of 30 malignant, {(~mixed[chosen]).sum()} benign")

# 2. A misplaced decimal point is found, and the rest of the row says what should stand there.
typo = unseen.iloc[:3].copy()
typo.iloc[1, 3] /= 10
print(detector.explain(typo, n_cells=1).head(1).round(2).to_string(index=False))
print(f"area: {unseen.iloc[1, 3]:.0f}, typed {typo.iloc[1, 3]:.1f}, repaired {detector.repair(typo).iloc[1, 3]:.0f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5), layout="constrained", width_ratios=[1, 2.2])
p = detector.p_values(rows)
left.hist([p[~mixed], p[mixed]], np.linspace(0, 1, 21), stacked=True, label=["benign", "malignant"])
left.set(xlabel="p-value", ylabel="rows", title="Uniform for rows like those fitted to")
left.legend()
detector.plot(malignant, n_rows=8, ax=right)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")
