"""The artefact: the same scores as in the training, without what trains; images in any shape; calibration by turns."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaussad_pl.calibration import cross_conformal
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.cross_conformal import calibrate, held_out
from gaussad_pl.data.folder import Folder
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.density.whitening import SingularCovarianceError
from gaussad_pl.errors import UserError
from gaussad_pl.inference import artefact
from gaussad_pl.inference.detector import Detector
from gaussad_pl.model.detection import Detection
from gaussad_pl.training.module import GaussianAD

IMAGES = torch.randint(256, (24, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
TRAINING = (
    "hydra", "omegaconf", "lightning", "pytorch_lightning", "wandb", "albumentations", "cv2", "sklearn", "scipy",
    "matplotlib", "torchmetrics",
)  # fmt: skip


@cache
def estimated(combine: str, form: str | None) -> GaussianAD:
    torch.manual_seed(0)
    settings = {"form": form, "map_levels": [1, 2], "combine": combine, "clusters": 3}
    module = GaussianAD(TINY, segmentation=settings if form else None).eval()
    module.estimate([{"image": IMAGES, "unchanged": torch.ones(24, dtype=torch.bool)}], patches=form is not None)  # type: ignore[arg-type]
    return module


def trained(weights: list[float] | None = None, combine: str = "both", form: str | None = "clusters") -> GaussianAD:
    """A model as it is at the end of a run."""
    module = copy.deepcopy(estimated(combine, form))
    if form:
        module.segmenter.centre.copy_(torch.tensor([5.0, 7.0]))
        module.segmenter.spread.copy_(torch.tensor([2.0, 3.0]))
        module.segmenter.median.fill_(4.0)
        module.segmenter.threshold.fill_(9.0)
    if weights is not None:
        module.model.level_weights.copy_(torch.tensor(weights))
    return module


def known(module: GaussianAD) -> Calibration:
    with torch.no_grad():
        found = module(IMAGES)
    return Calibration.of(found.scores, found.distances, "some images")


@pytest.fixture
def module() -> GaussianAD:
    count = len(trained().model.gaussians)
    return trained([0, 1, 0.5, *[0] * (count - 3)])


@pytest.fixture
def detector(module: GaussianAD) -> Detector:
    return Detector.of(module.model, known(module), {"seed": 7})


@pytest.fixture
def file(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / artefact.NAME)
    return tmp_path / artefact.NAME


# --------------------------------------------------------------------------------------------------- the same scores


@pytest.mark.parametrize("combine", ["both", "map", "pooled"])
@pytest.mark.parametrize("form", ["clusters", "position", "shared", None])
@pytest.mark.parametrize("deepest", [3, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, -1))])
def test_a_pruned_saved_and_loaded_detector_scores_as_the_training_does(
    combine: str, form: str | None, deepest: int, tmp_path: Path
) -> None:
    count = len(trained(form=None).model.gaussians)
    weights = [0.0] * count
    weights[0], weights[deepest] = 0.5, 2.0
    module = trained(weights, combine, form)
    with torch.no_grad():
        expected = module(IMAGES)
    path = tmp_path / artefact.NAME
    Detector.of(module.model, known(module), {}).save(path)
    loaded = Detector.load(path)
    found = loaded.detect(IMAGES)
    last = max(0 if form and combine == "map" else deepest % count, 2 if form else 0)
    assert loaded.levels == list(range(last + 1)) and loaded.calibration.distances.shape[1] == last + 1
    rounding: Any = {"rtol": 1e-4, "atol": 1e-4}  # batch normalisation is folded away
    torch.testing.assert_close(found.scores, expected.scores, **rounding)
    torch.testing.assert_close(found.distances, expected.distances[:, : last + 1], **rounding)
    if form:
        torch.testing.assert_close(found.maps, expected.maps, **rounding)
    assert (found.maps is None) == (form is None)


def test_what_lies_behind_the_last_level_is_neither_computed_nor_stored(module: GaussianAD, file: Path) -> None:
    whole = Detector.of(trained().model, known(module), {})
    whole.save(file.with_name("whole.safetensors"))
    assert len(load_file(file)) < len(load_file(file.with_name("whole.safetensors")))
    loaded = Detector.load(file)
    blocks: Any = loaded.model.backbone.model.blocks
    called: list[int] = []
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: called.append(i))
    loaded.detect(IMAGES[:1])
    assert called and max(called) < len(blocks) - 1
    loaded.save(file.with_name("again.safetensors"))  # and what was pruned once can be saved again
    assert load_file(file.with_name("again.safetensors")).keys() == load_file(file).keys()


def test_the_file_holds_the_calibration_the_preprocessing_and_the_provenance(module: GaussianAD, file: Path) -> None:
    loaded = Detector.load(file.parent)  # the folder of the run will do
    assert loaded.provenance == {"seed": 7} and loaded.calibration.scheme == "some images"
    assert torch.equal(loaded.calibration.scores, known(module).scores)
    assert len(loaded.calibration) == loaded.calibration.different == 24
    tensors = load_file(file)
    assert torch.equal(tensors["backbone.scale"], module.model.backbone.scale)
    full = sum(t.numel() for t in module.model.segmenter.state_dict().values())  # type: ignore[union-attr]
    stored = sum(t.numel() for name, t in tensors.items() if name.startswith("segmenter."))
    assert stored < 0.65 * full  # triangular matrices without their zeros


def test_the_preprocessing_is_that_of_the_file_whatever_timm_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Detector.load(file).detect(IMAGES).scores
    original = cross_conformal.GaussianModel.__init__

    def other(self: Any, *args: Any, **settings: Any) -> None:
        original(self, *args, **settings)
        self.backbone.scale.mul_(3)

    monkeypatch.setattr(cross_conformal.GaussianModel, "__init__", other)
    assert torch.equal(Detector.load(file).detect(IMAGES).scores, expected)


def test_loading_leaves_the_random_numbers_of_the_caller_alone(file: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Detector.load(file)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.slow
def test_a_detector_needs_nothing_that_trains(file: Path, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    code = f"""
import sys
from importlib.machinery import ModuleSpec
class Blocked:  # not in find_spec: PyTorch asks for packages that it does not import
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in {TRAINING!r} else None
    def create_module(self, spec):
        raise ImportError("blocked: " + spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Blocked())
import gaussad_pl.predict
from gaussad_pl.model.detection import Detection
from gaussad_pl.inference.detector import Detector
detector = Detector.load({str(file)!r})
found = detector({str(tmp_path / "a.png")!r}, fpr=0.1)[0]
detector.threshold(0.001)
gaussad_pl.predict.predict(gaussad_pl.predict.Options({str(file)!r}, {str(tmp_path / "a.png")!r},
    {str(tmp_path / "out")!r}, overlays=True))
assert not set({TRAINING!r}) & set(sys.modules)
print(found.score)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = float(Detector.load(file).detect(IMAGES[:1]).scores)
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-6)


# -------------------------------------------------------------------------------------------------------- broken files


def test_no_file_or_another_is_one_clear_line(file: Path, tmp_path: Path) -> None:
    text, other, ckpt = tmp_path / "text.safetensors", tmp_path / "other.safetensors", tmp_path / "model.ckpt"
    text.write_text("hello, this is no model")
    empty, folder = tmp_path / "empty.safetensors", tmp_path / "folder"
    empty.touch()
    (folder / artefact.NAME).mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, other, metadata={"format": "pt"})
    torch.save({}, ckpt)
    wanted = {
        tmp_path / "missing": "does not exist", empty: "damaged or not a detector", text: "damaged or not a detector",
        folder: "no finished run in", folder / artefact.NAME: "no finished run in",
        other: "but not a detector", ckpt: "is a training checkpoint",
    }  # fmt: skip
    for path, expected in wanted.items():
        with pytest.raises(UserError, match=expected) as error:
            Detector.load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("length", [0, 4, 100, 5000, -1, -1000])
def test_a_truncated_file_is_one_clear_line(length: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match="is damaged"):
        Detector.load(file)


def test_a_flipped_bit_is_one_clear_line(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged .checksum"):
        Detector.load(file)


def test_any_flipped_bit_is_one_clear_line_or_changes_nothing(file: Path, detector: Detector) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [*rng.integers(0, header, 150), *rng.integers(header, len(whole), 50)]:
        content = bytearray(whole)
        content[place] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        try:
            found = Detector.load(file)
        except UserError as error:
            assert "\n" not in str(error) and str(file) in str(error)
        else:
            assert found.provenance == detector.provenance and found.frame == detector.frame
            assert torch.equal(found.calibration.scores, detector.calibration.scores)


def test_a_file_of_the_format_before_still_loads(file: Path) -> None:
    altered(file, format=2)
    Detector.load(file)


def test_a_file_without_the_median_of_the_maps_loads_and_its_scale_begins_at_zero(file: Path, tmp_path: Path) -> None:
    assert Detector.load(file).median == 4
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["gaussad_pl"])
    tensors = load_file(file)
    del tensors["segmenter.median"]
    header |= {"format": 2, "checksum": artefact._checksum(tensors)}
    save_file(tensors, file, metadata={"gaussad_pl": json.dumps(header)})
    found = Detector.load(file)
    assert (found.median, found.limit) == (0, 9)
    found.save(tmp_path / "again.safetensors")
    assert Detector.load(tmp_path / "again.safetensors").median == 0


def test_a_state_without_weights_at_the_border_counts_all_patches_the_same() -> None:
    state = trained().state_dict()
    border = next(key for key in state if key.endswith(".border"))
    del state[border]
    module = trained()
    module.segmenter.head.border.fill_(0.5)
    module.load_state_dict(state)
    assert module.segmenter.head.border.unique().tolist() == [1]


def test_restoring_the_pooled_part_of_a_state_leaves_the_median_of_the_maps_alone(module: GaussianAD) -> None:
    module.segmenter.median.fill_(4.0)
    module.restore(module.snapshot())
    assert float(module.segmenter.median) == 4


def test_a_checkpoint_without_the_median_of_the_maps_still_loads() -> None:
    state = trained().state_dict()
    del state["model.segmenter.median"]
    module = trained()
    module.load_state_dict(state)
    assert (float(module.segmenter.median), float(module.segmenter.threshold)) == (0, 9)


@pytest.mark.parametrize("changes", [{"provenance": None}, {"calibration": 3}, {"calibration": {}}, {"model": []}])
def test_a_header_of_the_wrong_form_is_one_clear_line(changes: dict[str, Any], file: Path) -> None:
    altered(file, format=2, **changes)
    with pytest.raises(UserError, match="is incompatible with this version"):
        Detector.load(file)


def test_weights_that_are_no_numbers_are_one_clear_line(detector: Detector, tmp_path: Path) -> None:
    spoilt = copy.deepcopy(detector)
    next(spoilt.model.parameters()).data.fill_(math.nan)
    spoilt.save(tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="contains NaN.: train it again"):
        Detector.load(tmp_path / "nan.safetensors")


def altered(file: Path, **changes: Any) -> None:
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["gaussad_pl"])
    save_file(load_file(file), file, metadata={"gaussad_pl": json.dumps({**header, **changes})})


def test_a_newer_older_or_unfitting_file_is_one_clear_line(file: Path) -> None:
    altered(file, format=1, version="0.0.1")
    with pytest.raises(UserError, match=r"older gaussad_pl \(0.0.1, .*train it again"):
        Detector.load(file)
    altered(file, format=99, version="7.0")
    with pytest.raises(UserError, match=r"newer gaussad_pl \(7.0, format 99"):
        Detector.load(file)
    altered(file, format=2, model={"backbone": {"name": "no_such_net", "image_size": 64}, "segmentation": None})
    with pytest.raises(UserError, match="is incompatible with this version .*no_such_net"):
        Detector.load(file)
    altered(file, model={})
    with pytest.raises(UserError, match="is incompatible with this version"):
        Detector.load(file)


def test_a_file_that_cannot_be_written_is_one_clear_line(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        detector.save(tmp_path / "missing" / "a.safetensors")


# ----------------------------------------------------------------------------------------------------- images, verdicts


def test_every_kind_of_image_gives_the_same_score(detector: Detector, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(90, 70, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    alpha = np.dstack([pixels, np.zeros((90, 70), np.uint8)])
    deep = pixels.astype(np.uint16) * 257
    kinds = [
        path,
        str(path),
        Image.open(path),
        pixels,
        tensor,
        alpha,
        deep,
        pixels / 255,
        torch.from_numpy(alpha).permute(2, 0, 1),
    ]
    one = detector.detect(torch.from_numpy(read_image(path, Frame(64, 64)).copy()).permute(2, 0, 1)[None]).scores
    for kind in kinds:
        (found,) = detector(kind)
        assert found.score == pytest.approx(float(one), rel=1e-5), type(kind)
    assert [found.score for found in detector(kinds)] == pytest.approx([float(one)] * len(kinds), rel=1e-5)
    for several in (np.stack([pixels] * 3), tensor[None].repeat(3, 1, 1, 1)):
        assert [found.score for found in detector(several)] == pytest.approx([float(one)] * 3, rel=1e-5)
    assert detector([]) == []


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_grey_arrays_are_what_the_file_of_them_is(mode: str, detector: Detector, tmp_path: Path) -> None:
    kind, top = (np.uint8, 256) if mode == "L" else (np.uint16, 65536)
    values = np.random.default_rng(0).integers(top, size=(50, 80)).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = detector([values, values[..., None], torch.from_numpy(values)[None], tmp_path / "a.png"])
    assert len({round(each.score, 4) for each in found}) == 1


def test_what_is_no_detector_device_or_rate_is_a_clear_error(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "detector.onnx").touch()
    with pytest.raises(UserError, match="detector.onnx is an exported file, for predict and evaluate"):
        Detector.load(tmp_path / "detector.onnx")
    detector.save(tmp_path / artefact.NAME)
    with pytest.raises(UserError, match="^device=gpu .*: give device=cpu$"):
        Detector.load(tmp_path / artefact.NAME, "gpu")
    with pytest.raises(UserError, match="^fpr='0.05': expected a false-alarm rate between 0 and 1"):
        detector(np.zeros((9, 9), np.uint8), fpr="0.05")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_tensor_may_be_of_any_floating_point_type(kind: torch.dtype, detector: Detector) -> None:
    image = (IMAGES[0] // 128 * 255).float() / 255  # 0 and 1, which every type has
    assert detector(image.to(kind))[0].score == detector(image)[0].score


@pytest.mark.parametrize("kind", [bool, np.int16, np.uint32, np.int64, complex])
def test_an_array_whose_scale_is_not_known_is_refused(kind: type, detector: Detector) -> None:
    with pytest.raises(UserError, match=f"type {np.dtype(kind)}, expected uint8, uint16 or floating point"):
        detector(np.full((40, 30, 3), 200).astype(kind))


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (np.zeros((2, 3, 4, 5, 6), np.uint8), "shape"), (np.zeros((9, 9, 7), np.uint8), "shape"),
        (np.zeros((9, 9), bool), "type bool"), (np.full((9, 9), -1.0), "values from -1"), (42, "not an image: int"),
        ([None], "not an image: NoneType"), ("missing.png", "cannot read missing.png"),
        (np.zeros((0, 4), np.uint8), "shape"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_one_clear_line(thing: Any, message: str, detector: Detector) -> None:
    with pytest.raises(UserError, match=message):
        detector(thing)


def test_findings_hold_score_p_value_verdict_distances_and_map(detector: Detector) -> None:
    seen = detector.detect(IMAGES)
    detector = Detector(detector.model, Calibration.of(seen.scores, seen.distances, "the same images"), {})
    found = detector(IMAGES, fpr=0.2)
    threshold = detector.threshold(0.2)
    assert threshold.rule == "conformal" and len(found) == 24
    known = detector.calibration.scores
    for each in found:
        assert each.p_value == (1 + sum(float(c) >= each.score for c in known)) / 25
        assert each.verdict == ("bad" if each.score > threshold.value else "good") and each.threshold == threshold.value
        assert list(each.distances) == detector.levels
        assert each.map is not None and each.map.shape == (256, 256) and each.map.dtype == np.float32
    assert sum(each.verdict == "bad" for each in found) == 4  # calibrated on the same: 5 of 25 with the new one
    more = detector(IMAGES, fpr=0.5)
    assert sum(each.verdict == "bad" for each in more) == 11
    assert detector(IMAGES[:1], fpr=0.01)[0].threshold == detector.threshold(0.01).value  # the gamma's


def test_nothing_is_good_where_nothing_could_have_been_bad(detector: Detector) -> None:
    seen = detector.detect(IMAGES)
    detector = Detector(detector.model, Calibration.of(seen.scores[:7], seen.distances[:7], "seven images"), {})
    for found in detector(IMAGES[:2], fpr=0.01):
        assert found.verdict == "undecided" and found.threshold == math.inf
        assert found.reason == detector.threshold(0.01).reason and "needs 99" in found.reason
    for found in detector(IMAGES[:2]):  # the default is a rate that seven images allow
        assert found.verdict in ("good", "bad") and found.reason == ""
        assert found.threshold == detector.threshold(0.2).value == detector.threshold().value


def test_a_score_that_is_no_number_is_bad(detector: Detector) -> None:
    seen = detector.detect(IMAGES[:1])
    broken = Detection(seen.distances, torch.full((1,), torch.nan), seen.maps)
    (found,) = detector.predictions(broken, detector.threshold(0.1))
    assert found.verdict == "bad"


# ----------------------------------------------------------------------------------------------- calibration by turns


@pytest.fixture
def data(parts: Path) -> Folder:
    return Folder(
        str(parts / "screw"), None, None, 0.2, name="parts", image_size=64, folds=4, fold=0, seed=0,
        augmentations={"elastic": 0.1}, nuisance={
            "photometric": 0.06, "shift": 0.05, "scale": 0.03, "rotate": 5, "hflip": False, "vflip": False,
        }, light_copies=1, moved_copies=1, batch_size=4, eval_batch_size=5, steps_per_epoch=2, cache=None,
    )  # fmt: skip


POSITION = {"form": "position", "map_levels": [1, 2], "combine": "both"}


def fitted(data: Folder, images: list[int], segmentation: dict[str, Any] | None) -> GaussianAD:
    """The slow way: a model of its own from some training images."""
    torch.manual_seed(0)
    module = GaussianAD(TINY, segmentation=segmentation).eval()
    module.estimate(data.reference_dataloader(images), segmentation is not None)
    if segmentation:
        module.segmenter.head.border.copy_(torch.linspace(0.1, 1, module.segmenter.head.shape[1]))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("fine_tuned", [False, True])
@pytest.mark.parametrize("cache", [0, 2**30])
@pytest.mark.parametrize("segmentation", [None, POSITION])
def test_scores_are_those_of_models_trained_without_the_part(
    segmentation: dict[str, Any] | None, cache: int, fine_tuned: bool, data: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_conformal, "CACHE", cache)
    used, held_out_images = data.split
    images = used + (held_out_images if fine_tuned else [])
    module = fitted(data, used, segmentation)
    parts: list[list[int]] = []
    split = cross_conformal.partition
    monkeypatch.setattr(cross_conformal, "partition", lambda *args: parts.extend(split(*args)) or parts)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = calibrate(module.model, data, cross_fit=True, fine_tuned=fine_tuned)
    expected: list[Tensor] = []
    for part in parts:
        rest = [image for i, image in enumerate(used) if i not in part]
        scored = [images[i] for i in part if not fine_tuned or images[i] in held_out_images]
        if scored:
            with torch.no_grad():
                expected.append(fitted(data, rest, segmentation)(data.good_images[scored]).scores)
    assert len(parts) == 10 and len(used) == 18 and sum(map(len, parts)) == len(images)
    assert len(found) == len(held_out_images if fine_tuned else used)
    torch.testing.assert_close(found.scores, torch.cat(expected).sort().values.double(), rtol=1e-4, atol=1e-4)
    assert f"cross-conformal: {len(found)} {'held-out' if fine_tuned else 'training'} images" in found.scheme
    assert ("in no training step" in found.scheme) == fine_tuned
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    inside = module.model(data.good_images[used]).scores
    assert fine_tuned or found.scores.median() > inside.median()  # unseen images are farther out


@pytest.mark.parametrize("form", ["clusters", "union"])
def test_the_maps_of_a_fold_have_nothing_of_the_images_that_the_detector_was_fitted_to(form: str, data: Folder) -> None:
    used = data.split[0]
    scores = []
    for seen in (used[:9], used[:5]):
        module = fitted(data, seen, {"form": form, "map_levels": [1, 2], "clusters": 8})
        with torch.no_grad():
            patches = module.segmenter.head.patches(module.model.backbone(data.good_images[used]))
            estimate, score = [patches[9:]], [patches[:9]]  # as many images as in the first of the two
            scores.append(cross_conformal._with_maps(module.model, torch.zeros(9), estimate, score))
    assert torch.equal(*scores)


def test_at_wish_and_where_parts_are_too_few_the_held_out_images_calibrate(
    data: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fitted(data, data.split[0], None)
    with torch.no_grad():
        expected = module(data.good_images[data.split[1]]).scores.sort().values
    tuned = calibrate(module.model, data, cross_fit=False, fine_tuned=True)
    torch.testing.assert_close(tuned.scores, expected, rtol=1e-6, atol=1e-6)
    assert "held-out images" in tuned.scheme and "model selection" in tuned.scheme
    assert tuned.different == len(tuned) == 6
    monkeypatch.setitem(data.__dict__, "groups", np.arange(24) // 4)  # four images of each part
    assert held_out(module.model, data).different == len({image // 4 for image in data.split[1]}) < 6

    def singular(*_: object) -> None:
        raise SingularCovarianceError("too few")

    monkeypatch.setattr(cross_conformal, "cross_conformal", singular)
    assert torch.equal(calibrate(module.model, data, cross_fit=True, fine_tuned=False).scores, tuned.scores)
    data.__dict__["split"] = (data.split[0], [])
    nothing = held_out(module.model, data)
    assert len(nothing) == 0 and nothing.threshold(0.1).rule == "none"
