"""Many numbers that several workers have: a lock with a region of its own.

A number is written by one store of the CPU, to a place that its size divides: whoever reads finds
the old one or the new one, whoever is killed and when.

Used by programs. numpy is loaded only where it is asked for: ``Array.view``, ``Array.of``.
"""

from __future__ import annotations

import errno
import math
import struct
import sys
from array import array as standard_array
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

from plait.shared.cells import cell_at, key_of, only_one
from plait.shared.kinds import CODES, code_of, store_number
from plait.shared.locks import SelfLocked
from plait.shared.memory import HEAD_BYTES, Place, Region

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Array"]

REGION = "array"


class Array(SelfLocked):
    """Numbers of one kind for threads and processes, that can be sent to any; or any numpy array.

    Its items can be read and written by index, by slices (lists, or anything to be written), or
    through ``view()``, a numpy array over the same memory. None of that takes a lock, and each
    number is written whole. What has to see, or do, more at once belongs into ``with array:``,
    which is an RLock with all that one promises.

    Memory is taken as it is written to, whatever the length. Nobody has to free it: the kernel does
    when the last process has let go of the array and all views, or has ended. Each process that has
    an array has two file descriptors for it; for many small ones there is ``shape``.

    Args:
        kind: int (64 bits), float or bool, a code of ``struct``, one of ``?bBhHiIqQfd``, or a
            numpy dtype without objects in it.
        content: how many numbers, all zero; or the numbers. A tuple of whole numbers is refused: it
            could be numbers, as for multiprocessing, or a shape, as for numpy.
        shape: of as many, for more than one dimension; ``content`` may be left out then.
        name: what it is called in messages.
        on_owner_death: "raise" or "ignore", as in Lock.
        lock: as in multiprocessing, but True and False are the same; see Value.

    Raises MemoryError, where there is no room in this process's addresses for all of it.

    >>> array = Array(float, [1, 2, 3])
    >>> array[0] = 0.5
    >>> len(array), array[:2], sum(array)
    (3, [0.5, 2.0], 5.5)
    """

    def __init__(
        self,
        kind: Any,
        content: int | Iterable[Any] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        name: str = "",
        on_owner_death: str = "raise",
        lock: bool = True,
    ) -> None:
        form = _form_of(kind)
        _check_is_no_shape(content)
        numbers = None if content is None or isinstance(content, Integral) else list(content)  # type: ignore[arg-type]
        shape = _shape_of(content if numbers is None else len(numbers), shape)  # type: ignore[arg-type]
        region = _room_for(math.prod(shape), form)
        super().__init__(name, on_owner_death, lock)
        self._lay_out(region, form, shape)
        if numbers:
            self._flat[:] = self._packed(numbers)

    @classmethod
    def of(cls, content: Any, *, name: str = "", on_owner_death: str = "raise") -> Self:
        """Return a copy of a numpy array (or what makes one), of the same shape and dtype."""
        import numpy as np

        array = np.asarray(content)
        made = cls(array.dtype, shape=array.shape, name=name, on_owner_death=on_owner_death)
        made.view()[...] = array
        return made

    def _lay_out(self, region: Region, form: Any, shape: tuple[int, ...]) -> None:
        self._region, self._form, self._shape = region, form, shape
        self._flat: Any
        if isinstance(form, str):
            self._flat = _numbers_in(region, form, math.prod(shape))
        else:
            self._flat = self.view().reshape(-1)

    # --- As a sequence -------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """How many there are, in each dimension."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """How many bytes they have together."""
        return int(self._flat.nbytes)

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, index: Any) -> Any:
        found = self._flat[self._place_of(index)]
        return found.tolist() if isinstance(index, slice) else found

    def __setitem__(self, index: Any, new: Any) -> None:
        place = self._place_of(index)
        if isinstance(index, slice):
            numbers = list(new)
            if len(numbers) != len(range(*index.indices(len(self)))):
                raise ValueError(f"{self._cell.label} cannot change its length")
            if numbers:
                self._flat[place] = self._packed(numbers)
        elif isinstance(self._form, str):
            store_number(self._flat, place, new, self._cell)
        else:
            self._flat[place] = new

    def __iter__(self) -> Iterator[Any]:
        self._place_of(0)  # with more than one dimension there is no telling what is meant
        return iter(self._flat)

    def _place_of(self, index: Any) -> Any:
        """Return where an item is among all of them; slices stay as they are."""
        dimensions = len(self._shape)
        if not isinstance(index, tuple):
            if dimensions == 1:
                return index
            index = (index,)
        if len(index) != dimensions:
            raise TypeError(
                f"{self._cell.label} has {dimensions} dimensions: give an index for each of them, "
                "or use view(), a numpy array"
            )
        place = 0
        for at, length in zip(index, self._shape, strict=True):
            if not -length <= at < length:
                raise IndexError(f"index {index} is not in the shape {self._shape}")
            place = place * length + at % length
        return place

    def _packed(self, numbers: list[Any]) -> Any:
        """Return numbers as the memory has them. Raises OverflowError, TypeError."""
        if not isinstance(self._form, str):
            return numbers
        if self._form == "?":
            packed = standard_array("B", map(bool, numbers))
        else:
            packed = standard_array(self._form, numbers)
        return memoryview(packed).cast("B").cast(self._form)  # type: ignore[call-overload]

    # --- As memory -----------------------------------------------------------------------

    def view(self) -> np.ndarray[Any, Any]:
        """Return a numpy array over this memory: nothing is copied, and all see what it writes.

        It can be used for as long as it is kept, whatever becomes of this object and its maker.
        """
        import numpy as np

        memory = self._region.memory
        return np.ndarray(self._shape, np.dtype(self._form), memory, HEAD_BYTES)

    def get_obj(self) -> memoryview[Any]:
        """Return ``memory()``, for what takes the array of ctypes that multiprocessing's has."""
        return self.memory()

    def memory(self) -> memoryview[Any]:
        """Return the memory, for what takes a buffer; it is good for as long as ``view()`` is.

        It has the array's shape and kind; where struct has no code for that, it has bytes.
        """
        if isinstance(self._form, str):
            flat: memoryview[Any] = self._flat
            if len(self._shape) == 1 or not flat.nbytes:
                return flat[:]
            return flat.cast("B").cast(self._form, self._shape)  # type: ignore[call-overload,no-any-return]
        return memoryview(self._region.memory)[HEAD_BYTES : HEAD_BYTES + self.nbytes]

    def __buffer__(self, flags: int) -> memoryview[Any]:  # Python 3.12 and later ask for it
        return self.memory()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:  # noqa: FBT001
        view = self.view()
        if dtype is None or dtype == view.dtype:
            return view.copy() if copy else view
        if copy is False:
            raise ValueError(f"{self._cell.label} cannot be {dtype} without being copied")
        return view.astype(dtype)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self._form} x {self._shape}>"

    def __reduce__(self) -> tuple[Any, ...]:
        place, room = self._cell.place, self._region.place
        return _arrive, (type(self), place, self._on_owner_death, room, self._form, self._shape)


def _arrive(
    cls: type[Array],
    place: tuple[Place, int],
    on_owner_death: str,
    room: Place,
    form: Any,
    shape: tuple[int, ...],
) -> Array:
    def make() -> Array:
        region, cell = Region.at(room, cls.__name__), cell_at(place, cls.__name__)
        array = cls.__new__(cls)
        array._lay_out(region, form, shape)  # noqa: SLF001
        array._set_up(cell, on_owner_death)  # noqa: SLF001
        return array

    array = only_one(key_of(place), make)
    assert isinstance(array, cls)
    return array


def _form_of(kind: Any) -> Any:
    """Return the code of a kind, or a numpy dtype where there is none."""
    np = sys.modules.get("numpy")  # who has a dtype has loaded it
    is_scalar = np and isinstance(kind, type) and issubclass(kind, np.generic)
    if not np or not (is_scalar or isinstance(kind, np.dtype)):
        return code_of(kind)
    dtype = np.dtype(kind)
    if dtype.hasobject or not dtype.itemsize:
        raise TypeError(
            f"dtype {dtype} cannot be shared: its items are {_why_not(dtype)}; for objects "
            "there is plait.shared.List"
        )
    return next((code for code in CODES if np.dtype(code) == dtype), dtype)


def _why_not(dtype: Any) -> str:
    return "objects of one process" if dtype.hasobject else "of no fixed size"


def _check_is_no_shape(content: Any) -> None:
    if type(content) is tuple and content and all(type(number) is int for number in content):
        raise TypeError(
            f"is {content} a shape, or what is in the Array? Write shape={content} for zeros of "
            f"that shape, or a list for the numbers: {[*content]}"
        )


def _shape_of(length: int | None, shape: tuple[int, ...] | int | None) -> tuple[int, ...]:
    """Return the shape of so many numbers. Raises TypeError, ValueError."""
    if shape is None:
        if length is None:
            raise TypeError("an Array needs its length, its numbers or its shape")
        shape = (int(length),)
    shape = (shape,) if isinstance(shape, int) else tuple(map(int, shape))
    if not shape:
        raise ValueError("an Array needs a dimension at least; for one number there is Value")
    if min(shape) < 0:
        raise ValueError(f"the length of an Array cannot be negative: {shape}")
    if length is not None and length != math.prod(shape):
        raise ValueError(f"shape={shape} has room for {math.prod(shape)} numbers, not {length}")
    return shape


def _room_for(count: int, form: Any) -> Region:
    nbytes = count * _size_of(form)
    try:
        if nbytes > sys.maxsize - HEAD_BYTES:
            raise OSError(errno.ENOMEM, "more than there are addresses")
        return Region.create(max(nbytes, _size_of(form)), REGION)
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.EFBIG, errno.EINVAL, errno.EOVERFLOW):
            raise
        raise MemoryError(f"no room for an Array of {count:,} x {form}: {nbytes:,} bytes") from None


def _size_of(form: Any) -> int:
    return struct.calcsize(form) if isinstance(form, str) else int(form.itemsize)


def _numbers_in(region: Region, code: str, count: int) -> memoryview[Any]:
    # Python casts nothing that is empty: so there is room for one at least.
    part = memoryview(region.memory)[HEAD_BYTES : HEAD_BYTES + max(count, 1) * _size_of(code)]
    return part.cast(code)[:count]  # type: ignore[call-overload,no-any-return]
