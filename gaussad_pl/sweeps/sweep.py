"""What a job of a sweep does beyond a single run: it keeps to its share, and its error does not end the sweep."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gaussad_pl.errors import UserError
from gaussad_pl.sweeps.share import take_share

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of the processes of one job; schedulers start it again


@dataclass(frozen=True)
class Failure:
    """What a failed job returns instead of its result, also from another process."""

    folder: str
    message: str


def attempt(
    task: Callable[[DictConfig], float | None],
    config: DictConfig,
    launch: str,
    describe: Callable[[BaseException], str],
) -> float | Failure | None:
    """Run one job of a sweep; an error ends in its `error.txt`, and the other jobs go on.

    A scheduler may start a job again that was killed or whose process died. It then continues, but not for ever.

    Args:
        launch: name of this start of the sweep.
        describe: an error in one line.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    error_file, begun = folder / "error.txt", folder / ".begun"
    with _alone(folder):
        error_file.unlink(missing_ok=True)
        deaths = _deaths(begun, launch)
        begun.write_text(f"{launch} {(deaths or 0) + 1}")  # stays if this process dies
        result: float | Failure | None
        try:
            if deaths is not None:
                config.resume = True
            if deaths == MAX_DEATHS:
                raise UserError(f"the process of this job died {deaths} times: is the memory enough for it?")
            refuse_ddp(config)
            take_share(hydra.launcher, hydra.job.num)
            result = task(config)
        except Exception as error:
            line = describe(error)
            bug = not any(isinstance(each, UserError) for each in (error, error.__cause__))
            error_file.write_text(f"error: {line}\n" + (f"\n{traceback.format_exc()}" if bug else ""))
            log.error("%s failed: %s", folder.name, line)
            result = Failure(str(folder), line)
        begun.write_text(f"{launch} 0")
    return result


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for a job that outlived its killed sweep."""
    lock = FileLock(folder / ".lock", is_singleton=True)  # the run takes it, too
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for the process that works there", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _deaths(begun: Path, launch: str) -> int | None:
    """How many processes of this start of the sweep died at this job; None: it has not begun the job yet."""
    name, _, number = begun.read_text().partition(" ") if begun.is_file() else ("", "", "")
    return int(number) if name == launch else None


def conclude(results: Iterable[object]) -> None:
    """Name the failed jobs of a sweep, one line each, and fail if there are any."""
    results = list(results)
    failures = [result for result in results if isinstance(result, Failure)]
    for failure in failures:
        log.error("%s: %s", failure.folder, failure.message)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(results)} jobs failed, see error.txt in their folders; "
            "the same line with resume=true runs them again"
        )


def refuse_ddp(config: DictConfig) -> None:
    """A sweep puts its jobs side by side, each on one device."""
    devices = OmegaConf.select(config, "trainer.devices", default=1)
    nodes = OmegaConf.select(config, "trainer.num_nodes", default=1)
    if (devices, nodes) != (1, 1):
        raise UserError(
            f"trainer.devices={devices} trainer.num_nodes={nodes} in a multirun: its jobs take one device each; "
            "leave -m out for one run on several, or set trainer.devices=1 trainer.num_nodes=1"
        )
