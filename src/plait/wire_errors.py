"""Carry an exception to another process, whatever its class.

Pickle calls the class again with ``args``, which fails, or silently builds another
message, for each class whose ``__init__`` has a signature of its own; and it drops
causes and contexts. So an exception is carried in pieces and put together without
calling ``__init__``, and every way is tried out here, where it was raised: an
exception that cannot be pickled must not surprise the side that waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from plait import enclosed, wire
from plait.errors import PlaitError, RemoteError, RemoteTraceback
from plait.foreign import CONTEXT, TRACEBACK, attempt, text_of, without_own_frames

__all__ = ["PackedError", "detach", "load_error", "pack_error"]


class _Node(NamedTuple):
    """One exception of a chain or group; the others are named by their place in the list."""

    type_name: str
    text: str
    body: wire.Packed | None  # what _build() makes the exception from; None: only the text
    cause: int | None
    context: int | None
    suppress_context: bool
    members: tuple[int, ...]


class PackedError(NamedTuple):
    """An exception with all its causes, contexts and members; the first node is itself."""

    nodes: tuple[_Node, ...]
    traceback_text: str


def pack_error(error: BaseException) -> PackedError:
    """Take an exception apart for the journey. Raises nothing of the exception's own."""
    found: list[BaseException] = []  # each once: cycles of contexts do exist
    places: dict[int, int] = {}

    def place_of(exc: BaseException | None) -> int | None:
        if exc is None:
            return None
        if id(exc) not in places:
            places[id(exc)] = len(found)
            found.append(exc)
        return places[id(exc)]

    place_of(error)
    # It grows meanwhile. No recursion: a chain may be longer than the stack is deep.
    nodes = [_pack_node(exc, place_of) for exc in found]
    return PackedError(tuple(nodes), traceback_text(error))


def load_error(packed: PackedError) -> BaseException:
    """Put an exception together again; the worker's traceback is the last of its causes.

    What cannot be built here becomes a RemoteError with the same text.
    """
    errors = [_load_body(node, packed.traceback_text) for node in packed.nodes]
    for place in reversed(range(len(errors))):
        node = packed.nodes[place]
        if node.members:
            errors[place] = _load_group(node, [errors[member] for member in node.members])
    for error, node in zip(errors, packed.nodes, strict=True):
        CONTEXT.__set__(error, None if node.context is None else errors[node.context])
        CAUSE.__set__(error, None if node.cause is None else errors[node.cause])
        SUPPRESS_CONTEXT.__set__(error, node.suppress_context)
    deepest, seen = errors[0], {id(errors[0])}
    while (cause := CAUSE.__get__(deepest)) is not None and id(cause) not in seen:
        deepest = cause
        seen.add(id(deepest))
    CAUSE.__set__(deepest, RemoteTraceback(packed.traceback_text))
    return errors[0]


# The attributes that every exception has, past whatever its class has put in their place.
_OWN: Any = vars(BaseException)
CAUSE, SUPPRESS_CONTEXT = _OWN["__cause__"], _OWN["__suppress_context__"]
ARGS, DICT = _OWN["args"], _OWN["__dict__"]
MEMBERS: Any = vars(BaseExceptionGroup)["exceptions"]


def detach(error: BaseException) -> BaseException:
    """Return an error with its traceback as a text: its frames keep all alive that they know.

    What was being unpickled is among that, with its shared memory.
    """
    if CAUSE.__get__(error) is None:
        CAUSE.__set__(error, RemoteTraceback(traceback_text(error)))
    TRACEBACK.__set__(error, None)
    return error


def traceback_text(error: BaseException) -> str:
    """Format an exception as Python prints it, without plait's own frames on top."""
    text, broken = attempt(_format, error)
    if broken is None:
        return text  # type: ignore[no-any-return]
    return f"{_type_name(error)} (its text cannot be shown: {type(broken).__name__})\n"


def _format(error: BaseException) -> str:
    import traceback  # with textwrap and the rest it takes a millisecond

    shown = without_own_frames(TRACEBACK.__get__(error))
    return "".join(traceback.format_exception(type(error), error, shown))


def _pack_node(exc: BaseException, place_of: Any) -> _Node:
    is_group = isinstance(exc, BaseExceptionGroup)
    return _Node(
        type_name=_type_name(exc),
        text=text_of(exc),
        body=_pack_body(exc, is_group=is_group),
        cause=place_of(CAUSE.__get__(exc)),
        context=place_of(CONTEXT.__get__(exc)),
        suppress_context=SUPPRESS_CONTEXT.__get__(exc),
        members=tuple(map(place_of, MEMBERS.__get__(exc))) if is_group else (),
    )


def _pack_body(exc: BaseException, *, is_group: bool) -> wire.Packed | None:
    if not is_group:
        packed = _try_pack(exc, exc)
        if packed is not None:
            return packed
    args, attributes = ARGS.__get__(exc), DICT.__get__(exc)
    args = args[:1] if is_group else args
    state = {key: value for key, value in attributes.items() if _travels(value)}
    dropped = sorted(set(attributes) - set(state))
    if dropped:
        note = f"plait: left behind, because it cannot be pickled: {', '.join(dropped)}"
        notes = state.get("__notes__")
        state["__notes__"] = [*(notes if isinstance(notes, list) else ()), note]
    return _try_pack(_Pieces(type(exc), args, state), None if is_group else exc, dropped)


class _Pieces(NamedTuple):
    """An exception taken apart, to be built without calling its ``__init__``."""

    cls: type[BaseException]
    args: tuple[Any, ...]
    state: dict[str, Any]


def _try_pack(
    body: object, original: BaseException | None, dropped: Sequence[str] = ()
) -> wire.Packed | None:
    """Pickle, load again, and keep the pickle only if the result is what went in."""
    return attempt(_pack_and_check, body, original, dropped)[0]  # type: ignore[no-any-return]


def _pack_and_check(
    body: object, original: BaseException | None, dropped: Sequence[str]
) -> wire.Packed | None:
    packed = wire.pack(body, "error")
    copy = wire.load(packed)
    if original is not None and not _is_alike(_build(copy), original, dropped):
        return None
    if enclosed.noted:  # what counts who has it has just arrived, here: send it once more
        packed = wire.pack(body, "error")
    return packed


def _is_alike(copy: object, original: BaseException, dropped: Sequence[str]) -> bool:
    return (
        type(copy) is type(original)
        and str(copy) == str(original)
        and len(ARGS.__get__(copy)) == len(ARGS.__get__(original))
        and set(DICT.__get__(original)) - set(DICT.__get__(copy)) == set(dropped)
    )


def _build(body: Any) -> BaseException:
    if not isinstance(body, _Pieces):
        return body  # type: ignore[no-any-return]
    error = body.cls.__new__(body.cls, *body.args)
    ARGS.__set__(error, body.args)
    DICT.__get__(error).update(body.state)
    return error


def _load_body(node: _Node, text: str) -> BaseException:
    if node.members:
        return RemoteError(node.type_name, node.text, text)  # replaced once its members are here
    error = None
    if node.body is not None:
        error = attempt(_load_and_build, node.body)[0]  # its class may not exist here, or be broken
    is_one = isinstance(error, BaseException)
    return error if is_one else RemoteError(node.type_name, node.text, text)  # type: ignore[return-value]


def _load_and_build(body: wire.Packed) -> BaseException:
    return _build(wire.load(body))


def _load_group(node: _Node, members: list[BaseException]) -> BaseException:
    pieces = None
    if node.body is not None:
        pieces = attempt(wire.load, node.body)[0]
    if pieces is None:
        return BaseExceptionGroup(node.text, members)
    cls, (message,), state = pieces
    group = attempt(cls.__new__, cls, message, members)[0]
    if not isinstance(group, BaseExceptionGroup):  # a class with a constructor of its own
        group = BaseExceptionGroup(message, members)
    DICT.__get__(group).update(state)
    return group


def _travels(value: object) -> bool:
    return attempt(lambda: wire.load(wire.pack(value)))[1] is None


def _type_name(exc: BaseException) -> str:
    cls = type(exc)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


assert issubclass(RemoteTraceback, PlaitError)
