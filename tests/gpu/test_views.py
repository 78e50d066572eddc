"""Views of device memory behave as NumPy's do."""

import numpy as np
import pytest

from polytool.backends.native.cuda.buffers import View
from polytool.tensors import DType


def values(view: View, memory: np.ndarray) -> np.ndarray:
    """What a view shows of `memory`, the elements of its storage."""
    steps = [s * memory.itemsize for s in view.steps]
    return np.lib.stride_tricks.as_strided(memory[view.offset :], view.shape, steps)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)])
def test_views_follow_numpy(order):
    shape = (2, 3, 4, 6)
    view = View.new(DType.FLOAT, shape, order)
    assert view.is_packed and view.lies_like(order) and view.order == order
    memory = np.arange(view.count, dtype=np.float32)
    array = values(view, memory)
    changes = [
        (lambda v: v.permuted((0, 2, 1, 3)), lambda a: a.transpose(0, 2, 1, 3)),
        (lambda v: v.sliced(3, 1, 2, 2), lambda a: a[..., 1:5:2]),
        (lambda v: v.sliced(1, 2, 3, -1), lambda a: a[:, ::-1]),
        (lambda v: v.sliced(0, 1, 1).broadcast((5, 3, 4, 6)), lambda a: a[1:].repeat(5, 0)),
    ]
    for of_view, of_array in changes:
        assert np.array_equal(values(of_view(view), memory), of_array(array))


def test_a_reshape_is_a_view_only_where_the_elements_lie_in_order():
    rows = View.new(DType.FLOAT, (2, 3, 4))
    folded = rows.reshaped((6, 4))
    assert folded is not None and folded.is_dense
    turned = rows.permuted((1, 0, 2))
    assert turned.reshaped((6, 4)) is None
    heads = View.new(DType.FLOAT16, (2, 5, 12)).reshaped((2, 5, 3, 4))
    assert heads is not None and heads.permuted((0, 2, 1, 3)).permuted((0, 2, 1, 3)).is_dense


def test_dimensions_of_size_one_lie_anyhow():
    view = View.new(DType.FLOAT, (1, 8, 1, 1))
    assert view.lies_like((0, 2, 3, 1)) and view.lies_like((0, 1, 2, 3))
