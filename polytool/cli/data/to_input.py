"""Turn saved outputs into inputs of the next model."""

from __future__ import annotations

from polytool.cli import _joining, options


@options.command()
@_joining.paths
@_joining.output
@options.json
def to_input(paths: tuple[str, ...], output: str, as_json: bool) -> None:
    """Turn saved outputs into inputs of the next model; the same as `data merge`.

    \b
    Example: polytool data to-input encoder_outputs.safetensors -o decoder_inputs.json
    """
    _joining.merge_into(paths, output, as_json)
