"""Wall time and peak memory of a run."""

from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


def cost(fit_seconds: float, total_seconds: float) -> dict[str, float | int | None]:
    """Return the entry ``cost`` of metrics.json.

    Args:
        fit_seconds: wall time of fitting, fine-tuning and testing the detector.
        total_seconds: the same with the calibration; both are of the last process of a resumed run.
    """
    cuda = torch.cuda.is_available()
    return {
        "fit_seconds": fit_seconds,
        "total_seconds": total_seconds,
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def peak_memory() -> int | None:
    """Return the largest resident memory of this process so far, in bytes; None where the system does not tell.

    Jobs of a sweep that share a process share the peak.
    """
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
