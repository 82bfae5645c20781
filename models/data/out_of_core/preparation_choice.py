"""Whether an input is prepared in memory or out of core: the result is the same, so what fits decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.data.out_of_core.bounded_preparation import prepare_in_bounded_memory
from models.data.out_of_core.forecast import Forecast, forecast_of
from models.data.out_of_core.memory_share import MemoryShare
from models.data.preparation import PreparationConfig, prepare
from models.data.preparation_report import PreparationReport
from models.data.reading.interactions import ReadingProgress
from models.data.reading.places import files_of
from models.data.reading.preview import Preview
from models.errors import ConfigurationError
from models.memory_sizes import available_bytes, size_text

# Of the memory that is free, without --memory: others run beside us, and forecasts of text are estimates.
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class PreparationPlan:
    """
    How an input will be prepared.

    Args:
        forecast: what it will cost.
        memory: bytes that the preparation may take.
        share: what of them goes where, out of core; None in memory.
    """

    forecast: Forecast
    memory: int
    share: MemoryShare | None

    def __str__(self) -> str:
        rows = f"about {self.forecast.rows:,} rows"
        if self.share is None:
            return f"{rows}: in memory, about {size_text(self.forecast.in_memory_bytes)}"
        minutes = max(1, round(self.forecast.seconds / 60))
        return (
            f"{rows}: out of core in {size_text(self.memory)} of memory, with up to "
            f"{size_text(self.forecast.disk_bytes)} of disk beside the output, about {minutes} min of processor time"
        )


def plan_preparation(
    inputs: Sequence[str | Path], out: Path, config: PreparationConfig, *, memory: int | None, extends: bool
) -> PreparationPlan:
    """
    Decide how to prepare *inputs*.

    Args:
        memory: bytes that the process may take; None for half of what is free.
        extends: a dataset is extended, which needs memory for all of it.

    Raises:
        ConfigurationError: the memory is too little, for anything or for options that work in memory only.
        DiskTooSmallError: out of core, the disk is.
        InputFormatError: an input is not there.
    """
    forecast = forecast_of(files_of(inputs))
    allowed = int(available_bytes() * DEFAULT_SHARE) if memory is None else memory
    if forecast.in_memory_bytes <= allowed:
        return PreparationPlan(forecast, allowed, None)
    only_in_memory = [option for option, given in (("--extend", extends), ("--carry", config.layout.carried)) if given]
    if only_in_memory:
        if memory is None and forecast.in_memory_bytes <= available_bytes():
            return PreparationPlan(forecast, allowed, None)
        raise ConfigurationError(
            f"{only_in_memory[0]} works in memory only, and about {forecast.rows:,} rows need about "
            f"{size_text(forecast.in_memory_bytes)}: prepare the whole log without it, or on a machine with more memory"
        )
    share = MemoryShare.of(allowed)
    forecast.check_disk(out)
    return PreparationPlan(forecast, allowed, share)


def prepare_as_planned(
    plan: PreparationPlan,
    inputs: Sequence[str | Path],
    out: Path,
    config: PreparationConfig,
    *,
    overwrite: bool = False,
    progress: ReadingProgress | None = None,
    name: str | None = None,
    show: Callable[[Preview], None] | None = None,
    extend: Path | None = None,
) -> PreparationReport:
    """The dataset of *inputs*, as ``models.data.preparation.prepare`` makes it, in the way of *plan*."""
    if plan.share is None:
        return prepare(inputs, out, config, overwrite=overwrite, progress=progress, name=name, show=show, extend=extend)
    return prepare_in_bounded_memory(
        inputs, out, config, plan.share, overwrite=overwrite, progress=progress, name=name, show=show
    )
