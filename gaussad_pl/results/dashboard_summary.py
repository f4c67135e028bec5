"""Numbers, settings and tags by which W&B sorts, filters and compares runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST_TAG = 64  # characters that W&B accepts


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a run from the content of metrics.json, without the metrics themselves.

    It has the forgetting signals of the epoch of the final model, where W&B would show those of the last epoch; the
    operating points, as shares; image counts; and time and memory. What is not known is left out.
    """
    found: dict[str, Any] = {}
    if forgetting := results.get("forgetting"):
        used = forgetting["fine_tuning_used"]
        epoch = forgetting["epoch_chosen"] if used else 0
        records = [record for record in forgetting["history"] if record["epoch"] == epoch]
        found |= {f"forgetting/{key}": value for record in records for key, value in record.items() if key != "epoch"}
        found |= {"fine_tuning_used": used, "epoch_used": epoch}
    for rate, point in results["operating_points"].items():
        for count, total in (("bad_found", "bad"), ("good_lost", "good")):
            if point[count] is not None and point[total]:
                found[f"operating_points/{rate}/{count}"] = point[count] / point[total]
        found[f"operating_points/{rate}/threshold"] = point["threshold"]
        found[f"operating_points/{rate}/contradicted"] = point["contradicted"]
    found |= {f"images/{name}": count for name, count in results["images"].items()}
    found |= {f"cost/{name}": value for name, value in results["cost"].items()}
    return {name: value for name, value in found.items() if value is not None}


def origin(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the W&B configuration says of the origin of a run: versions, commit, and hashes of its inputs."""
    return {
        "versions": dict(results["versions"]),
        "git": dict(results["git"]),
        "data_sha256": results["data_sha256"],
        "weights_sha256": results["backbone"]["weights_sha256"],
    }


def tags(results: Mapping[str, Any]) -> list[str]:
    """Return the tags of a run: its dataset, its backbone, and which state of the model is the final one."""
    forgetting = results.get("forgetting")
    state = "fine-tuned" if forgetting and forgetting["fine_tuning_used"] else "frozen"
    return [tag[:LONGEST_TAG] for tag in (results["dataset"], results["backbone"]["name"], state)]
