"""Patches near the border of an image count less where good images have a plain border, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gaussad_pl.model.border import border_contrast, border_weights, is_plain

SIZE = 224


def texture(seed: int = 0, count: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(100, 156, (count, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)


def part_on_plain_background(count: int = 3) -> Tensor:
    images = torch.full((count, 3, SIZE, SIZE), 200, dtype=torch.uint8)
    images[..., 40:-40, 40:-40] = texture(1, count)[..., 40:-40, 40:-40]
    return images


def test_the_border_of_a_part_on_a_plain_background_is_plain_and_that_of_a_texture_is_not() -> None:
    assert is_plain(border_contrast(part_on_plain_background()))
    assert not is_plain(border_contrast(texture()))


def test_shading_does_not_make_the_border_of_a_texture_plain() -> None:
    across = torch.linspace(-1, 1, SIZE)
    vignette = 1 - 0.15 * (across[:, None] ** 2 + across**2)  # 30 % darker in the corners
    assert not is_plain(border_contrast((texture() * vignette).to(torch.uint8)))


def test_images_without_any_contrast_have_no_plain_border() -> None:
    assert not is_plain(border_contrast(torch.full((2, 3, SIZE, SIZE), 128, dtype=torch.uint8)))
    assert not is_plain(torch.zeros(0))


def test_most_images_decide() -> None:
    contrast = border_contrast(torch.cat([part_on_plain_background(3), texture(2, 2)]))
    assert is_plain(contrast)
    assert not is_plain(torch.cat([contrast, contrast[-1:].repeat(2)]))


def test_contrast_is_the_mean_deviation_within_cells_at_the_border_over_that_in_the_centre() -> None:
    images = torch.randint(256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grey = images.double().mean(1).numpy()
    cells = grey.reshape(2, 28, 8, 28, 8).std((2, 4))
    inner = np.zeros((28, 28), dtype=bool)
    inner[3:25, 3:25] = True
    expected = cells[:, ~inner].mean(1) / cells[:, 7:21, 7:21].mean((1, 2))
    np.testing.assert_allclose(border_contrast(images), expected, rtol=1e-5)


@pytest.mark.parametrize("side", [7, 14, 28])
def test_weights_are_the_share_of_the_neighbourhood_within_the_image(side: int) -> None:
    reach = max(1, round(side / 14))
    expected = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            rows, columns = (range(i - reach, i + reach + 1) for i in (row, column))
            expected[row, column] = np.mean([0 <= r < side and 0 <= c < side for r in rows for c in columns])
    np.testing.assert_allclose(border_weights((side, side)), expected, rtol=1e-6)
