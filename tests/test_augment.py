"""The augmentations: pure, repeatable, confined to their masks, and as strong as they are told to be."""

import pickle
import random
import zlib

import cv2
import numpy as np
import pytest
import torch

from gaussad_pl.augment import VICINAL, Nuisance, vicinal_copies
from gaussad_pl.augment.drawing import perlin_noise, rectangle, warp
from gaussad_pl.augment.vicinal import draw_severity
from gaussad_pl.errors import UserError

LOCAL = ["confetti", "cutmix", "cutout", "cutpaste", "elastic", "perlin", "scar"]
everyone = pytest.mark.parametrize("name", sorted(VICINAL))


def make_image(seed: int, height: int = 64, width: int = 64, grey: bool = False) -> np.ndarray:
    """A shaded, noisy part on a background: uint8 (H, W, 3), without any symmetry."""
    rng = np.random.default_rng([99, seed])
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    image = 90 + 80 * x[..., None] + 30 * np.sin(9 * y[..., None] + seed) + rng.normal(0, 6, (height, width, 3))
    image[height // 3 : height // 2, width // 4 :] -= [60, 30, 90]
    if grey:
        image = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    return np.clip(image, 0, 255).astype(np.uint8)


def make_batch(n: int = 4) -> torch.Tensor:
    return torch.stack([torch.from_numpy(make_image(i)).permute(2, 0, 1) for i in range(n)])


def call(name: str, strength: float, seed: int, size: tuple[int, int] = (64, 64), grey: bool = False):
    image, partner = make_image(0, *size, grey=grey), make_image(1, *size, grey=grey)
    return image, *VICINAL[name](image, partner, np.random.default_rng(seed), strength)


def mean_change(name: str, strength: float, seeds: int = 30) -> float:
    changes = []
    for seed in range(seeds):
        image, copy, _ = call(name, strength, seed)
        changes.append(np.abs(copy.astype(int) - image).mean())
    return float(np.mean(changes))


@everyone
def test_is_pure(name: str) -> None:
    image, partner = make_image(0), make_image(1)
    image.flags.writeable = partner.flags.writeable = False  # any write raises
    first, first_mask = VICINAL[name](image, partner, np.random.default_rng(3), 1.0)
    again, again_mask = VICINAL[name](image, partner, np.random.default_rng(3), 1.0)
    other, _ = VICINAL[name](image, partner, np.random.default_rng(4), 1.0)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_mask, again_mask)
    assert (first != other).any()
    assert not np.shares_memory(first, image)


@everyone
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (300, 40), pytest.param((512, 512), marks=pytest.mark.slow)])
@pytest.mark.parametrize("strength", [0.001, 0.3, 1.0])
def test_any_size(name: str, size: tuple[int, int], strength: float) -> None:
    for seed in range(3):
        _, copy, mask = call(name, strength, seed, size)
        assert copy.dtype == np.uint8 and copy.shape == (*size, 3)
        assert mask.dtype == np.bool_ and mask.shape == size


@everyone
def test_extreme_images(name: str) -> None:
    for value in (0, 127, 255):
        plain = np.full((32, 32, 3), value, np.uint8)
        for seed in range(20):
            copy, _ = VICINAL[name](plain, plain, np.random.default_rng(seed), 1.0)
            assert np.ptp(copy) == 0 or name in LOCAL  # no wrap-around, no artefact at the borders


@everyone
def test_grey_stays_grey(name: str) -> None:
    for seed in range(20):
        _, copy, _ = call(name, 1.0, seed, grey=True)
        assert (copy == copy[..., :1]).all()


@everyone
def test_change_is_confined_to_the_mask(name: str) -> None:
    for seed in range(20):
        for strength in (0.2, 1.0):
            image, copy, mask = call(name, strength, seed)
            np.testing.assert_array_equal(copy[~mask], image[~mask])
            if name in LOCAL:
                assert 0 < mask.mean() < 0.6


@everyone
def test_change_grows_with_strength(name: str) -> None:
    tiny, subtle, strong = (mean_change(name, s) for s in (0.001, 0.1, 1.0))
    assert tiny < 0.1  # grey levels
    assert subtle < 0.5 * strong
    assert strong > 0.1


@pytest.mark.parametrize("name", LOCAL)
def test_area_grows_with_strength(name: str) -> None:
    subtle, strong = (np.mean([call(name, s, seed)[2].mean() for seed in range(30)]) for s in (0.1, 1.0))
    assert subtle < 0.5 * strong


@pytest.mark.slow
def test_size_of_defects_scales_with_the_image() -> None:
    for name in LOCAL:
        small, large = (np.mean([call(name, 1.0, s, (n, n))[2].mean() for s in range(30)]) for n in (64, 192))
        assert small == pytest.approx(large, rel=0.35), name


@everyone
def test_copies_are_those_of_the_function(name: str) -> None:
    images = make_batch(1)
    copies, masks = vicinal_copies(images, name, 1.0, seed=7)
    image = images[0].permute(1, 2, 0).numpy()
    rng = np.random.default_rng([7, zlib.crc32(name.encode()), 0])
    expected, mask = VICINAL[name](image, image[:, ::-1], rng, 1.0)
    np.testing.assert_array_equal(copies[0].permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(masks[0].numpy(), mask)
    assert copies.dtype == torch.uint8 and copies.shape == images.shape
    assert masks.dtype == torch.bool and masks.shape == (1, 64, 64)


def test_copies_depend_on_nothing_but_their_arguments() -> None:
    images = make_batch()
    untouched = images.clone()
    names = sorted(VICINAL)
    once = {name: vicinal_copies(images, name, 0.5, seed=1)[0] for name in names}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for reseed in (random.seed, np.random.seed, torch.manual_seed):
        for name in reversed(names):
            assert torch.equal(vicinal_copies(images, name, 0.5, seed=1)[0], once[name])
        assert random.getstate() == states[0]
        np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), states[2])
        reseed(0)
        states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert torch.equal(images, untouched)
    assert all((vicinal_copies(images, name, 0.5, seed=2)[0] != once[name]).any() for name in names)


def test_partner_is_another_image() -> None:
    constants = torch.stack([torch.full((3, 32, 32), 40 * i, dtype=torch.uint8) for i in range(3)])
    for seed in range(20):
        copies, _ = vicinal_copies(constants, "cutmix", 1.0, seed)
        assert (copies != constants).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_partner_of_an_image_that_is_copied_several_times_is_another_image(count: int) -> None:
    images = make_batch(count)
    copies, masks = vicinal_copies(images, "cutmix", 1.0, seed=0, repeats=10)
    assert (copies != images.repeat(10, 1, 1, 1)).flatten(1).any(dim=1).all()
    assert len(masks) == 10 * count and len(torch.unique(copies, dim=0)) == len(copies)  # no copy twice
    assert torch.equal(copies[:count], vicinal_copies(images, "cutmix", 1.0, seed=0)[0])


def test_a_severity_is_drawn_per_copy() -> None:
    rng = np.random.default_rng(0)
    severities = np.array([draw_severity(0.3, rng) for _ in range(2000)])
    assert severities.mean() == pytest.approx(0.3, abs=0.03)
    assert severities.min() >= 0.03 and 0.8 < severities.max() <= 1
    assert draw_severity(1.0, rng) == 1.0


def test_unknown_name_is_explained() -> None:
    with pytest.raises(UserError, match=r"unknown augmentation 'cutpast'.*cutmix, cutout, cutpaste") as error:
        vicinal_copies(make_batch(), "cutpast", 0.5, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_out_of_range_is_explained(strength: float) -> None:
    with pytest.raises(UserError, match="strength of augmentation 'cutmix'"):
        vicinal_copies(make_batch(), "cutmix", strength, seed=0)


def test_rectangle_has_the_area_asked_for() -> None:
    centre, size = np.array([50.0, 40.0]), np.array([30.0, 10.0])
    for angle in (0.0, 30.0, 45.0):
        weights = rectangle((100, 100), centre, size, angle, feather=0.0)
        assert weights.sum() == pytest.approx(300, rel=0.1)
        assert set(np.unique(weights)) == {0.0, 1.0}
    assert rectangle((100, 100), centre, size, 0.0, feather=1.0).sum() < 150


def test_rectangle_turns_as_warp_does() -> None:
    centre, size = np.array([50.0, 50.0]), np.array([60.0, 10.0])
    upright = (255 * rectangle((100, 100), centre, size, 0.0, feather=0.0)[..., None].repeat(3, axis=-1)).astype(
        np.uint8
    )
    turned = warp(upright, np.asarray(cv2.getRotationMatrix2D((50, 50), 30.0, 1.0)))[..., 0] > 127
    assert (turned != (rectangle((100, 100), centre, size, 30.0, feather=0.0) > 0)).mean() < 0.02


def test_perlin_noise_is_smooth_and_zero_at_lattice_points() -> None:
    noise = perlin_noise((64, 128), (4, 8), np.random.default_rng(0))
    assert noise.shape == (64, 128)
    np.testing.assert_allclose(noise[::16, ::16], 0, atol=1e-6)
    assert 0.3 < np.abs(noise).max() <= 1.01
    assert np.abs(np.diff(noise, axis=0)).max() < 0.3


# Nuisances


def test_nuisance_depends_on_image_and_seed_only() -> None:
    image = make_image(0)
    image.flags.writeable = False
    nuisance = Nuisance(hflip=True, vflip=True)
    first = nuisance(image, 5)
    assert first.dtype == np.uint8 and first.shape == image.shape and (first != image).any()
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    others = [nuisance(image, seed) for seed in range(5)]
    assert all((other != first).any() for other in others)
    np.testing.assert_array_equal(nuisance(image, 5), first)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(nuisance))(image, 5), first)  # as in a spawned worker
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_nuisance_parts_at_zero_are_off() -> None:
    image = make_image(0)
    off = {"photometric": 0.0, "shift": 0.0, "scale": 0.0, "rotate": 0.0}
    for seed in range(5):
        np.testing.assert_array_equal(Nuisance(**off)(image, seed), image)
    for part, value in {"photometric": 0.06, "shift": 0.05, "scale": 0.03, "rotate": 5.0}.items():
        assert (Nuisance(**{**off, part: value})(image, 0) != image).any(), part


def test_nuisance_flips_only_if_allowed_and_independently() -> None:
    image = make_image(0)
    off = {"photometric": 0.0, "shift": 0.0, "scale": 0.0, "rotate": 0.0}
    flips = {"none": image, "h": image[:, ::-1], "v": image[::-1], "hv": image[::-1, ::-1]}

    def seen(**allowed: bool) -> set[str]:
        outputs = [Nuisance(**off, **allowed)(image, seed) for seed in range(40)]
        found = [{name for name, flipped in flips.items() if np.array_equal(out, flipped)} for out in outputs]
        assert all(len(names) == 1 for names in found)
        return set.union(*found)

    assert seen() == {"none"}
    assert seen(hflip=True) == {"none", "h"}
    assert seen(vflip=True) == {"none", "v"}
    assert seen(hflip=True, vflip=True) == {"none", "h", "v", "hv"}


def test_nuisance_stays_small() -> None:
    image = make_image(0)
    off = {"shift": 0.0, "scale": 0.0, "rotate": 0.0}
    changes = [Nuisance(photometric=0.06, **off)(image, s).astype(int) - image for s in range(30)]
    assert max(np.abs(change).max() for change in changes) < 0.2 * 255
    assert min(c.mean() for c in changes) < -1 and max(c.mean() for c in changes) > 1  # both darker and lighter


def test_nuisance_border_is_reflected() -> None:
    white = np.full((48, 48, 3), 200, np.uint8)
    for seed in range(5):
        assert Nuisance(photometric=0.0, shift=0.2, rotate=20.0)(white, seed).min() == 200


def test_nuisance_keeps_grey_grey() -> None:
    copy = Nuisance()(make_image(0, grey=True), 1)
    assert (copy == copy[..., :1]).all()
