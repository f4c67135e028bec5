"""Number of folds in which images are calibrated."""

FOLDS = 4
FEW = 100  # images below which there are more folds: on three quarters of them, Gaussians are clearly worse than on all
MORE_FOLDS = 10


def folds_for(images: int) -> int:
    """Return the number of folds for a number of images."""
    return MORE_FOLDS if images < FEW else FOLDS
