"""The thread pool: every block once, errors raised, any number of callers, BLAS left as it was."""

import os
import threading

import numpy as np
import pytest

from polytool import NativeRunner
from polytool.backends.native.tactics import pool
from polytool.backends.native.tactics.pool import Pool, blocks_of, scratch, single_threaded_blas
from tests.tactics.tuned import model

RNG = np.random.default_rng(29)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_every_block_runs_once(size, count):
    seen = []
    Pool(size).run(seen.append, count)
    assert sorted(seen) == list(range(count))


def test_first_error_is_raised_after_all_threads_stopped_and_the_pool_still_works():
    workers = Pool(3)

    def fail(index):
        raise ZeroDivisionError(f"block {index}")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="block"):
            workers.run(fail, 5)
    seen = []
    workers.run(seen.append, 10)
    assert sorted(seen) == list(range(10))


def test_blocks_may_run_blocks():
    workers, seen = Pool(3), []
    workers.run(lambda i: workers.run(lambda j: seen.append((i, j)), 3), 4)
    assert sorted(seen) == [(i, j) for i in range(4) for j in range(3)]


def test_numpy_buffers_are_as_before_afterwards():
    before = np.getbufsize()
    Pool(2).run(lambda i: None, 4)
    assert np.getbufsize() == before


@pytest.mark.parametrize(("total", "target"), [(0, 5), (1, 5), (7, 2), (100, 7), (64, 64), (3, 99)])
@pytest.mark.parametrize("multiple", [1, 16])
def test_blocks_cover_everything_in_order(total, target, multiple):
    parts = blocks_of(total, target, multiple)
    assert [i for a, b in parts for i in range(a, b)] == list(range(total))
    assert all(a < b and a % multiple == 0 for a, b in parts)


def test_scratch_memory_belongs_to_one_thread():
    mine, theirs = scratch("test", (4, 4)), []
    thread = threading.Thread(target=lambda: theirs.append(scratch("test", (4, 4))))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])
    assert np.shares_memory(mine, scratch("test", (2, 2)))


def test_blas_threads_are_restored_when_the_last_user_leaves():
    libraries = pool._blas()
    before = [lib.get_num_threads() for lib in libraries]
    with single_threaded_blas():
        with single_threaded_blas():
            assert {lib.get_num_threads() for lib in libraries} <= {1}
        assert {lib.get_num_threads() for lib in libraries} <= {1}
    assert [lib.get_num_threads() for lib in libraries] == before


def test_many_threads_share_one_engine_and_get_the_same_bits():
    weights = {
        "w": RNG.standard_normal((48, 32, 3, 3)).astype(np.float32),
        "b": RNG.standard_normal(48).astype(np.float32),
        "d": RNG.standard_normal((48, 1, 5, 5)).astype(np.float32),
    }
    proto = model(
        "c = Conv<pads=[1,1,1,1]>(x, w, b) s = Sigmoid(c) m = Mul(c, s)"
        "e = Conv<pads=[2,2,2,2], group=48>(m, d) y = Relu(e)",
        "float[1,32,H,W] x",
        "float[1,48,H,W] y",
        weights,
    )
    inputs = [RNG.standard_normal((1, 32, 30 + i, 41)).astype(np.float32) for i in range(4)]
    with NativeRunner(proto) as runner:
        engine = runner.engine
        expected = [runner.infer({"x": x})["y"] for x in inputs]
        wrong = []

        def work(index):
            context = engine.create_execution_context()
            for _ in range(5):
                found = context.infer({"x": inputs[index]})["y"]
                if not np.array_equal(found, expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_working_threads():
    pool.parallel(lambda i: None, 4)
    child = os.fork()
    if child == 0:
        seen = []
        pool.parallel(seen.append, 20)
        os._exit(0 if sorted(seen) == list(range(20)) else 1)
    assert os.waitpid(child, 0)[1] == 0
