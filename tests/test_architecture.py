"""The package's own structure: who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import gaussad_pl

PACKAGE = Path(gaussad_pl.__file__).parent
INSTALLED = packages_distributions()
# what predicting is made of, and what it must never load
INFERENCE = (
    "gaussad_pl.predict",
    "gaussad_pl.watch",
    "gaussad_pl.recalibrate",
    "gaussad_pl.export",
    "gaussad_pl.demo",
    "gaussad_pl.inference.detector",
)
TRAINING = ("training", "results", "reporting", "sweeps", "augment")


def modules() -> dict[str, Path]:
    """File of each module of the package, by dotted name."""
    files = (path for path in PACKAGE.rglob("*.py") if "plugins" not in path.parts)
    return {".".join(("gaussad_pl", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in files}


def imports() -> dict[str, set[str]]:
    """Modules of the package that each module imports, anywhere in it, also for types alone."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gaussad_pl"):
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
                found |= inside or ({node.module} & known.keys()) or {f"{node.module}.__init__"}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & known.keys()
        graph[name] = found & known.keys()
    return graph


def folder(module: str) -> str:
    """Folder of a module; a file beside the folders stands for itself."""
    return module.split(".")[1]


def test_no_module_takes_part_in_an_import_circle() -> None:
    list(TopologicalSorter(imports()).static_order())  # raises CycleError


def test_no_folder_takes_part_in_an_import_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for name, targets in imports().items():
        if folder(name) != "__init__":  # of the package itself: it loads its public names when they are used
            arrows.setdefault(folder(name), set()).update(folder(target) for target in targets)
    for name, targets in arrows.items():
        targets.discard(name)
    list(TopologicalSorter(arrows).static_order())


def reached(start: str) -> set[str]:
    """The modules that importing one loads, itself included."""
    graph, seen, todo = imports(), set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, ())
    return seen


@pytest.mark.parametrize("start", INFERENCE)
def test_inference_imports_nothing_from_training(start: str) -> None:
    seen = reached(start)
    assert start in seen
    assert not [name for name in seen if folder(name) in TRAINING]


def third_party(files: Iterable[Path], everywhere: bool = False) -> set[str]:
    """Distributions of the packages that files import; ``everywhere``: also inside functions."""
    installed = INSTALLED
    names: set[str] = set()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"gaussad_pl"}
    return {re.sub(r"[-_.]+", "-", installed[top][0]).lower() for top in tops & installed.keys()}


def declared(extra: str | None = None) -> set[str]:
    """Distributions that pyproject.toml asks for: for predicting, or for an extra."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in lines}


@pytest.mark.parametrize("start", INFERENCE)
def test_what_predicting_imports_comes_with_the_plain_installation(start: str) -> None:
    found = third_party(modules()[name] for name in reached(start))
    assert {"torch", "numpy"} <= found <= declared()


def test_everything_imported_is_declared() -> None:
    found = third_party(PACKAGE.rglob("*.py"), everywhere=True)
    extras = ("train", "tensorboard", "export", "optuna", "ray", "submitit")
    known = declared().union(*(declared(extra) for extra in extras))
    assert {"safetensors", "lightning", "wandb"} <= found and found <= known


@pytest.mark.parametrize(
    ("command", "needed"), [("evaluate", "matplotlib"), ("recalibrate", "torch"), ("watch", "filelock")]
)
def test_commands_for_detectors_need_no_lightning(command: str, needed: str) -> None:
    found = third_party(modules()[name] for name in reached(f"gaussad_pl.{command}"))
    assert needed in found
    assert not found & {"lightning", "hydra-core", "omegaconf", "wandb", "albumentations", "torchmetrics"}


def test_wandb_is_imported_only_where_it_logs() -> None:
    users = {name for name, path in modules().items() if "wandb" in third_party([path], everywhere=True)}
    assert users == {"gaussad_pl.results.dashboard"}
    for path in modules().values():  # it is imported in functions alone
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert not (isinstance(node, ast.ImportFrom) and "dashboard" in {alias.name for alias in node.names})
            assert not (isinstance(node, ast.ImportFrom) and (node.module or "").endswith(".dashboard"))


def test_the_public_names_are_loaded_when_they_are_used() -> None:
    code = "import sys, gaussad_pl; assert 'torch' not in sys.modules; print(dir(gaussad_pl))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Detector', 'GaussianAD', 'UserError', '__version__', 'fit']"
    from gaussad_pl.inference.detector import Detector

    assert gaussad_pl.Detector is Detector
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = gaussad_pl.Detektor


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("lightning", 'GaussianAD needs lightning: pip install "gaussad_pl[train]"'), ("gaussad_pl.gone", "no module")],
)
def test_a_public_name_of_training_says_what_to_install(
    missing: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError("no module", name=missing)

    monkeypatch.setattr(gaussad_pl, "import_module", without)
    with pytest.raises(ImportError, match=f"^{re.escape(expected)}$"):
        _ = gaussad_pl.GaussianAD


def test_the_package_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from gaussad_pl.__main__ import COMMANDS, main

    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(COMMANDS)
    assert all(len(line.split()) > 3 and len(line) <= 120 for line in lines[2:])
