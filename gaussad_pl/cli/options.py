"""Command lines of key=value arguments like Hydra's, for commands that must run where Hydra is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from gaussad_pl.cli.interruption import Interrupted, raising_signals, resuming
from gaussad_pl.cli.start import HELP
from gaussad_pl.errors import UserError, no_such_setting
from gaussad_pl.files import UNWRITABLE, UnwritableError
from gaussad_pl.memory import keep_freed_memory

T = TypeVar("T")
_OPTIONAL: Any = float | None
_BOOLEAN = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(arguments: Sequence[str], options: type[T]) -> T:
    """Parse ``key=value`` arguments into the dataclass ``options``, whose fields are str, int, float or bool.

    A field that is ``float | None`` takes a number, or auto for None.

    Raises:
        UserError: a key is unknown, is given twice, or is missing and has no default; or a value has the wrong type.
    """
    kinds = get_type_hints(options)
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = key.lstrip("+-")  # +key=value and --key=value are accepted, too
        if not equals:
            raise UserError(f"{argument}: expected key=value; the keys are {', '.join(known)}")
        if key not in known:
            raise UserError(no_such_setting(key, known))
        if key in given:
            raise UserError(f"{key} is given twice")
        given[key] = _converted(key, value, kinds[key])
    for field in fields(options):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in given:
            raise UserError(f"{field.name} is missing: give {field.name}=...; --help shows all settings")
    return options(**given)


def command(task: Callable[[T], int | None], options: type[T], text: str | None) -> Callable[..., None]:
    """Return a command that runs ``task`` with its options and exits with the code that it returns, if any.

    Without arguments or with --help, the command prints ``text``. A user's mistake, a signal or a full disk ends it
    with one line. If the options have ``resume``, the line says how to continue.
    """
    resumes = any(field.name == "resume" for field in fields(options))  # type: ignore[arg-type]

    def main(arguments: Sequence[str] | None = None) -> None:
        line = sys.orig_argv if arguments is None else arguments
        arguments = sys.argv[1:] if arguments is None else arguments
        hint = f": continue with {resuming(line)}" if resumes else ""
        if not arguments or HELP & set(arguments):
            print(text)
            return
        keep_freed_memory()
        try:
            with raising_signals():
                code = task(parse(arguments, options))
        except UserError as error:
            sys.exit(f"error: {error}{hint if isinstance(error, UnwritableError) else ''}")
        except OSError as error:
            if error.filename is None and error.errno not in UNWRITABLE:  # not about a file of the user
                raise
            what = error.filename or "the results"
            sys.exit(f"error: cannot use {what} ({error.strerror}): restore it, or give another one")
        except Interrupted as stop:
            print(f"interrupted by {stop}{hint}", file=sys.stderr)
            sys.exit(stop.code)
        if code is not None:
            sys.exit(code)

    return main


def _converted(key: str, value: str, kind: Any) -> Any:
    if kind is str:
        if not value:
            raise UserError(f"{key}= is empty: give a value")
        return value
    if kind is bool:
        if value.lower() not in _BOOLEAN:
            raise UserError(f"{key}={value}: expected true or false")
        return _BOOLEAN[value.lower()]
    if kind == _OPTIONAL and value == "auto":
        return None
    expected = {int: "a whole number", float: "a number", _OPTIONAL: "a number or auto"}[kind]
    try:
        return int(value) if kind is int else float(value)
    except ValueError as error:
        raise UserError(f"{key}={value}: expected {expected}") from error
