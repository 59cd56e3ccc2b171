"""Everything an operator can tune, in one place: the only module that reads the environment.

Each field is an environment variable with the prefix `ADAP_`, for example `ADAP_DATABASE_URL`.
"""

import ipaddress
import os
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from adap.store.home import DATABASE

GIB = 2**30
MIB = 2**20

_HOST = re.compile(r"(?=.*[a-z])[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)  # and no address


def _default_home() -> Path:
    return Path.home() / ".local" / "share" / "adap"


class Settings(BaseSettings):
    """The service's settings; every default works on one machine."""

    model_config = SettingsConfigDict(
        env_prefix="ADAP_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    home: Path = Field(
        default_factory=_default_home, description="database, blobs and work folders live here"
    )
    database_url: str | None = Field(
        None,
        description="SQLite in `home` by default, else postgresql+psycopg://user:password@host/db",
    )
    database_limit_s: float = Field(
        4,
        gt=0,
        description="how long PostgreSQL may take over one answer; then its connection is given "
        "up, and a request is refused with 503",
    )
    database_wait_s: float = Field(
        30,
        gt=0,
        description="how long a writer waits for its turn on SQLite, whichever process or thread "
        "has it, before a request is refused with 503; and how long the API, a worker and "
        "`python -m adap.store` that are started wait for a PostgreSQL server that does not answer",
    )
    broker_url: str | None = Field(
        None, description="redis://…; `adap up` starts its own Valkey and fills this in"
    )
    blobs_url: str | None = Field(
        None, description="a folder in `home` by default, else s3://bucket/prefix"
    )
    blobs_limit_s: float = Field(
        30,
        gt=0,
        description="how long an S3 store may take over one request, of at most 5 MiB; then it "
        "counts as away: requests are refused with 503, jobs wait",
    )
    cache_bytes: int = Field(
        20 * GIB,
        gt=0,
        description="most bytes of copies of an S3 store's blobs in `home`; the least recently "
        "used leave first",
    )
    s3_endpoint: str | None = Field(None, description="for S3 stores other than AWS")
    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None

    host: str = Field("127.0.0.1", description="address of the API; others need an API key first")
    port: int = Field(8000, ge=0, le=65535, description="0 picks a free port")
    bootstrap_admin_key: SecretStr | None = Field(
        None, description="`python -m adap.store` makes sure that this admin key exists"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    otlp_endpoint: str | None = Field(
        None,
        description="where traces go, as http://collector:4318; none are made while this is unset",
    )

    max_upload_bytes: int = Field(2 * GIB, gt=0, description="largest request body of an upload")
    max_file_bytes: int = Field(8 * GIB, gt=0, description="largest file that comes in parts")
    upload_kept_s: float = Field(
        24 * 3600,
        gt=0,
        description="how long an upload in parts is kept after its last part or use",
    )
    request_patience_s: float = Field(
        30,
        gt=0,
        description="how long the API waits for the head of a request, for each "
        "`request_patience_bytes` of its body, and for a client to read; then it hangs up",
    )
    request_patience_bytes: int = Field(
        30_000, ge=1, description="least bytes of a body in `request_patience_s`"
    )
    max_waiting_requests: int = Field(
        64,
        ge=0,
        description="most requests that wait for their turn in one process of the API; "
        "what comes then is refused at once",
    )
    max_json_bytes: int = Field(1 * MIB, gt=0, description="largest JSON request body")
    max_epochs: int = Field(1000, ge=1, description="most epochs of one training")
    max_attack_steps: int = Field(1000, ge=1, description="most steps of one attack")
    max_images: int = Field(250_000, ge=1, description="most files in a zip, or images in an npz")
    max_image_pixels: int = Field(4 * MIB, ge=1, description="most pixels of one image")
    max_model_flops: int = Field(
        10**12, ge=1, description="most operations of a network for one image"
    )
    max_model_bytes: int = Field(
        256 * MIB,
        ge=1,
        description="most bytes of values that a network has at once for one image; to try it "
        "takes some five times as many",
    )
    max_attack_queries: int = Field(10_000, ge=1, description="most queries of one attack")
    max_attack_restarts: int = Field(20, ge=1, description="most restarts of one attack")
    max_tenant_jobs: int | None = Field(
        1000, ge=1, description="most queued and running jobs of one tenant"
    )
    max_tenant_bytes: int | None = Field(
        None,
        ge=1,
        description="most bytes of files of one tenant: data sets, models, reports, rankings and "
        "unused uploads; no limit if unset",
    )
    max_tenant_requests_per_s: float | None = Field(
        1000, gt=0, description="most requests a second of one tenant, to each process of the API"
    )
    max_tenant_streams: int | None = Field(
        100,
        ge=1,
        description="most streams of events and waits of one tenant at a time, to each process of "
        "the API",
    )
    max_address_requests_per_s: float | None = Field(
        200,
        gt=0,
        description="most requests a second of one address without a good API key, to each process "
        "of the API",
    )
    trusted_proxies: str | None = Field(
        None,
        description="addresses or networks, separated by commas, of the proxies whose "
        "X-Forwarded-For names the caller; by default the caller is whoever connects",
    )
    webhook_hosts: str | None = Field(
        None,
        description="hosts that webhooks may be sent to, separated by commas; an address or a "
        "network, as 10.0.0.0/8, allows private ones too. Webhooks are off while this is unset",
    )
    webhook_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="what the secrets of webhooks are made from, the same for every process of the "
        "API; with SQLite a file in `home` by default. Another key makes other secrets",
    )
    idempotency_kept_s: float = Field(
        24 * 3600, gt=0, description="how long an Idempotency-Key is remembered at least"
    )
    max_wait_s: float = Field(60, gt=0, description="longest wait that `Prefer: wait=N` is granted")

    lease_s: float = Field(
        30, gt=0, description="a worker that is silent this long has lost its job"
    )
    heartbeat_s: float = Field(2, gt=0, description="how often a worker renews its lease")
    sweep_s: float = Field(
        5, gt=0, description="how often each worker looks for lost jobs and bells"
    )
    max_lost_attempts: int = Field(
        3, ge=1, description="a job whose worker died this often fails instead of being run again"
    )
    max_storage_attempts: int = Field(
        6,
        ge=1,
        description="a job that found no room, or a disk of its worker that fails, this often "
        "fails instead of being run again, later each time",
    )
    job_limit_s: float = Field(24 * 3600, gt=0, description="wall-clock limit of one attempt")
    stall_limit_s: float = Field(1800, gt=0, description="limit without any sign of progress")
    intake_limit_s: float = Field(900, gt=0, description="wall-clock limit of checking one upload")
    blob_grace_s: float = Field(
        12 * 3600,
        gt=0,
        description="age at which a file that no row refers to is condemned; it is deleted when "
        "nothing has referred to it for as long again",
    )

    max_sweep_trials: int = Field(200, ge=1, description="largest number of trainings of a sweep")

    scores_kept_s: float = Field(
        30 * 24 * 3600,
        ge=0,
        description="scores of an attack that no audit has asked for this long are forgotten",
    )

    checkpoints_kept_s: float = Field(
        7 * 24 * 3600,
        ge=0,
        description="a training that failed or was cancelled keeps its last checkpoint this long, "
        "so that a retry can go on from it",
    )

    jobs_kept_s: float | None = Field(
        None,
        ge=24 * 3600,
        description="jobs that ended this long ago are deleted, with their events, parts and "
        "results, but for those that a data set, a model or a retry refers to, and sweeps once "
        "all their trials go; unset: never",
    )

    results_kept_s: float | None = Field(
        None,
        ge=24 * 3600,
        description="reports, rankings and exports that were made this long ago are removed, as "
        "by DELETE; the figures of their jobs stay; unset: never",
    )

    sandbox: Literal["auto", "bubblewrap", "landlock", "process"] = Field(
        "auto",
        description="how files from outside are opened: in a bubblewrap container without network, "
        "in a process that Landlock keeps from all files but its own, "
        "or in one with limits of resources and system calls only; auto takes the first that works",
    )
    child_memory_bytes: int = Field(
        16 * GIB, gt=0, description="address space of a process that opens uploads"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a job; by default all")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    scoring_url: str | None = Field(
        None,
        pattern=r"^(unix:///.+|tcp://[^/]+:\d+)$",
        description="where the process that scores single images listens, unix:///path or "
        "tcp://host:port; `adap up` starts one and fills this in. It asks for no password: a TCP "
        "port belongs on a network that only the service's own processes reach",
    )
    scoring_max_batch: int = Field(
        64, ge=1, description="most images of one forward pass, whichever requests they came with"
    )
    scoring_max_wait_s: float = Field(
        0.002, ge=0, description="how long a batch that is not full waits for another request"
    )
    scoring_max_waiting: int = Field(
        4096, ge=1, description="most images that wait to be scored; further ones are refused"
    )
    scoring_limit_s: float = Field(30, gt=0, description="time limit of one request for scores")
    scoring_memory_bytes: int = Field(
        4 * GIB, gt=0, description="weights kept in memory; the least recently used leave first"
    )
    scoring_pass_limit_s: float = Field(
        25, gt=0, description="time limit of one forward pass; its process is ended then"
    )
    scoring_network_bytes: int = Field(
        4 * GIB,
        gt=0,
        description="memory of one model's process, besides torch and four times its file",
    )
    scoring_max_networks: int = Field(
        8, ge=1, description="models with a process of their own that waits for the next request"
    )
    scoring_idle_s: float = Field(
        900, gt=0, description="after which the process of a model that nobody asks is ended"
    )
    max_scoring_bytes: int = Field(
        32 * MIB, gt=0, description="largest request body of images to be scored at once"
    )

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, value: str | None) -> str | None:
        for entry in entries(value):
            if not _HOST.fullmatch(entry) and not _is_network(entry):
                raise ValueError(
                    "expected names of hosts (hooks.example.com), addresses or networks "
                    f"(10.0.0.0/8), separated by commas, got {entry!r:.80}"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: str | None) -> str | None:
        for entry in entries(value):
            if not _is_network(entry):
                raise ValueError(
                    "expected addresses or networks (10.0.0.0/8), separated by commas, got "
                    f"{entry!r:.80}"
                )
        return value

    @classmethod
    def read(cls, **given: Any) -> Self:
        """Those of the environment, and these instead; what is wrong ends the program, named.

        No value of another setting is told: some are secret.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            sys.exit(
                "\n".join(
                    f"ADAP_{str(fault['loc'][0]).upper()}: "
                    f"{fault['msg'].removeprefix('Value error, ')}"
                    for fault in error.errors()
                )
            )

    @cached_property
    def database(self) -> str:
        """The database's URL, default filled in."""
        return self.database_url or f"sqlite:///{self.home / DATABASE}"

    @cached_property
    def blobs(self) -> str:
        """Where blobs live, default filled in: a path, or an s3:// URL."""
        return self.blobs_url or str(self.home / "blobs")


def entries(value: str | None) -> list[str]:
    """The entries of a setting that is a list with commas."""
    return [entry for part in (value or "").split(",") if (entry := part.strip())]


def _is_network(entry: str) -> bool:
    try:
        ipaddress.ip_network(entry)
    except ValueError:
        return False
    return True


def child_environment(settings: Settings) -> dict[str, str]:
    """This process's environment, changed so that a child reads these very settings from it."""
    environment = dict(os.environ)
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            environment[f"ADAP_{name.upper()}"] = str(value)
    return environment
