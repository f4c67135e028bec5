"""Decoding: every kind of file becomes the same kind of array, broken files are named, the cache can be trusted."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gaussad_pl.data import images, loading
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image, read_mask, upright
from gaussad_pl.data.loading import load_images
from gaussad_pl.errors import UserError

RAMP = np.linspace(0, 1, 16).reshape(4, 4)
ORIENTATION = 0x0112  # EXIF tag


def save(path: Path, values: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    return [save(tmp_path / f"{i}.png", rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)) for i in range(5)]


def decode_count(monkeypatch) -> list[Path]:
    """A list that grows by a path with every image that is decoded."""
    decoded: list[Path] = []

    def counting(path: Path, frame: Frame) -> np.ndarray:
        decoded.append(path)
        return read_image(path, frame)

    monkeypatch.setattr(loading, "read_image", counting)
    return decoded


# --- read_image ---


MODES = {"png": ["RGB", "L", "P", "1", "RGBA", "LA"], "bmp": ["RGB", "L", "P", "1", "RGBA"]}
MODES |= {"tif": [*MODES["png"], "CMYK"], "webp": ["RGB", "RGBA"], "PNG": ["RGB"], "JPeG": ["RGB", "L", "CMYK"]}


@pytest.mark.parametrize("suffix, mode", [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_every_format_and_mode_becomes_square_rgb(tmp_path, suffix, mode):
    grey = np.full((6, 10, 3), 255, dtype=np.uint8)
    image = read_image(save(tmp_path / f"a.{suffix}", grey, mode), Frame(4, 4))
    assert image.shape == (4, 4, 3) and image.dtype == np.uint8
    assert (image == 255).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = np.full((16, 16, 3), (255, 0, 0), dtype=np.uint8)
    image = read_image(save(tmp_path / "a.jpg", red, "CMYK", quality=95), Frame(8, 8)).astype(int)
    assert (image[..., 0] > 245).all() and (image[..., 1:] < 10).all()


def test_alpha_is_dropped_not_composited(tmp_path):
    values = np.full((8, 8, 4), (200, 100, 50, 0), dtype=np.uint8)
    assert (read_image(save(tmp_path / "a.png", values), Frame(4, 4)) == (200, 100, 50)).all()


def test_transparent_palette_is_dropped_without_a_warning(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=b"\x80\x40")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(tmp_path / "a.png", Frame(4, 4)) == (10, 20, 30)).all()


@pytest.mark.parametrize(
    "name, values",
    [
        pytest.param("a.png", (RAMP * 65535).astype(np.uint16), id="16-bit PNG"),
        pytest.param("a.tif", (RAMP * 65535).astype(np.uint16), id="16-bit TIFF"),
        pytest.param("a.tif", (RAMP * 65535).astype(np.int32), id="32-bit"),
        pytest.param("a.tif", RAMP.astype(np.float32), id="float to 1"),
        pytest.param("a.tif", (RAMP * 255).astype(np.float32), id="float to 255"),
        pytest.param("a.tif", (RAMP * 65535).astype(np.float32), id="float to 65535"),
    ],
)
def test_deep_images_are_scaled_not_clipped(tmp_path, name, values):
    image = read_image(save(tmp_path / name, values), Frame(4, 4))
    assert np.abs(image - RAMP[:, :, None] * 255).max() <= 1


def test_scale_of_16_bit_images_does_not_depend_on_the_image(tmp_path):
    dark = np.full((4, 4), 257 * 3, dtype=np.uint16)
    assert (read_image(save(tmp_path / "a.png", dark), Frame(4, 4)) == 3).all()


@pytest.mark.parametrize("value", [-1, 70000, float("nan")])
def test_values_without_an_obvious_scale_are_refused(tmp_path, value):
    path = save(tmp_path / "a.tif", np.full((4, 4), value, dtype=np.float32))
    with pytest.raises(UserError, match="convert it to 8 bits"):
        read_image(path, Frame(4, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "channels"), [("a.jpg", (3,)), ("a.tif", ()), ("a.png", ())])
def test_exif_orientation_is_applied(tmp_path, orientation, name, channels):
    values = np.zeros((16, 32, *channels), dtype=np.uint8)
    values[:8, :16] = 255  # one bright corner
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / name, values, exif=exif, quality=95)
    corners = read_image(path, Frame(8, 8))[[0, 0, -1, -1], [0, -1, 0, -1], 0] > 128
    bright = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert corners.tolist() == [corner == bright for corner in range(4)]


def test_an_upright_image_is_not_copied_nor_changed(tmp_path):
    image = Image.new("RGB", (8, 4))
    assert upright(image) is image  # of 100 megapixels each copy would take 400 MB
    palette = Image.new("P", (8, 4))
    palette.info["transparency"] = b"\0"
    assert upright(palette).mode == "RGB" and palette.info == {"transparency": b"\0"}


def test_large_jpeg_is_antialiased_like_a_png(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 128), dtype=np.uint8)
    jpeg = read_image(save(tmp_path / "a.jpg", noise, quality=100), Frame(16, 16)).astype(int)
    png = read_image(save(tmp_path / "a.png", noise), Frame(16, 16)).astype(int)
    assert np.abs(jpeg - png).mean() < 3  # 1.7 on this noise; 5.4 if decoded too small


@pytest.mark.parametrize(
    "content", ["empty", "truncated png", "truncated jpeg", "text", "flipped", "missing", "folder"]
)
def test_broken_file_is_named(tmp_path, content):
    path = tmp_path / f"a.{'jpg' if 'jpeg' in content else 'png'}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(path, noise).read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content != "missing":
        half = len(whole) // 2
        flipped = whole[:half] + bytes(255 - byte for byte in whole[half : half + 64]) + whole[half + 64 :]
        path.write_bytes({"empty": b"", "text": b"hello\n" * 9, "flipped": flipped}.get(content, whole[:half]))
    with pytest.raises(UserError) as caught:
        read_image(path, Frame(8, 8))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_alpha_changes_no_pixel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 4), dtype=np.uint8)
    coloured = read_image(save(tmp_path / "a.png", noise[..., :3]), Frame(16, 16))
    assert np.array_equal(read_image(save(tmp_path / "b.png", noise), Frame(16, 16)), coloured)
    grey = read_image(save(tmp_path / "c.png", noise[..., 0]), Frame(16, 16))
    Image.merge("LA", [Image.fromarray(noise[..., 0]), Image.fromarray(noise[..., 3])]).save(tmp_path / "d.png")
    assert np.array_equal(read_image(tmp_path / "d.png", Frame(16, 16)), grey)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_strips_of_a_deep_image_have_one_scale(tmp_path, dtype, monkeypatch):
    values = np.linspace(0, 60000, 23 * 10).reshape(23, 10).astype(dtype)  # a strip alone would end below 255
    path = save(tmp_path / "a.tif", values)
    whole = read_image(path, Frame(23, 23))
    monkeypatch.setattr(images, "STRIP", 40)
    assert np.array_equal(read_image(path, Frame(23, 23)), whole) and whole.max() == round(60000 / 257)
    assert np.array_equal(images._shallow_image(Image.open(path)), images.shallow(values))


def test_a_checksum_of_a_png_that_does_not_fit_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((8, 8), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 6] ^= 1  # of the checksum of the pixels
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png .*checksum"):
        read_image(path, Frame(8, 8))


def test_threads_never_decode_more_pixels_at_once_than_there_is_room_for():
    decoding, lock, held, most, alone = images._Decoding(100), threading.Lock(), [], 0, []

    def decode(pixels):
        nonlocal most
        with decoding.room(pixels):
            with lock:
                held.append(pixels)
                most = max(most, sum(held) if pixels <= 100 else 0)
                alone.append(len(held) == 1 or max(held) <= 100)
            time.sleep(0.002)
            with lock:
                held.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40, 40, 40, 300, 70, 30, 300, 100, 10, 10] * 4))
    assert 40 < most <= 100 and all(alone)


@pytest.mark.slow
@pytest.mark.parametrize("mode, most", [("RGB", 1.3), ("RGBA", 1.6), ("I;16", 1.3), ("P", 1.6)])
def test_a_large_image_is_in_memory_once(tmp_path, mode, most):
    """Relative to four bytes a pixel; a copy or a conversion of the whole image would be twice that."""
    side = 6000
    image = Image.new(mode.replace("I;16", "L").replace("RGBA", "RGB"), (side, side), 7)
    image = image.convert("RGBA") if mode == "RGBA" else image
    image = Image.fromarray(np.full((side, side), 9, np.uint16)) if mode == "I;16" else image
    image.save(tmp_path / "a.png", compress_level=1)
    code = f"""
import resource, sys
from pathlib import Path
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_image(Path({str(tmp_path / "small.png")!r}), Frame(64, 64))
before = peak()
read_image(Path({str(tmp_path / "a.png")!r}), Frame(64, 64))
print((peak() - before) * 1024 / {4 * side**2})
"""
    image.resize((64, 64)).save(tmp_path / "small.png")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < most


def test_file_of_another_format_is_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(UserError, match=r"a\.png"):
        read_image(tmp_path / "a.png", Frame(8, 8))


# --- read_mask ---


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_masks_of_0_and_1_and_of_0_and_255_are_the_same_at_any_depth(tmp_path, dtype, high):
    expected = np.random.default_rng(0).random((12, 12)) < 0.5
    path = save(tmp_path / "a.tif", (expected * high).astype(dtype))
    np.testing.assert_array_equal(read_mask(path, Frame(12, 12), 12), expected)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_mode_are_read(tmp_path, mode):
    expected = np.random.default_rng(0).random((12, 12)) < 0.5
    path = save(tmp_path / "a.png", (expected * 255).astype(np.uint8), mode)
    np.testing.assert_array_equal(read_mask(path, Frame(12, 12), 12), expected)


@pytest.mark.parametrize("colour", [(255, 0, 0), (128, 0, 0), (1, 1, 1)])
def test_masks_may_be_coloured_by_a_palette(tmp_path, colour):
    expected = np.random.default_rng(0).random((12, 12)) < 0.5
    image = Image.frombytes("P", (12, 12), expected.astype(np.uint8).tobytes())
    image.putpalette([0, 0, 0, *colour])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", Frame(12, 12), 12), expected)


def test_full_range_16_bit_mask_is_halved_in_the_middle(tmp_path):
    mask = read_mask(save(tmp_path / "a.png", np.array([[0, 30000], [40000, 65535]], dtype=np.uint16)), Frame(2, 2), 2)
    assert mask.tolist() == [[False, False], [True, True]]


def test_mask_stays_binary_when_resized(tmp_path):
    values = np.zeros((90, 60), dtype=np.uint8)
    values[30:60] = 255
    mask = read_mask(save(tmp_path / "a.png", values), Frame(30, 30), 30)
    assert mask.shape == (30, 30) and mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, np.repeat([False, True, False], 10)[:, None].repeat(30, axis=1))


def test_mask_of_a_good_part_is_empty(tmp_path):
    assert not read_mask(save(tmp_path / "a.png", np.zeros((4, 4), dtype=np.uint8)), Frame(4, 4), 4).any()


def test_mask_of_class_numbers_is_refused_not_read_as_empty(tmp_path):
    with pytest.raises(UserError, match="values up to 3"):
        read_mask(save(tmp_path / "a.png", np.array([[0, 3]], dtype=np.uint8)), Frame(4, 4), 4)


# --- load_images ---


def test_images_are_loaded_in_order_as_contiguous_planes(paths):
    loaded = load_images(paths, Frame(6, 6), None, "")
    assert loaded.shape == (5, 3, 6, 6) and loaded.dtype == torch.uint8 and loaded.is_contiguous()
    for path, image in zip(paths, loaded, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), read_image(path, Frame(6, 6)))


def test_nothing_is_printed_without_a_terminal(paths, capfd):
    load_images(paths, Frame(6, 6), None, "Decoding")
    assert capfd.readouterr() == ("", "")


def test_no_images_give_an_empty_tensor(tmp_path):
    assert load_images([], Frame(6, 6), tmp_path, "").shape == (0, 3, 6, 6)


@pytest.mark.parametrize("cached", [False, True])
def test_first_broken_file_is_named_and_all_are_counted(paths, tmp_path, cached):
    paths[3].write_bytes(b"")
    paths[1].write_bytes(b"garbage")
    with pytest.raises(UserError, match=rf"{paths[1].name} .*2 of 5"):
        load_images(paths, Frame(6, 6), tmp_path / "cache" if cached else None, "")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("again", [False, True])
def test_images_beyond_the_bound_of_memory_are_kept_in_a_file_and_it_is_said(
    paths, tmp_path, monkeypatch, caplog, again
):
    caplog.set_level("WARNING")
    monkeypatch.setattr(loading, "MEMORY", 5 * 3 * 6 * 6 - 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    expected = [torch.from_numpy(read_image(path, Frame(6, 6)).copy()).permute(2, 0, 1) for path in paths]
    kept = load_images(paths, Frame(6, 6), None, "")
    assert "5 images of 6 x 6 px" in caplog.text and "data.cache=folder" in caplog.text
    assert torch.equal(kept, torch.stack(expected))  # mapped, but gone from the folder
    assert list((tmp_path / "temporary").iterdir()) == []
    caplog.clear()
    assert torch.equal(load_images(paths, Frame(6, 6), tmp_path / "cache" if again else None, ""), kept)
    assert bool(caplog.text) != again  # a folder of the user's own needs no words


def test_cache_is_written_once_and_read_without_decoding(paths, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    decoded = decode_count(monkeypatch)
    first = load_images(paths, Frame(6, 6), cache, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_images(paths, Frame(6, 6), cache, "")
    assert len(decoded) == len(paths) and len(list(cache.iterdir())) == 1
    assert torch.equal(first, again) and torch.equal(again, load_images(paths, Frame(6, 6), None, ""))
    assert again.is_contiguous()


def test_writing_to_cached_images_does_not_reach_the_cache(paths, tmp_path):
    load_images(paths, Frame(6, 6), tmp_path / "cache", "").zero_()
    assert torch.equal(
        load_images(paths, Frame(6, 6), tmp_path / "cache", ""), load_images(paths, Frame(6, 6), None, "")
    )


@pytest.mark.parametrize("change", ["time", "content", "content at the same time", "size", "order", "fewer"])
def test_cache_is_not_used_for_anything_else(paths, tmp_path, change):
    cache, size = tmp_path / "cache", 6
    load_images(paths, Frame(size, size), cache, "")
    if change == "time":
        os.utime(paths[0], ns=(0, 0))
    elif change.startswith("content"):
        before = paths[0].stat().st_mtime_ns
        save(paths[0], np.zeros((5, 5, 3), dtype=np.uint8))
        if change == "content at the same time":
            os.utime(paths[0], ns=(before, before))
    elif change == "size":
        size = 8
    else:
        paths = paths[::-1] if change == "order" else paths[1:]
    assert torch.equal(
        load_images(paths, Frame(size, size), cache, ""), load_images(paths, Frame(size, size), None, "")
    )
    assert len(list(cache.iterdir())) == 2


def test_relative_and_absolute_paths_share_the_cache(paths, tmp_path, monkeypatch):
    load_images(paths, Frame(6, 6), tmp_path / "cache", "")
    monkeypatch.chdir(tmp_path)
    load_images([Path(path.name) for path in paths], Frame(6, 6), tmp_path / "cache", "")
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "text", "header", "shape"])
def test_damaged_cache_is_rebuilt(paths, tmp_path, damage):
    cache = tmp_path / "cache"
    load_images(paths, Frame(6, 6), cache, "")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "shape":
        np.save(file, np.zeros((5, 6, 6, 3), dtype=np.uint8))
    else:
        damaged = {"truncated": whole[:-9], "empty": b"", "longer": whole + b"\0", "text": b"?" * len(whole)}
        file.write_bytes(damaged.get(damage, whole[:10] + b"(" * 50 + whole[60:]))
    assert torch.equal(load_images(paths, Frame(6, 6), cache, ""), load_images(paths, Frame(6, 6), None, ""))
    assert file.read_bytes() == whole and list(cache.iterdir()) == [file]


@pytest.mark.parametrize("place", [0, 70, 130, 300, -5, -1])  # magic number, shape, padding, pixels, checksum
def test_one_flipped_bit_in_the_cache_is_found(paths, tmp_path, caplog, place):
    caplog.set_level("WARNING")
    cache = tmp_path / "cache"
    load_images(paths, Frame(6, 6), cache, "")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 16
    file.write_bytes(bytes(damaged))
    assert torch.equal(load_images(paths, Frame(6, 6), cache, ""), load_images(paths, Frame(6, 6), None, ""))
    assert "is damaged: its images are decoded again" in caplog.text and str(file) in caplog.text
    assert file.read_bytes() == whole and list(cache.iterdir()) == [file]
    caplog.clear()
    load_images(paths, Frame(6, 6), cache, "")
    assert not caplog.text


def test_cache_that_cannot_be_written_is_named(paths, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the image cache"):
        load_images(paths, Frame(6, 6), tmp_path / "cache", "")


def test_failed_write_leaves_nothing_in_the_cache(paths, tmp_path, monkeypatch):
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        load_images(paths, Frame(6, 6), tmp_path / "cache", "")
    assert list((tmp_path / "cache").iterdir()) == []


def test_many_processes_can_share_one_cache_at_the_same_time(paths, tmp_path):
    cache, processes, rounds = tmp_path / "cache", 4, 5
    context = multiprocessing.get_context("fork")  # spawned ones would import torch for seconds
    barrier, results = context.Barrier(processes), context.Queue()
    expected = [load_images(paths, Frame(size, size), None, "").numpy() for size in range(4, 4 + rounds)]

    def work() -> None:
        equal = []
        for round_ in range(rounds):
            barrier.wait(30)
            equal.append(
                np.array_equal(load_images(paths, Frame(4 + round_, 4 + round_), cache, "").numpy(), expected[round_])
            )
        results.put(equal)

    workers = [context.Process(target=work, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    assert all(all(results.get(timeout=30)) for _ in workers)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert len(list(cache.iterdir())) == rounds
