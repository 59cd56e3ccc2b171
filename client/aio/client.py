"""A client of the service: each method is one HTTP call, and answers its JSON as a dict.

    dataset = client.datasets.create("photos.zip")
    training = client.trainings.create(dataset_id=dataset.id, positive=["cat"]).wait()
    audit = client.audits.create(model_id=training.model().id, dataset_id=dataset.id)
    report = audit.wait(on_progress=print).report()

`create`, `get` and `list` answer what is typed, of a job what can be waited for; `page`, `show` and
everything else answer the JSON of the service.
There are two clients of one text: this one in `adap.client.aio`, to be awaited, is written by hand,
and `adap.client.client`, which waits, is made from it by `python -m adap.client.aio.generate`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Self
from uuid import uuid4

import httpx

from adap.client import references
from adap.client.base import (
    DEFAULT_URL,
    ENDED,
    EXPORTED,
    IN_PARTS_ABOVE_BYTES,
    LONGEST_RETRY_S,
    PING_LIMIT_S,
    RANKING_FORMS,
    RECONNECT_AFTER_S,
    RECONNECT_FOR_S,
    RETRIED_CODES,
    RETRY_AFTER_S,
    SCORE_READ_LIMIT_S,
    UPLOAD_READ_LIMIT_S,
    ClientError,
    ConnectionFailedError,
    Counted,
    Event,
    EventReader,
    FilePath,
    JobFailedError,
    Json,
    OnBytes,
    OnEvent,
    Parts,
    ProblemError,
    checked,
    is_loopback,
    part,
    read_events,
)
from adap.client.values import (
    Dataset,
    Estimate,
    Job,
    Model,
    OnProgress,
    RankedExample,
    Report,
    listed,
    progress_of,
    with_task,
    with_threat,
)

__all__ = [
    "DEFAULT_URL",
    "ENDED",
    "AsyncClient",
    "ClientError",
    "ConnectionFailedError",
    "Event",
    "JobFailedError",
    "Json",
    "OnBytes",
    "OnEvent",
    "ProblemError",
    "read_events",
]


class AsyncClient:
    """The service at an address. Threads may share one."""

    def __init__(
        self, base_url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        try:
            self.http = httpx.AsyncClient(
                base_url=self.base_url,
                headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
                timeout=timeout_s,
                trust_env=not is_loopback(self.base_url),  # no proxy stands before this machine
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConnectionFailedError(self.base_url, str(error)) from error
        self.uploads = Uploads(self)
        self.datasets = Datasets(self)
        self.models = Models(self)
        self.jobs = Jobs(self)
        self.sweeps = Sweeps(self)
        self.keys = Keys(self)
        self.queues = Queues(self)
        self.trainings = Trainings(self)
        self.audits = Audits(self)
        self.rankings = Rankings(self)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    # --- what makes a job -------------------------------------------------------------------------

    async def train(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/training-jobs`: the job, whose result is a model."""
        return await self.post("/v1/training-jobs", json=request)

    async def audit(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/audits`: the job, whose result is a report."""
        return await self.post("/v1/audits", json=request)

    async def rank(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/rankings`: the job, whose result is a ranking."""
        return await self.post("/v1/rankings", json=request)

    async def sweep(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/sweeps`: the sweep, whose trials are training jobs."""
        return await self.post("/v1/sweeps", json=request)

    async def estimate(self, path: str, request: Mapping[str, Any]) -> Json:
        """What a request to `audits`, `training-jobs` or `sweeps` would cost; none is made."""
        return await self.post(f"/v1/{path}/estimate", json=request)

    async def with_ids(self, request: Mapping[str, Any]) -> Json:
        """A request in which data sets and models may be named, with their ids instead.

        Raises UnknownNameError or AmbiguousNameError.
        """
        answer = dict(request)
        both = ((references.MODELS, self.models), (references.DATASETS, self.datasets))
        for paths, named in both:
            for path in paths:
                reference = references.at(answer, path)
                if reference is not None:
                    answer = references.put(answer, path, await named.id_of(reference))
        return answer

    # --- results ----------------------------------------------------------------------------------

    async def report(self, job_id: str) -> Json:
        """The report of a finished audit."""
        return await self.get(f"/v1/audits/{job_id}/report")

    async def report_as(self, job_id: str, media_type: str) -> bytes:
        """The same as text/html, text/markdown (a model card), application/xml (JUnit) or
        application/sarif+json.
        """
        path = f"/v1/audits/{job_id}/report"
        # and problems as for programs, not as pages
        accept = f"{media_type}, application/problem+json"
        return (await self.request("GET", path, headers={"Accept": accept})).content

    async def remove_report(self, job_id: str) -> None:
        """Remove the report of an audit with its scores; the job and its figures stay."""
        await self.delete(f"/v1/audits/{job_id}/report")

    async def leaderboard(self, dataset_id: str, **query: Any) -> Json:
        """The models that were audited on a data set, the highest worst-case AP first."""
        return await self.get("/v1/leaderboard", dataset_id=dataset_id, **query)

    def audit_scores(self, job_id: str) -> AsyncIterator[Json]:
        """Every image of an audit: its logit, clean and under each attack."""
        return self.pages(f"/v1/audits/{job_id}/scores", limit=100)

    async def save_scores(self, job_id: str, target: FilePath) -> None:
        """Write all that the figures of an audit come from to a safetensors file."""
        await self.download(
            f"/v1/audits/{job_id}/scores", target, accept="application/vnd.safetensors"
        )

    async def ranking(self, job_id: str, *, limit: int = 100, after: str | None = None) -> Json:
        """A page of a finished ranking, best first."""
        return await self.get(f"/v1/rankings/{job_id}", limit=limit, after=after)

    async def save_ranking(self, job_id: str, target: FilePath) -> None:
        """Download a whole ranking: CSV, Parquet or NDJSON, by the suffix of the file."""
        target = Path(target)
        if target.suffix not in RANKING_FORMS:
            raise ValueError(f"expected a file {', '.join(RANKING_FORMS)}, got {target.name}")
        accept = RANKING_FORMS[target.suffix]
        await self.download(f"/v1/rankings/{job_id}", target, accept=accept)

    async def score(
        self,
        model_id: str,
        images: Sequence[FilePath],
        *,
        positive: str | Sequence[str] | None = None,
        resize: str | None = None,
    ) -> Json:
        """Score a few images: scores and ranks, in the order given.

        model_id: an id, the start of one, a name, or `@latest`.
        positive: the classes to score, for a model with a logit for each class.
        resize: stretch, crop or pad, for images of another size than the model takes.
        """
        model_id = await self.models.id_of(model_id)
        with ExitStack() as stack:
            files = [("images", part(stack, Path(path), None)) for path in images]
            fields = {"positive": listed(positive or []), "rank": "true"}
            return await self.post(
                f"/v1/models/{model_id}/scores",
                data=fields if resize is None else {**fields, "resize": resize},
                files=files,
                timeout=httpx.Timeout(self.timeout_s, read=SCORE_READ_LIMIT_S),
            )

    # --- what there is ----------------------------------------------------------------------------

    async def ready(self) -> Json:
        """Whether jobs will be worked on, and by which workers."""
        return await self.get("/readyz")

    async def methods(self) -> list[Json]:
        """The training methods, with the JSON schemas of their parameters."""
        return list((await self.request("GET", "/v1/methods")).json())

    async def attacks(self) -> list[Json]:
        """The attacks, with the JSON schemas of their parameters."""
        return list((await self.request("GET", "/v1/attacks")).json())

    async def presets(self) -> list[Json]:
        """The presets of a training, with the values that they fill in."""
        return list((await self.request("GET", "/v1/presets")).json())

    async def architectures(self) -> list[Json]:
        """The networks that can be trained."""
        return list((await self.request("GET", "/v1/architectures")).json())

    # --- plain calls ------------------------------------------------------------------------------

    async def get(self, path: str, **query: Any) -> Json:
        """GET; the JSON object that comes back. Query values that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return dict((await self.request("GET", path, params=params)).json())

    async def pages(self, path: str, **query: Any) -> AsyncIterator[Json]:
        """Every item of a list, page after page."""
        after: str | None = None
        while True:
            page = await self.get(path, **query, after=after)
            for item in page["data"]:
                yield item
            if not page["has_more"]:
                return
            after = page["next_cursor"]

    async def post(self, path: str, **content: Any) -> Json:
        """POST; the JSON object that comes back."""
        return dict((await self.request("POST", path, **content)).json())

    async def patch(self, path: str, **content: Any) -> Json:
        """PATCH; the JSON object that comes back."""
        return dict((await self.request("PATCH", path, **content)).json())

    async def delete(self, path: str) -> None:
        """DELETE."""
        await self.request("DELETE", path)

    async def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Any call. Raises ProblemError for an error, ConnectionFailedError without an answer.

        Reading is tried again when a connection breaks or the service asks to wait; so is a PUT,
        and a POST, which carries an Idempotency-Key that makes the service honour it once.
        """
        tries = len(RETRY_AFTER_S) + 1 if method in ("GET", "PUT", "POST") else 1
        if method == "POST":
            content["headers"] = {"Idempotency-Key": uuid4().hex, **content.get("headers", {})}
        for tried in range(tries):
            for _, (_, file) in content.get("files", []):
                if isinstance(file, Counted):
                    file.again()
            try:
                return checked(await self.http.request(method, path, **content))
            except (httpx.TransportError, ProblemError) as error:
                await self._before_another_try(error, tried=tried, tries=tries)
        raise AssertionError("the last try returns or raises")

    async def _before_another_try(
        self, error: httpx.TransportError | ProblemError, *, tried: int, tries: int
    ) -> None:
        """Wait for as long as is asked for; raises the error where nothing is tried again."""
        last = tried + 1 == tries
        if isinstance(error, ProblemError):
            if last or error.code not in RETRIED_CODES:
                raise error
            wait_s = min(error.retry_after_s or RETRY_AFTER_S[tried], LONGEST_RETRY_S)
        else:
            if last:
                raise self.unreachable(error) from error
            wait_s = RETRY_AFTER_S[tried]
        await asyncio.sleep(wait_s)

    def unreachable(self, error: httpx.TransportError) -> ConnectionFailedError:
        """The same error in our words."""
        return ConnectionFailedError(self.base_url, str(error) or type(error).__name__)

    async def download(self, path: str, target: FilePath, *, accept: str = "*/*") -> None:
        """GET into a file; there is none unless all has come."""
        target = Path(target)
        partial = target.with_name(f"{target.name}.part")
        tries = len(RETRY_AFTER_S) + 1
        try:
            for tried in range(tries):
                try:
                    await self._download(path, partial, accept=accept)
                    break
                except (httpx.TransportError, ProblemError) as error:
                    await self._before_another_try(error, tried=tried, tries=tries)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    async def _download(self, path: str, target: Path, *, accept: str) -> None:
        async with self.http.stream("GET", path, headers={"Accept": accept}) as answer:
            if not answer.is_success:
                await answer.aread()
            checked(answer)
            with target.open("wb") as file:
                async for chunk in answer.aiter_bytes():
                    file.write(chunk)

    async def upload(
        self,
        path: str,
        file: FilePath,
        *,
        fields: Mapping[str, str | None],
        on_bytes: OnBytes | None,
    ) -> Json:
        """POST a file, read from the disk as it is sent; in parts where it is large."""
        file = Path(file)
        given = {name: value for name, value in fields.items() if value is not None}
        if file.stat().st_size > IN_PARTS_ABOVE_BYTES:
            upload = await self.uploads.send(file, on_bytes=on_bytes)
            form = {"name": file.name, **given, "upload_id": upload["id"]}
            return await self.post(path, files=[(name, (None, form[name])) for name in form])
        with ExitStack() as stack:
            return await self.post(
                path,
                data=given,
                files=[("file", part(stack, file, on_bytes))],
                timeout=httpx.Timeout(self.timeout_s, read=UPLOAD_READ_LIMIT_S),
            )


class _Resource:
    """Calls that share a path."""

    path: str

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def page(self, *, limit: int = 20, after: str | None = None, **query: str | None) -> Json:
        """One page as it comes: data, has_more and next_cursor, newest first."""
        return await self._client.get(self.path, limit=limit, after=after, **query)

    async def show(self, item_id: str) -> Json:
        """The JSON of one item, by its whole id."""
        return await self._client.get(f"{self.path}/{item_id}")


class _Named(_Resource):
    """Calls for things that can also be named, or told by the start of their id."""

    noun: str

    async def id_of(self, reference: str, **query: str | None) -> str:
        """The id of what is meant by an id, the start of one, a name, or `@latest`.

        query: what else must hold, as for `page`; of `@latest` for example a status. Raises
        UnknownNameError, or AmbiguousNameError, whose `choices` tell them apart.
        """
        if references.is_id(reference):
            return reference
        if reference == references.LATEST:
            newest = (await self.page(limit=1, **query))["data"]
            if not newest:
                raise references.none_yet(self.noun, query)
            return str(newest[0]["id"])
        query.pop("status", None)
        for among in self._among:
            found = (await self.page(limit=100, match=reference, **query, **among))["data"]
            meant = references.chosen(self.noun, reference, found)
            if meant is not None:
                return str(meant["id"])
        others = (await self.page(limit=100, **query))["data"]
        raise references.unknown(self.noun, reference, others)

    _among: Sequence[Mapping[str, str]] = ({},)  # where to look, one after the other


class _Asset(_Named):
    _among = ({}, {"status": "rejected"})  # which a list leaves out unless it is asked for them

    async def change(
        self, asset_id: str, *, name: str | None = None, note: str | None = None
    ) -> Json:
        """Call one otherwise, or note something about it; an empty note takes it away."""
        told = {"name": name, "note": note}
        change = {field: value for field, value in told.items() if value is not None}
        return await self._client.patch(f"{self.path}/{asset_id}", json=change)


class Uploads(_Resource):
    """`/v1/uploads`: files in parts, which `datasets.add` and `models.add` use above 64 MiB."""

    path = "/v1/uploads"

    async def send(self, file: FilePath, *, on_bytes: OnBytes | None = None) -> Json:
        """Send a file in parts, or those that the service lacks, and have them joined.

        The same content is known again by its hash: after a cut, call this again. `on_bytes` is
        told of bytes as sent, first of all that were there already.
        """
        file = Path(file)
        told = on_bytes or (lambda _: None)
        with Parts(file) as parts:
            while parts.hash_more():
                await asyncio.sleep(0)  # a large file: let others have their turn
            request = {"file_name": file.name, "size": parts.size, "sha256": parts.sha256}
            upload = await self._client.post(self.path, json=request)
            parts.go_on(upload)
            told(parts.bytes_there)
            for number in parts.missing:
                data = parts.read(number)
                await self._client.request(
                    "PUT",
                    f"{self.path}/{upload['id']}/parts/{number}",
                    content=data,
                    headers={"Content-Type": "application/octet-stream"},
                    timeout=httpx.Timeout(self._client.timeout_s, read=UPLOAD_READ_LIMIT_S),
                )
                told(len(data))
        try:
            return await self._client.post(
                f"{self.path}/{upload['id']}/complete",
                json={"sha256": parts.sha256},
                timeout=httpx.Timeout(self._client.timeout_s, read=UPLOAD_READ_LIMIT_S),
            )
        except ProblemError as error:
            if error.code == "invalid_data":  # the file has changed: no part can be relied on
                await self.remove(upload["id"])
            raise

    async def remove(self, upload_id: str) -> None:
        """Forget one; what was made of it stays."""
        await self._client.delete(f"{self.path}/{upload_id}")


class Datasets(_Asset):
    """`/v1/datasets`."""

    path = "/v1/datasets"
    noun = "data set"

    async def get(self, reference: str) -> Dataset:
        """One, by its id, the start of it, its name, or `@latest`."""
        return Dataset.model_validate(await self.show(await self.id_of(reference)))

    async def list(self, *, limit: int = 20, **query: str | None) -> Sequence[Dataset]:
        """The newest, at most 100; `query` as of `GET /v1/datasets`."""
        page = await self.page(limit=limit, **query)
        return [Dataset.model_validate(item) for item in page["data"]]

    async def add(
        self,
        file: FilePath,
        *,
        name: str | None = None,
        resize: Mapping[str, Any] | None = None,
        on_bytes: OnBytes | None = None,
        **options: str | None,
    ) -> Json:
        """Upload a zip, npz or Parquet. Its `job_id` checks it; `on_bytes` is told of bytes sent.

        resize: what makes images one size, `{"height": 224, "width": 224, "fit": "crop"}`.
        options: how it is read where there is more than one way, for example
        `folders="split/class"`; each field of `POST /v1/datasets`.
        """
        fields = {
            "name": name,
            "resize": None if resize is None else json.dumps(resize),
            **options,
        }
        return await self._client.upload(self.path, file, fields=fields, on_bytes=on_bytes)

    async def create(
        self, file: FilePath, *, on_progress: OnProgress | None = None, **about: Any
    ) -> Dataset:
        """Upload one and wait until it was found good; `about` as in `add`.

        JobFailedError says why if it was not.
        """
        added = await self.add(file, **about)
        await Run(self._client, await self._client.jobs.show(added["job_id"])).wait(
            on_progress=on_progress
        )
        return Dataset.model_validate(await self.show(added["id"]))

    async def remove(self, dataset_id: str) -> None:
        """Remove one that no job uses."""
        await self._client.delete(f"{self.path}/{dataset_id}")


class Models(_Asset):
    """`/v1/models`."""

    path = "/v1/models"
    noun = "model"

    async def get(self, reference: str) -> Model:
        """One, by its id, the start of it, its name, or `@latest`."""
        return Model.model_validate(await self.show(await self.id_of(reference)))

    async def list(self, *, limit: int = 20, **query: str | None) -> Sequence[Model]:
        """The newest, at most 100; `query` as of `GET /v1/models`."""
        page = await self.page(limit=limit, **query)
        return [Model.model_validate(item) for item in page["data"]]

    async def add(
        self,
        file: FilePath,
        *,
        name: str | None = None,
        architecture: str | None = None,
        input_spec: Mapping[str, Any] | None = None,
        output: Mapping[str, Any] | None = None,
        weights: str | None = None,
        positive: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Json:
        """Upload weights or a whole network; `input_spec` unless the file carries its manifest.

        architecture: told from the file where it is left out.
        output: of a network with more than one logit, for example
        `{"kind": "multiclass", "classes": ["cat", "dog", "other"]}`.
        weights: of a checkpoint with several sets, the name of the one to take.
        positive: of a model of one logit, the class that it ranks first.
        """
        fields = {
            "name": name,
            "architecture": architecture,
            "input": None if input_spec is None else json.dumps(input_spec),
            "output": None if output is None else json.dumps(output),
            "weights": weights,
            "positive": positive,
        }
        return await self._client.upload(self.path, file, fields=fields, on_bytes=on_bytes)

    async def create(
        self, file: FilePath, *, on_progress: OnProgress | None = None, **about: Any
    ) -> Model:
        """Upload one and wait until it was found good; `about` as in `add`."""
        added = await self.add(file, **about)
        await Run(self._client, await self._client.jobs.show(added["job_id"])).wait(
            on_progress=on_progress
        )
        return Model.model_validate(await self.show(added["id"]))

    async def export(self, model_id: str, target: FilePath) -> None:
        """Write the model to a file: weights with their manifest as `.safetensors`, or `.onnx`.

        Raises ClientError for a name with another end.
        """
        target = Path(target)
        if target.suffix not in EXPORTED:
            raise ClientError(
                f"expected a name ending in {' or '.join(EXPORTED)}, got {target.name!r}: what "
                "PyTorch reads is torch.save(safetensors.torch.load_file(path), target)"
            )
        path = f"{self.path}/{model_id}/content?format={target.suffix.removeprefix('.')}"
        await self._client.download(path, target)

    async def remove(self, model_id: str) -> None:
        """Remove one that no job uses."""
        await self._client.delete(f"{self.path}/{model_id}")


class Keys(_Named):
    """`/v1/api-keys`."""

    path = "/v1/api-keys"
    noun = "API key"

    async def create(self, request: Mapping[str, Any]) -> Json:
        """Create a key: `key` in the answer is shown this one time."""
        return await self._client.post(self.path, json=request)

    async def revoke(self, key_id: str, *, allow_no_admin: bool = False) -> None:
        """End a key at once. The last admin key that lasts stays, unless `allow_no_admin`."""
        query = "?allow_no_admin=true" if allow_no_admin else ""
        await self._client.delete(f"{self.path}/{key_id}{query}")


class Queues:
    """`/v1/queues`."""

    path = "/v1/queues"

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> Sequence[Json]:
        """Every queue: whether it is paused, what waits and what runs."""
        return list((await self._client.request("GET", self.path)).json())

    async def pause(self, queue: str, *, reason: str | None = None) -> Json:
        """Let workers take no job of it until it is resumed; what runs goes on."""
        return await self._set(queue, {"paused": True, "reason": reason})

    async def resume(self, queue: str) -> Json:
        """Let workers take its jobs again."""
        return await self._set(queue, {"paused": False})

    async def _set(self, queue: str, state: Json) -> Json:
        return dict((await self._client.request("PUT", f"{self.path}/{queue}", json=state)).json())


class Sweeps(_Named):
    """`/v1/sweeps`."""

    path = "/v1/sweeps"
    noun = "sweep"

    async def cancel(self, sweep_id: str) -> Json:
        """Cancel all trials that have not ended, and make no more."""
        return await self._client.post(f"{self.path}/{sweep_id}/cancel")

    async def follow(self, sweep_id: str, *, every_s: float = 1.0) -> AsyncIterator[Json]:
        """The sweep as it is every second or so, at last as it has ended.

        A service that is away is waited for, for as long as a restart may take.
        """
        give_up_at = 0.0  # at first nothing is tried again
        while True:
            try:
                sweep = await self.show(sweep_id)
            except ConnectionFailedError:
                if monotonic() > give_up_at:
                    raise
            else:
                give_up_at = monotonic() + RECONNECT_FOR_S
                yield sweep
                if sweep["done"]:
                    return
            await asyncio.sleep(every_s)


class Jobs(_Named):
    """`/v1/jobs`: of every kind. Those of one kind: `trainings`, `audits`, `rankings`."""

    path = "/v1/jobs"
    noun = "job"

    async def get(self, reference: str) -> "Run":
        """One, by its id, the start of it, its name, or `@latest`: to wait for, or to cancel."""
        return Run(self._client, await self.show(await self.id_of(reference)))

    async def list(self, *, limit: int = 20, **query: str | None) -> "Sequence[Run]":
        """The newest, at most 100; `query` as of `GET /v1/jobs`: status, kind, dataset_id, …"""
        page = await self.page(limit=limit, **query)
        return [Run(self._client, job) for job in page["data"]]

    async def cancel(self, job_id: str) -> Json:
        """Cancel a job that has not ended."""
        return await self._client.post(f"{self.path}/{job_id}/cancel")

    async def retry(self, job_id: str) -> Json:
        """Run the request of a failed or cancelled job again, as a new job."""
        return await self._client.post(f"{self.path}/{job_id}/retry")

    async def events(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """What happens to a job, as it happens, until its end; every event comes once.

        A broken connection is taken up again where it broke, for as long as a restart may take.
        """
        seen = after
        give_up_at = monotonic() + sum(RETRY_AFTER_S)  # at first it is tried as all reading is
        while True:
            try:
                async with self._stream(job_id, seen) as events:
                    async for event in events:
                        give_up_at = monotonic() + RECONNECT_FOR_S
                        if event.seq is not None:
                            seen = event.seq
                        yield event
                        if event.type == "progress" and event.data["status"] in ENDED:
                            return
            except httpx.TransportError as error:
                if monotonic() > give_up_at:
                    raise self._client.unreachable(error) from error
            except ProblemError as error:
                if error.code not in RETRIED_CODES or monotonic() > give_up_at:
                    raise
            await asyncio.sleep(RECONNECT_AFTER_S)

    async def wait(self, job_id: str, *, on_event: OnEvent = lambda _: None) -> Json:
        """The job once it has succeeded. Raises JobFailedError if it ends otherwise."""
        async for event in self.events(job_id):
            on_event(event)
        job = await self.show(job_id)
        if job["status"] != "succeeded":
            raise JobFailedError(job)
        return job

    @asynccontextmanager
    async def _stream(self, job_id: str, seen: int) -> AsyncIterator[AsyncIterator[Event]]:
        """Server-sent events after one that was seen."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(seen)}
        timeout = httpx.Timeout(self._client.timeout_s, read=PING_LIMIT_S)
        path = f"{self.path}/{job_id}/events"
        async with self._client.http.stream(
            "GET", path, headers=headers, timeout=timeout
        ) as answer:
            if not answer.is_success:
                await answer.aread()
            yield self._read(checked(answer))

    @staticmethod
    async def _read(answer: httpx.Response) -> AsyncIterator[Event]:
        reader = EventReader()
        async for line in answer.aiter_lines():
            event = reader.feed(line)
            if event is not None:
                yield event


class Run:
    """A job that was asked for here; its state is that of the last look at it."""

    def __init__(self, client: AsyncClient, job: Json) -> None:
        self._client = client
        self.job = Job.model_validate(job)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    async def refresh(self) -> Self:
        """Look at the job again."""
        self.job = Job.model_validate(await self._client.jobs.show(self.id))
        return self

    async def wait(self, *, on_progress: OnProgress | None = None) -> Self:
        """Wait for its success. Raises JobFailedError if it ends otherwise.

        on_progress: is told how far it is, whenever that has changed; while it is queued, how many
        jobs are ahead.
        """

        def on_event(event: Event) -> None:
            progress = progress_of(event)
            if on_progress is not None and progress is not None:
                on_progress(progress)

        self.job = Job.model_validate(await self._client.jobs.wait(self.id, on_event=on_event))
        return self

    async def cancel(self) -> Self:
        """Ask it to stop."""
        self.job = Job.model_validate(await self._client.jobs.cancel(self.id))
        return self


class AuditRun(Run):
    """An audit: its result is a report."""

    async def report(self) -> Report:
        """The report, once it has ended."""
        return Report.model_validate(await self._client.report(self.id))

    async def report_as(self, media_type: str) -> bytes:
        """The same as text/html, text/markdown (a model card), application/xml (JUnit) or
        application/sarif+json.
        """
        return await self._client.report_as(self.id, media_type)

    async def save_scores(self, target: FilePath) -> None:
        """Write all that the figures come from to a safetensors file."""
        await self._client.save_scores(self.id, target)


class TrainingRun(Run):
    """A training: its result is a model."""

    async def model(self) -> Model:
        """The model, once it has ended."""
        model_id = (self.job.result or {})["model_id"]
        return Model.model_validate(await self._client.models.show(model_id))


class RankingRun(Run):
    """A ranking of a data set."""

    async def rows(self) -> AsyncIterator[RankedExample]:
        """Every image once it has ended, best first."""
        async for row in self._client.pages(f"/v1/rankings/{self.id}", limit=100):
            yield RankedExample.model_validate(row)


class Trainings:
    """`/v1/training-jobs`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, *, dataset_id: str, positive: str | Sequence[str] | None = None, **options: Any
    ) -> TrainingRun:
        """Train a model; `options` are the other fields of a TrainingRequest.

        dataset_id: the id of a data set, the start of it, its name, or `@latest`.
        positive: a class, or several that are one positive side.
        """
        request = with_task({"dataset_id": dataset_id, **options}, positive)
        job = await self._client.train(await self._client.with_ids(request))
        return TrainingRun(self._client, job)

    async def estimate(
        self, *, dataset_id: str, positive: str | Sequence[str] | None = None, **options: Any
    ) -> Estimate:
        """What such a training would cost, by the same arguments; nothing is made."""
        request = with_task({"dataset_id": dataset_id, **options}, positive)
        answer = await self._client.estimate("training-jobs", await self._client.with_ids(request))
        return Estimate.model_validate(answer)

    async def get(self, reference: str) -> TrainingRun:
        """One that was asked for before, also by others: by id, its start, name, or `@latest`."""
        job_id = await self._client.jobs.id_of(reference, kind="train")
        return TrainingRun(self._client, await self._client.jobs.show(job_id))

    async def list(self, *, limit: int = 20, **query: str | None) -> Sequence[TrainingRun]:
        """The newest, at most 100; `query` as of `GET /v1/jobs`."""
        page = await self._client.jobs.page(limit=limit, kind="train", **query)
        return [TrainingRun(self._client, job) for job in page["data"]]


class Audits:
    """`/v1/audits`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        *,
        model_id: str,
        dataset_id: str,
        positive: str | Sequence[str] | None = None,
        epsilon: float | str | None = None,
        **options: Any,
    ) -> AuditRun:
        """Audit a model; `options` are the other fields of an AuditRequest.

        model_id, dataset_id: an id, the start of one, a name, or `@latest`.
        positive: a class, or several that are one positive side.
        epsilon: of an L-inf threat, pixels in [0, 1], or "8/255"; `threat` names another norm.
        """
        request = with_threat({"model_id": model_id, "dataset_id": dataset_id, **options}, epsilon)
        request = await self._client.with_ids(with_task(request, positive))
        return AuditRun(self._client, await self._client.audit(request))

    async def estimate(
        self,
        *,
        model_id: str,
        dataset_id: str,
        positive: str | Sequence[str] | None = None,
        epsilon: float | str | None = None,
        **options: Any,
    ) -> Estimate:
        """What such an audit would cost, by the same arguments; nothing is made."""
        request = with_threat({"model_id": model_id, "dataset_id": dataset_id, **options}, epsilon)
        request = await self._client.with_ids(with_task(request, positive))
        return Estimate.model_validate(await self._client.estimate("audits", request))

    async def get(self, reference: str) -> AuditRun:
        """One that was asked for before, also by others: by id, its start, name, or `@latest`."""
        job_id = await self._client.jobs.id_of(reference, kind="audit")
        return AuditRun(self._client, await self._client.jobs.show(job_id))

    async def list(self, *, limit: int = 20, **query: str | None) -> Sequence[AuditRun]:
        """The newest, at most 100; `query` as of `GET /v1/jobs`."""
        page = await self._client.jobs.page(limit=limit, kind="audit", **query)
        return [AuditRun(self._client, job) for job in page["data"]]


class Rankings:
    """`/v1/rankings`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        *,
        model_id: str,
        dataset_id: str,
        positive: str | Sequence[str] | None = None,
        **options: Any,
    ) -> RankingRun:
        """Rank a data set; `options` are the other fields of a RankingRequest.

        model_id, dataset_id: an id, the start of one, a name, or `@latest`.
        """
        request = with_task({"model_id": model_id, "dataset_id": dataset_id, **options}, positive)
        job = await self._client.rank(await self._client.with_ids(request))
        return RankingRun(self._client, job)

    async def get(self, reference: str) -> RankingRun:
        """One that was asked for before, also by others: by its id, the start of it, `@latest`."""
        job_id = await self._client.jobs.id_of(reference, kind="rank")
        return RankingRun(self._client, await self._client.jobs.show(job_id))

    async def list(self, *, limit: int = 20, **query: str | None) -> Sequence[RankingRun]:
        """The newest, at most 100; `query` as of `GET /v1/jobs`."""
        page = await self._client.jobs.page(limit=limit, kind="rank", **query)
        return [RankingRun(self._client, job) for job in page["data"]]
