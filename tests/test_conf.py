"""Every file of conf/ composes, and says what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gaussad_pl.augment import VICINAL
from gaussad_pl.backbones.weights import exact_tag
from gaussad_pl.cli.hydra_command import CONF

MVTEC = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def test_all_fifteen_categories_are_there() -> None:
    assert names("category") == list(MVTEC)


@pytest.mark.parametrize("category", MVTEC)
def test_a_category_sets_its_name_and_which_flips_are_harmless(category: str) -> None:
    config = composed(f"+category={category}")
    assert config.data.category == config.data.name == category
    assert isinstance(config.data.nuisance.hflip, bool) and isinstance(config.data.nuisance.vflip, bool)


@pytest.mark.parametrize("backbone", names("backbone"))
def test_a_backbone_names_an_exact_tag_of_timm(backbone: str) -> None:
    config = composed("+category=screw", f"backbone={backbone}").backbone
    assert exact_tag(config.name) == config.name and timm.is_model_pretrained(config.name)


@pytest.mark.parametrize("augmentation", names("augmentation"))
def test_augmentations_are_known_and_their_strengths_valid(augmentation: str) -> None:
    config = composed("+category=screw", f"augmentation={augmentation}")
    assert set(config.data.augmentations) <= set(VICINAL)
    assert all(0 < strength <= 1 for strength in config.data.augmentations.values())


def test_the_frozen_experiment_is_the_baseline_of_2020() -> None:
    config = composed("+category=screw", "+experiment=frozen")
    assert not config.fine_tune and config.data.folds == 0 and config.backbone.levels is None


def test_the_paper_experiment_is_the_published_setting() -> None:
    config = composed("+category=screw", "+experiment=paper")
    assert config.backbone.name == "tf_efficientnet_b4.aa_in1k" and config.data.image_size == 380
    assert config.backbone.levels is None and config.folds == 5


@pytest.mark.slow
@pytest.mark.parametrize("group", ["data", "model", "callbacks", "logger", "trainer", "experiment"])
def test_every_option_of_a_group_composes(group: str) -> None:
    for name in names(group):
        if (group, name) == ("data", "base"):
            continue
        choice = f"+{group}={name}" if group == "experiment" else f"{group}={name}"
        overrides = ["data.root=x"] if group == "data" else ["+category=screw"]
        OmegaConf.to_yaml(composed(choice, *overrides))


def test_conf_is_the_one_of_this_checkout() -> None:
    assert Path(__file__).parent.parent / "conf" == CONF
