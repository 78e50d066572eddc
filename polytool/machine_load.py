"""What else runs on this machine while something is timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable


class OtherLoad:
    """Counts the processor time of all processes but ours, from its creation on.

    Args:
        pids: our processes, beside this one.
    """

    def __init__(self, pids: Iterable[int] = ()) -> None:
        self._pids = [os.getpid(), *pids]
        self._known = os.path.exists("/proc/stat")
        self._start, self._busy, self._own = time.perf_counter(), self._all(), self._ours()

    def measured(self) -> float | None:
        """How many processors others kept busy on average; None where the system does not say."""
        seconds = time.perf_counter() - self._start
        if not self._known or seconds <= 0:
            return None
        others = (self._all() - self._busy) - (self._ours() - self._own)
        return max(others / os.sysconf("SC_CLK_TCK") / seconds, 0.0)

    def _all(self) -> float:
        """Ticks in which any processor was busy."""
        if not self._known:
            return 0.0
        with open("/proc/stat", encoding="ascii") as stat:
            # user, nice, system, idle, iowait, irq, softirq, steal; guests are within user
            ticks = [float(t) for t in stat.readline().split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4]

    def _ours(self) -> float:
        """Ticks of our processes, those that have ended left out."""
        return sum(_ticks(pid) for pid in self._pids) if self._known else 0.0


def _ticks(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has ended
    return float(fields[11]) + float(fields[12])
