"""Find anomalous rows, and say which of their cells are anomalous, in a table with missing cells.

Run ``python examples/anomalous_rows_and_cells.py [PICTURE]``; needs matplotlib.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from vaeimpute import VAEImputer
from vaeimpute.amputation import ampute

picture = Path(sys.argv[1] if len(sys.argv) > 1 else "anomalous_rows_and_cells.png")
random = np.random.default_rng(0)

# 569 tumours, the ten mean measurements of each; 10% of the cells are lost. We learn what benign ones look like.
data = load_breast_cancer(as_frame=True)
table = data.data.iloc[:, :10]
table = table.where(ampute(table, rate=0.1, random_state=0))
benign, malignant = table[data.target == 1], table[data.target == 0]
benign = benign.sample(frac=1, random_state=0)
known, unseen = benign[:200], benign[200:]
imputer = VAEImputer(random_state=0).fit(known)

# 1. Rows: higher is more anomalous, and scores of rows with different missing cells can be compared.
scores = {"benign": imputer.anomaly_score(unseen), "malignant": imputer.anomaly_score(malignant)}
labels = np.repeat([0, 1], [len(unseen), len(malignant)])
auroc = roc_auc_score(labels, np.concatenate(list(scores.values())))
print(f"malignant rows among unseen benign ones: AUROC {auroc:.3f}")

# 2. Cells: one number of each of a dozen benign rows was typed in wrongly, as some other patient's.
rows = unseen.iloc[:12].copy()
planted = []
for i in range(len(rows)):
    j = random.choice(np.flatnonzero(rows.iloc[i].notna()))
    farthest = (unseen.iloc[12:, j] - rows.iloc[i, j]).abs().idxmax()
    rows.iloc[i, j] = unseen.loc[farthest].iloc[j]
    planted.append(j)
cells = np.asarray(imputer.cell_anomaly_score(rows))  # NaN where the cell is missing
found = np.nanargmax(cells, axis=1)
print(f"the planted cell is the most anomalous of its row in {np.mean(found == planted):.0%} of the rows")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=[1, 1.4])
bins = np.linspace(*np.quantile(np.concatenate(list(scores.values())), [0, 0.9]), 40)  # the last bar holds all above
for name, values in scores.items():
    left.hist(values.clip(max=bins[-1]), bins, alpha=0.6, label=name)
left.set(xlabel="surprisal of the row, nats", ylabel="rows", title=f"Fitted to benign rows only: AUROC {auroc:.3f}")
left.legend()
image = right.imshow(cells.clip(min=1), cmap="viridis", norm="log", aspect="auto")
right.set_facecolor("0.85")  # missing cells
right.plot(planted, range(len(rows)), "s", markersize=18, markerfacecolor="none", color="tab:red", label="planted")
right.set_xticks(range(rows.shape[1]), [name.removeprefix("mean ") for name in rows], rotation=45, ha="right")
right.set(ylabel="row", title="Surprisal of cells; grey: missing; red: typed in wrongly")
figure.colorbar(image, ax=right, label="nats")
figure.savefig(picture, dpi=120)
print(f"picture: {picture}")
