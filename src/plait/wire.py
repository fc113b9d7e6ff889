"""Turn objects into what travels between processes, and back.

An object becomes a ``Packed``: a pickle (protocol 5) and its large buffers beside it,
not inside, so that an array is never copied into a pickle. What plain pickle cannot
carry, or would carry as a name in a ``__main__`` that the other side does not have,
goes by cloudpickle, by value. How it travels is in channel.py.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple

from plait.errors import NotPicklable
from plait.variables import reduce_variable

__all__ = [
    "PLAIN",
    "PROTOCOL",
    "Packed",
    "load",
    "pack",
    "pack_context",
    "seal",
    "unseal",
]

# A buffer below this is cheaper inside the pickle than as a piece of its own.
OUT_OF_BAND_BYTES = 64 * 1024
PROTOCOL = 5
# Types that need no pickle of their own within a message: nothing about them can go wrong.
PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Packed(NamedTuple):
    """A pickled object: the pickle, and the large buffers it refers to, in order."""

    data: bytes
    buffers: tuple[Any, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of it all in bytes."""
        return len(self.data) + sum(memoryview(buffer).nbytes for buffer in self.buffers)


def pack(obj: object, what: str = "object") -> Packed:
    """Pickle an object for the journey; ``what`` names it in the error.

    Raises NotPicklable, which says which part of the object is to blame.
    """
    try:
        packed = _dump(pickle.dumps, obj)
    except Exception:  # noqa: BLE001  whatever pickle raises, cloudpickle may do better
        packed = None
    # A name in __main__ means something else on the other side. The bytes are searched
    # because pickle itself does not tell; a false alarm costs time, nothing more.
    if packed is not None and b"__main__" not in packed.data:
        return packed
    try:
        return _dump(_cloudpickle_dumps, obj)
    except Exception as error:
        path, blamed = _find_unpicklable(obj, what)
        reason = str(error).partition("\n")[0]
        raise NotPicklable(what, path, blamed, reason) from error


def pack_context(context: Context) -> list[Packed]:
    """Pickle the variables of a context with their values: those that can travel."""
    packed = []
    for pair in context.items():
        with suppress(NotPicklable):
            packed.append(pack(pair))
    return packed


def load(packed: Packed) -> Any:
    """Unpickle; may raise whatever the object's own class raises."""
    return pickle.loads(packed.data, buffers=packed.buffers)


def seal(obj: object, what: str = "object") -> Any:
    """Return what stands for an object in a message: itself if it is plain, else a Packed.

    Raises NotPicklable.
    """
    return obj if type(obj) in PLAIN else pack(obj, what)


def unseal(sealed: Any) -> Any:
    """Return the object; may raise whatever the object's own class raises."""
    return load(sealed) if type(sealed) is Packed else sealed


def _dump(dumps: Callable[..., bytes], obj: object) -> Packed:
    buffers: list[pickle.PickleBuffer] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        try:
            is_small = buffer.raw().nbytes < OUT_OF_BAND_BYTES
        except BufferError:  # not contiguous: pickle copies it
            return True
        if not is_small:
            buffers.append(buffer)
        return is_small

    data = dumps(obj, protocol=PROTOCOL, buffer_callback=keep_inside)
    return Packed(data, tuple(buffers))


def _cloudpickle_dumps(obj: object, **options: Any) -> bytes:
    """Do what cloudpickle.dumps does, for context variables as well."""
    with io.BytesIO() as file:
        _pickler_class()(file, **options).dump(obj)
        return file.getvalue()


@lru_cache(maxsize=1)
def _pickler_class() -> type[pickle.Pickler]:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no type hints
        dispatch_table: ClassVar[Any] = ChainMap(
            {ContextVar: reduce_variable}, cloudpickle.Pickler.dispatch_table
        )

    return Pickler


# --- Who is to blame -----------------------------------------------------------------


def _find_unpicklable(obj: object, name: str, depth: int = 6) -> tuple[str, object]:
    """Return the innermost part that cannot be pickled, as (path, part)."""
    if depth:
        for path, part in _parts(obj, name):
            if not _is_picklable(part):
                return _find_unpicklable(part, path, depth - 1)
    return name, obj


def _is_picklable(obj: object) -> bool:
    try:
        _cloudpickle_dumps(obj, protocol=PROTOCOL)
    except Exception:  # noqa: BLE001  that it fails is the answer
        return False
    return True


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
        yield from ((f"{name}[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"{name}[{place}]", value) for place, value in enumerate(obj))
    else:
        attributes = getattr(obj, "__dict__", None)
        if isinstance(attributes, dict):
            yield from ((f"{name}.{key}", value) for key, value in attributes.items())


def _function_parts(fn: types.FunctionType, name: str) -> Iterator[tuple[str, object]]:
    for variable, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield f"{name}.__closure__[{variable!r}]", cell.cell_contents
    for variable in fn.__code__.co_names:
        if variable in fn.__globals__:
            yield f"{name}.__globals__[{variable!r}]", fn.__globals__[variable]
