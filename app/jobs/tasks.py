"""Tasks: what a queue carries. They hold ids and nothing else; SQL knows what is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TaskKind(StrEnum):
    """What a task asks for."""

    CUT = "cut"  # read the job's input and cut it into chunks
    CHUNK = "chunk"  # regenerate one chunk
    FINISH = "finish"  # every chunk is done: settle the job


@dataclass(frozen=True)
class Task:
    """One step of one job; ``chunk_index`` is 0 unless the step is CHUNK."""

    step: TaskKind
    job_id: str
    chunk_index: int = 0
