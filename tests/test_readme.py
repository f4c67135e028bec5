"""Every command of README runs as it is printed there, one after the other, in the environment that README sets up.

Placeholders of paths become folders of small drawn images. Where a line trains, settings that make it quick are added
behind it; nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_part

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = [
    "backbone.image_size=64",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "data.steps_per_epoch=2",
    "data.batch_size=4",
    "model.segmentation.clusters=4",
]
PEERS = "# PatchCore and the others need an environment"  # this block would also need anomalib, and hours

# `git clone` is followed by an environment such as `make` installs, made of links to this one
SESSION = r"""
set -eo pipefail
git() {
    command git "$@"
    mkdir gaussad_pl/.venv && ln -s "$PREFIX"/* gaussad_pl/.venv/ && touch gaussad_pl/.venv/.ready
}
make() {
    case "$1" in
    train) command make train ARGS="$QUICK" ;;
    test) command make test ARGS="tests/test_documentation.py -k test_readme_stays_short" ;;
    *) command make "$@" ;;
    esac
}
python() {
    case "$2" in
    gaussad_pl.train) command python "$@" $QUICK ;;
    *) command python "$@" ;;
    esac
}
"""
PYTHON = """
import functools
import gaussad_pl
gaussad_pl.fit = functools.partial(gaussad_pl.fit, settings={quick!r})
images = {images!r}
"""


def blocks(language: str) -> list[str]:
    """The blocks of code of README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def placeholders(tmp_path: Path, parts: Path) -> dict[str, str]:
    """The text for each placeholder of README."""
    rng = np.random.default_rng(0)
    for name, count, defect in [("parts", 20, False), ("other_good_parts", 6, False), ("bad_parts", 6, True)]:
        (tmp_path / "my" / name).mkdir(parents=True)
        for number in range(count):
            draw_part(rng, defect)[0].save(tmp_path / "my" / name / f"{number:03}.png")
    (tmp_path / "my" / "new_parts").symlink_to(tmp_path / "my" / "bad_parts")
    mine = {"/my/": f"{tmp_path / 'my'}/", "/data/mvtec_ad": str(parts)}
    return {**mine, "<address of this repository>": shlex.quote(str(ROOT))}


def with_paths(text: str, placeholders: dict[str, str]) -> str:
    for placeholder, path in placeholders.items():
        text = text.replace(placeholder, path)
    return text


def run(script: str, folder: Path) -> str:
    """Output of a bash script; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment |= {"PREFIX": sys.prefix, "QUICK": " ".join(QUICK), "CI": "true", "COLUMNS": "120"}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="README begins with a clone of the repository")
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in an environment as README sets it up")
def test_every_command_runs(tmp_path: Path, placeholders: dict[str, str]) -> None:
    (code,) = blocks("python")
    images = sorted(map(str, (tmp_path / "my" / "new_parts").iterdir()))
    file = tmp_path / "code.py"
    file.write_text(PYTHON.format(quick=QUICK, images=images) + with_paths(code, placeholders))
    commands = [with_paths(block, placeholders) for block in blocks("bash") if not block.startswith(PEERS)]
    output = run("\n".join([SESSION, *commands, f"python - < {file}"]), tmp_path)
    assert {"demo-screw", "parts", "screw"} <= {line.strip() for line in output.splitlines()}  # the tables of results
    assert "decisions (intervals: 95 %)" in output and "next: python -m gaussad_pl.predict ckpt=runs/" in output
    assert "1 passed" in output or re.search(r"^\. +\[100%\]", output, re.MULTILINE)
    assert len(re.findall(r"^(?:good|bad|undecided) [\d.]+", output, re.MULTILINE)) == len(images)
    assert (tmp_path / "gaussad_pl" / "predictions" / "overlays").is_dir()


def test_only_the_benchmark_against_peers_is_left_out() -> None:
    left_out = [block for block in blocks("bash") if block.startswith(PEERS)]
    assert len(left_out) == 1 and left_out[0].count("python -m") == 1 and "benchmarks.segmentation" in left_out[0]
