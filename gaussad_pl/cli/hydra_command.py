"""Entry points based on Hydra: locate conf/, and report errors in one line instead of a traceback."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gaussad_pl.cli.groups import CONF, GROUPS, NO_CATEGORY, no_such_choice
from gaussad_pl.cli.interruption import Interrupted, raising_signals, resuming
from gaussad_pl.errors import UserError
from gaussad_pl.files import UNWRITABLE, UnwritableError, unwritable
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.renamed import migrated
from gaussad_pl.sweeps import folders, share, sweep

_NO_NAME = "Config group override must be a string"  # Hydra's ValueError for backbone=50

_VERBOSE = os.environ.get("HYDRA_FULL_ERROR") == "1"

# Hydra discovers sweepers only in the namespace package hydra_plugins
sys.path.append(str(Path(__file__).parent.parent / "sweeps" / "plugins"))

# resolvers for conf/; with use_cache, the jobs of a sweep get the values of the process that launches them
OmegaConf.register_new_resolver("basename", lambda path: Path(path).resolve().name, replace=True)
OmegaConf.register_new_resolver("folder_of", folders.folder_of, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_name", folders.sweep_name, replace=True)
OmegaConf.register_new_resolver("job_name", folders.job_name_in, replace=True)
OmegaConf.register_new_resolver("cores_per_job", share.cores_per_job, use_cache=True, replace=True)
OmegaConf.register_new_resolver("gpus_per_job", share.gpus_per_job, use_cache=True, replace=True)
OmegaConf.register_new_resolver("gpus_here", share.gpus_here, use_cache=True, replace=True)


def entry_point(task: Callable[[DictConfig], float | None], resumes: bool = False) -> Callable[[], None]:
    """Return a command that composes conf/<file name of the task>.yaml and runs ``task`` with it.

    A mistake in the command line or in the data, or a full disk, ends the command with one line and exit code 1; a bug
    ends it with a traceback. HYDRA_FULL_ERROR=1 shows the traceback of both. In a sweep, both are saved in the folder
    of the job. Ctrl-C and SIGTERM end the command with one line and exit code 130 or 143; if the task ``resumes``, the
    line says how to continue.
    """

    name = Path(inspect.getfile(task)).stem
    command, launch = sys.orig_argv, uuid.uuid4().hex

    def job(config: DictConfig) -> float | sweep.Failure | None:  # may run in another process
        config = migrated(config)
        sys.orig_argv = command  # metrics.json records what the user typed
        quiet()
        keep_freed_memory()
        first = getattr(rank_zero_only, "rank", 0) == 0
        if not first:  # of the processes that share a run, only rank 0 reports
            logging.disable(logging.INFO)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep.attempt(task, config, launch, one_line)
        try:
            return task(config)
        except (UserError, InstantiationException, OmegaConfBaseException, OSError) as error:
            if not first:
                sys.exit(1)
            if _VERBOSE or not is_users(error):
                raise
            sys.exit(f"error: {one_line(error)}{continued(resumes and isinstance(error, OSError | UnwritableError))}")

    def main() -> None:
        quiet()
        keep_freed_memory()
        try:
            with raising_signals(), _hydra_raises():
                _check_place()
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
        except (UserError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            if _VERBOSE or not is_users(error):
                raise
            sys.exit(f"error: {one_line(error)}")
        except Interrupted as stop:
            if getattr(rank_zero_only, "rank", 0) == 0:
                print(f"interrupted by {stop}{continued(resumes)}", file=sys.stderr)
            sys.exit(stop.code)

    def continued(possible: bool) -> str:
        return f": continue with {resuming(command)}" if possible else ""

    return main


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise its errors instead of printing them and exiting; restore the environment afterwards."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def is_users(error: BaseException) -> bool:
    """Return True for errors that the user can fix; of OSErrors, only full disks and missing permissions."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return error.errno in UNWRITABLE
    return isinstance(error, OmegaConfBaseException) or not isinstance(error, ValueError) or _NO_NAME in str(error)


def _check_place() -> None:
    """Raise if the current folder no longer exists: Hydra and relative paths need it."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current folder was removed: change to another one") from error


def one_line(error: BaseException) -> str:
    """Format an error as one line, and add details that Hydra's own messages lack."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, UserError):
        error = error.__cause__
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return str(unwritable(error.filename or "the results", error))
    if isinstance(error, OverrideParseException):
        key, given, value = error.override.partition("=")
        if not given:
            example = f"data=folder data.root={key}" if Path(key).is_dir() else "seed=1"
            return f"{key}: expected a setting as key=value, for example {example}"
        reason = str(error).partition("\n")[0]
        return (
            f"{error.override}: cannot be parsed ({reason}): quote values with special characters: '{key}=\"{value}\"'"
        )
    if _NO_NAME in str(error):
        return "a group such as data or logger takes a name, as in logger=csv; ~logger removes it"
    text = str(error).partition("Config search path:")[0]
    if text.startswith("Could not override") and isinstance(error.__cause__, OmegaConfBaseException):
        from gaussad_pl.cli.settings import unknown_override  # needs torch, which not all commands load

        return unknown_override(error.__cause__)
    unknown = re.search(r"Error in call to target '([\w.]+)'.*unexpected keyword argument '(\w+)'", text, re.DOTALL)
    if unknown:
        return f"{unknown[1]} has no setting {unknown[2]}: leave it out"
    if "data.category" in text and "issing mandatory value" in text:
        return NO_CATEGORY
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} is missing: give it on the command line, as {missing[1]}=..."
    if (found := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text)) and found[1] in GROUPS:
        return no_such_choice(found[1], found[2])
    if found := re.search(r"To append to your default list use (\S+)", text):
        return f"nothing is chosen from {found[1][1:].partition('=')[0]} yet: prefix it with +, as in {found[1]}"
    causes = [text] if error.__cause__ is None or isinstance(error, UserError) else [text, str(error.__cause__)]
    lines = [line.strip() for cause in causes for line in cause.splitlines()]
    return " ".join(
        line for line in dict.fromkeys(lines) if line and not line.startswith(("full_key:", "object_type="))
    )


def quiet() -> None:
    """Silence harmless third-party warnings."""
    logging.raiseExceptions = False  # a full disk would print a traceback for each line of a log file
    # hydra/launcher=ray and so on deliberately override the configs of the plugins
    warnings.filterwarnings("ignore", message="(?s).*is validated against ConfigStore schema")
    warnings.filterwarnings("ignore", message=".*decompression bomb.*")  # such images are decoded one by one
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # images are tensors in memory
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")  # a resumed run
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # on purpose, see module.py
    warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")  # successor needs a newer torch
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # lightning with a newer torch
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # for example Chinese file names in figures
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tip)


def _no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.msg
