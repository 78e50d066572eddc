"""A built engine: the plan and its weights, read-only, shared by any number of contexts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.device_section import DeviceSection
from polytool.backends.native.network import Network
from polytool.backends.native.program import LazyProgram, Program
from polytool.backends.native.tactic_replay import TacticReplay
from polytool.backends.native.tactics import tactic_choices
from polytool.backends.native.tactics.base import Mode
from polytool.errors import ModelError, PolytoolError

if TYPE_CHECKING:
    from polytool.backends.native.context import ExecutionContext
    from polytool.backends.native.cuda.tuning import Tuning
    from polytool.backends.native.cuda.weights import Weights


@dataclass(eq=False)
class Engine:
    """What a builder makes of a model.

    Attributes:
        name: the model's name, for messages.
        network: the plan: layers in execution order, with their constants.
        config: what it was built with.
        device: `cpu` or `cuda`, decided when it was built or loaded.
        notes: what the user should hear, such as an option that did nothing.
        spare: a context that the build has made ready, for whoever comes first.
        path: the file that it was loaded from.
        sections: what that holds for GPUs.
        kernels: whether compiled kernels are taken from there.
        retune: whether tactics may be chosen for a GPU that it holds nothing for.
    """

    name: str
    network: Network
    config: BuilderConfig
    device: str = "cpu"
    notes: tuple[str, ...] = ()
    spare: list[ExecutionContext] = field(default_factory=list, repr=False)
    path: Path | None = None
    sections: tuple[DeviceSection, ...] = ()
    kernels: bool = True
    retune: bool = True

    @property
    def mode(self) -> Mode:
        """How values are stored while it runs."""
        return Mode(wide=self.config.precision == "fp64")

    @cached_property
    def program(self) -> Program | LazyProgram:
        """The plan bound to CPU tactics; built once, used by every context.

        Raises:
            ModelError: the plan comes from a file, and its layers cannot be what was saved.
        """
        try:
            return Program(self.network, self.mode)
        except Exception as err:
            if self.path is None or isinstance(err, PolytoolError):
                raise
            raise ModelError(
                f"engine {str(self.path)!r} is damaged: its layers cannot be prepared "
                f"({type(err).__name__}: {err}); build it again"
            ) from err

    @cached_property
    def weights(self) -> Weights:
        """The constants on the GPU; uploaded once, used by every context."""
        from polytool.backends.native.cuda.weights import Weights
        from polytool.backends.native.kernels import driver

        return Weights(driver.device())

    @cached_property
    def tuning(self) -> Tuning:
        """Which candidates run on the GPU; decided once, used by every context."""
        from polytool.backends.native.cuda.tuning import Tuning, section_for

        device = self.weights.device
        section = section_for(device, self.sections)
        return Tuning(self.config, device, section, self.kernels, self.retune)

    def tactics(self) -> TacticReplay:
        """What was decided so far: on a GPU, for the shapes that have been seen or built for."""
        if self.device == "cuda":
            choices = tuple(self.tuning.chosen.values())
            return TacticReplay(choices, self.weights.device.name, self.name)
        return TacticReplay(tactic_choices(self.network, self.mode), "cpu", self.name)

    def built_tactics(self) -> list[TacticReplay]:
        """What was decided for the GPUs that the engine's file has sections for."""
        return [section.replay for section in self.sections]

    def saved_sections(self) -> list[DeviceSection]:
        """What a file of this engine holds for GPUs: as it was loaded, and as decided here."""
        mine = self.tuning.section() if self.device == "cuda" else None
        if mine is None:
            return list(self.sections)
        return [*(s for s in self.sections if s.stamp != mine.stamp), mine]

    def create_execution_context(
        self, *, cuda_graph: bool | None = None, optimization_profile: int | None = None
    ) -> ExecutionContext:
        """A context: what one thread needs to run the engine; see `ExecutionContext`."""
        from polytool.backends.native.context import ExecutionContext

        if cuda_graph in (None, self.config.cuda_graph) and optimization_profile is None:
            try:
                return self.spare.pop()  # that of the build, which has everything in place
            except IndexError:
                pass
        return ExecutionContext(self, cuda_graph, optimization_profile)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        from polytool.backends.native.engine_file import save

        save(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        kernels: bool = True,
        retune: bool = True,
    ) -> Engine:
        """Read an engine file; weights stay on disk until they are used.

        Args:
            path: the file.
            device: `auto`, `cpu` or `cuda`.
            kernels: take compiled kernels from the file; they are code, so leave it to files that
                you trust. Without, they are compiled here.
            retune: on a GPU that the file was not built for, choose tactics again.

        Raises:
            RunnerError: `retune` is False and the file was not built for this GPU.
            ModelError: the file is missing, truncated, altered, or of another version.
        """
        from polytool.backends.native.engine_file import load

        return load(Path(path), device=device, kernels=kernels, retune=retune)
