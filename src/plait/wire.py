"""Turn objects into what travels between processes, and back.

An object becomes a ``Packed``: a pickle (protocol 5) and its large buffers beside it,
not inside, so that an array is never copied into a pickle. What plain pickle cannot
carry, or would carry as a name in a ``__main__`` that the other side does not have,
goes by cloudpickle, by value. How it travels is in channel.py.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import lru_cache, partial
from typing import Any, ClassVar

from plait.errors import NotPicklable
from plait.foreign import attempt, is_from_outside, settle, text_of
from plait.outcome import short
from plait.segments import SEGMENT_BYTES, Segment, SegmentView
from plait.variables import MAIN_MODULES, reduce_variable

__all__ = [
    "MAIN",
    "PLAIN",
    "PROTOCOL",
    "Packed",
    "Place",
    "lay_down",
    "load",
    "pack",
    "pack_context",
    "seal",
    "segments_in",
    "unseal",
    "weigh",
]

# A buffer below this is cheaper inside the pickle than as a piece of its own.
OUT_OF_BAND_BYTES = 64 * 1024
PROTOCOL = 5
MAIN = b"_main__"
"""What is in a pickle that names one of MAIN_MODULES."""
# Types that need no pickle of their own within a message: nothing about them can go wrong.
PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
PLAIN_BYTES = 8
WEIGHED_BYTES = 32 * 1024 * 1024
"""Of what is larger, no more is pickled to find out how large it is."""
SIZED = frozenset({str, bytes})

Place = Callable[[pickle.PickleBuffer], Segment | None]
"""Lays a buffer down where the other side can read it; None if it is to stay in the message."""


Packed = tuple[Any, ...]
"""A pickled object: the pickle, the large buffers it refers to, in order, and perhaps its bulk.

Bulk are large bytes and bytearrays, which pickle would copy into the pickle: pairs of a type's
name and a buffer. Pickle and buffers may be laid down as segments (segments.py); a pair of
numbers then says where. A bare tuple, as most messages have some: a class of its own
would cost more than the rest.
"""


def pack(obj: object, what: str = "object") -> Packed:
    """Pickle an object for the journey; ``what`` names it in the error.

    Raises NotPicklable, which says which part of the object is to blame.
    """
    has_bulk = _has_bulk(obj)
    try:
        packed = _dump_with_bulk(pickle.Pickler, obj) if has_bulk else _dump(pickle.dumps, obj)
    except CANNOT as error:  # cloudpickle may do better
        if is_from_outside(error):
            raise
        packed = None
    except BaseException as error:  # noqa: BLE001  the object's own, or it is raised again
        packed = settle(error, _dump, pickle.dumps, obj)[0]
    # A name in __main__ means something else on the other side. The bytes are searched
    # because pickle itself does not tell; a false alarm costs time, nothing more.
    if packed is not None and MAIN not in packed[0]:
        return packed
    packed, broken = attempt(_dump_anything, obj, has_bulk)
    if broken is None:
        return packed  # type: ignore[no-any-return]
    path, blamed = _find_unpicklable(obj, what)
    raise NotPicklable(what, path, blamed, _reason(broken)) from broken


def _reason(error: BaseException) -> str:
    """Return the first line of what an error says, after its class unless pickle raised it."""
    line = text_of(error).partition("\n")[0]
    return line if isinstance(error, PICKLES) else f"{type(error).__name__}: {line}"


def weigh(obj: object, what: str = "object") -> int:
    """Return about how many bytes travel for an object; what is out of all measure, in part.

    Pickling takes as long as it does on the journey, but nothing is kept. Raises NotPicklable.
    """
    if type(obj) in PLAIN and not _is_long(obj):  # it needs no pickle of its own
        return len(obj) if type(obj) in SIZED else PLAIN_BYTES  # type: ignore[arg-type]
    nbytes, broken = attempt(_weigh_pickle, obj)
    if broken is None:
        return nbytes  # type: ignore[no-any-return]
    data, buffers, *bulk = pack(obj, what)  # it is cloudpickle's, or nobody's
    pieces = [*buffers, *(buffer for _, buffer in bulk[0])] if bulk else buffers
    total: int = len(data) + sum(piece.raw().nbytes for piece in pieces)
    return total


def _weigh_pickle(obj: object) -> int:
    meter = _Meter()

    def count(buffer: pickle.PickleBuffer) -> bool:
        with suppress(BufferError):
            meter.nbytes += buffer.raw().nbytes
        return False

    with suppress(_IsEnough):
        pickle.Pickler(meter, PROTOCOL, buffer_callback=count).dump(obj)
    return meter.nbytes


class _IsEnough(Exception):
    """So much was pickled that the rest does not matter."""


class _Meter:
    """A file of which only the size is kept."""

    def __init__(self) -> None:
        self.nbytes = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.nbytes += size
        if self.nbytes > WEIGHED_BYTES:
            raise _IsEnough
        return size


def pack_context(context: Context) -> list[Packed]:
    """Pickle the variables of a context with their values: those that can travel."""
    packed = []
    for pair in context.items():
        with suppress(NotPicklable):
            packed.append(pack(pair))
    return packed


def load(packed: Packed, view: SegmentView | None = None) -> Any:
    """Unpickle; may raise whatever the object's own class raises.

    ``view`` opens what was laid down as segments.
    """
    data, buffers, *bulk = packed
    if view is not None:
        if type(data) is tuple:
            data = view.open(data)
        if buffers:
            buffers = [view.open(one) if type(one) is tuple else one for one in buffers]
        if bulk:
            bulk = [[(kind, view.open(b) if type(b) is tuple else b) for kind, b in bulk[0]]]
    if bulk:
        return _BulkUnpickler(data, buffers, bulk[0]).load()
    return pickle.loads(data, buffers=buffers)


def seal(obj: object, what: str = "object", place: Place | None = None) -> Any:
    """Return what stands for an object in a message: itself if it is plain, else a Packed.

    ``place`` lays large buffers down as segments. Raises NotPicklable.
    """
    if type(obj) in PLAIN and not _is_long(obj):
        return obj
    packed = pack(obj, what)
    return packed if place is None else lay_down(packed, place)


def _is_long(obj: Any) -> bool:
    return type(obj) in SIZED and len(obj) >= OUT_OF_BAND_BYTES


def unseal(sealed: Any, view: SegmentView | None = None) -> Any:
    """Return the object; may raise whatever the object's own class raises."""
    return load(sealed, view) if type(sealed) is tuple else sealed


def lay_down(packed: Packed, place: Place) -> Packed:
    """Have what is large in a Packed laid down, as far as there is room for it."""
    data, buffers, *bulk = packed
    if not (buffers or bulk) and len(data) < SEGMENT_BYTES:  # as most are
        return packed
    if len(data) >= SEGMENT_BYTES:
        data = place(pickle.PickleBuffer(data)) or data
    if buffers:
        buffers = [place(buffer) or buffer for buffer in buffers]
    if bulk:
        bulk = [[(kind, place(buffer) or buffer) for kind, buffer in bulk[0]]]
    return (data, buffers, *bulk)


def segments_in(sealed: Any) -> list[Segment]:
    """Return the segments that a sealed object refers to."""
    if type(sealed) is not tuple:
        return []
    data, buffers, *bulk = sealed
    if not (buffers or bulk or type(data) is tuple):  # as in most
        return []
    pieces = [data, *buffers]
    if bulk:
        pieces += [buffer for _, buffer in bulk[0]]
    return [piece for piece in pieces if type(piece) is tuple]


# --- Bulk: bytes and the like, which pickle has no way to leave outside -----------------------


def _has_bulk(obj: object, depth: int = 3) -> bool:
    """Whether there is something large in an object, at a place where it is likely to be."""
    kind = type(obj)
    if kind in BULK:
        return len(obj) >= OUT_OF_BAND_BYTES  # type: ignore[arg-type]
    if depth and kind in CARRIERS:
        for part in _likely_parts(obj, kind):
            # No call is made for most parts: this is on the way of every task.
            if type(part) in HOLDERS and part and _has_bulk(part, depth - 1):
                return True
    return False


def _likely_parts(obj: Any, kind: type) -> Iterable[Any]:
    if kind is tuple or kind is list:
        return obj if len(obj) <= MOST_PARTS else ()
    if kind is dict:
        # A copy: another thread may change it meanwhile.
        return list(obj.copy().values()) if len(obj) <= MOST_PARTS else ()
    if kind is types.FunctionType:
        if (
            obj.__closure__ is None
            and obj.__defaults__ is None
            and obj.__module__ not in MAIN_MODULES
        ):
            return ()
        return [*(obj.__defaults__ or ()), *(part for _, part in _function_parts(obj, ""))]
    return [part for _, part in _parts(obj, "")]


def _dump_with_bulk(base: Any, obj: object) -> Packed:
    buffers, keep_inside = _buffer_callback()
    with io.BytesIO() as file:
        pickler = _bulk_pickler_class(base)(file, protocol=PROTOCOL, buffer_callback=keep_inside)
        bulk: list[Any] = []
        pickler.bulk = bulk
        pickler.places = {}
        pickler.dump(obj)
        return file.getvalue(), buffers, bulk


@lru_cache(maxsize=2)
def _bulk_pickler_class(base: Any) -> Any:
    class Pickler(base):  # type: ignore[misc]
        bulk: list[tuple[str, pickle.PickleBuffer]]
        places: dict[int, int]  # in bulk, by id: what is in two places is to arrive as one

        def persistent_id(self, part: Any) -> int | None:
            if type(part) not in BULK or len(part) < OUT_OF_BAND_BYTES:
                return None
            if id(part) not in self.places:
                self.places[id(part)] = len(self.bulk)
                self.bulk.append((type(part).__name__, pickle.PickleBuffer(part)))
            return self.places[id(part)]

    return Pickler


class _BulkUnpickler(pickle.Unpickler):
    def __init__(self, data: Any, buffers: list[Any], bulk: list[tuple[str, Any]]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._bulk = bulk
        self._made: dict[int, Any] = {}

    def persistent_load(self, place: int) -> Any:
        if place not in self._made:
            kind, buffer = self._bulk[place]
            self._made[place] = BULK_MAKERS[kind](buffer)
        return self._made[place]


BULK_MAKERS: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
}
BULK = frozenset({bytes, bytearray})
MOST_PARTS = 16
CARRIERS = frozenset({tuple, list, dict, partial, types.FunctionType, types.MethodType})
HOLDERS = BULK | CARRIERS


# --- Pickling ----------------------------------------------------------------------------

# What pickle itself raises for what is beyond it.
PICKLES = (pickle.PicklingError, AttributeError, TypeError)
CANNOT = (*PICKLES, RecursionError, ImportError)


def _dump_anything(obj: object, has_bulk: bool) -> Packed:  # noqa: FBT001
    """Pickle by cloudpickle."""
    if has_bulk:
        return _dump_with_bulk(_pickler_class(), obj)
    return _dump(_cloudpickle_dumps, obj)


def _dump(dumps: Callable[..., bytes], obj: object) -> Packed:
    buffers, keep_inside = _buffer_callback()
    return dumps(obj, protocol=PROTOCOL, buffer_callback=keep_inside), buffers


def _buffer_callback() -> tuple[list[pickle.PickleBuffer], Callable[[pickle.PickleBuffer], bool]]:
    """Return a list for large buffers, and what has a pickler put them there."""
    buffers: list[pickle.PickleBuffer] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        try:
            is_small = buffer.raw().nbytes < OUT_OF_BAND_BYTES
        except BufferError:  # not contiguous: pickle copies it
            return True
        if not is_small:
            buffers.append(buffer)
        return is_small

    return buffers, keep_inside


def _cloudpickle_dumps(obj: object, **options: Any) -> bytes:
    """Do what cloudpickle.dumps does, for context variables as well."""
    with io.BytesIO() as file:
        _pickler_class()(file, **options).dump(obj)
        return file.getvalue()


@lru_cache(maxsize=1)
def _pickler_class() -> type[pickle.Pickler]:
    import cloudpickle

    if "__mp_main__" in sys.modules:
        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no type hints
        dispatch_table: ClassVar[Any] = ChainMap(
            {ContextVar: reduce_variable, memoryview: _reduce_view},
            cloudpickle.Pickler.dispatch_table,
        )

    return Pickler


def _reduce_view(view: memoryview) -> tuple[Callable[..., memoryview], tuple[Any, ...]]:
    """Reduce a view to a buffer, the format of its numbers, and its shape."""
    memoryview(bytes(view.itemsize)).cast(view.format)  # type: ignore[call-overload]  # or it fails
    whole = view if view.c_contiguous else memoryview(view.tobytes())
    return _make_view, (pickle.PickleBuffer(whole), view.format, view.shape)


def _make_view(buffer: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    # A memoryview of a PickleBuffer crashes CPython's garbage collector (3.11 to 3.13).
    raw = buffer.raw() if isinstance(buffer, pickle.PickleBuffer) else buffer
    view = memoryview(raw).cast("B")
    return view.cast(form, shape) if view.nbytes else view.cast(form)  # type: ignore[call-overload,no-any-return]


# --- Who is to blame -----------------------------------------------------------------


def _find_unpicklable(obj: object, name: str, depth: int = 6) -> tuple[str, object]:
    """Return the innermost part that cannot be pickled, as (path, part)."""
    parts = attempt(lambda: list(_parts(obj, name)))[0] if depth else ()
    for path, part in parts or ():  # none, if a property of the object raises
        if not _is_picklable(part):
            return _find_unpicklable(part, path, depth - 1)
    return name, obj


def _is_picklable(obj: object) -> bool:
    return attempt(_dump_anything, obj, False)[1] is None


def _parts(obj: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(obj, partial):
        yield f"{name}.func", obj.func
        yield from _parts(obj.args, f"{name}.args")
        yield from _parts(obj.keywords, f"{name}.keywords")
    elif isinstance(obj, types.MethodType):
        yield f"{name}.__self__", obj.__self__
    elif isinstance(obj, types.FunctionType):
        yield from _function_parts(obj, name)
    elif isinstance(obj, dict):
        # A copy: another thread may change it meanwhile.
        yield from ((f"{name}[{short(key)}]", value) for key, value in obj.copy().items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"{name}[{place}]", value) for place, value in enumerate(list(obj)))
    else:
        attributes = getattr(obj, "__dict__", None)
        if isinstance(attributes, dict):
            yield from ((f"{name}.{key}", value) for key, value in attributes.copy().items())


def _function_parts(fn: types.FunctionType, name: str) -> Iterator[tuple[str, object]]:
    for variable, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable has no value yet
            yield f"{name}.__closure__[{variable!r}]", cell.cell_contents
    for variable in fn.__code__.co_names:
        if variable in fn.__globals__:
            yield f"{name}.__globals__[{variable!r}]", fn.__globals__[variable]
