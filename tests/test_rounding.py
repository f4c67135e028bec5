"""Whiteners of few bits: what rounding costs, and what it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gaussad_pl.density import damage as damage_module
from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.damage import Damage
from gaussad_pl.density.onnx import CodedWhiteners
from gaussad_pl.density.position import PositionGaussians
from gaussad_pl.density.rounding import codes, decoded, is_rounded, rounded
from gaussad_pl.density.union import UnionGaussians
from gaussad_pl.errors import UserError
from gaussad_pl.inference.artefact import read_artefact, write_artefact

FEATURES = 12
RANDOM = torch.Generator().manual_seed(0)
WHITENERS = torch.randn(7, 4, FEATURES, generator=RANDOM) * 10.0 ** torch.arange(-3, 4)[:, None, None]
WHITENERS = WHITENERS.tril(FEATURES - 4)
SPREAD = 2.0 ** torch.arange(-6, 6)
WHITENERS = WHITENERS / SPREAD
Y = SPREAD * torch.randn(7, 5, FEATURES, generator=RANDOM)


def union() -> UnionGaussians:
    found = UnionGaussians.build(torch.zeros(9, 2), features=FEATURES, clusters=3, seed=0)
    found.damage = Damage(torch.eye(FEATURES).double(), 0.3)
    found.observe(torch.randn(20, 9, FEATURES, generator=torch.Generator().manual_seed(1)))
    found.estimate()
    return found


def test_rounding_keeps_distances_within_one_percent_and_rounds_once() -> None:
    whitener = torch.randn(3, 64, 152, generator=RANDOM)
    whitener, spread = whitener / 2.0 ** torch.arange(-76, 76).div(4), 2.0 ** torch.arange(-76, 76).div(4).round()
    found = rounded(whitener, spread)
    assert is_rounded(found, spread) and not is_rounded(whitener, spread)
    y = spread * torch.randn(3, 500, 152, generator=RANDOM)
    near, exact = (torch.linalg.vector_norm(y @ w.mT, dim=-1) for w in (found, whitener))
    torch.testing.assert_close(near, exact, rtol=0.01, atol=0)


def test_integers_and_exponents_are_all_there_is_to_know() -> None:
    integers, exponents = codes(rounded(WHITENERS, SPREAD), SPREAD)
    assert integers.dtype == exponents.dtype == torch.int8 and integers.abs().max() <= 63
    assert torch.equal(decoded(integers, exponents, SPREAD), rounded(WHITENERS, SPREAD))
    assert torch.equal(decoded(*codes(torch.zeros(2, 3, 12), SPREAD), SPREAD), torch.zeros(2, 3, 12))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_products_of_integers_give_the_distances_of_floats(scale: float) -> None:
    whitener = rounded(WHITENERS, SPREAD)
    expected = torch.linalg.vector_norm(scale * Y @ whitener.mT, dim=-1)
    torch.testing.assert_close(CodedWhiteners(whitener, SPREAD)(scale * Y), expected, rtol=1e-4, atol=0)
    assert torch.equal(CodedWhiteners(whitener, SPREAD)(0 * Y), torch.zeros(7, 5))


def test_whiteners_that_are_not_rounded_cannot_be_exported() -> None:
    with pytest.raises(UserError, match="older gaussad_pl.*train it again"):
        CodedWhiteners(WHITENERS, SPREAD)


def test_a_file_takes_a_byte_for_each_number_below_the_diagonal_and_gives_back_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage_module, "RANK", 5)
    density = union()
    state = density.state_dict()
    assert state["position.whitener"].shape == (9, 5, FEATURES)
    write_artefact(tmp_path / "a.safetensors", {}, state)
    stored = load_file(tmp_path / "a.safetensors")
    assert sum(t.nbytes for name, t in stored.items() if "position.whitener" in name) == 9 * (5 * FEATURES - 10 + 5)
    _, found = read_artefact(tmp_path / "a.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    fresh = UnionGaussians.build(torch.zeros(9, 2), features=FEATURES, clusters=3, seed=0)
    fresh.load_state_dict(found)  # takes the number of rows from the state
    patches = torch.randn(2, 9, FEATURES, generator=RANDOM)
    assert torch.equal(fresh(patches), density(patches))


def test_a_file_of_dense_whiteners_still_gives_their_distances(tmp_path: Path) -> None:
    whitener = torch.randn(4, FEATURES, FEATURES, generator=RANDOM).tril()
    state = {"mean": torch.zeros(4, FEATURES), "whitener": whitener}
    write_artefact(tmp_path / "a.safetensors", {}, state)
    assert "whitener.triangle" in load_file(tmp_path / "a.safetensors")
    density = PositionGaussians(4, FEATURES)
    density.load_state_dict(read_artefact(tmp_path / "a.safetensors")[1])
    x = torch.randn(1, 4, FEATURES, generator=RANDOM)
    expected = torch.linalg.vector_norm((x[0][:, None] @ whitener.mT)[:, 0], dim=-1)
    torch.testing.assert_close(density(x)[0], expected)


def test_a_density_that_follows_another_one_takes_its_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage_module, "RANK", 5)
    for form in (PositionGaussians(9, FEATURES), ClusterGaussians(3, FEATURES, 0, partitions=2)):
        for damage, rows in ((None, FEATURES), (Damage(torch.eye(FEATURES).double(), 0.3), 5), (None, FEATURES)):
            form.damage = damage
            form.observe(torch.randn(20, 9, FEATURES, generator=RANDOM))
            form.estimate()
            assert form.whitener.shape[1:] == (rows, FEATURES) and is_rounded(form.whitener, form.spread)
