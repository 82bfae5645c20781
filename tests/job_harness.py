"""A runner of jobs whose tasks a test takes from the queue by hand."""

from app.errors import UnknownModelError
from app.jobs.chunk_files import read_result
from app.jobs.intake import JobIntake
from app.jobs.job_bodies import JobRequest
from app.jobs.results import encode_results, read_output_file
from app.jobs.runner import JobRunner
from app.mappings.mapping_store import DictionaryKey, MappingFilter, find_dictionary, stream
from app.storage.database import reading
from models.decoding.regenerator import Regenerator


class OneModel:
    """The test's bundle, under its own version only."""

    def __init__(self, bundle):
        self.bundle = bundle
        self.calls = 0

    def regenerator(self, version, rule):
        self.calls += 1
        if version != self.bundle.version:
            raise UnknownModelError(version)
        return Regenerator(self.bundle, rule)


class Harness:
    """A runner whose tasks the test takes from the queue by hand, in the order and as often as it likes."""

    def __init__(self, parts, bundle):
        self.parts = parts
        self.bundle = bundle
        self.models = OneModel(bundle)
        self.tasks = []
        self.parts.queue.put = self.tasks.append
        self.runner = JobRunner(parts, chunk_sequences=8, computing=1, models=self.models)
        self.intake = JobIntake(parts)

    def submit(self, path, *, key=None, version=None, **options):
        request = JobRequest(target_domain="kitchen", source_uri=f"file://{path}", **options)
        version = version or self.bundle.version
        return self.intake.accept_uri(request, model_version=version, rule="paper", key=key).job

    def drain(self):
        while self.tasks:
            self.runner.run(self.tasks.pop(0))

    def run(self, path, **options):
        job = self.submit(path, **options)
        self.drain()
        return self.parts.jobs.get(job.job_id)

    def result(self, job, result_format="ndjson"):
        contents = read_result(self.parts.storage, job.job_id, self.parts.jobs.output_names(job.job_id))
        tables = (read_output_file(content) for content in contents)
        return b"".join(encode_results(tables, result_format))

    def mapping(self, job=None):
        key = DictionaryKey("kitchen", self.bundle.version, "paper")
        if job is not None:
            key = job.dictionary
        with reading(self.parts.engine) as connection:
            found = find_dictionary(connection, key)
            blocks = [] if found is None else stream(connection, found, MappingFilter())
            return [row for block in blocks for row in block]
