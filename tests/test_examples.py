"""The example clients say what predict says; and what they and the image for Docker are made of."""

# ruff: noqa: F811  # a fixture of another file has the name of the arguments that it is

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from test_predict import ckpt, drawn, rows, run, undecided  # noqa: F401  # ckpt and undecided are fixtures

from gaussad_pl import export
from gaussad_pl.data.frame import Fit, Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector

FITS: tuple[Fit, ...] = ("squash", "pad", "crop")
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"

exporting = pytest.mark.skipif(
    any(find_spec(name) is None for name in export.PACKAGES), reason="the extra `export` is not installed"
)
compiling = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("make")), reason="needs g++ and make, which are not installed"
)


def loaded() -> ModuleType:
    """The Python client, as a module."""
    spec = importlib.util.spec_from_file_location("onnx_client", EXAMPLES / "onnx_client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def padded(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that keeps the proportions of its images."""
    one, path = Detector.load(ckpt), tmp_path_factory.mktemp("padded") / NAME
    Detector(one.model, one.calibration, one.provenance, "pad").save(path)
    return path


@pytest.fixture(scope="module")
def exported(padded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "detector.onnx"
    path.write_bytes(export.onnx_model(Detector.load(padded)))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes, good and bad ones, in each format that cameras and people save."""
    folder = tmp_path_factory.mktemp("images")
    plain = drawn(12, 7)
    for i, image in enumerate(plain):
        other = image.point(lambda value: 255 - value) if i % 2 else image
        other.resize([(64, 64), (97, 131), (300, 40)][i % 3]).save(folder / f"{i:02}.png")
    big = plain[0].resize((700, 500))
    turned = Image.Exif()
    turned[0x0112] = 6
    big.save(folder / "turned.jpg", exif=turned)
    big.convert("L").save(folder / "grey.bmp")
    big.convert("P").save(folder / "palette.png")
    big.convert("LA").save(folder / "grey_alpha.png")
    seen = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700), dtype=np.uint8))
    clear = big.copy()
    clear.putalpha(seen)
    clear.save(folder / "alpha.png")
    Image.fromarray(np.asarray(big.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    return folder


def judged(ckpt: Path, images: Path, out: Path) -> dict[str, tuple[str, float]]:
    """Verdict and p-value of predict for each path."""
    assert run(f"ckpt={ckpt}", f"source={images}", f"out={out}") == 0
    return {each["path"]: (each["verdict"], each["p_value"]) for each in rows(out)[0]}


def printed(text: str) -> dict[str, tuple[str, float]]:
    """The same from what a client printed."""
    lines = [line.split("\t") for line in text.splitlines()]
    return {path: (verdict, float(p_value)) for verdict, p_value, path in lines}


# -------------------------------------------------------------------------------------------------------- in Python


@exporting
@pytest.mark.slow
def test_the_python_client_says_what_predict_says(
    exported: Path, padded: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {file: judged(file, images, tmp_path / file.name) for file in (exported, padded)}
    assert {verdict for verdict, _ in found[padded].values()} == {"good", "bad"}
    capsys.readouterr()
    assert loaded().main([str(exported), *found[padded]]) == 0
    ours = printed(capsys.readouterr().out)
    assert ours == found[exported]
    assert {path: verdict for path, (verdict, _) in ours.items()} == {
        path: verdict for path, (verdict, _) in found[padded].items()
    }


@exporting
@pytest.mark.parametrize("fit", FITS)
def test_the_python_client_fits_images_as_predict_does(fit: Fit, images: Path) -> None:
    for path in images.iterdir():
        frame = Frame(48, 80, fit)
        np.testing.assert_array_equal(loaded().read(path, frame.height, frame.width, fit), read_image(path, frame))


@exporting
@pytest.mark.slow
def test_the_python_client_names_what_it_cannot_read_or_decide(
    exported: Path, undecided: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("text")
    paths = [str(tmp_path / "text.png"), str(tmp_path / "gone.png"), str(images / "00.png")]
    assert loaded().main([str(exported), *paths]) == 1
    said = capsys.readouterr()
    assert [line.split(" (")[0] for line in said.err.splitlines()] == [f"cannot read {path}" for path in paths[:2]]
    assert list(printed(said.out)) == paths[2:]
    few = Detector.load(undecided)
    (tmp_path / "few.onnx").write_bytes(export.onnx_model(Detector(few.model, few.calibration, {})))
    assert loaded().main([str(tmp_path / "few.onnx"), paths[2]]) == (3 if few.threshold().reason else 0)


def test_the_python_client_needs_three_packages() -> None:
    tree = ast.parse((EXAMPLES / "onnx_client.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


# ------------------------------------------------------------------------------------------------------------ in C++

RESIZE = """
#include <cstdio>
#include "ppm.hpp"
int main(int, char** a) {
    const Fit fits[] = {Fit::squash, Fit::pad, Fit::crop};
    const Image found = fitted(read_ppm(a[1]), std::stoi(a[2]), std::stoi(a[3]), fits[std::stoi(a[4])]);
    std::fwrite(found.pixels.data(), 1, found.pixels.size(), stdout);
}
"""


@compiling
@pytest.mark.slow
def test_the_cpp_client_fits_and_resizes_as_pillow_does(images: Path, tmp_path: Path) -> None:
    (tmp_path / "resize.cpp").write_text(RESIZE)
    subprocess.run(
        ["g++", "-std=c++17", f"-I{EXAMPLES}", tmp_path / "resize.cpp", "-o", tmp_path / "resize"], check=True
    )
    for name in ("01.png", "02.png", "palette.png"):
        with Image.open(images / name) as file:
            image = file.convert("RGB")
        image.save(tmp_path / "image.ppm")
        for width, height in ((64, 64), image.size, (31, 400), (1, 1)):
            line = [tmp_path / "resize", tmp_path / "image.ppm", str(width), str(height)]
            ours, *kept = (
                np.frombuffer(subprocess.run([*line, fit], capture_output=True, check=True).stdout, dtype=np.uint8)
                for fit in "012"
            )
            filtered = Image.Resampling.BILINEAR
            rows_first = image.resize((width, image.height), filtered).resize((width, height), filtered)
            assert ours.tobytes() == rows_first.tobytes(), (name, width, height)
            theirs = np.asarray(image.resize((width, height), filtered)).ravel()
            tall = image.height * width > image.width * height
            assert np.abs(ours.astype(int) - theirs).max() <= tall, (name, width, height)
            for fit, found in zip(FITS[1:], kept, strict=True):
                wanted = Frame(height, width, fit).pixels(image).ravel()
                assert np.abs(found.astype(int) - wanted).max() <= 1, (name, width, height, fit)
                assert found.tobytes() == wanted.tobytes() or image.height > image.width, (name, width, height, fit)


def unpacked(folder: Path) -> Path:
    """ONNX Runtime as in an unpacked release: headers of the machine, and its library or that of the Python package."""
    places = [Path(place) for place in (os.environ.get("ONNXRUNTIME"), "/usr", "/usr/local") if place]
    home = next((each for each in places if list((each / "include").glob("**/onnxruntime_cxx_api.h"))), None)
    if home is None:
        pytest.skip("no headers of ONNX Runtime in /usr or in the folder that ONNXRUNTIME names")
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    found = [*home.glob("lib/**/libonnxruntime.so*"), *Path(spec.origin).parent.glob("capi/libonnxruntime.so*")]
    libraries = [path for path in found if path.exists()]  # headers may come with a link that leads nowhere
    if not libraries:
        pytest.skip("the library of ONNX Runtime is neither beside its headers nor in its Python package")
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(home / "include")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(libraries[0].resolve())
    return folder


@exporting
@compiling
@pytest.mark.slow
def test_the_cpp_client_says_what_predict_says(exported: Path, images: Path, tmp_path: Path) -> None:
    home = unpacked(tmp_path / "onnxruntime")
    for name in ("onnx_client.cpp", "ppm.hpp", "Makefile"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    subprocess.run(["make", "-C", tmp_path, f"ONNXRUNTIME={home}"], check=True, capture_output=True)
    expected = {}
    for path, found in judged(exported, images, tmp_path / "out").items():
        if re.fullmatch(r"\d\d", Path(path).stem):
            with Image.open(path) as file:
                file.convert("RGB").save(tmp_path / f"{Path(path).stem}.ppm")
            expected[str(tmp_path / f"{Path(path).stem}.ppm")] = found
    client = str(tmp_path / "onnx_client")
    done = subprocess.run([client, str(exported), *expected], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    ours = printed(done.stdout)
    assert {path: verdict for path, (verdict, _) in ours.items()} == {
        path: verdict for path, (verdict, _) in expected.items()
    }
    assert {verdict for verdict, _ in ours.values()} == {"good", "bad"}
    for path, (_, p_value) in expected.items():
        assert ours[path][1] == pytest.approx(p_value, rel=1e-6)
    (tmp_path / "short.ppm").write_bytes((tmp_path / "00.ppm").read_bytes()[:500])
    (tmp_path / "text.ppm").write_text("text")
    paths = [str(tmp_path / name) for name in ("short.ppm", "text.ppm", "gone.ppm", "00.ppm")]
    done = subprocess.run([client, str(exported), *paths], capture_output=True, text=True)
    assert done.returncode == 1 and list(printed(done.stdout)) == paths[3:]
    said = [f"cannot read {path} " for path in paths[:3]]
    reasons = ("(truncated)", "(not a binary PPM file (P6))", "(no such file)")
    assert done.stderr.splitlines() == [a + b for a, b in zip(said, reasons, strict=True)]


# ------------------------------------------------------------------------------------------------------- for Docker


def test_the_image_for_docker_is_made_of_what_is_there_and_of_no_package_of_training() -> None:
    lines = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "conf", "gaussad_pl"} <= set(copied)  # what the wheel is built from
    assert all((ROOT / name).exists() for name in copied)
    (installed,) = [line.partition("pip install")[2].split() for line in lines if "pip install" in line]
    assert installed == ["--no-cache-dir", "$PIP_ARGS", "/wheels/*.whl", "onnxruntime"]  # no extra such as [train]
    (command,) = [line.partition(" ")[2] for line in lines if line.startswith("CMD")]
    assert find_spec(ast.literal_eval(command)[0]) is not None


def steps() -> ModuleType:
    """The script that performs the steps of the Dockerfile without Docker, as a module."""
    loader = SourceFileLoader("dockerfile", str(ROOT / ".ci" / "dockerfile"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_steps_of_a_dockerfile_are_performed_in_the_folders_of_their_stages(tmp_path: Path) -> None:
    lines = [
        "FROM python:3.11-slim AS build",
        "COPY pyproject.toml README.md /source/",
        "COPY conf /source/conf",
        "RUN mkdir /out && cp /source/conf/train.yaml \\\n    /out/",
        "FROM python:3.11-slim",
        'ARG WORD=""',
        "RUN --mount=type=bind,from=build,source=/out,target=/in \\",
        "    python -c 'import sys; print(sys.prefix)' >/prefix && cp /in/*.yaml /kept-$WORD",
        "RUN useradd nobody-else",
        "WORKDIR /home/inspector",
        'CMD ["python"]',
    ]
    stage = steps().build("\n".join(lines), tmp_path, {"WORD": "here"})
    assert (tmp_path / "build" / "source" / "pyproject.toml").is_file()
    assert (tmp_path / "image" / "kept-here").read_bytes() == (ROOT / "conf" / "train.yaml").read_bytes()
    assert (tmp_path / "image" / "prefix").read_text().strip() == str(tmp_path / "image" / "venv")
    assert stage.directory == tmp_path / "image" / "home" / "inspector" and stage.command["CMD"] == ["python"]


@pytest.mark.parametrize(
    "line", ["ADD a /b", "COPY --from=build /a /b", "COPY ../other /b", "RUN --mount=type=cache x"]
)
def test_a_step_that_the_script_does_not_know_is_an_error(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = steps()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=line.split()[0]):
        module.build(f"FROM python:3.11-slim\n{line}", tmp_path, {})
