"""Jobs of a sweep: each keeps to its share of the machine, and the failure of one does not end the sweep."""

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

MAX_DEATHS = 3  # of the processes of one job, which schedulers restart


@dataclass(frozen=True)
class Failure:
    """Result of a failed job; a plain object that survives the way back from another process."""

    folder: str
    message: str


def attempt(
    task: Callable[[DictConfig], float | None],
    config: DictConfig,
    launch: str,
    describe: Callable[[BaseException], str],
) -> float | Failure | None:
    """Run one job of a sweep; on an error, write it to error.txt and return a `Failure` so that other jobs continue.

    A scheduler may restart a job that was killed or whose process died. The job then resumes, until its processes have
    died `MAX_DEATHS` times.

    Args:
        task: the job.
        config: its configuration.
        launch: identifier of this launch of the sweep.
        describe: returns a one-line description of an error.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    error_file, begun = folder / "error.txt", folder / ".begun"
    with _alone(folder):
        error_file.unlink(missing_ok=True)
        deaths = _deaths(begun, launch)
        begun.write_text(f"{launch} {(deaths or 0) + 1}")  # reset below, unless this process dies
        result: float | Failure | None
        try:
            if deaths is not None:
                config.resume = True
            if deaths == MAX_DEATHS:
                raise UserError(f"the process of this job died {deaths} times: check that it has enough memory")
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
    """Lock the folder, waiting for a job that outlived its killed sweep."""
    lock = FileLock(folder / ".lock", is_singleton=True)  # reentrant: the run acquires it, too
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is in use by another process: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _deaths(begun: Path, launch: str) -> int | None:
    """Return how many processes of this job died since the launch; None if the job has not been started in it."""
    name, _, number = begun.read_text().partition(" ") if begun.is_file() else ("", "", "")
    return int(number) if name == launch else None


def conclude(results: Iterable[object]) -> None:
    """Log the failed jobs of a sweep, one line each.

    Raises:
        UserError: at least one job failed.
    """
    results = list(results)
    failures = [result for result in results if isinstance(result, Failure)]
    for failure in failures:
        log.error("%s: %s", failure.folder, failure.message)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(results)} jobs failed, see error.txt in their folders; "
            "repeat the command with resume=true to run them again"
        )


def refuse_ddp(config: DictConfig) -> None:
    """Refuse several devices or nodes per job, as a sweep runs its jobs side by side on one device each.

    Raises:
        UserError: ``trainer.devices`` or ``trainer.num_nodes`` is not 1.
    """
    devices = OmegaConf.select(config, "trainer.devices", default=1)
    nodes = OmegaConf.select(config, "trainer.num_nodes", default=1)
    if (devices, nodes) != (1, 1):
        raise UserError(
            f"trainer.devices={devices} trainer.num_nodes={nodes} in a sweep, whose jobs use one device each: "
            "leave -m out for a single run on several devices, or set trainer.devices=1 trainer.num_nodes=1"
        )
