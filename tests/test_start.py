"""The start of the commands: help at once, one line for missing packages, and no import that serves nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from gaussad_pl import train
from gaussad_pl.__main__ import COMMANDS
from gaussad_pl.cli.groups import CONF, GROUPS, SHARED, choices, defaults, listing
from gaussad_pl.cli.start import start

HEAVY = ("torch", "hydra", "numpy", "rich", "PIL")
OF_TRAINING = (
    "albumentations", "cv2", "hydra", "jinja2", "lightning", "matplotlib", "omegaconf", "pydantic", "sklearn",
    "torchmetrics", "wandb",
)  # fmt: skip
RUN = """
import contextlib, io, json, runpy, sys
def run(command, *arguments):
    sys.argv, out = [command, *arguments], io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module("gaussad_pl." + command, run_name="__main__")
        except SystemExit as stop:
            return stop.code, out.getvalue()
"""


def in_new_process(code: str) -> dict[str, tuple[object, str]]:
    """Return the last line that the code prints, from JSON."""
    done = subprocess.run([sys.executable, "-c", RUN + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[object, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_help_comes_before_the_imports() -> None:
    code = f"found = {{name: run(name, '--help') for name in {COMMANDS}}}\n"
    code += f"assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)\nprint(json.dumps(found))"
    for command, (exit_code, text) in in_new_process(code).items():
        assert exit_code == 0 and f"python -m gaussad_pl.{command} " in text and text.count("\n") > 5
        assert all(len(line) <= 120 for line in text.splitlines())


def test_without_the_packages_of_training_a_command_needs_none_or_says_how_to_get_them() -> None:
    code = f"sys.modules.update(dict.fromkeys({OF_TRAINING}))\n"
    code += f"print(json.dumps({{name: run(name, 'ckpt=/nowhere', *more) for name, more in {ARGUMENTS}.items()}}))"
    for command, (exit_code, _) in in_new_process(code).items():
        if command in ("train", "evaluate", "report"):
            assert str(exit_code).startswith("error: packages are missing (")
            assert str(exit_code).endswith('): pip install "gaussad_pl[train]"') and "\n" not in str(exit_code)
        else:
            assert "/nowhere does not exist" in str(exit_code), (command, exit_code)


ARGUMENTS = {
    "train": (), "evaluate": ("data=a",), "report": (), "predict": ("source=a",), "recalibrate": ("good=a",),
    "demo": (),
}  # fmt: skip


def test_importing_the_detector_loads_neither_the_compiler_nor_packages_of_training() -> None:
    code = f"""
import torch
disable = torch.compiler.disable
import gaussad_pl.predict
assert "timm" not in sys.modules  # an exported detector does without
import gaussad_pl.inference.detector
assert not {{"torch._dynamo", "scipy", *{OF_TRAINING}}} & set(sys.modules)
assert torch.compiler.disable is disable
import torch._dynamo, importlib  # whoever needs it gets it, also through the function that torchvision has kept
assert importlib.import_module("torchvision.ops.roi_align").is_compile_supported("cpu") in (True, False)
assert torch._dynamo.utils.counters is not None
import wandb
print("{{}}")
"""
    assert in_new_process(code) == {}


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "data=demo"])
    start("text", "json", "re")
    with pytest.raises(SystemExit) as stopped:
        start("text", "json", "no_such_package")
    assert stopped.value.code == 'error: packages are missing (no_such_package): pip install "gaussad_pl[train]"'


def test_the_help_of_training_names_every_group_and_every_choice() -> None:
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."}
    assert set(GROUPS) == folders
    entries = re.findall(r"^  \+?([\w/]+) .*?: ([\w, \n]+)$", listing() + "\n", re.MULTILINE)
    listed = {group: re.findall(r"\w+", names) for group, names in entries}
    for group in GROUPS:
        assert sorted(listed[group]) == choices(group) == sorted({*choices(group)} - {SHARED})
        assert defaults().get(group, listed[group][0]) == listed[group][0]


def examples() -> list[str]:
    return re.findall(r"^  python -m gaussad_pl\.train (.*?)(?:  .*)?$", train.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("example", examples())
def test_every_example_in_the_help_of_training_composes(example: str) -> None:
    words = [word for word in example.partition(" --")[0].split() if word != "-m"]
    overrides = [word.partition(",")[0] for word in words]  # of a sweep, the first job
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", overrides).data.name


def test_there_are_five_examples_and_the_way_to_the_composed_configuration() -> None:
    found = examples()
    assert len([each for each in found if "--cfg" not in each]) == 5
    assert any("--cfg job" in each for each in found)


def test_the_help_of_the_report_shows_its_own_settings_alone() -> None:
    from gaussad_pl import report

    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose("report", ["dir=a"])
    assert re.findall(r"^  (\w+) ", report.__doc__ or "", re.MULTILINE) == list(settings)
