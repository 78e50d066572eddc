"""Put the tensors of several files together, iteration by iteration, as inputs."""

from __future__ import annotations

from polytool.cli import _joining, options


@options.command()
@_joining.paths
@_joining.output
@options.json
def merge(paths: tuple[str, ...], output: str, as_json: bool) -> None:
    """Put the tensors of several files together, iteration by iteration, as inputs.

    Files may hold inputs, or outputs of one runner. Where a tensor is in several files, the last
    one counts, and that is said.

    \b
    Example: polytool data merge features.json more_inputs.npz -o inputs.json
    """
    _joining.merge_into(paths, output, as_json)
