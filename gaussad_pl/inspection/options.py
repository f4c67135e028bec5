"""key=value on the command line, as Hydra's, without Hydra: for commands that run where nothing is trained."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from gaussad_pl.errors import UserError
from gaussad_pl.files import UNWRITABLE

T = TypeVar("T")
_BOOLEAN = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(arguments: Sequence[str], options: type[T]) -> T:
    """An instance of the dataclass ``options`` from ``key=value`` arguments; its fields are str, int, float or bool.

    Raises:
        UserError: an unknown key, a value of another type, a key given twice, or one missing that has no default.
    """
    kinds = get_type_hints(options)
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = key.lstrip("+-")  # +key=value and --key=value are meant the same way
        if not equals:
            raise UserError(f"{argument}: expected key=value; the keys are {', '.join(known)}")
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
            raise UserError(f"{key}: there is no such setting; {hint}")
        if key in given:
            raise UserError(f"{key} is given twice")
        given[key] = _converted(key, value, kinds[key])
    for field in fields(options):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in given:
            raise UserError(f"{field.name} is missing: give {field.name}=...; --help shows all settings")
    return options(**given)


def command(task: Callable[[T], int | None], options: type[T], text: str | None) -> Callable[..., None]:
    """A command that runs ``task`` with its options and ends with the exit code it returns, if it returns one.

    Without arguments, or asked for help, it prints ``text``; a user's mistake ends it with one line.
    """

    def main(arguments: Sequence[str] | None = None) -> None:
        arguments = sys.argv[1:] if arguments is None else arguments
        if not arguments or {"-h", "--help", "help"} & set(arguments):
            print(text)
            return
        try:
            code = task(parse(arguments, options))
        except UserError as error:
            sys.exit(f"error: {error}")
        except OSError as error:  # a file or folder that was given and is not to be touched
            if error.errno not in UNWRITABLE:
                raise
            sys.exit(f"error: {error.filename or 'results'}: {error.strerror}: give another one, or check permissions")
        if code is not None:
            sys.exit(code)

    return main


def _converted(key: str, value: str, kind: type) -> Any:
    if kind is str:
        if not value:
            raise UserError(f"{key}= is empty: give a value")
        return value
    if kind is bool:
        if value.lower() not in _BOOLEAN:
            raise UserError(f"{key}={value}: expected true or false")
        return _BOOLEAN[value.lower()]
    try:
        return kind(value)
    except ValueError as error:
        raise UserError(f"{key}={value}: expected {'a whole number' if kind is int else 'a number'}") from error
