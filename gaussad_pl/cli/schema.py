"""The schema of the training configuration, as pydantic models.

Names, types and defaults of settings come from the signatures of the constructors; `LIMITS` adds their ranges. Settings
of other packages' classes and of the user's own are only checked for names that their signatures do not have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from pydantic import AfterValidator as After
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, WrapValidator, create_model
from pydantic_core import PydanticCustomError
from torch.optim import Optimizer

from gaussad_pl.augment import VICINAL, Nuisance
from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.tiling import tile_counts
from gaussad_pl.data.demo import Demo
from gaussad_pl.data.folder import Folder
from gaussad_pl.data.mvtec import MVTec
from gaussad_pl.data.visa import VisA
from gaussad_pl.density.cluster import MAX_CLUSTERS
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.model.segmenter import Segmenter
from gaussad_pl.training.averaging import AverageWeights
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.levels import top_k
from gaussad_pl.training.module import GaussianAD
from gaussad_pl.training.ranking import Ranking

OURS = (MVTec, VisA, Folder, Demo, GaussianAD, AverageWeights, ForgettingStop, Ranking, top_k)
NESTED = {"nuisance": Nuisance, "backbone": Backbone, "segmentation": Segmenter}  # groups without a _target_
NOT_SET = {
    Segmenter: ("levels", "roi"),
    Backbone: ("roi", "tiles"),
    GaussianAD: ("roi",),
    top_k: ("signals",),
}  # arguments that are not settings
STRICT = ConfigDict(strict=True, extra="forbid")
OPEN = ConfigDict(strict=True, extra="allow")


def _mistake(expected: str) -> PydanticCustomError:
    return PydanticCustomError("mistake", "{text}", {"text": expected})


def _expected(text: str) -> WrapValidator:
    """Report ``text`` for any error, instead of one error for each member of a union."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise _mistake(text) from None

    return WrapValidator(check)


def _must(fits: Callable[[Any], bool], text: str) -> After:
    """Report ``text`` for values that are not None and do not satisfy ``fits``."""

    def check(value: Any) -> Any:
        if value is not None and not fits(value):
            raise _mistake(text)
        return value

    return After(check)


def _below_folds(fold: int, info: ValidationInfo) -> int:
    folds = info.data.get("folds", fold + 1)  # an invalid value of folds is reported on its own
    if fold >= max(folds, 1):
        raise _mistake(f"less than folds={folds}" if folds else "0 with folds=0")
    return fold


def _are_tiles(value: int | str) -> bool:
    try:
        return bool(tile_counts(value))
    except ValueError:
        return False


WEIGHTS = ("auto", "bundled", "hub", "random")
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[str, _must(VICINAL.__contains__, f"augmentations among {', '.join(sorted(VICINAL))}")]
LIMITS: dict[str, Any] = {
    "seed": Seed,
    "image_size": Annotated[int, Field(ge=32)],  # in smaller images, deep levels have no pixels to average
    "folds": Annotated[int, Field(ge=0), _must(lambda value: value != 1, "0, or 2 or more")],
    "fold": Annotated[int, Field(ge=0), After(_below_folds)],
    **dict.fromkeys(("augmentations", "damages"), dict[Names, Annotated[float, Field(gt=0, le=1)]]),
    **dict.fromkeys(("photometric", "scale", "decay"), Fraction),
    "shift": Share,
    "rotate": Annotated[float, Field(ge=0, le=180)],
    **dict.fromkeys(("light_copies", "moved_copies", "warmup_steps"), Count),
    **dict.fromkeys(("batch_size", "eval_batch_size", "patience", "k"), Positive),
    "steps_per_epoch": Positive | None,
    "tiles": Annotated[
        int | str, _must(_are_tiles, "rows x columns of tiles, as in 2x3, or one number for both, at least 1")
    ],
    "roi": Annotated[str | None, _must(lambda value: Path(value).is_file(), "the file of a mask")],
    "holdout": Annotated[float, Field(gt=0, lt=1)],
    "weights": Annotated[
        str, _must(lambda value: value in WEIGHTS or Path(value).is_file(), f"{', '.join(WEIGHTS)} or a file")
    ],
    "shrinkage": Annotated[
        Literal["ledoit_wolf", "oas", "none"] | Share, _expected("ledoit_wolf, oas, none or a number from 0 to 1")
    ],
    "form": Annotated[str, _must(lambda value: value in ("auto", *DENSITIES), f"auto, {', '.join(DENSITIES)}")],
    "map_levels": Annotated[Literal["auto", "middle"] | list[int], _expected("auto, middle or a list of levels")],
    "clusters": Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_CLUSTERS)],
        _expected(f"auto or a whole number from 1 to {MAX_CLUSTERS}"),
    ],
    "levels": list[int] | None,
    "train_levels": Annotated[Literal["auto"] | list[int] | None, _expected("auto, null or a list of levels")],
    "damage_weight": Annotated[float | None, Field(gt=0, allow_inf_nan=False)],
    **dict.fromkeys(("pooled", "distillation"), Annotated[float, Field(ge=0, allow_inf_nan=False)]),
    **dict.fromkeys(("level_rule", "objective", "optimizer"), dict[str, Any]),  # checked against their own targets
}
Precision = Annotated[
    Literal["32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16],
    _expected("32-true, 16-mixed or bf16-mixed; the Gaussian needs 32-bit weights"),
]
Epochs = _must(lambda value: value > 0 or value == -1, "1 or more, or -1 for no limit; fine_tune=false skips training")
OTHERS: dict[type, type[BaseModel]] = {
    L.Trainer: create_model(
        "Trainer",
        __config__=OPEN,
        max_epochs=(Annotated[int | None, Epochs], None),
        precision=(Precision, 32),
    ),
    Optimizer: create_model(
        "Optimizer",
        __config__=OPEN,
        lr=(Annotated[float, Field(gt=0, allow_inf_nan=False)], 1),
        betas=(list[Fraction], []),
        weight_decay=(Annotated[float, Field(ge=0, allow_inf_nan=False)], 0),
    ),
}
RUN = create_model(
    "Run",
    __config__=OPEN,  # users may add their own keys
    seed=Seed,
    callbacks=create_model("Callbacks", __config__=OPEN, forgetting=dict[str, Any]),
    **dict.fromkeys(("fine_tune", "cross_conformal", "resume"), bool),
    **dict.fromkeys(("data", "model", "trainer"), dict[str, Any]),
    logger=(dict[str, Any] | None, None),
)  # type: ignore[call-overload]


@cache
def schema(target: Any) -> type[BaseModel]:
    """Return the settings of one of our classes or functions, including those it passes on to its base class."""
    fields: dict[str, Any] = {}
    for each in target.__mro__ if isinstance(target, type) else [target]:
        parameters = inspect.signature(each, eval_str=True).parameters.values()
        for p in parameters:
            if p.kind is not p.VAR_KEYWORD and p.name not in (*NOT_SET.get(target, ()), *fields):
                kind = schema(NESTED[p.name]) if p.name in NESTED else LIMITS.get(p.name, p.annotation)
                kind = kind | None if p.default is None and kind is not Any else kind
                fields[p.name] = (kind, ... if p.default is p.empty else p.default)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return create_model(target.__name__, __config__=STRICT, **fields)


def model_of(target: object) -> type[BaseModel] | None:
    """Return the settings of a class or function that have limits; None for a class or function without limits."""
    bases = target.__mro__ if isinstance(target, type) else ()
    return schema(target) if target in OURS else next((OTHERS[base] for base in bases if base in OTHERS), None)


def arguments(target: Any) -> set[str] | None:
    """Return the argument names of a class or function; None if it accepts any name, or has no signature."""
    if target in OURS:
        return set(schema(target).model_fields)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}
