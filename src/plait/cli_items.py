"""What the command line reads: the function, and the items.

Whatever is wrong with the function's name or with the items is the user's to repair, so
it is told in one sentence that says how, as a UsageError, and never as a traceback.
"""

from __future__ import annotations

import codecs
import glob
import importlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from plait.tasks import short

__all__ = ["Source", "UsageError", "load_function"]


class UsageError(Exception):
    """What was typed cannot work; the text is a sentence for the one who typed it."""


# --- The function ------------------------------------------------------------------------


def load_function(target: str) -> Callable[..., Any]:
    """Import ``MODULE:FUNCTION`` and return the function, which may be dotted (Class.method).

    The current directory comes first, as with ``python script.py``.

    >>> load_function("math:sqrt")(4)
    2.0
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise UsageError(f"{target!r} names no function: write {_with_colon(target)}.")
    _look_here_first()
    found: Any = _import(module_name)
    done = module_name + ":"
    for name in path.split("."):
        found = _get(found, name, done)
        done += name + "."
    if not callable(found):
        raise UsageError(f"{target} is no function but {type(found).__name__}: {short(found)}.")
    return found  # type: ignore[no-any-return]  # that it is callable is all there is to know


def _with_colon(target: str) -> str:
    module_name, _, name = target.partition(":")[0].rpartition(".")
    if ":" in target or not module_name or name == "py":
        return "MODULE:FUNCTION, for example math:sqrt"
    return f"{module_name}:{name}, with a colon between the module and the function"


def _look_here_first() -> None:
    here = os.getcwd()  # noqa: PTH109  pathlib takes a while to load
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)


def _import(name: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is no name of a module.{_without_suffix(name)}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _no_module(name, error.name) from None
        raise _failed_import(name, error) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  a module may raise anything
        raise _failed_import(name, error) from None


def _without_suffix(name: str) -> str:
    from pathlib import Path

    parts = Path(name.removesuffix(".py")).parts
    if not name.endswith(".py") or not all(part.isidentifier() for part in parts):
        return ""
    return f" Write {'.'.join(parts)}: a module is named without .py and slashes."


def _no_module(name: str, missing: str) -> UsageError:
    from pathlib import Path

    part = "" if name == missing else f" ({missing} is missing)"
    return UsageError(
        f"there is no module {name}{part}, neither in {Path.cwd()} nor where packages are "
        f"installed for {sys.executable}.{_without_suffix(name)}"
    )


def _failed_import(name: str, error: BaseException) -> UsageError:
    place = _place(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return UsageError(
            f"the module {name} was found, but it imports {error.name}, which was not: "
            f"install it, or correct the name ({place})."
        )
    import traceback

    text = traceback.format_exception_only(type(error), error)[-1].strip()
    return UsageError(f"the module {name} raised an error while it was imported: {text} ({place}).")


def _place(error: BaseException) -> str:
    """Say where it was raised: the last line of the user's own files, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    import traceback
    from pathlib import Path

    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    here = Path.cwd()
    own = [
        frame
        for frame in frames
        if Path(frame.filename).is_relative_to(here) and "site-packages" not in frame.filename
    ]
    if not frames:
        return "the import system found it"
    return f"{(own or frames)[-1].filename}, line {(own or frames)[-1].lineno}"


def _get(owner: Any, name: str, done: str) -> Any:
    """Return an attribute; ``done`` is the way to its owner, as in ``module:Class.``."""
    try:
        return getattr(owner, name)
    except AttributeError:
        import difflib

        close = [
            other
            for other in difflib.get_close_matches(name, dir(owner), n=5)
            if callable(getattr(owner, other, None))
        ]
        hint = f" Did you mean {done}{close[0]}?" if close else ""
        raise UsageError(f"{done[:-1]} has no function {name!r}.{hint}") from None


# --- The items ---------------------------------------------------------------------------

PATTERN = frozenset("*?[")
NO_ITEMS = (
    "there are no items: name them as arguments, with --range A B, or with --input FILE, "
    "or pipe them in."
)


class Source(NamedTuple):
    """Where the items come from.

    Attributes:
        given: arguments; those that are patterns of existing files stand for these.
        bounds: first and last of a range of integers.
        input: a file with one item on each line, or ``-`` for standard input. It is
            read as far as it is needed, so it may be endless.
        null: items of the input end with a NUL, not with a line.
        jsonl: arguments and items of the input are JSON values, not text.
        is_guessed: nothing says that there is an input, but something is piped in.
    """

    given: tuple[str, ...]
    bounds: tuple[int, int] | None
    input: str | None
    null: bool
    jsonl: bool
    is_guessed: bool

    @classmethod
    def of(cls, typed: dict[str, Any]) -> Source:
        """Take it out of what was typed: what is piped in is the input if no other is named."""
        given, bounds, file = (typed.pop(name) for name in ("items", "range_", "input_"))
        null, jsonl = typed.pop("null"), typed.pop("jsonl")
        is_input = not given and bounds is None and file is None and _is_piped()
        if is_input:
            file = "-"
        return cls(given, bounds, file, null, jsonl, is_guessed=is_input and not null)

    @contextmanager
    def open(self) -> Iterator[Iterable[Any]]:
        """Open the one source that was named, and give its items."""
        self._check()
        if self.bounds is not None:
            yield range(self.bounds[0], self.bounds[1] + 1)
        elif self.input is None:
            yield [_parse_argument(item) for item in self.given] if self.jsonl else self._expand()
        else:
            with _open(self.input) as fd:
                yield self._read(fd, "standard input" if self.input == "-" else self.input)

    def _check(self) -> None:
        there = {
            "arguments": bool(self.given),
            "--range": self.bounds is not None,
            "--input": self.input is not None,
        }
        named = [name for name, is_there in there.items() if is_there]
        if not named:
            raise UsageError(NO_ITEMS)
        if len(named) > 1:
            raise UsageError(f"items come from one source, and here are {' and '.join(named)}.")
        if self.null and self.input is None:
            raise UsageError(f"--null is for --input, or what is piped in; here are {named[0]}.")
        if self.bounds is None:
            return
        first, last = self.bounds
        if self.jsonl:
            raise UsageError("--jsonl is for arguments and --input; --range makes integers anyway.")
        if first > last:
            raise UsageError(f"--range {first} {last} is empty: the smaller number is first.")

    def _expand(self) -> list[str]:
        """Replace patterns by the files that they match.

        A shell has done it where the pattern was not in quotes, so a name that exists is
        meant as it stands, even if it looks like a pattern: ``photo[1].jpg``.
        """
        items: list[str] = []
        for item in self.given:
            is_pattern = not PATTERN.isdisjoint(item) and not os.path.lexists(item)
            matches = glob.glob(item, recursive=True) if is_pattern else []  # noqa: PTH207  as a shell
            items += sorted(matches) or [item]
        return items

    def _read(self, fd: int, name: str) -> Iterator[Any]:
        """Yield the items of a file, one by one."""
        end = b"\0" if self.null else b"\n"
        number = 0
        try:
            for number, line in enumerate(_pieces(fd, end), 1):
                # Names of files need not be UTF-8, and can be read all the same.
                piece = line if self.null else line.removesuffix(b"\r")
                text = piece.decode("utf-8", "surrogateescape")
                if self.jsonl and text.strip():
                    place = f"{name}, {'item' if self.null else 'line'} {number},"
                    yield _parse(text, place)
                elif text and not self.jsonl:
                    yield text
        except OSError as error:
            raise _unreadable(name, error) from None
        if self.is_guessed and not number:
            raise UsageError(f"{NO_ITEMS} Standard input was empty; with --input - it may be.")


def _is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a file: nobody types there."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


def _parse_argument(item: str) -> Any:
    return _parse(item, f"the argument {short(item)}", " Text needs quotes of its own: '\"text\"'.")


def _parse(text: str, place: str, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
    except ValueError as error:  # an integer of too many digits
        why = str(error)
    except RecursionError:
        why = "it is nested too deeply"
    raise UsageError(f"{place} is not JSON: {why}.{hint}")


@contextmanager
def _open(source: str) -> Iterator[int]:
    """Open a file, as a file descriptor.

    Python's own file objects have locks: one that a thread waits to read from cannot be
    closed, not even when the program ends.
    """
    try:
        fd = os.dup(0) if source == "-" else os.open(source, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(source, error) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _unreadable(source: str, error: OSError) -> UsageError:
    name = "standard input" if source == "-" else source
    return UsageError(f"{name} cannot be read: {error.strerror or error}.")


def _pieces(fd: int, end: bytes) -> Iterator[bytes]:
    """Yield lines, or what else an ``end`` ends, without it, as soon as they are there."""
    begun: list[bytes] = []  # the parts of a line whose end has not come
    is_first = True
    while data := os.read(fd, 1 << 16):
        if is_first:
            data, is_first = data.removeprefix(codecs.BOM_UTF8), False
        *whole, rest = data.split(end)
        if whole:
            yield b"".join([*begun, whole[0]])
            yield from whole[1:]
            begun = []
        begun.append(rest)
    if any(begun):
        yield b"".join(begun)
