"""Flags: reasons to doubt or double-check the results of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gaussad_pl.reporting.operating import rate_text
from gaussad_pl.reporting.runs import Run
from gaussad_pl.reporting.study import Study

NO_REASON = "no metrics.json and no error.txt"
WATCHED = {"image_auroc": "image AUROC", "aupro": "AUPRO"}  # metrics that fine-tuning should not lower


@dataclass(frozen=True)
class Flag:
    """One kind of problem and the places where it occurs."""

    kind: str
    meaning: str
    items: list[str] = field(default_factory=list)


def find_flags(study: Study) -> list[Flag]:
    """Return the flags that apply to a study, the most serious first."""
    checks: list[Callable[[Study], Flag]] = [
        unfinished, missing, contradicted, below_frozen, never_moved, one_class, unequal_tests, missing_masks, uneven,
        repeated, mixed_versions, mixed_weights, no_spread,
    ]  # fmt: skip
    return [flag for flag in (check(study) for check in checks) if flag.items]


def unfinished(study: Study) -> Flag:
    """Flag runs without results."""
    items = []
    for job in study.unfinished:
        setting = study.setting_of.get(job.folder)
        place = f"{job.category} × {setting}, seed {job.seed}, fold {job.fold}: " if setting else ""
        items.append(f"{place}{job.reason or NO_REASON}, in {job.name}")
    return Flag("Unfinished runs", "They failed, were killed or are still running, and contribute no numbers.", items)


def missing(study: Study) -> Flag:
    """Flag combinations of category and setting without a finished run."""
    items = [f"{category} × {setting}" for (category, setting), runs in study.cells.items() if not runs]
    return Flag("Missing combinations", "No finished run; mean rows exclude these categories.", items)


def contradicted(study: Study) -> Flag:
    """Flag runs with significantly more false alarms on good test images than a target allows."""
    items = []
    for run in study.runs:
        broken = [
            f"{point.lost} of {point.good} good images lost at {rate_text(rate)} (p = {point.p_value:.2g})"
            for rate, point in run.points.items()
            if point.contradicted
        ]
        if broken:
            items.append(f"{_where(study, run)}: {', '.join(broken)}")
    meaning = (
        "The good test images differ from the calibration images, or several of them show the same part: the rates of "
        "these runs do not hold."
    )
    return Flag("Contradicted false-alarm rates", meaning, items)


def below_frozen(study: Study) -> Flag:
    """Flag runs whose test metrics are lower after fine-tuning."""
    items = []
    for run in study.runs:
        losses = {
            title: run.finetuned[key] - run.frozen[key]
            for key, title in WATCHED.items()
            if run.finetuned is not None and key in run.finetuned and key in run.frozen
        }
        lost = [f"{title} −{-100 * loss:.1f}" for title, loss in losses.items() if round(100 * loss, 1) < 0]
        if lost:
            items.append(f"{_where(study, run)}: {', '.join(lost)} points")
    return Flag("Fine-tuned below frozen", "The validation chose an epoch that scores lower on the test set.", items)


def never_moved(study: Study) -> Flag:
    """Flag runs whose forgetting signal is constant."""
    items = [
        f"{_where(study, run)}: {run.forgetting.signal} over {max(len(run.forgetting.values) - 1, 0)} epochs"
        for run in study.runs
        if run.forgetting is not None and not run.forgetting.moved
    ]
    return Flag("The signal never changed", "All epochs have the same signal, so choosing one is meaningless.", items)


def one_class(study: Study) -> Flag:
    """Flag runs whose test set lacks good or bad images."""
    items = [
        f"{_where(study, run)}: {run.images.get('test_good', 0)} good, {run.images.get('test_bad', 0)} bad test images"
        for run in study.runs
        if not (run.images.get("test_good") and run.images.get("test_bad")) or "image_auroc" not in run.final
    ]
    return Flag("Runs without both classes", "They have no AUROC and are excluded from all means.", items)


def unequal_tests(study: Study) -> Flag:
    """Flag categories whose runs were tested on different images."""
    items = []
    for category in study.categories:
        runs = [run for run in study.runs if run.category == category]
        changed = len({run.data_sha256 for run in runs} - {""}) > 1
        counts = _groups(study, ((_test_set(run, changed), run) for run in runs))
        if len(counts) > 1:
            items.append(f"{category}: {_listed(counts)}")
    return Flag("Different test sets of one category", "Their numbers are not comparable.", items)


def _test_set(run: Run, changed: bool) -> str:
    """Describe a test set by its size, and by its fingerprint if the data ``changed`` between runs."""
    size = f"{run.images.get('test_good')} good + {run.images.get('test_bad')} bad"
    return f"{size} of data {run.data_sha256[:8] or 'not recorded'}" if changed else size


def missing_masks(study: Study) -> Flag:
    """Flag runs with bad test images that have no mask."""
    items = [f"{_where(study, run)}: {run.masks_missing} bad images" for run in study.runs if run.masks_missing]
    return Flag("Masks missing", "Pixel metrics exclude these images.", items)


def uneven(study: Study) -> Flag:
    """Flag cells that lack seeds or folds that other cells have."""
    pairs = {place: {(run.seed, run.fold) for run in runs} for place, runs in study.cells.items() if runs}
    all_pairs = set().union(*pairs.values()) if pairs else set()
    items = []
    for (category, setting), present in pairs.items():
        absent = [f"seed {seed} fold {fold}" for seed, fold in sorted(all_pairs - present)]
        if absent:
            items.append(f"{category} × {setting}: no {', '.join(absent)}")
    return Flag("Uneven seeds or folds", "Cells are means over different sets of runs.", items)


def repeated(study: Study) -> Flag:
    """Flag runs that were superseded by a later run of the same combination."""
    items = [_where(study, run) for run in study.repeated]
    return Flag(
        "Repeated runs",
        "A later run has the same category, setting, seed and fold; only the later one counts.",
        items,
    )


def mixed_versions(study: Study) -> Flag:
    """Flag packages whose versions differ between runs, and different commits of the code."""
    packages = sorted({name for run in study.runs for name in run.versions})
    items = []
    for package in packages:
        groups = _groups(study, ((run.versions.get(package, "not recorded"), run) for run in study.runs))
        if len(groups) > 1:
            items.append(f"{package}: {_listed(groups)}")
    commits = _groups(study, ((run.commit or "not recorded", run) for run in study.runs))
    if len(commits) > 1:
        items.append(f"git commit: {_listed(commits)}")
    return Flag("Mixed versions", "Differences between runs may be due to the software.", items)


def mixed_weights(study: Study) -> Flag:
    """Flag backbones whose pretrained weights differ between runs."""
    items = []
    for backbone in sorted({run.backbone for run in study.runs}):
        runs = [run for run in study.runs if run.backbone == backbone]
        groups = _groups(study, zip(_weights(runs), runs, strict=True))
        if len(groups) > 1:
            items.append(f"{backbone}: {_listed(groups)}")
    return Flag("Mixed sources of weights", "The same backbone with different weights, or other sources.", items)


def _weights(runs: Sequence[Run]) -> list[str]:
    """Describe the weights of each run, with equal text for equal weights.

    Weights are equal if their fingerprints are, whatever their source. A run without a fingerprint is assumed to have
    the weights of a run with the same source. Different files of the same name are distinguished by fingerprint.
    """
    known = {run.weights: run.weights_sha256 for run in runs if run.weights_sha256}
    digests = [run.weights_sha256 or known.get(run.weights, "") for run in runs]
    first: dict[str, str] = {}
    for run, digest in zip(runs, digests, strict=True):
        first.setdefault(digest or run.weights, run.weights)
    texts = []
    for run, digest in zip(runs, digests, strict=True):
        text = first[digest or run.weights]
        shared = list(first.values()).count(text) > 1
        texts.append(f"{text}, sha256 {digest[:8]}" if shared and digest else text)
    return texts


def no_spread(study: Study) -> Flag:
    """Flag cells with a single run."""
    single = [f"{category} × {setting}" for (category, setting), runs in study.cells.items() if len(runs) == 1]
    return Flag("One run only", "The spread over seeds and folds is unknown, so no standard error is given.", single)


def _where(study: Study, run: Run) -> str:
    setting = study.setting_of[run.folder]
    return f"{study.labels[run.folder]} ({run.category} × {setting}, seed {run.seed}, fold {run.fold})"


def _groups(study: Study, values: Iterable[tuple[str, Run]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for value, run in values:
        groups.setdefault(value, []).append(study.labels[run.folder])
    return groups


def _listed(groups: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{value} ({_abridged(labels)})" for value, labels in groups.items())


def _abridged(labels: list[str], most: int = 6) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more
