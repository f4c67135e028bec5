"""Exported graphs say what PyTorch says, in ONNX Runtime and OpenVINO; and no file is left that does not."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import Tensor

from benchmarks.speed import exported
from gaussad_pl import evaluate, export, predict
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.moments import moments
from gaussad_pl.density.onnx import TILE, tiles
from gaussad_pl.errors import UserError
from gaussad_pl.exporting.agreement import check, check_images, compare
from gaussad_pl.exporting.graph import Graph
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import KEYS, ExportedDetector, load_detector, open_session
from gaussad_pl.inference.seal import KEY, sealed
from gaussad_pl.inference.sources import image_paths
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="the extra `export` is not installed")

IMAGES = torch.randint(256, (24, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
FORMS = ("position", "clusters", "shared")


def detector(form: str | None, **backbone: Any) -> Detector:
    """A detector as it is at the end of a run, without the run."""
    torch.manual_seed(0)
    settings = {"form": form, "map_levels": [1, 2], "combine": "both", "clusters": 5} if form else None
    model = GaussianModel({**TINY, **backbone}, segmentation=settings).eval()
    with torch.no_grad():
        maps = model.backbone(IMAGES)
        for gaussian, level in zip(model.gaussians, model.backbone.pooled(IMAGES), strict=True):
            gaussian.fit(moments(level))
        if model.segmenter is not None:
            model.segmenter.observe(maps)
            model.segmenter.estimate()
            model.segmenter.centre.copy_(torch.tensor([5.0, 7.0]))
            model.segmenter.spread.copy_(torch.tensor([2.0, 3.0]))
            model.segmenter.median.fill_(4.0)
            model.segmenter.threshold.fill_(9.0)
        found = model(IMAGES[:20])
    return Detector.of(model, Calibration.of(found.scores, found.distances, "some images"), {"seed": 7})


def outputs(model: bytes, pixels: Tensor) -> list[np.ndarray]:
    found: list[np.ndarray] = open_session(model).run(None, {"images": pixels.permute(0, 2, 3, 1).contiguous().numpy()})
    return found


@pytest.fixture(scope="module")
def clusters() -> Detector:
    return detector("clusters")


@pytest.fixture(scope="module")
def model(clusters: Detector) -> bytes:
    return export.onnx_model(clusters)


# ----------------------------------------------------------------------------------------------------------- the tiles


@pytest.mark.parametrize("count", [1, 5, 700])
@pytest.mark.parametrize("features", [1, 7, 24])
def test_tiles_give_the_distances_of_the_clusters(count: int, features: int) -> None:
    random = torch.Generator().manual_seed(0)
    gaussians = ClusterGaussians(6, features, seed=0, partitions=2)
    gaussians.observe(torch.randn(4, 60, features, generator=random) * torch.arange(1, features + 1))
    gaussians.estimate()
    patches = torch.randn(2, count, features, generator=random) * torch.arange(1, features + 1)
    torch.testing.assert_close(gaussians.for_onnx()(patches), gaussians(patches), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [[0, 3, 0, TILE, 1], [TILE + 1, 0, 0, 0, 0], [0, 0, 0, 0, 2 * TILE], [1, 1, 1, 1, 1]])
def test_each_tile_belongs_to_one_cell_and_each_patch_to_one_slot(sizes: list[int]) -> None:
    cells = torch.tensor([cell for cell, size in enumerate(sizes) for _ in range(size)])
    slot, cell_of_tile = tiles(cells, len(sizes))
    assert len(slot.unique()) == len(cells)
    assert cell_of_tile[slot // TILE].tolist() == cells.tolist()
    assert len(cell_of_tile) == sum(-(-size // TILE) for size in sizes)


# ----------------------------------------------------------------------------------------------------------- the graph


@pytest.mark.parametrize("form", [*FORMS, None])
def test_the_graph_computes_what_the_detector_does(form: str | None) -> None:
    one = detector(form)
    expected = one.detect(IMAGES)
    with torch.inference_mode():
        score, p_value, distances, *maps = Graph(one)(IMAGES.permute(0, 2, 3, 1))
    torch.testing.assert_close(score.double(), expected.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(distances, expected.distances, rtol=1e-4, atol=1e-4)
    assert p_value.shape == score.shape and (expected.maps is None) == (not maps)
    if expected.maps is not None:
        torch.testing.assert_close(maps[0], expected.maps, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "width", "backbone"),
    [
        ("position", 256, {"name": "test_vit.r160_in1k"}),
        ("shared", 256, {}),
        ("clusters", 10, {"name": "test_resnet.r160_in1k"}),  # wide patches, which are projected
    ],
)
def test_every_form_and_backbone_agrees_in_every_runtime(
    form: str, width: int, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaussad_pl.model.anomaly_maps.FEATURES", width)
    one = detector(form, **backbone)
    assert one.model.segmenter is not None and (one.model.segmenter.head.projection is None) == (width == 256)
    lines = check(export.onnx_model(one), one, 255 - IMAGES[:5])  # raises where they disagree
    assert len(lines) == 2 and "20 of 20 verdicts" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 24])
def test_the_batch_is_dynamic(count: int, clusters: Detector, model: bytes) -> None:
    score, p_value, distances, maps = outputs(model, IMAGES[:count])
    expected = clusters.detect(IMAGES[:count])
    assert score.shape == p_value.shape == (count,) and maps.shape == (count, 256, 256)
    np.testing.assert_allclose(score, expected.scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(distances, expected.distances, rtol=1e-3)


@pytest.mark.slow
def test_p_values_are_conformal(clusters: Detector, model: bytes) -> None:
    other = 255 - IMAGES  # none of the calibration images, whose scores tie
    score, p_value, *_ = outputs(model, other)
    expected = clusters.calibration.p_values(torch.from_numpy(score))
    np.testing.assert_allclose(p_value, expected, rtol=1e-6)


@pytest.mark.slow
def test_without_a_map_and_without_calibration_images_there_are_scores() -> None:
    one = detector(None)
    one.calibration = Calibration.of(torch.zeros(0), torch.zeros(0, len(one.levels)), "none")
    model = export.onnx_model(one)
    score, p_value, distances = outputs(model, IMAGES[:4])
    assert p_value.tolist() == [1.0] * 4 and distances.shape == (4, len(one.levels))
    np.testing.assert_allclose(score, one.detect(IMAGES[:4]).scores, rtol=1e-4)
    lines = check(model, one, IMAGES[:4])
    assert len(lines) == 2 and "all images are undecided, so there are no verdicts to compare" in lines[0]


@pytest.mark.slow
def test_the_metadata_are_json_without_paths_of_this_machine(clusters: Detector, model: bytes) -> None:
    held = open_session(model).get_modelmeta().custom_metadata_map
    header, calibration, provenance = (json.loads(held[key]) for key in KEYS)
    assert (header["height"], header["width"], header["fit"]) == (64, 64, "squash")
    assert (header["limit"], header["median"]) == (9, 4)
    assert set(header["versions"]) >= {"gaussad_pl", "torch", "onnx"}
    default = clusters.threshold()
    assert (header["fpr"], header["threshold"], header["undecided"]) == (default.fpr, default.value, "")
    assert calibration["scores"] == clusters.calibration.scores.tolist() and provenance == {"seed": 7}
    assert b"site-packages" not in model and str(Path(__file__).parent.parent).encode() not in model


# -------------------------------------------------------------------------------------------- the command and the file


@pytest.mark.slow
def test_predict_says_the_same_with_either_file(
    clusters: Detector, model: bytes, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    clusters.save(folder / "detector.safetensors")
    (folder / "metrics.json").write_text('{"validation_signal": 1}')
    export.main([f"ckpt={tmp_path}/r*", f"source={parts / 'screw' / 'test'}", "images=6"])
    printed = capsys.readouterr().out
    assert f"detector: {folder / 'detector.safetensors'}" in printed
    assert "checked on 6 images" in printed and "24 of 24 verdicts the same" in printed
    rows = []
    for name in ("detector.safetensors", "detector.onnx"):
        out = tmp_path / name.replace(".", "-")
        with pytest.raises(SystemExit) as stop:
            predict.main(
                [
                    f"ckpt={folder / name}",
                    f"source={parts / 'screw' / 'test'}",
                    f"out={out}",
                    "overlays=true",
                    "fpr=0.1",
                ]
            )
        assert stop.value.code == 0
        rows.append(list(csv.DictReader((out / "predictions.csv").open())))
        assert len(list((out / "overlays").iterdir())) == 12
    for ours, theirs in zip(*rows, strict=True):
        assert ours["path"] == theirs["path"] and ours["verdict"] == theirs["verdict"]
        assert float(ours["p_value"]) == pytest.approx(float(theirs["p_value"]))
        assert float(ours["score"]) == pytest.approx(float(theirs["score"]), rel=1e-4)
        assert float(ours["threshold"]) == float(theirs["threshold"])


@pytest.mark.slow
def test_the_exported_detector_has_the_api_of_the_other(clusters: Detector, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "detector.onnx").write_bytes(model)
    loaded = load_detector(tmp_path / "detector.onnx")
    assert isinstance(loaded, ExportedDetector)
    for name in ("frame", "levels", "median", "limit", "provenance"):
        assert getattr(loaded, name) == getattr(clusters, name)
    assert loaded.threshold(0.05) == clusters.threshold(0.05)
    torch.testing.assert_close(loaded.calibration.distances, clusters.calibration.distances, rtol=0, atol=0)
    for ours, theirs in zip(loaded(IMAGES[:3], fpr=0.2), clusters(IMAGES[:3], fpr=0.2), strict=True):
        assert (ours.verdict, ours.threshold) == (theirs.verdict, theirs.threshold)
        assert ours.map is not None and ours.map.shape == (256, 256)


@pytest.mark.slow
def test_an_exported_detector_is_evaluated_like_the_other(
    clusters: Detector, model: bytes, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "detector.onnx").write_bytes(model)
    clusters.save(tmp_path / "detector.safetensors")
    found = []
    for name in ("detector.onnx", "detector.safetensors"):
        out = tmp_path / name.replace(".", "-")
        evaluate.main([f"ckpt={tmp_path / name}", f"data={parts / 'screw'}", f"out={out}"])
        found.append(json.loads((out / "metrics.json").read_text()))
    one, other = found
    assert one["operating_points"] == other["operating_points"]
    assert one["evaluation"]["aupro"] == pytest.approx(other["evaluation"]["aupro"], abs=1e-3)
    assert one["detector"]["sha256"] != other["detector"]["sha256"]


def test_a_torch_that_cannot_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "OLDEST", "99.0")
    with pytest.raises(UserError, match=r"torch .* is too old to export \(expected 99.0\)"):
        export.export(export.Options(str(tmp_path)))


@pytest.mark.slow
def test_a_graph_that_disagrees_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector(None).save(tmp_path / "detector.safetensors")
    forward = Graph.forward
    monkeypatch.setattr(
        Graph, "forward", lambda self, images: (1.01 * forward(self, images)[0], *forward(self, images)[1:])
    )
    with pytest.raises(SystemExit) as stop:
        export.main([f"ckpt={tmp_path}", "images=3"])
    text = str(stop.value.code)
    assert text.startswith("error: the graph disagrees with PyTorch: scores") and "\n" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["detector.safetensors"]


def with_images(one: Detector, n: int) -> Detector:
    """The same detector with the first n calibration images."""
    known = one.calibration
    return Detector(one.model, Calibration.of(known.scores[:n], known.distances[:n], f"{n} images"), {})


def test_the_metadata_of_an_undecided_detector_say_so(clusters: Detector) -> None:
    few = with_images(clusters, 3)
    header, *_ = export.metadata(few)
    assert header["threshold"] is None and header["undecided"] == few.threshold().reason != ""


@pytest.mark.slow
def test_an_exported_detector_is_undecided_like_the_other(clusters: Detector, tmp_path: Path) -> None:
    few = with_images(clusters, 3)
    (tmp_path / "few.onnx").write_bytes(export.onnx_model(few))
    for found in load_detector(tmp_path / "few.onnx")(IMAGES[:2]):
        assert (found.verdict, found.reason) == ("undecided", few.threshold().reason)


def test_only_rates_with_a_threshold_are_compared(clusters: Detector) -> None:
    seven = with_images(clusters, 7)
    expected, found = found_by(seven)
    assert "24 of 24 verdicts the same (fpr 0.2)" in compare(seven, expected, found)


def found_by(one: Detector) -> tuple[Detection, list[Tensor]]:
    expected = one.detect(255 - IMAGES)
    p_values = one.calibration.p_values(expected.scores).float()
    assert expected.maps is not None
    return expected, [expected.scores.clone(), p_values, expected.distances.clone(), expected.maps.clone()]


def test_a_patch_between_two_clusters_may_go_to_either(clusters: Detector) -> None:
    expected, found = found_by(clusters)
    found[3][5, :16, :16] *= 1.1
    assert "96 of 96 verdicts" in compare(clusters, expected, found)
    found[3][:, :16, :16] *= 1.1
    with pytest.raises(UserError, match="disagrees with PyTorch: maps"):
        compare(clusters, expected, found)


@pytest.mark.parametrize(("place", "name"), [(0, "scores"), (1, "p-values"), (2, "distances"), (3, "maps")])
@pytest.mark.parametrize("value", [1.02, float("nan")])
def test_every_output_is_compared(place: int, name: str, value: float, clusters: Detector) -> None:
    expected, found = found_by(clusters)
    assert "96 of 96 verdicts" in compare(clusters, expected, found)
    found[place][5] *= value
    with pytest.raises(UserError, match=f"disagrees with PyTorch: {name}"):
        compare(clusters, expected, found)


def test_a_score_at_the_threshold_may_fall_on_either_side(clusters: Detector) -> None:
    expected, found = found_by(clusters)
    expected = replace(expected, scores=expected.scores.clone())
    expected.scores[0] = clusters.threshold(0.1).value
    found[1] = clusters.calibration.p_values(expected.scores).float()
    found[0] = expected.scores.clone()
    found[0][0] += 1e-6
    assert "95 of 96 verdicts" in compare(clusters, expected, found)


def test_images_to_check_on_are_those_given_or_of_the_training_or_random(clusters: Detector, parts: Path) -> None:
    given, origin = check_images(clusters, str(parts / "screw" / "train"), 5)
    assert given.shape == (5, 3, 64, 64) and str(parts) in origin
    _, origin = check_images(clusters, "", 2)
    assert "RANDOM" in origin
    trained = Detector(
        clusters.model, clusters.calibration, {"dataset": "screw", "config": {"data": {"root": str(parts)}}}
    )
    held, origin = check_images(trained, "", 100)
    assert str(parts / "screw") in origin and len(held) == len(
        [p for p in image_paths(str(parts)) if "mask" not in p.name]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["out=x.pt"], "ends in .onnx"),
        (["images=0"], "1 or more"),
        (["source=nowhere"], "does not exist"),
        (["ckpt=nowhere"], "does not exist"),
        (["ckpt=nowhere/*"], "no finished run in nowhere/*"),
        (["colour=red"], "no such setting"),
    ],
)
def test_mistakes_are_one_clear_line(settings: list[str], message: str, clusters: Detector, tmp_path: Path) -> None:
    clusters.save(tmp_path / "detector.safetensors")
    ckpt = [] if settings[0].startswith("ckpt") else [f"ckpt={tmp_path}"]
    out = [] if settings[0].startswith("out") else [f"out={tmp_path / 'new' / 'detector.onnx'}"]
    with pytest.raises(SystemExit) as stop:
        export.main([*ckpt, *out, *settings])
    text = str(stop.value.code)
    assert text.startswith("error: ") and message in text and "\n" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["detector.safetensors"]


def test_a_file_that_is_there_stays_unless_told_otherwise(clusters: Detector, tmp_path: Path) -> None:
    clusters.save(tmp_path / "detector.safetensors")
    (tmp_path / "detector.onnx").write_text("mine")
    with pytest.raises(SystemExit, match="overwrite=true"):
        export.main([f"ckpt={tmp_path}"])
    assert (tmp_path / "detector.onnx").read_text() == "mine"


@pytest.mark.slow
def test_a_damaged_foreign_or_newer_file_is_one_clear_line(model: bytes, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "detector.onnx"
    with pytest.raises(UserError, match="does not exist"):
        load_detector(path)
    path.write_bytes(model[: len(model) // 2])
    with pytest.raises(UserError, match="is damaged"):
        load_detector(path)
    foreign = onnx.load_model_from_string(model)
    del foreign.metadata_props[:]
    path.write_bytes(foreign.SerializeToString())
    with pytest.raises(UserError, match="not a detector"):
        load_detector(path)
    newer = onnx.load_model_from_string(model)
    entry = next(entry for entry in newer.metadata_props if entry.key == KEYS[0])
    entry.value = json.dumps({**json.loads(entry.value), "format": 99})
    path.write_bytes(newer.SerializeToString())
    with pytest.raises(UserError, match="was modified"):
        load_detector(path)
    del newer.metadata_props[-1]
    path.write_bytes(sealed(newer.SerializeToString()))
    with pytest.raises(UserError, match="newer gaussad_pl"):
        load_detector(path)


@pytest.mark.slow
def test_a_file_of_before_without_a_checksum_still_loads(clusters: Detector, model: bytes, tmp_path: Path) -> None:
    import onnx

    older = onnx.load_model_from_string(model)
    assert older.metadata_props[-1].key == KEY
    del older.metadata_props[-1]
    (tmp_path / "older.onnx").write_bytes(older.SerializeToString())
    assert load_detector(tmp_path / "older.onnx").provenance == clusters.provenance


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["", "{", "[]", "{}", "null", '{"size": "a", "levels": 3}', '{"scores": [NaN]}'])
def test_broken_empty_or_foreign_metadata_are_one_clear_line(
    key: str, value: str, model: bytes, tmp_path: Path
) -> None:
    import onnx

    foreign = onnx.load_model_from_string(model)
    del foreign.metadata_props[-1]
    next(entry for entry in foreign.metadata_props if entry.key == key).value = value
    path = tmp_path / "foreign.onnx"
    path.write_bytes(sealed(foreign.SerializeToString()))
    if (key, value) in (("provenance", "{}"), ("provenance", "[]")) or (key == "provenance" and value[:2] == '{"'):
        load_detector(path)  # nothing is computed from it
        return
    with pytest.raises(UserError, match="not a detector that this gaussad_pl can read") as caught:
        load_detector(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_without_onnx_runtime_the_way_out_is_named(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "detector.onnx").write_bytes(model)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as stop:
        predict.main([f"ckpt={tmp_path / 'detector.onnx'}", "source=x.png"])
    text = str(stop.value.code)
    assert text.startswith("error: ") and "pip install onnxruntime" in text and "\n" not in text


def test_the_benchmark_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "find_spec", lambda name: None if name == "openvino" else name)
    (row,) = exported.exported(tmp_path, 1)
    assert row.part == 2 and row.ratio is None and "no openvino" in row.note


@pytest.mark.slow
def test_the_bare_backbone_of_the_benchmark_is_no_more_than_that(clusters: Detector) -> None:
    model = export.to_onnx(exported.Bare(clusters).eval(), clusters.frame, ["level"])
    found = np.asarray(
        exported.load("onnxruntime", model.SerializeToString())(IMAGES[:2].permute(0, 2, 3, 1).numpy())[0]
    )
    with torch.inference_mode():
        expected = clusters.model.backbone(IMAGES[:2])[-1]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not {"TopK", "GlobalAveragePool"} & {node.op_type for node in model.graph.node}
