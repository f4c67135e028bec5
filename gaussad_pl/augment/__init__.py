"""Augmentations of good images: vicinal ones make them look anomalous, nuisances keep them good.

This is the only package that depends on albumentations.
"""

import gaussad_pl.augment.functions  # noqa: F401  (registers the augmentations)
from gaussad_pl.augment.nuisance import Nuisance
from gaussad_pl.augment.vicinal import VICINAL, VicinalFunction, damaged_copy, register, vicinal_copies

__all__ = ["VICINAL", "Nuisance", "VicinalFunction", "damaged_copy", "register", "vicinal_copies"]
