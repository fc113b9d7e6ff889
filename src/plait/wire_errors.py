"""Carry an exception to another process, whatever its class.

Pickle calls the class again with ``args``, which fails, or silently builds another
message, for each class whose ``__init__`` has a signature of its own; and it drops
causes and contexts. So an exception is carried in pieces and put together without
calling ``__init__``, and every way is tried out here, where it was raised: an
exception that cannot be pickled must not surprise the side that waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from plait import enclosed, wire
from plait.errors import PlaitError, RemoteError, RemoteTraceback

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PackedError", "load_error", "pack_error"]


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
    """Take an exception apart for the journey. Never raises."""
    places: dict[int, int] = {}
    nodes: list[_Node | None] = []

    def place_of(exc: BaseException | None) -> int | None:
        if exc is None:
            return None
        if id(exc) not in places:
            places[id(exc)] = len(nodes)
            nodes.append(None)  # keeps the place; cycles of contexts do exist
            nodes[places[id(exc)]] = _pack_node(exc, place_of)
        return places[id(exc)]

    place_of(error)
    return PackedError(tuple(node for node in nodes if node), traceback_text(error))


def load_error(packed: PackedError) -> BaseException:
    """Put an exception together again; the worker's traceback is the last of its causes.

    Never raises: what cannot be built here becomes a RemoteError with the same text.
    """
    errors = [_load_body(node, packed.traceback_text) for node in packed.nodes]
    for place in reversed(range(len(errors))):
        node = packed.nodes[place]
        if node.members:
            errors[place] = _load_group(node, [errors[member] for member in node.members])
    for error, node in zip(errors, packed.nodes, strict=True):
        error.__context__ = None if node.context is None else errors[node.context]
        error.__cause__ = None if node.cause is None else errors[node.cause]
        error.__suppress_context__ = node.suppress_context
    deepest, seen = errors[0], {id(errors[0])}
    while deepest.__cause__ is not None and id(deepest.__cause__) not in seen:
        deepest = deepest.__cause__
        seen.add(id(deepest))
    deepest.__cause__ = RemoteTraceback(packed.traceback_text)
    return errors[0]


def traceback_text(error: BaseException) -> str:
    """Format an exception as Python prints it, without plait's own frames on top."""
    import traceback  # with textwrap and the rest it takes a millisecond

    try:
        shown = _without_own_frames(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, shown))
    except Exception as broken:  # noqa: BLE001  a broken __str__ must not hide the error
        return f"{_type_name(error)} (its text cannot be shown: {type(broken).__name__})\n"


def _without_own_frames(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith("plait."):
        tb = tb.tb_next
    return tb


def _pack_node(exc: BaseException, place_of: Any) -> _Node:
    is_group = isinstance(exc, BaseExceptionGroup)
    return _Node(
        type_name=_type_name(exc),
        text=_text(exc),
        body=_pack_body(exc, is_group=is_group),
        cause=place_of(exc.__cause__),
        context=place_of(exc.__context__),
        suppress_context=exc.__suppress_context__,
        members=tuple(map(place_of, exc.exceptions)) if is_group else (),  # type: ignore[attr-defined]
    )


def _pack_body(exc: BaseException, *, is_group: bool) -> wire.Packed | None:
    if not is_group:
        packed = _try_pack(exc, exc)
        if packed is not None:
            return packed
    args = exc.args[:1] if is_group else exc.args
    state = {key: value for key, value in vars(exc).items() if _travels(value)}
    dropped = sorted(set(vars(exc)) - set(state))
    if dropped:
        note = f"plait: left behind, because it cannot be pickled: {', '.join(dropped)}"
        state["__notes__"] = [*state.get("__notes__", []), note]
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
    try:
        packed = wire.pack(body, "error")
        copy = wire.load(packed)
        if original is not None and not _is_alike(_build(copy), original, dropped):
            return None
        if enclosed.noted:  # what counts who has it has just arrived, here: send it once more
            packed = wire.pack(body, "error")
    except Exception:  # noqa: BLE001  whatever goes wrong: this way is closed
        return None
    return packed


def _is_alike(copy: object, original: BaseException, dropped: Sequence[str]) -> bool:
    return (
        type(copy) is type(original)
        and str(copy) == str(original)
        and len(copy.args) == len(original.args)
        and set(vars(original)) - set(vars(copy)) == set(dropped)
    )


def _build(body: Any) -> BaseException:
    if not isinstance(body, _Pieces):
        return body  # type: ignore[no-any-return]
    error = body.cls.__new__(body.cls, *body.args)
    error.args = body.args
    error.__dict__.update(body.state)
    return error


def _load_body(node: _Node, text: str) -> BaseException:
    if node.members:
        return RemoteError(node.type_name, node.text, text)  # replaced once its members are here
    try:
        if node.body is not None:
            return _build(wire.load(node.body))
    except Exception:  # noqa: BLE001  its class may not exist here, or be broken
        return RemoteError(node.type_name, node.text, text)
    return RemoteError(node.type_name, node.text, text)


def _load_group(node: _Node, members: list[BaseException]) -> BaseException:
    message, state = node.text, {}
    cls: type[BaseException] = BaseExceptionGroup
    try:
        if node.body is not None:
            cls, (message,), state = wire.load(node.body)
        group = cls.__new__(cls, message, members)
    except Exception:  # noqa: BLE001  a group class with a constructor of its own
        group = BaseExceptionGroup(message, members)
    group.__dict__.update(state)
    return group


def _travels(value: object) -> bool:
    try:
        wire.load(wire.pack(value))
    except Exception:  # noqa: BLE001  that it fails is the answer
        return False
    return True


def _type_name(exc: BaseException) -> str:
    cls = type(exc)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001  a broken __str__ must not hide the error
        return "<its text cannot be shown>"


assert issubclass(RemoteTraceback, PlaitError)
