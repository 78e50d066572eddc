"""Put the iterations of several files one after the other."""

from __future__ import annotations

from polytool.cli import _joining, options
from polytool.cli.output import result


@options.command()
@_joining.paths
@_joining.output
@options.json
def concat(paths: tuple[str, ...], output: str, as_json: bool) -> None:
    """Put the iterations of several files one after the other.

    All files hold inputs, or all hold results, which are matched by runner. One file alone is
    written again in the format that the name of the output asks for.

    \b
    Example: polytool data concat monday.safetensors tuesday.safetensors -o week.json
    """
    import polytool.saved_data

    joined = polytool.saved_data.concat(paths)
    joined.save(output)
    counts = {run.name: len(run) for run in joined.runs}
    names = ", ".join(
        f"{n} iterations{f' of {name}' if name else ''}" for name, n in counts.items()
    )
    facts = {"output": output, "kind": joined.kind, "iterations": max(counts.values(), default=0)}
    result(as_json, f"{output}: {joined.kind}, {names}", facts)
