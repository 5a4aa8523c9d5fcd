"""Impute the missing numbers, integers and classes of a table, and see how close they are to the truth.

Run ``python examples/fill_a_table.py [PICTURE]``; needs matplotlib.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import load_wine

from vaeimpute import VAEImputer
from vaeimpute.amputation import ampute
from vaeimpute.metrics import category_error, column_nrmse, nrmse

picture = Path(sys.argv[1] if len(sys.argv) > 1 else "fill_a_table.png")

# 178 wines: 13 measurements, two of them whole numbers, and the cultivar.
wines = load_wine(as_frame=True)
table = wines.frame.rename(columns={"target": "cultivar", "od280/od315_of_diluted_wines": "od280/od315"})
table = table.astype({"magnesium": "Int64", "proline": "Int64", "cultivar": "category"})
table["cultivar"] = table["cultivar"].cat.rename_categories(["A", "B", "C"])

# Hide 30% of the cells, completely at random. The table keeps its types, and knows nothing of what was there.
numbers = table.columns.drop("cultivar")
observed = ampute(table[numbers].assign(cultivar=table["cultivar"].cat.codes), rate=0.3, random_state=0)
incomplete = table.where(observed)
print(incomplete.iloc[:5, -4:].to_string())

# The whole job: one line. Observed cells come back untouched, every column with the type that it had.
filled = VAEImputer(random_state=0).fit(incomplete).impute(incomplete)
print(filled.iloc[:5, -4:].to_string())
assert (filled.dtypes == table.dtypes).all()
assert filled.where(observed).equals(incomplete)

hidden = ~observed[:, :-1]
truth, answer = table[numbers].to_numpy(float), filled[numbers].to_numpy(float)
wrong = category_error(table["cultivar"], filled["cultivar"], ~observed[:, -1])
print(f"numbers: error {nrmse(truth, answer, hidden):.3f} standard deviations (the column's mean would give about 1)")
print(f"cultivar: {wrong:.0%} of the hidden cells wrong")

centre, scale = truth.mean(axis=0), truth.std(axis=0)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=[1, 1.2])
left.axline((0, 0), slope=1, color="0.6", linewidth=1)
left.plot(((truth - centre) / scale)[hidden], ((answer - centre) / scale)[hidden], ".", alpha=0.5)
left.set(xlabel="hidden truth (sd)", ylabel="filled with (sd)", title="Every hidden number", aspect="equal")
by_column = column_nrmse(truth, answer, hidden)
order = by_column.argsort()
right.barh(numbers[order], by_column[order])
right.axvline(1, color="0.6", linewidth=1, linestyle="--", label="column's mean")
right.set(xlabel="root mean squared error (sd)", title="Some columns follow from the rest, some do not")
right.legend(loc="lower right")
figure.savefig(picture, dpi=120)
print(f"picture: {picture}")
