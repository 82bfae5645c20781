"""What a job reads, kept beside its files: the places or the upload, and how its rows are laid out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace

from app.jobs.formats import SourceLimits
from app.jobs.parts import UPLOAD
from app.jobs.records import Job
from app.jobs.sources import SourceRoots
from app.storage.job_files import Storage
from models.data.reading.layouts import Layout, layout_fields, layout_of
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts


@dataclass(frozen=True)
class JobInput:
    """
    An input and its layout.

    Args:
        places: as of ``SourceRoots.files``; None where the input was uploaded.
        name: of the upload.
        domain: of all rows, where no place, folder or column says it.
    """

    places: tuple[str, ...] | None
    name: str
    domain: str | None = None
    layout: Layout = field(default_factory=Layout)

    def files(self, job_id: str, storage: Storage, roots: SourceRoots, limits: SourceLimits) -> list[InputFile]:
        """
        The files to read.

        Raises:
            InvalidSourceError, SourceNotAllowedError, SourceNotFoundError, RequestTooLargeError: see ``SourceRoots``.
        """
        if self.places is not None:
            return [with_domain(file, self.domain) for file in roots.files(self.places, limits)]
        name = f"{job_id}/{UPLOAD}"
        return [InputFile(FileFacts(self.name, self.domain), lambda: storage.open(name), storage.size(name))]


def with_domain(file: InputFile, domain: str | None) -> InputFile:
    """*file*, of *domain* unless its place says another."""
    if domain is None or file.facts.domain is not None:
        return file
    return replace(file, facts=replace(file.facts, domain=domain))


def describe_input(given: JobInput) -> str | None:
    """*given* as JSON, for a job's record; None where the rest of the record says all of it."""
    if given == JobInput(given.places, given.name) and (given.places is None or is_uri(given.places)):
        return None
    return json.dumps({**dataclasses.asdict(given), "layout": layout_fields(given.layout)})


def is_uri(places: tuple[str, ...]) -> bool:
    """Whether *places* are one, without a domain before it."""
    return len(places) == 1 and "=" not in places[0].partition("://")[0]


def input_of(job: Job) -> JobInput:
    """What the job's record says of its input."""
    if job.input_description is None:
        return JobInput(None if job.source_uri is None else (job.source_uri,), job.source_name)
    content = json.loads(job.input_description)
    places = None if content["places"] is None else tuple(content["places"])
    return JobInput(places, content["name"], content["domain"], layout_of(content["layout"]))
