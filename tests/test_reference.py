"""The pages that `make docs` makes from the code, and the examples of the page on extending."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import TINY
from test_conf import composed

from gaussad_pl import fit
from gaussad_pl.augment import VICINAL
from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.weights import exact_tag
from gaussad_pl.cli.hydra_command import CONF
from gaussad_pl.inference.detector import Detector
from gaussad_pl.training.signals import SIGNALS
from gaussad_pl.version import __version__

ROOT = Path(__file__).parent.parent
EXTENDING = (ROOT / "docs" / "pages" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    """The hooks of mkdocs, which need not be installed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(ROOT / "docs")  # as mkdocs does
        yield importlib.import_module("hooks")


@pytest.fixture(scope="module")
def settings(hooks: ModuleType) -> dict[str, list[str]]:
    """Default, values and meaning of each setting in the reference, by key."""
    lines = (line for line in hooks.configuration().splitlines() if line.startswith("| `"))
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {key.strip("`"): rest for key, *rest in cells}


def leaves(node: Any, place: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [place]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{place}.{key}" if place else str(key))]


def test_the_reference_has_every_setting_and_every_choice(hooks: ModuleType, settings: dict[str, list[str]]) -> None:
    for data in ("mvtec", "visa", "folder", "demo"):
        shown = [
            leaf for leaf in leaves(hooks.composed(f"data={data}")) if not leaf.endswith(("._partial_", "._convert_"))
        ]
        assert len(shown) > 60 and not set(shown) - settings.keys()
    choices = {f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml")} - {"data=base"}
    shown = {key.lstrip("+") for key in settings if "=" in key}
    assert {choice for choice in choices if not choice.startswith("category=")} == shown


def test_our_settings_have_a_meaning_and_values(settings: dict[str, list[str]]) -> None:
    ours = ("data.", "backbone.", "model.", "callbacks.averaging", "callbacks.forgetting")
    own = {key: row for key, row in settings.items() if key.startswith(ours) and not key.endswith("_target_")}
    assert len(own) > 50 and not [key for key, row in own.items() if not row[2]]
    assert settings["data.batch_size"][:2] == ["`16`", "whole number, at least 1"]
    assert settings["model.segmentation.form"][1] == "auto, position, clusters, shared, union"
    assert settings["model.running"][1] == "`fixed`, `epoch`, `ema`"
    assert settings["fold"][2] == "the one held out"


def test_a_notebook_becomes_a_page(hooks: ModuleType) -> None:
    page = hooks.notebook(ROOT / "docs" / "notebooks" / "own_parts.ipynb")
    assert page.startswith("# From a folder to verdicts\n") and "```python\nfrom gaussad_pl import fit\n" in page


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", EXTENDING, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_examples_of_extensions_work_together(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks("yaml"):
        path = tmp_path / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    before = {**VICINAL}, {**SIGNALS}
    example = ModuleType("gaussad_pl.data.listed")
    monkeypatch.setitem(sys.modules, example.__name__, example)
    images = sorted((parts / "screw").rglob("???.png"))
    rows = [f"{path.parts[-3]},{path.parts[-2]},{path.relative_to(parts)}" for path in images]
    (tmp_path / "parts.csv").write_text("\n".join(["split,kind,image", *rows]) + "\n")
    (tmp_path / "screw").symlink_to(parts / "screw")
    try:
        for block in blocks("python"):
            exec(compile(block, "extending.md", "exec"), example.__dict__)
        chosen = ["data=listed", "+augmentation.stain=0.5", "callbacks.forgetting.signal=above_most/stain"]
        quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "levels=all", "data.steps_per_epoch=2"]
        quick += ["data.batch_size=4", "model.segmentation.clusters=4", f"hydra.searchpath=[{tmp_path / 'conf'}]"]
        detector = fit(tmp_path, image_size=64, epochs=2, settings=[*chosen, *quick], out=tmp_path / "run")
    finally:
        for registry, content in zip((VICINAL, SIGNALS), before, strict=True):
            registry.clear()
            registry.update(content)  # type: ignore[arg-type]
    assert isinstance(detector, Detector)
    assert detector.provenance["images"]["test_bad"] == 6 and detector.provenance["dataset"] == tmp_path.name
    metrics = yaml.safe_load((tmp_path / "run" / "metrics.json").read_text())
    assert all("above_most/stain" in record for record in metrics["forgetting"]["history"])


def test_the_example_of_a_backbone_is_a_model_of_timm() -> None:
    (backbone,) = [yaml.safe_load(block) for block in blocks("yaml") if "conf/backbone/" in block]
    assert (
        exact_tag(backbone["name"]) == backbone["name"]
        and backbone.keys() == composed("+category=screw").backbone.keys()
    )
    assert len(Backbone(**{**backbone, "weights": "random"}).levels) > 4


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "pages" / "citing.md").read_text(encoding="utf-8")
    assert citation["version"] == __version__ and f"version = {{{__version__}}}" in page
    for reference in citation["references"]:
        number = reference["identifiers"][0]["value"]
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", number) and number in page
        assert all(author["family-names"] in page for author in reference["authors"])


def test_the_picture_of_small_sets_shows_the_numbers_of_their_table(hooks: ModuleType) -> None:
    pictures = importlib.import_module("pictures")
    found = pictures.curves(
        "| | good images | | AUROC | 5 % | 10 % | draws |\n|---|---:|---|---:|---:|---:|---:|\n"
        "| tile | 20 | default | 90.0 ± 1.0 | - | 8.5 ± 1.5 / 62.0 ± 3.5 | 2 |\n"
        "|  |  | PaDiM | 80.0 | - | - | 1 |\n"
        "|  | 40 | PaDiM | 81.0 | 4.0 / 30.0 | 9.0 / 50.5 | 1 |\n"
    )
    assert found == {
        ("tile", "default"): {20: {"lost": (8.5, 1.5), "found": (62.0, 3.5)}},
        ("tile", "PaDiM"): {40: {"lost": (9.0, 0.0), "found": (50.5, 0.0)}},
    }
    texts = set(re.findall(r">([^<>]+)</text>", pictures.drawn(found)))
    assert {"tile", "default", "PaDiM", "target", "20", "40"} <= texts
    for name in ("cell", "cookie", "screw", "tile", "PatchCore"):
        assert f">{name}</text>" in hooks.verdicts()
