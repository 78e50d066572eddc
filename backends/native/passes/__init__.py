"""The rewrites of a network, in the order in which the builder applies them.

Fusion depends on the network and the configuration only, never on timing or device.
"""

from __future__ import annotations

from collections.abc import Callable

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Network
from polytool.backends.native.passes.fuse_epilogue import fuse_epilogues

PASSES: tuple[Callable[[Network, BuilderConfig], None], ...] = (fuse_epilogues,)
