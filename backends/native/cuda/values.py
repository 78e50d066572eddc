"""What happens to device arrays outside of stretches: control flow, sequences, copies to the host.

Every operation is put on the context's stream when it is called. Memory comes from a pool and goes
back when the last reference to an array dies, so a stream must not be shared by two pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.backends.native.cuda.arrays import DeviceArray, Pool
from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.launch import prepare_plan
from polytool.backends.native.kernels.pointwise import Operand, copy, dense
from polytool.backends.native.kernels.source import item_size
from polytool.tensors import DType


@dataclass
class DeviceValues:
    """Operations on device arrays; see `control.Arrays`."""

    device: driver.Device
    stream: int
    pool: Pool = field(default_factory=Pool)

    def new(self, shape: Sequence[int], dtype: DType) -> DeviceArray:
        """A dense array of undefined content."""
        return self.pool.array(tuple(shape), dtype)

    def upload(self, value: Any) -> DeviceArray:
        """`value` on the device."""
        if isinstance(value, DeviceArray):
            return value
        array = np.ascontiguousarray(value)
        result = self.new(np.shape(value), DType.of(array))
        if array.nbytes:
            driver.to_device(result.address, array.ctypes.data, array.nbytes, self.stream)
            driver.synchronize(self.stream)  # the array may be gone before an async copy
        return result

    def download(self, value: Any) -> Any:
        """`value` on the host, sequences element by element."""
        if isinstance(value, list):
            return [self.download(v) for v in value]
        return value.numpy(self.stream) if isinstance(value, DeviceArray) else value

    def keep(self, value: Any) -> Any:
        """`value` in memory of its own, so that it outlives the next run of its stretch."""
        if isinstance(value, list):
            return [self.keep(v) for v in value]
        if not isinstance(value, DeviceArray) or value.owner is not None:
            return value
        result = self.new(value.shape, value.dtype)
        if value.nbytes:
            driver.copy(result.address, value.address, value.nbytes, self.stream)
        return result

    def scalar(self, value: Any) -> Any:
        """The only element, on the host."""
        return np.asarray(self.download(value)).reshape(-1)[0]

    def zeros(self, shape: Sequence[int], dtype: DType | None) -> Any:
        """What no iteration has written."""
        return np.zeros(shape, np.float32 if dtype is None else dtype.numpy)

    def parts(self, value: Any, axis: int) -> Sequence[Any]:
        """The slices along an axis, which is dropped."""
        value = self.upload(value)
        axis %= len(value.shape)
        pieces = self.cut(value, axis, [1] * value.shape[axis])
        shape = (*value.shape[:axis], *value.shape[axis + 1 :])
        return [DeviceArray(p.address, shape, p.dtype, p.owner) for p in pieces]

    def cut(self, value: Any, axis: int, lengths: Sequence[int]) -> list[DeviceArray]:
        """Consecutive slices along an axis; along the first one they are no copies."""
        value = self.upload(value)
        steps, item = dense(value.shape), item_size(value.dtype)
        results, start = [], 0
        for length in lengths:
            shape = (*value.shape[:axis], length, *value.shape[axis + 1 :])
            if axis == 0:
                at = value.address + start * steps[0] * item
                results.append(DeviceArray(at, shape, value.dtype, value.owner))
            else:
                result = self.new(shape, value.dtype)
                source = Operand(shape, steps, start * steps[axis])
                self._copy(value, result, shape, source, Operand(shape))
                results.append(result)
            start += length
        return results

    def stack(self, parts: Sequence[Any], axis: int) -> DeviceArray:
        """Parts of one shape joined along a new axis."""
        held = [self.upload(p) for p in parts]
        at = axis % (len(held[0].shape) + 1)
        shape = (*held[0].shape[:at], 1, *held[0].shape[at:])
        return self.join([DeviceArray(p.address, shape, p.dtype, p.owner) for p in held], at)

    def join(self, parts: Sequence[Any], axis: int) -> DeviceArray:
        """Parts joined along an axis that they have."""
        held = [self.upload(p) for p in parts]
        shape = list(held[0].shape)
        axis %= len(shape)
        shape[axis] = sum(p.shape[axis] for p in held)
        result, start = self.new(shape, held[0].dtype), 0
        steps = dense(shape)
        for part in held:
            target = Operand(part.shape, steps, start * steps[axis])
            self._copy(part, result, part.shape, Operand(part.shape), target)
            start += part.shape[axis]
        return result

    def _copy(
        self, x: DeviceArray, y: DeviceArray, shape: Sequence[int], source: Operand, target: Operand
    ) -> None:
        plan = copy(x.dtype).plan(tuple(shape), [source], [target])
        for launch in prepare_plan(plan, self.device, [x.address, y.address], overlap=False):
            launch(self.stream)
