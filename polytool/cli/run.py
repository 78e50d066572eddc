"""Run a model on several runners and compare their outputs."""

from __future__ import annotations

from typing import Any

from polytool.cli import _comparing, _request, _runners, _tactics, options
from polytool.cli.output import note, result


@options.command()
@options.model
@_runners.chosen
@_runners.builder
@_tactics.tactics
@_tactics.loading
@_runners.optimization_profile
@_runners.onnxrt
@options.feeds
@_runners.files
@_comparing.comparing
@options.option(
    "--check-bounds", is_flag=True, help="Say whether bounds that sanitize has set were ever hit."
)
@options.external_data
@options.report
@options.json
def run(
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    onnxrt: _runners.Onnxrt,
    comparing: _comparing.Comparing,
    check_bounds: bool,
    report: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Run a model on several runners and compare their outputs.

    Every run is compared with the oracle where there is one, else with the first. Exit code 0 says
    that all outputs agree, 1 that one differs or is missing, 2 that there is no answer.

    \b
    Example: polytool run model.onnx --native --onnxrt --input-shapes x:[1,3,48,320]
    """
    from polytool.agreement import perform
    from polytool.cli import _report
    from polytool.conversion import check_writable

    request = _request.request_of(builder=builder, tactics=tactics, onnxrt=onnxrt, **given)
    if comparing.save is not None:
        check_writable(comparing.save)
    with _request.progress(request) as advance:
        session = perform(request, advance)
    if check_bounds:
        from polytool.bounds import checked

        session = checked(session)
    unused = _request.unused(request, builder, tactics, onnxrt)
    for text in (*session.notes, *comparing.notes, *unused):
        note(text)
    if len(session.results) == 1:
        return _report.show_single(session, comparing, as_json, report)
    comparison = _request.compare(session, comparing)
    facts = {**comparison.to_json(), **_report.to_json(session)}
    if report is not None:
        _report.save(
            report, request.model, comparison, session, facts, _request.steps_of(comparing)
        )
    result(as_json, _report.describe(session, comparison, request), facts)
    return comparison.exit_code
