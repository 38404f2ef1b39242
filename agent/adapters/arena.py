"""An arena: a memory file for tensors, which two processes map and either may make longer.

1. A mapping follows the file: it is made anew when something lies behind its end.
2. Tensors are written one behind the other, each at a multiple of ALIGNMENT. A client may leave others where it likes.
3. Where tensors of the same form lay before is known: frames come thirty times a second, and all are alike.
"""

import mmap
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.adapters.memory_file import grow, map_shared
from agent.core.messages import Slice

ALIGNMENT = 64  # bytes; a cache line, and what vector instructions like


class Arena:
    """A memory file that is mapped, for reading and writing where `mapped` says nothing else."""

    def __init__(self, number: int, mapped: Callable[[int], mmap.mmap] = map_shared) -> None:
        self.number, self._mapped = number, mapped
        self._content = mapped(number)
        self._form: list[tuple[str, tuple[int, ...], np.dtype[Any]]] = []  # of what was put here last
        self._slices: tuple[Slice, ...] = ()
        self._places: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return len(self._content)

    def view(self, start: int, length: int) -> memoryview:
        """The bytes of a place; cut short where the file ends before."""
        if start + length > len(self):
            self._content = self._mapped(self.number)
        return memoryview(self._content)[start : start + length]

    def tensor(self, one: Slice) -> NDArray[Any]:
        """A tensor where it lies.

        Raises:
            ValueError: the file ends before it.
        """
        dtype = np.dtype(one.dtype)
        flat = np.frombuffer(self.view(one.offset, one.size), dtype, one.size // dtype.itemsize)
        return flat.reshape(one.shape)

    def put(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[Slice, ...]:
        """Writes tensors from the beginning on; says where."""
        form = [(name, array.shape, array.dtype) for name, array in arrays.items()]
        if form != self._form:
            self._lay_out(arrays)
            self._form = form
        for place, array in zip(self._places, arrays.values(), strict=True):
            np.copyto(place, array)
        return self._slices

    def _lay_out(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        slices, end = [], 0
        for name, array in arrays.items():
            slices.append(Slice(name=name, shape=array.shape, dtype=array.dtype.name, offset=end, size=array.nbytes))
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        grow(self.number, end)
        self._slices, self._places = tuple(slices), [self.tensor(one) for one in slices]

    def close(self) -> None:
        """Gives the file back; the mapping goes with its last array."""
        os.close(self.number)
