"""Models of anomalib on the weights that gaussad_pl uses, fitted with the steps of anomalib's Lightning modules.

CFA, FastFlow and Reverse Distillation are missing: the backbones they accept are a list without EfficientNet-lite.
So is SuperSimpleNet: a step of its training takes six seconds on one core, and anomalib recommends 300 epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from benchmarks.coreset import fast_coreset
from gaussad_pl.backbones.backbone import Backbone

BACKBONE = "tf_efficientnet_lite0"
SIZE = (224, 224)
# stage in timm: (level in gaussad_pl, stride)
STAGES = {"blocks.1": (2, 4), "blocks.2": (3, 8), "blocks.4": (5, 16), "blocks.6": (7, 32)}
MIDDLE = ["blocks.2", "blocks.4"]  # those of gaussad_pl's maps
THREE = ["blocks.1", "blocks.2", "blocks.4"]
CORESET = 0.1
BATCH = 32
TRAIN_BATCH = 16
STEPS = {"stfpm": 60, "patchflow": 150}  # of gradient descent: minutes on one core, far fewer than by default


def padim() -> Any:
    from anomalib.models.image.padim.torch_model import PadimModel

    return PadimModel(backbone=BACKBONE, layers=THREE, n_features=100)


def patchcore() -> Any:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    return PatchcoreModel(backbone=BACKBONE, layers=MIDDLE, num_neighbors=9)


def mh_patchcore() -> Any:
    from anomalib.models.image.mh_patchcore.torch_model import MHPatchcoreModel

    return MHPatchcoreModel(backbone=BACKBONE, layers=MIDDLE)


def dfm() -> Any:
    from anomalib.models.image.dfm.torch_model import DFMModel

    return DFMModel(backbone=BACKBONE, layer="blocks.4")


def dfkde() -> Any:
    from anomalib.models.image.dfkde.torch_model import DfkdeModel

    return DfkdeModel(backbone=BACKBONE, layers=["blocks.6"])


def stfpm() -> Any:
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    return STFPMModel(backbone=BACKBONE, layers=THREE)


def patchflow() -> Any:
    from anomalib.models.image.patchflow.torch_model import PatchflowModel

    return PatchflowModel(input_size=SIZE, backbone=BACKBONE)


def fit_memory(model: Any, images: Tensor) -> None:
    """Show the images once, and fit the density to what the model has kept of them."""
    for batch in images.split(BATCH):
        model(normalised(batch))
    model.fit()


def fit_coreset(model: Any, images: Tensor) -> None:
    """Show the images once, and keep a coreset of their patches."""
    for batch in images.split(BATCH):
        model(normalised(batch))
    model.subsample_embedding(CORESET)


def fit_stages(model: Any, images: Tensor) -> None:
    """Show the images three times: for the principal components, their covariance, and the coreset."""
    stages = (
        (model.pca, lambda patches: patches),
        (model.covariance, model.pca),
        (model.memory_bank, lambda patches: model.covariance(model.pca(patches))),
    )
    for stage, before in stages:
        for batch in images.split(BATCH):
            stage.update(before(model(normalised(batch))))
        stage.finalize()


def fit_student(model: Any, images: Tensor) -> None:
    from anomalib.models.image.stfpm.loss import STFPMLoss

    loss = STFPMLoss()
    sgd = torch.optim.SGD(model.student_model.parameters(), lr=0.4, momentum=0.9, weight_decay=0.001)
    _train(images, STEPS["stfpm"], sgd, lambda batch: loss(*model(batch)))


def fit_flow(model: Any, images: Tensor) -> None:
    from anomalib.models.image.patchflow.loss import PatchflowLoss

    loss = PatchflowLoss()
    adam = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3, weight_decay=1e-4)
    _train(images, STEPS["patchflow"], adam, lambda batch: loss(*model(batch)))


def _train(images: Tensor, steps: int, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor], Tensor]) -> None:
    """Take some steps on random batches; no image comes again before all others have."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < TRAIN_BATCH:
            order = torch.cat([order, torch.randperm(len(images))])
        batch, order = order[:TRAIN_BATCH], order[TRAIN_BATCH:]
        optimizer.zero_grad()
        loss(normalised(images[batch])).backward()
        optimizer.step()


@dataclass(frozen=True)
class Peer:
    """A model of anomalib.

    Attributes:
        build: makes the torch model, with pretrained weights.
        fit: fits it to uint8 images ``(N, 3, H, W)``, in training mode.
        extractor: attribute path of its frozen feature extractor.
    """

    build: Callable[[], Any]
    fit: Callable[[Any, Tensor], None]
    extractor: str = "feature_extractor"


PEERS = {
    "padim": Peer(padim, fit_memory),
    "patchcore": Peer(patchcore, fit_coreset),
    "mh_patchcore": Peer(mh_patchcore, fit_stages),
    "dfm": Peer(dfm, fit_memory),
    "dfkde": Peer(dfkde, fit_memory),
    "stfpm": Peer(stfpm, fit_student, "teacher_model"),
    "patchflow": Peer(patchflow, fit_flow),
}


def build(method: str, coreset: str | None) -> Any:
    """Build a model with the weights that gaussad_pl uses, in training mode."""
    import anomalib.models.components.feature_extractors.timm as extractors
    from anomalib.models.components.sampling import k_center_greedy

    if coreset == "fast":
        k_center_greedy.KCenterGreedy.select_coreset_idxs = fast_coreset
    peer = PEERS[method]
    with mock.patch.object(extractors, "timm", SimpleNamespace(create_model=_create_model)):
        model = peer.build()
    _check_features(model.get_submodule(peer.extractor))
    return model.train()


def _create_model(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    """Replace ``timm.create_model``: pretrained weights are the bundled ones, and no network is used."""
    model = timm.create_model(name, pretrained=False, **settings)
    if pretrained:
        source = Backbone(BACKBONE, "bundled", [max(level for level, _ in STAGES.values())]).model.state_dict()
        model.load_state_dict({key: source[key] for key in model.state_dict()})
    return model


@torch.no_grad()
def _check_features(extractor: Any) -> None:
    """Check that the feature maps of anomalib's extractor agree with gaussad_pl's."""
    images = torch.randint(256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs: Sequence[Tensor] = list(extractor(normalised(images)).values())
    for features, stride in zip(theirs, extractor.reductions, strict=True):
        level = next(level for level, of in STAGES.values() if of == stride)
        (expected,) = Backbone(BACKBONE, "bundled", [level])(images)
        assert features.shape[-1] == SIZE[1] // stride
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def normalised(images: Tensor) -> Tensor:
    """Normalise uint8 ``images`` ``(N, 3, H, W)`` as gaussad_pl's backbone does."""
    return (images / 255 - 0.5) / 0.5
