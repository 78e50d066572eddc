"""The rewrites of a network, in the order in which the builder applies them.

Fusion depends on the network and the configuration only, never on timing or device.
"""

from __future__ import annotations

from collections.abc import Callable

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Network
from polytool.backends.native.passes.fuse_attention import fuse_attention
from polytool.backends.native.passes.fuse_epilogue import fuse_epilogues
from polytool.backends.native.passes.fuse_gelu import fuse_gelu
from polytool.backends.native.passes.fuse_norm_gemm import fuse_norm_gemms
from polytool.backends.native.passes.fuse_normalization import fuse_normalizations
from polytool.backends.native.passes.fuse_residual_norm import fuse_residual_norms
from polytool.backends.native.passes.gemm_to_matmul import gemm_to_matmul
from polytool.backends.native.passes.placement import place_on_host
from polytool.backends.native.passes.precision import lower_precision
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.passes.select_early import select_early

Pass = Callable[[Network, BuilderConfig], PassResult]

PASSES: tuple[Pass, ...] = (
    place_on_host,
    fuse_normalizations,
    fuse_gelu,
    fuse_attention,
    lower_precision,
    gemm_to_matmul,
    select_early,
    fuse_residual_norms,
    fuse_epilogues,
    fuse_norm_gemms,
)
UNOPTIMIZED: tuple[Pass, ...] = (place_on_host, lower_precision)
"""What remains when `BuilderConfig.optimize` is False."""
