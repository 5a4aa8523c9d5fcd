"""Fill missing pixels of images, draw new ones, find a defect, and look at the latent space.

Run ``python examples/images.py [PICTURE]``; needs matplotlib. Faces join the digits where scikit-learn has them: run
``sklearn.datasets.fetch_olivetti_faces()`` once.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import fetch_olivetti_faces, load_digits
from sklearn.decomposition import PCA

from vaeimpute import VAEImputer, VAEOutlierDetector

picture = Path(sys.argv[1] if len(sys.argv) > 1 else "images.png")
random = np.random.default_rng(0)


def without_block(images, rows, columns):
    """The images with a rectangle gone."""
    incomplete = images.astype(float)
    incomplete[:, rows, columns] = np.nan
    return incomplete


def strip(images):
    """Images side by side, with a line between them."""
    return np.concatenate([np.pad(image, 1, constant_values=np.nan) for image in images], axis=1)


# 1,500 digits of 8 x 8 pixels, 0 to 16; the others were never seen.
digits = load_digits()
order = random.permutation(len(digits.images))
images, labels = digits.images[order].astype(np.uint8), digits.target[order]
known, unseen = images[:1500], images[1500:]
imputer = VAEImputer(image_shape=(8, 8), random_state=0).fit(known)

# 1. Fill half of the pixels, or a block; draws show what else it could be.
truth = unseen[:8]
scattered = np.where(random.random(truth.shape) < 0.5, np.nan, truth)
block = without_block(truth, slice(2, 6), slice(2, 7))
fillings = [scattered, imputer.impute(scattered), block, imputer.impute(block)]
fillings += [*imputer.impute(block, n_imputations=2, random_state=0), truth]
for name, incomplete in (("half of the pixels", scattered), ("a block", block)):
    hidden = np.isnan(incomplete)
    error, means = (
        np.square(guess - truth)[hidden].mean() ** 0.5 for guess in (imputer.impute(incomplete), known.mean(0))
    )
    print(f"{name}: error {error:.2f} of 16, the mean image's {means:.2f}")

# 2. New digits, and latents: a few numbers that stand for a digit.
sampled = imputer.sample(24, random_state=0)
latents = PCA(2, random_state=0).fit_transform(imputer.encode(unseen))

# 3. A defect: a scratch on the most normal of the digits.
detector = VAEOutlierDetector(image_shape=(8, 8), random_state=0).fit(known)
scratch = slice(2, 6), 7
defect = unseen[[detector.p_values(unseen).argmax()]]
defect[0][scratch] = 16
heat = detector.cell_anomaly_score(defect)[0]
repaired = detector.repair(defect, threshold=2.0)
print(f"defect: scores of its pixels {heat[scratch].round(1)}, median of the others {np.median(heat):.1f}")

figure, axes = plt.subplot_mosaic(
    [["fill", "fill", "sample"], ["defect", "heat", "latent"]],
    figsize=(13, 9),
    layout="constrained",
    width_ratios=[1, 1, 1.2],
    height_ratios=[1.6, 1],
)
rows = ["half hidden", "filled", "block hidden", "filled", "a draw", "another", "truth"]
axes["fill"].imshow(np.concatenate([strip(row.astype(float)) for row in fillings]), cmap="gray_r")
axes["fill"].set_yticks(10 * np.arange(len(rows)) + 4.5, rows)
axes["fill"].set(xticks=[], title="Holes, filled", facecolor="wheat")
axes["sample"].imshow(np.concatenate([strip(row.astype(float)) for row in sampled.reshape(6, 4, 8, 8)]), cmap="gray_r")
axes["sample"].set(xticks=[], yticks=[], title="New digits")
axes["defect"].imshow(strip([defect[0].astype(float), repaired[0].astype(float)]), cmap="gray_r")
axes["defect"].set(xticks=[], yticks=[], title="A defect, and repaired")
shown = axes["heat"].imshow(heat, cmap="Oranges", vmin=0, vmax=10)
axes["heat"].set(xticks=[], yticks=[], title="Where it is")
figure.colorbar(shown, ax=axes["heat"], label="pixel score, nats")
points = axes["latent"].scatter(*latents.T, c=labels[1500:], cmap="tab10", s=12)
axes["latent"].set(xticks=[], yticks=[], title="Unseen digits in the latent space")
axes["latent"].legend(*points.legend_elements(), loc="upper right", ncols=2, fontsize=8)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")

try:
    faces = fetch_olivetti_faces(shuffle=True, random_state=0, download_if_missing=False).images
except OSError:
    print("faces: not on this machine")
else:
    filler = VAEImputer(image_shape=(64, 64), time_budget=120, random_state=0).fit(faces[:360])
    incomplete = without_block(faces[360:368], slice(20, 44), slice(8, 56))
    figure, ax = plt.subplots(figsize=(12, 5), layout="constrained")
    ax.imshow(
        np.concatenate([strip(row) for row in (incomplete, filler.impute(incomplete), faces[360:368])]), cmap="gray"
    )
    ax.set(xticks=[], yticks=[], title="Faces: hidden, filled, truth", facecolor="wheat")
    picture = picture.with_stem(f"{picture.stem}_faces")
    figure.savefig(picture, dpi=110)
    print(f"picture: {picture}")
