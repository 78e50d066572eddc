"""Options that say what agreement means; shared by the commands that compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polytool.cli import options

if TYPE_CHECKING:
    from polytool.comparators.tolerances import Criteria

F = TypeVar("F", bound=Callable[..., Any])

# The metric that a threshold's option is for, and its help.
_THRESHOLDS = (
    ("l2", ("--l2-threshold", "--l2-tolerance"), "Largest norm of the error"),
    ("relative_l2", ("--relative-l2-threshold",), "Largest norm of the error over that of the "
     "reference"),
    ("cosine_similarity", ("--cosine-similarity-threshold",), "Smallest cosine similarity"),
    ("psnr", ("--psnr-threshold", "--psnr-tolerance"), "Smallest peak signal to noise ratio in dB"),
    ("snr", ("--snr-threshold", "--snr-tolerance"), "Smallest signal to noise ratio in dB"),
    ("ulp", ("--ulp-threshold",), "Largest distance in units of the last place"),
    ("indices", ("--index-tolerance",), "Largest distance of an index from its place"),
)  # fmt: skip
_NAMES = ("simple", "indices", "l2", "relative_l2", "cosine_similarity", "psnr", "snr", "ulp",
          "distance_metrics", "quality_metrics")  # fmt: skip


@dataclass(frozen=True)
class Comparing:
    """What is compared and how, as the user said it.

    Attributes:
        criteria: tolerances, metrics and what else counts.
        postprocess: output name or pattern to `top-5`.
        postprocess_script: a function that outputs go through before they are compared.
        compare_script: a function that compares instead.
        save: where to save the comparison.
        notes: options that change nothing.
    """

    criteria: Criteria
    postprocess: Mapping[str, Any]
    postprocess_script: str | None
    compare_script: str | None
    save: str | None
    notes: tuple[str, ...] = ()


def comparing(function: F) -> F:
    """Every option about comparing, passed as one `comparing: Comparing`."""
    thresholds = [
        options.option(
            *flags,
            f"threshold_{metric}",
            several=True,
            metavar="[NAME:]VALUE",
            callback=options.named(float, "a number such as 1e-3"),
            help=f"{text}; checks {metric}.",
        )
        for metric, flags, text in _THRESHOLDS
    ]
    return options.bundle(
        function,
        "comparing",
        _read,
        (
            _named("--rtol", "--rel-tol", "rtol", number=True,
                   text="Relative tolerance, as 1e-3 or scores:1e-2. Without --rtol and --atol an "
                   "error may be what rounding does, or ten times what noise of 2^-22 does to "
                   "this model."),
            _named("--atol", "--abs-tol", "atol", number=True,
                   text="Absolute tolerance, in the same way."),
            options.option(
                "--compare", "--compare-func", "compare", several=True,
                type=click.Choice(_NAMES),
                help="What is checked; several must all pass.  [simple]",
            ),
            *thresholds,
            _named("--check-error-stat", "statistic", number=False,
                   text="The statistic of the error that tolerances are for: elemwise, max, mean, "
                   "median or quantile.  [elemwise]"),
            _named("--error-quantile", "quantile", number=True,
                   text="Which quantile, as 0.99."),
            options.option("--infinities-compare-equal", is_flag=True,
                           help="Always so: infinities of one sign are equal."),
            options.option("--no-shape-check", is_flag=True,
                           help="Compare outputs of one size whatever their shapes."),
            options.option("--check-average", is_flag=True,
                           help="Check the mean of each metric over the iterations."),
            options.option("--validate", is_flag=True,
                           help="NaN and Inf are a failure even where both sides have them."),
            options.option("--fail-fast", is_flag=True, help="Stop at the first difference."),
            options.option("--postprocess", "--postprocess-func", "postprocess", several=True,
                           metavar="[NAME:]top-K[,axis=A]",
                           callback=options.named(_top, "a step such as top-5 or top-5,axis=1"),
                           help="Compare the indices of the K largest values instead."),
            options.option("--postprocess-func-script", "postprocess_script", metavar="SCRIPT",
                           help="A function that changes outputs before they are compared, as "
                           "my_script.py:postprocess; it gets and returns a dict of arrays."),
            options.option("--compare-func-script", "compare_script", metavar="SCRIPT",
                           help="A function that compares instead, as my_script.py:compare_outputs;"
                           " it gets two dicts of arrays and returns a dict of booleans."),
            options.option("--save-accuracy-results", "save", metavar="PATH", type=click.Path(),
                           help="Save the comparison for polytool check accuracy."),
        ),
    )  # fmt: skip


def _named(*names: str, number: bool, text: str) -> Any:
    callback = (
        options.named(float, "a number such as 1e-3") if number else options.named(str, "a word")
    )
    return options.option(
        *names,
        several=True,
        metavar="[NAME:]VALUE" if number else "[NAME:]STAT",
        callback=callback,
        help=text,
    )


def _top(text: str) -> tuple[int, int]:
    """`top-5` as (5, -1), `top-5,axis=1` as (5, 1)."""
    first, *rest = text.replace(" ", "").split(",")
    if not first.startswith("top-") or len(rest) > 1:
        raise ValueError(text)
    axis = rest[0].removeprefix("axis=") if rest else "-1"
    count = int(first.removeprefix("top-"))
    if count < 1:
        raise ValueError(text)
    return count, int(axis)


def _read(
    rtol: Mapping[str, float],
    atol: Mapping[str, float],
    compare: tuple[str, ...],
    statistic: Mapping[str, str],
    quantile: Mapping[str, float],
    infinities_compare_equal: bool,
    no_shape_check: bool,
    check_average: bool,
    validate: bool,
    fail_fast: bool,
    postprocess: Mapping[str, Any],
    postprocess_script: str | None,
    compare_script: str | None,
    save: str | None,
    **thresholds: Mapping[str, float],
) -> Comparing:
    from polytool.comparators.tolerances import criteria_of

    metrics: dict[str, Any] = dict.fromkeys(compare)
    for name, values in thresholds.items():
        if values:
            metrics[name.removeprefix("threshold_")] = values
    criteria = criteria_of(
        dict(rtol) or None,
        dict(atol) or None,
        metrics,
        statistic=statistic,
        quantile=quantile,
        check_shapes=not no_shape_check,
        average=check_average,
        require_finite=validate,
        fail_fast=fail_fast,
        full=save is not None,
    )
    notes = ["--infinities-compare-equal changes nothing: they always do"]
    return Comparing(
        criteria,
        postprocess,
        postprocess_script,
        compare_script,
        save,
        tuple(notes) if infinities_compare_equal else (),
    )
