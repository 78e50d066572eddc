"""Timing caches: what is saved is found, several writers lose nothing, damage is told."""

import json
import math
import multiprocessing

import pytest

from polytool.backends.native.timing_cache import TimingCache
from polytool.errors import ModelError

STAMP = json.dumps({"device": "some GPU", "driver": 13000}, sort_keys=True)


def cache(**times: float) -> TimingCache:
    made = TimingCache()
    made.keep(STAMP, "gemm 1", times, ["nvrtc"])
    return made


def test_times_come_back(tmp_path):
    cache(a=1.5, fails=math.inf).save(tmp_path / "t.cache")
    found = TimingCache.load(tmp_path / "t.cache")
    times = found.find(STAMP, "gemm 1")
    assert times is not None and times.milliseconds == {"a": 1.5, "fails": math.inf}
    assert times.covers(["a"], ["nvrtc"])
    assert not times.covers(["a", "b"], ["nvrtc"]) and not times.covers(["a"], ["nvrtc", "cudnn"])
    assert found.find(STAMP, "gemm 2") is None
    assert found.find(json.dumps({"device": "another GPU"}), "gemm 1") is None
    assert found.timed == 0


def test_saving_adds_to_what_is_there_and_new_times_win(tmp_path):
    path = tmp_path / "t.cache"
    cache(a=1.0, b=2.0).save(path)
    cache(b=3.0, c=4.0).save(path)
    times = TimingCache.load(path).find(STAMP, "gemm 1")
    assert times is not None and times.milliseconds == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert [p.name for p in tmp_path.iterdir()] == ["t.cache"]


def _write(path, number):
    for turn in range(5):
        made = TimingCache()
        made.keep(STAMP, f"{number} {turn}", {"a": 1.0}, ["nvrtc"])
        made.save(path)


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "t.cache"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = TimingCache.load(path)
    assert all(found.find(STAMP, f"{n} {turn}") for n in range(4) for turn in range(5))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format": "polytool-timing-cache-9"}',
        b'{"format": "polytool-timing-cache-1", "devices": [1]}',
        b'{"format": "polytool-timing-cache-1", "devices": [{"stamp": {}, "times": {"a": 1}}]}',
        b'{"format": "polytool-timing-cache-1", "devices": [{"stamp": {}, "times": {"a": '
        b'{"sources": [], "milliseconds": {"x": -1}}}}]}',
        b"[" * 100000,
    ],
)
def test_other_files_are_refused_and_not_overwritten(tmp_path, content):
    path = tmp_path / "t.cache"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"t\.cache"):
        TimingCache.load(path)
    with pytest.raises(ModelError, match=r"t\.cache"):
        cache(a=1.0).save(path)
    assert path.read_bytes() == content


def test_a_cut_file_is_told(tmp_path):
    path = tmp_path / "t.cache"
    cache(a=1.0).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="is no timing cache"):
            TimingCache.load(path)


def test_a_directory_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="cannot be written"):
        cache(a=1.0).save(tmp_path / "no" / "t.cache")
