"""
Settings of the service: environment -> one frozen object.

Every setting is read from ``TAESAR_<NAME>`` and says in its description what it does and why its default is what it
is. ``docs/reference.md`` and ``taesar settings`` print these descriptions; there is no second place for defaults.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.decoding.rules import DEFAULT_RULE, Rule, describe_rules

DATABASE_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg", "postgres")
# A scheme, then host and folders without user names, escapes or queries; of file:// an absolute folder, not the root
_ROOT = re.compile(r"file:(?://(?:/[^/\\%?#]+)+)/?|(?!file:)[a-z][a-z0-9+.-]*://[^/\\%?#@:]+(?:/[^/\\%?#]+)*/?")

# What browsers send: a scheme and a host in lower case, perhaps a port, and nothing behind
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")

TEST_PREFIX = "TAESAR_TEST_"  # what the tests ask the environment


class ExposedError(Exception):
    """Without keys the service would be open to others than this machine."""


class Settings(BaseSettings):
    """
    Everything an operator may choose.

    Raises:
        pydantic.ValidationError: a value is out of range, or two settings contradict each other.
    """

    model_config = SettingsConfigDict(env_prefix="TAESAR_", frozen=True, extra="ignore", allow_inf_nan=False)

    # The model
    bundle: Path | None = Field(
        default=None,
        description="Bundle folder that serves from the start. Without it the service answers 503 until a bundle of "
        "TAESAR_BUNDLE_ROOT is activated: an API beside remote workers needs no model of its own.",
    )
    bundle_root: Path | None = Field(
        default=None,
        description="Folder whose subfolders are bundles that POST /models/{version}/activate may load. Unset: only "
        "the bundle of TAESAR_BUNDLE, because no client should choose paths on the server.",
    )
    rule: Rule = Field(
        default=DEFAULT_RULE,
        description=f"Decoding rule of every loaded bundle. {describe_rules()}",
    )
    device: str = Field(
        default="auto", description="Torch device of the networks; 'auto' takes CUDA when present, since it is faster."
    )
    max_loaded_bundles: int = Field(
        default=2,
        ge=1,
        description="Bundles kept in memory, the active one included. Two make a roll-back instant; each costs "
        "(domains + 1) networks.",
    )

    # Limits of one request
    max_sequences_per_request: int = Field(
        default=128,
        ge=1,
        description="Sequences in one POST /regenerate; more is 413. At full length they are about 1 s of one core "
        "with 15,000 items in two domains (some 20,000 items per second; under rule 'paper' half of that, under "
        "'reference', or 'paper' without a compiler, a ninth); larger inputs belong in a job.",
    )
    max_items_per_sequence: int = Field(
        default=4096,
        ge=1,
        description="Items in one sequence; more is 413. The decoder reads the last 128 known ones (129 under the "
        "contrastive rules), so longer histories only cost transfer and parsing.",
    )
    max_items_per_request: int = Field(
        default=32_768,
        ge=1,
        description="Items in all sequences of one request; more is 413. 128 sequences of the 128 items that the "
        "decoder reads are 16,384; items beyond those are parsed and looked up for nothing.",
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        description="Bytes of a request body, counted as they arrive; more is 413. 128 sequences of 128 items take "
        "about 1 MiB; the bound keeps one client from filling memory.",
    )

    # Online batching
    max_batch_positions: int = Field(
        default=4096,
        ge=128,
        description="Items in one call of the model, each sequence rounded up to a multiple of 16: some 80 sequences "
        "of 43 items. A call reads every table once, so 8 sequences take a fifth longer each than 64; a larger call "
        "delays whoever waits behind it. A GPU gains from more.",
    )
    batch_window_milliseconds: float = Field(
        default=3.0,
        ge=0,
        le=1000,
        description="Longest wait for company while the model is busy; an idle model starts at once. A few "
        "milliseconds are small beside a batch's own time.",
    )
    max_queued_sequences: int = Field(
        default=512,
        ge=1,
        description="Sequences admitted and not yet computed; more is 429. Four full requests: what waits longer "
        "would time out at the client anyway.",
    )
    retry_after_seconds: int = Field(
        default=1,
        ge=1,
        description="Retry-After of a 429: short, since places free up with every answer and a refusal costs little.",
    )

    # Jobs and mappings
    data: Path = Field(
        default=Path("taesar-data"),
        description="Folder of the embedded database and of jobs' files; the next settings can place them elsewhere. "
        "One server at a time holds it, unless TAESAR_REDIS_URL or TAESAR_DATABASE_URL is set.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="sqlite:///path or postgresql://user:password@host/name. Unset: an SQLite file in TAESAR_DATA, "
        "which needs nothing installed and serves one process.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="redis://host:port/number of the queue that API and workers share. Unset: the API process works "
        "on jobs itself.",
    )
    storage: str | None = Field(
        default=None,
        description="Path or fsspec URI (s3://bucket/prefix) of jobs' files; every worker must reach it. Unset: the "
        "folder jobs of TAESAR_DATA.",
    )
    input_roots: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="URIs of folders that jobs may read, comma-separated, e.g. file:///data/in,s3://bucket/logs. None "
        "by default: no client should choose what the server reads; uploads are always possible.",
    )
    output_roots: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="URIs of folders that jobs may write their result_uri under, comma-separated, as of "
        "TAESAR_INPUT_ROOTS. None by default: results can always be downloaded.",
    )
    max_input_bytes: int = Field(
        default=8 * 1024**3,
        ge=1024,
        description="Bytes of a job's input as stored or uploaded; more is 413. 8 GiB of NDJSON are about ten million "
        "sequences.",
    )
    max_expanded_bytes: int = Field(
        default=32 * 1024**3,
        ge=1024,
        description="Bytes of a job's input once decompressed and decoded; more fails the job. Real logs shrink four "
        "to ten times; a bomb shrinks a thousand times.",
    )
    max_unfinished_jobs: int = Field(
        default=1000,
        ge=1,
        description="Jobs queued or running at once; more is 429. Each costs a few kilobytes until it runs.",
    )
    chunk_sequences: int = Field(
        default=512,
        ge=1,
        description="Sequences of one chunk, the unit that is retried and counted once. With 15,000 items: half a "
        "second of one core at 22 items a sequence, 3 s at full length, ten times that under rule 'reference'; so a "
        "killed worker loses little, and a transaction costs little beside it.",
    )
    max_chunk_attempts: int = Field(
        default=5,
        ge=1,
        description="Times a chunk is begun before its job fails. Crashes of the worker count too, so a chunk that "
        "kills its worker cannot do so for ever; five leaves room for restarts that are not its fault.",
    )
    max_bad_row_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A job with a larger share of bad rows fails: then the file is probably not what was meant.",
    )
    requeue_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Work that nobody has begun for this long although the queue is empty, or has moved past it, is "
        "queued again. Workers say every 10 s which chunks they hold, so a chunk may take longer; a worker that is "
        "silent for this long is taken for dead, and what it held is computed twice (and counted once).",
    )
    worker_threads: int = Field(
        default=1,
        ge=1,
        description="Chunks that a worker computes at once, in threads that share one model; one thread more cuts "
        "inputs, reads and writes meanwhile. One fills the cores of a CPU, and a GPU.",
    )
    retention_days: float = Field(
        default=30.0,
        ge=0,
        description="Age after which `taesar prune` removes the result and the bad rows of a job that has ended. Its "
        "record and its counts in the mappings stay.",
    )

    # Reports
    reports: Path | None = Field(
        default=None,
        description="Folder whose subfolders are reports of `taesar evaluate`, for GET /reports and the pages Data and "
        "Results. Unset: none are shown, because no client should choose paths on the server.",
    )

    # HTTP
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; local by default, so that exposing the service is a choice.",
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on; 0 lets the system choose (tests).")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Accepted bearer keys, comma-separated, that may do everything. Where neither this nor "
        "TAESAR_API_KEYS_FILE is set everybody on this machine may call; set, but without a key, it is an error.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of accepted keys, with a name, scopes and a hash each (`taesar keys`, docs/keys.md). What "
        "changes in it counts within 2 s, without a restart.",
    )
    key_requests_per_second: float = Field(
        default=100.0,
        ge=0,
        description="Requests of one key in a second, over all replicas where they share Redis; more is 429. 0: any "
        "number. One process answers about as many, so a key may use one but not several.",
    )
    key_queued_sequences: int | None = Field(
        default=None,
        ge=1,
        description="Sequences of one key that wait for an answer at once, in each process; more is 429. Unset: half "
        "of TAESAR_MAX_QUEUED_SEQUENCES, or one full request where that is more, so that the others always find room.",
    )
    key_unfinished_jobs: int | None = Field(
        default=None,
        ge=1,
        description="Jobs of one key queued or running at once; more is 429. Unset: half of "
        "TAESAR_MAX_UNFINISHED_JOBS.",
    )
    session_secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Signs the cookie that a browser gets for a key at /ui/login; 32 characters or more, the same for "
        "every API process. Unset: a new one at every start, which ends the sessions of before.",
    )
    without_keys: Literal["loopback", "anywhere"] = Field(
        default="loopback",
        description="Where the service may listen without a key: on this machine's loopback only, or 'anywhere', for "
        "whoever has closed the port by other means (docker-compose.yml publishes it on the loopback).",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names, comma-separated, by which clients may call beside localhost and addresses; *.example.org "
        "means every name below. Asked for without keys, where any web page in a browser nearby could otherwise call "
        "by a name of its own; with keys only when set.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins, comma-separated, whose web pages may call, as https://app.example.org. Then OPTIONS is "
        "answered, too. None by default: keys do not belong into pages.",
    )
    max_connections: int = Field(
        default=1000,
        ge=16,
        description="Connections open at once, fewer where the system gives the process fewer than 1,384 descriptors. "
        "One more, and the slowest of those whose request has not come is closed: a newcomer always gets in.",
    )
    slow_client_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Time for a request's headers to come, and the span in which a body, or an answer that is read, "
        "must get on; who does not is cut off. Twice the slowest handshake of a bad mobile link.",
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        description="How long a connection may stay unused between two requests. Longer than the 60 seconds of usual "
        "load balancers and proxies: who closes first must be the one that sends, or requests are lost on the way.",
    )
    min_bytes_per_second: int = Field(
        default=4096,
        ge=1,
        description="How far a body, or an answer that is read, must get on in such a span, on average: a twentieth of "
        "a slow mobile link.",
    )
    max_receiving_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        description="Bytes of bodies held in memory by all requests together, an upload counting at most 1 MiB as the "
        "rest is on disk. With no room left the slowest sender is refused with 503: eight full bodies, or sixty "
        "uploads.",
    )
    probe_timeout_seconds: float = Field(
        default=2.0,
        gt=0,
        description="A readiness check slower than this counts as failed: orchestrators give up sooner.",
    )
    shutdown_seconds: int = Field(
        default=30,
        ge=1,
        description="Time to finish admitted requests and begun chunks after SIGTERM; the grace period orchestrators "
        "commonly grant. Whatever is stuck then, in a silent database say, is cut off 5 s later.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port of a worker's own metrics, on TAESAR_HOST. Unset: none; the API always has its own at "
        "/metrics, and what SQL says of all jobs with them.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s]+$",
        description="Collector of traces, such as http://collector:4318 (OTLP over HTTP); needs taesar[otel]. Unset: "
        "no traces.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line written; one line per request at info."
    )

    @field_validator("api_keys", "input_roots", "output_roots", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in (part.strip() for part in value.split(",")) if part)
        return value

    @field_validator("input_roots")
    @classmethod
    def _check_roots(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if not _ROOT.fullmatch(root) or {".", ".."} & set(root.split("/")):
                raise ValueError(f"{root!r} is not the URI of a folder, such as file:///data/in or s3://bucket/logs")
        return roots

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin, such as https://app.example.org or http://localhost:3000")
        return origins

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _check_database_url(url.get_secret_value())
        return url

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _check_redis_url(url.get_secret_value())
        return url

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if self.max_queued_sequences < self.max_sequences_per_request:
            raise ValueError(
                "TAESAR_MAX_QUEUED_SEQUENCES is below TAESAR_MAX_SEQUENCES_PER_REQUEST: "
                "the largest permitted request could never be admitted"
            )
        if self.max_items_per_request < self.max_items_per_sequence:
            raise ValueError(
                "TAESAR_MAX_ITEMS_PER_REQUEST is below TAESAR_MAX_ITEMS_PER_SEQUENCE: "
                "the longest permitted sequence could never be sent"
            )
        if self.max_receiving_bytes < self.max_body_bytes:
            raise ValueError(
                "TAESAR_MAX_RECEIVING_BYTES is below TAESAR_MAX_BODY_BYTES: the largest permitted body had no room"
            )
        # A secret that came out empty must not open the service to everybody
        if "api_keys" in self.model_fields_set and not self.api_keys:
            raise ValueError("TAESAR_API_KEYS is set but holds no key; unset it where none is meant")
        if self.most_sequences_of_a_key() < self.max_sequences_per_request:
            raise ValueError(
                "TAESAR_KEY_QUEUED_SEQUENCES is below TAESAR_MAX_SEQUENCES_PER_REQUEST: "
                "the largest permitted request could never be admitted"
            )
        return self

    def database(self) -> str:
        """The database's URL, the default filled in."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data / 'taesar.db'}"

    def job_storage(self) -> str:
        """The place of jobs' files, the default filled in."""
        return self.storage if self.storage is not None else str(self.data / "jobs")

    def asks_for_keys(self) -> bool:
        """Whether a key is needed."""
        return bool(self.api_keys) or self.api_keys_file is not None

    def most_sequences_of_a_key(self) -> int:
        """TAESAR_KEY_QUEUED_SEQUENCES, the default filled in."""
        if self.key_queued_sequences is not None:
            return self.key_queued_sequences
        return max(self.max_queued_sequences // 2, self.max_sequences_per_request)

    def most_jobs_of_a_key(self) -> int:
        """TAESAR_KEY_UNFINISHED_JOBS, the default filled in."""
        return self.key_unfinished_jobs or max(self.max_unfinished_jobs // 2, 1)

    def refuse_exposure(self) -> None:
        """
        Let no service listen without keys where others than this machine reach it, unless that was chosen.

        Raises:
            ExposedError: it would.
        """
        if self.asks_for_keys() or self.without_keys == "anywhere" or _is_loopback(self.host):
            return
        raise ExposedError(
            f"no API key is set, and {self.host} is not this machine's loopback: set TAESAR_API_KEYS or "
            "TAESAR_API_KEYS_FILE, or TAESAR_WITHOUT_KEYS=anywhere where everybody who reaches the port may call"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_database_url(url: str) -> None:
    """Raise ValueError unless a database can be looked for there; never with the URL's words, which hold a password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("not a URL such as sqlite:///path or postgresql://user:password@host/name") from None
    if parsed.drivername not in DATABASE_DRIVERS:
        raise ValueError(f"{parsed.drivername}:// is no database of this service; sqlite:// and postgresql:// are")
    if parsed.get_backend_name() == "sqlite" and (not parsed.database or parsed.database == ":memory:"):
        raise ValueError("sqlite:// needs the path of a file, as in sqlite:///folder/taesar.db")
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).absolute().parent.is_dir():
        raise ValueError(f"the folder of {parsed.database} is not there")


def _check_redis_url(url: str) -> None:
    """Raise ValueError unless Redis can be looked for there; never with the URL's words, which hold a password."""
    from redis.connection import parse_url

    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise ValueError("not a URL such as redis://host:6379/0, rediss://host:6379/0 or unix:///path") from None


def unknown_settings(environment: Iterable[str]) -> list[str]:
    """What of the variables' names looks like a setting and is none, each with the setting that it resembles most."""
    known = [f"TAESAR_{name.upper()}" for name in Settings.model_fields]
    found = []
    for name in sorted(environment):
        if name.upper().startswith("TAESAR_") and name.upper() not in known and not name.startswith(TEST_PREFIX):
            close = difflib.get_close_matches(name.upper(), known, n=1)
            found.append(f"{name} is no setting" + (f"; is {close[0]} meant?" if close else ""))
    return found
