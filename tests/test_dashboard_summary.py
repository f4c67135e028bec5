"""The values by which W&B sorts, filters and compares runs."""

from __future__ import annotations

from typing import Any

from gaussad_pl.results.dashboard_summary import origin, summary, tags


def results(used: bool) -> dict[str, Any]:
    """The part of metrics.json that the summary reads."""
    point = {"threshold": 1.5, "bad_found": 3, "bad": 4, "good_lost": 1, "good": 5, "contradicted": False}
    none = {"threshold": None, "bad_found": None, "bad": 4, "good_lost": None, "good": 5, "contradicted": None}
    history = [{"epoch": epoch, "paired": 0.5 + epoch, "auroc": 0.7 + epoch} for epoch in range(3)]
    return {
        "dataset": "x" * 100,
        "backbone": {"name": "resnet18", "weights_sha256": "ab"},
        "forgetting": {"epoch_chosen": 1, "fine_tuning_used": used, "history": history},
        "operating_points": {"0.01": none, "0.05": point},
        "images": {"train": 19, "test_bad": 4},
        "cost": {"fit_seconds": 2.5, "peak_gpu_memory_bytes": None},
        "versions": {"torch": "2"},
        "git": {"commit": "4e0c", "clean": True},
        "data_sha256": "cd",
    }


def test_the_summary_is_that_of_the_epoch_used() -> None:
    found = summary(results(used=True))
    assert (found["forgetting/paired"], found["forgetting/auroc"], found["epoch_used"]) == (1.5, 1.7, 1)
    found = summary(results(used=False))
    assert (found["forgetting/paired"], found["epoch_used"], found["fine_tuning_used"]) == (0.5, 0, False)


def test_the_summary_has_operating_points_counts_and_cost_and_leaves_out_what_is_not_known() -> None:
    found = summary(results(used=True))
    assert (found["operating_points/0.05/bad_found"], found["operating_points/0.05/good_lost"]) == (0.75, 0.2)
    assert found["operating_points/0.05/contradicted"] is False and found["operating_points/0.05/threshold"] == 1.5
    assert (found["images/train"], found["cost/fit_seconds"]) == (19, 2.5)
    assert not [name for name in found if name.startswith("operating_points/0.01") or "gpu" in name]


def test_tags_fit_w_and_b_and_the_configuration_names_the_origin() -> None:
    assert tags(results(used=True)) == ["x" * 64, "resnet18", "fine-tuned"]
    assert tags(results(used=False))[-1] == "frozen"
    assert origin(results(used=True))["git"] == {"commit": "4e0c", "clean": True}
