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
from models.data.reading.input_formats import SUFFIXES, stem_and_suffix
from models.data.reading.layouts import Layout, layout_fields, layout_of
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts

DESCRIPTION = "input/description.json"


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


def keep_input(storage: Storage, job_id: str, given: JobInput) -> None:
    """Write what a job reads into its folder, unless its record says all of it: one file whose layout is found."""
    is_plain = given.domain is None and replace(given.layout, input_format=None) == Layout()
    if is_plain and (given.places is None or (len(given.places) == 1 and not _stands_for_several(given.places[0]))):
        return
    content = {**dataclasses.asdict(given), "layout": layout_fields(given.layout)}
    storage.write(f"{job_id}/{DESCRIPTION}", json.dumps(content).encode())


def kept_input(storage: Storage, job: Job) -> JobInput:
    """What ``keep_input`` wrote, or what the job's record says."""
    try:
        content = json.loads(storage.read(f"{job.job_id}/{DESCRIPTION}"))
    except FileNotFoundError:
        places = None if job.source_uri is None else (job.source_uri,)
        return JobInput(places, job.source_name, layout=Layout(input_format=job.source_format))
    places = None if content["places"] is None else tuple(content["places"])
    return JobInput(places, content["name"], content["domain"], layout_of(content["layout"]))


def _stands_for_several(place: str) -> bool:
    """A place whose files may be of several formats, or have a domain: all but a file's own URI."""
    return "=" in place or not SUFFIXES.keys() & {stem_and_suffix(place)[1]} or any(mark in place for mark in "*[")
