"""The wing of images: encoder, data, networks, models, defaults, fit, density, picture."""

from vaeimpute.images.data import Images
from vaeimpute.images.fit import fit_detector, fit_imputer
from vaeimpute.images.plot import draw_images

__all__ = ["Images", "draw_images", "fit_detector", "fit_imputer"]
