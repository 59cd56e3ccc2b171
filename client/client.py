"""A client of the service: each method is one HTTP call, and answers its JSON as a dict.

    client = Client("http://127.0.0.1:8000")
    dataset = client.datasets.add(Path("photos.zip"))
    client.jobs.wait(dataset["job_id"])
    job = client.train({"dataset_id": dataset["id"], "task": {"positive": ["cat"]}})
    model_id = client.jobs.wait(job["id"])["result"]["model_id"]

What can go wrong:

    AdapError
    |- ConnectionFailedError   no service answers there
    |- ProblemError            it answered with a problem: code, detail, status, request_id, errors
    `- JobFailedError          a job that was waited for failed or was cancelled

Reading is tried again when a connection breaks; nothing that changes the service is.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"

Json = dict[str, Any]
OnBytes = Callable[[int], None]

RETRY_AFTER_S = (0.1, 0.5)  # before the second and the third try of a GET
PING_LIMIT_S = 45.0  # the service sends something every 15 s
RECONNECT_AFTER_S = 0.5
RECONNECT_FOR_S = 60.0  # as long as a restart of the service may take
UPLOAD_READ_LIMIT_S = 600.0  # from the last byte sent to the answer: the file is hashed and synced
SCORE_READ_LIMIT_S = 120.0  # the service waits for scores up to its max_wait_s


class AdapError(Exception):
    """Base of everything that a caller may expect to go wrong."""


class ConnectionFailedError(AdapError):
    """No service answers at this address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"No service answers at {url} ({reason}). Start one with `adap up`, or name another "
            "with --url or ADAP_URL."
        )


class ProblemError(AdapError):
    """The service's own explanation, RFC 9457; `code` is stable, `detail` is for people."""

    def __init__(self, problem: Json) -> None:
        super().__init__(problem["detail"])
        self.problem = problem
        self.code: str = problem["code"]
        self.detail: str = problem["detail"]
        self.status: int = problem["status"]
        self.request_id: str | None = problem.get("request_id")
        self.errors: list[dict[str, str]] = problem.get("errors", [])


class JobFailedError(AdapError):
    """A job ended without a result."""

    def __init__(self, job: Json) -> None:
        error = job["error"]
        super().__init__(
            f"The job {job['id']} failed: {error['message']}"
            if error
            else f"The job {job['id']} was {job['status']}."
        )
        self.job = job


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, or how far it is."""

    type: str
    """`progress`, or what happened: queued, running, epoch, resumed, succeeded, …"""
    data: Json
    """Of `progress`: status, progress and queue_position as in a job."""
    seq: int | None
    """Counted from 1 without gaps; None for progress, which is shown and not kept."""


OnEvent = Callable[[Event], None]


class Client:
    """The service at an address. Threads may share one."""

    def __init__(
        self, base_url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        try:
            self.http = httpx.Client(
                base_url=self.base_url,
                headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
                timeout=timeout_s,
                trust_env=not _is_loopback(self.base_url),  # no proxy stands before this machine
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConnectionFailedError(self.base_url, str(error)) from error
        self.datasets = Datasets(self)
        self.models = Models(self)
        self.jobs = Jobs(self)
        self.keys = Keys(self)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    # --- what makes a job -------------------------------------------------------------------------

    def train(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/training-jobs`: the job, whose result is a model."""
        return self.post("/v1/training-jobs", json=request)

    def audit(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/audits`: the job, whose result is a report."""
        return self.post("/v1/audits", json=request)

    def rank(self, request: Mapping[str, Any]) -> Json:
        """`POST /v1/rankings`: the job, whose result is a ranking."""
        return self.post("/v1/rankings", json=request)

    # --- results ----------------------------------------------------------------------------------

    def report(self, job_id: str) -> Json:
        """The report of a finished audit."""
        return self.get(f"/v1/audits/{job_id}/report")

    def report_as(self, job_id: str, media_type: str) -> bytes:
        """The same as text/html, or text/markdown (a model card), or application/xml (JUnit)."""
        path = f"/v1/audits/{job_id}/report"
        return self.request("GET", path, headers={"Accept": media_type}).content

    def leaderboard(self, dataset_id: str, **query: Any) -> Json:
        """The models that were audited on a data set, the highest worst-case AP first."""
        return self.get("/v1/leaderboard", dataset_id=dataset_id, **query)

    def audit_scores(self, job_id: str) -> Iterator[Json]:
        """Every image of an audit: its logit, clean and under each attack."""
        return self.pages(f"/v1/audits/{job_id}/scores", limit=100)

    def save_scores(self, job_id: str, target: Path) -> None:
        """Write all that the figures of an audit come from to a safetensors file."""
        self.download(f"/v1/audits/{job_id}/scores", target, accept="application/vnd.safetensors")

    def ranking(self, job_id: str, *, limit: int = 100, after: str | None = None) -> Json:
        """A page of a finished ranking, best first."""
        return self.get(f"/v1/rankings/{job_id}", limit=limit, after=after)

    def score(
        self, model_id: str, images: Sequence[Path], *, positive: Sequence[str] | None = None
    ) -> Json:
        """Score a few images: scores in the order given, or the job where it takes long.

        positive: the classes to score, for a model with a logit for each class.
        """
        with ExitStack() as stack:
            files = [("images", _part(stack, path, None)) for path in images]
            return self.post(
                f"/v1/models/{model_id}/scores",
                data={"positive": list(positive or [])},
                files=files,
                timeout=httpx.Timeout(self.timeout_s, read=SCORE_READ_LIMIT_S),
            )

    # --- what there is ----------------------------------------------------------------------------

    def ready(self) -> Json:
        """Whether jobs will be worked on, and by which workers."""
        return self.get("/readyz")

    def methods(self) -> list[Json]:
        """The training methods, with the JSON schemas of their parameters."""
        return list(self.request("GET", "/v1/methods").json())

    def attacks(self) -> list[Json]:
        """The attacks, with the JSON schemas of their parameters."""
        return list(self.request("GET", "/v1/attacks").json())

    def architectures(self) -> list[Json]:
        """The networks that can be trained."""
        return list(self.request("GET", "/v1/architectures").json())

    # --- plain calls ------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Json:
        """GET; the JSON object that comes back. Query values that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return dict(self.request("GET", path, params=params).json())

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """Every item of a list, page after page."""
        after: str | None = None
        while True:
            page = self.get(path, **query, after=after)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["next_cursor"]

    def post(self, path: str, **content: Any) -> Json:
        """POST; the JSON object that comes back."""
        return dict(self.request("POST", path, **content).json())

    def delete(self, path: str) -> None:
        """DELETE."""
        self.request("DELETE", path)

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Any call. Raises ProblemError for an error, ConnectionFailedError without an answer."""
        waits_s = list(RETRY_AFTER_S) if method == "GET" else []
        while True:
            try:
                return _checked(self.http.request(method, path, **content))
            except httpx.TransportError as error:
                if not waits_s:
                    raise self.unreachable(error) from error
            time.sleep(waits_s.pop(0))

    def unreachable(self, error: httpx.TransportError) -> ConnectionFailedError:
        """The same error in our words."""
        return ConnectionFailedError(self.base_url, str(error) or type(error).__name__)

    def download(self, path: str, target: Path, *, accept: str = "*/*") -> None:
        """GET into a file; there is none unless all has come."""
        partial = target.with_name(f"{target.name}.part")
        try:
            with (
                self.http.stream("GET", path, headers={"Accept": accept}) as answer,
                partial.open("wb") as file,
            ):
                _checked(answer)
                for chunk in answer.iter_bytes():
                    file.write(chunk)
            partial.replace(target)
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def upload(
        self, path: str, file: Path, *, fields: Mapping[str, str | None], on_bytes: OnBytes | None
    ) -> Json:
        """POST a file, read from the disk as it is sent."""
        with ExitStack() as stack:
            return self.post(
                path,
                data={name: value for name, value in fields.items() if value is not None},
                files={"file": _part(stack, file, on_bytes)},
                timeout=httpx.Timeout(self.timeout_s, read=UPLOAD_READ_LIMIT_S),
            )


class _Resource:
    """Calls that share a path."""

    path: str

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, limit: int = 20, after: str | None = None, **query: str | None) -> Json:
        """One page: data, has_more and next_cursor, newest first."""
        return self._client.get(self.path, limit=limit, after=after, **query)

    def show(self, item_id: str) -> Json:
        """One item."""
        return self._client.get(f"{self.path}/{item_id}")


class Datasets(_Resource):
    """`/v1/datasets`."""

    path = "/v1/datasets"

    def add(self, file: Path, *, name: str | None = None, on_bytes: OnBytes | None = None) -> Json:
        """Upload a zip or an npz. Its `job_id` checks it; `on_bytes` is told of bytes as sent."""
        return self._client.upload(self.path, file, fields={"name": name}, on_bytes=on_bytes)

    def remove(self, dataset_id: str) -> None:
        """Remove one that no job uses."""
        self._client.delete(f"{self.path}/{dataset_id}")


class Models(_Resource):
    """`/v1/models`."""

    path = "/v1/models"

    def add(
        self,
        file: Path,
        *,
        name: str | None = None,
        architecture: str | None = None,
        input_spec: Mapping[str, Any] | None = None,
        output: Mapping[str, Any] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Json:
        """Upload weights as safetensors; architecture and input unless the file carries them.

        output: of a network with more than one logit, for example
        `{"kind": "multiclass", "classes": ["cat", "dog", "other"]}`; goes with the architecture.
        """
        fields = {
            "name": name,
            "architecture": architecture,
            "input": None if input_spec is None else json.dumps(input_spec),
            "output": None if output is None else json.dumps(output),
        }
        return self._client.upload(self.path, file, fields=fields, on_bytes=on_bytes)

    def export(self, model_id: str, target: Path, *, file_format: str = "safetensors") -> None:
        """Write the model to a file: weights with their manifest, or `onnx`."""
        self._client.download(f"{self.path}/{model_id}/content?format={file_format}", target)

    def remove(self, model_id: str) -> None:
        """Remove one that no job uses."""
        self._client.delete(f"{self.path}/{model_id}")


class Keys(_Resource):
    """`/v1/api-keys`."""

    path = "/v1/api-keys"

    def create(self, request: Mapping[str, Any]) -> Json:
        """Create a key: `key` in the answer is shown this one time."""
        return self._client.post(self.path, json=request)

    def revoke(self, key_id: str) -> None:
        """End a key at once."""
        self._client.delete(f"{self.path}/{key_id}")


class Jobs(_Resource):
    """`/v1/jobs`."""

    path = "/v1/jobs"

    def cancel(self, job_id: str) -> Json:
        """Cancel a job that has not ended."""
        return self._client.post(f"{self.path}/{job_id}/cancel")

    def retry(self, job_id: str) -> Json:
        """Run the request of a failed or cancelled job again, as a new job."""
        return self._client.post(f"{self.path}/{job_id}/retry")

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """What happens to a job, as it happens, until its end; every event comes once.

        A broken connection is taken up again where it broke, for as long as a restart may take.
        """
        seen = after
        give_up_at = 0.0  # at first nothing is tried again
        while True:
            try:
                with self._stream(job_id, seen) as events:
                    for event in events:
                        give_up_at = time.monotonic() + RECONNECT_FOR_S
                        if event.seq is not None:
                            seen = event.seq
                        yield event
                        if event.type == "progress" and event.data["status"] in ENDED:
                            return
            except httpx.TransportError as error:
                if time.monotonic() > give_up_at:
                    raise self._client.unreachable(error) from error
            time.sleep(RECONNECT_AFTER_S)

    def wait(self, job_id: str, *, on_event: OnEvent = lambda _: None) -> Json:
        """The job once it has succeeded. Raises JobFailedError if it ends otherwise."""
        for event in self.events(job_id):
            on_event(event)
        job = self.show(job_id)
        if job["status"] != "succeeded":
            raise JobFailedError(job)
        return job

    @contextmanager
    def _stream(self, job_id: str, seen: int) -> Iterator[Iterator[Event]]:
        """Server-sent events after one that was seen."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(seen)}
        timeout = httpx.Timeout(self._client.timeout_s, read=PING_LIMIT_S)
        path = f"{self.path}/{job_id}/events"
        with self._client.http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            yield read_events(_checked(answer).iter_lines())


ENDED = ("succeeded", "failed", "cancelled")


def read_events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse a stream of server-sent events: `event:` and `data:` lines, an empty line ends one."""
    kind: str = "message"
    data: list[str] = []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                content = json.loads("\n".join(data))
                if kind == "progress":
                    yield Event("progress", content, None)
                else:
                    yield Event(content["type"], content["data"], content["seq"])
            kind, data = "message", []


class _Counted(io.BufferedReader):
    """A file that tells how many bytes of it were read."""

    def __init__(self, path: Path, on_bytes: OnBytes) -> None:
        super().__init__(io.FileIO(path))
        self._on_bytes = on_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; httpx reads a chunk, sends it, reads the next."""
        chunk = super().read(size)
        self._on_bytes(len(chunk))
        return chunk


def _part(stack: ExitStack, path: Path, on_bytes: OnBytes | None) -> tuple[str, io.BufferedReader]:
    """A file of a multipart request, closed with the stack."""
    return path.name, stack.enter_context(_Counted(path, on_bytes or (lambda _: None)))


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer, unless it is an error. Also something that is not our service is one."""
    if answer.is_success:
        return answer
    answer.read()
    problem = {
        "status": answer.status_code,
        "code": "unexpected_answer",
        "detail": f"Expected an answer of AdAP from {answer.request.url}, got "
        f"{answer.status_code} {answer.reason_phrase}.",
    }
    try:
        content = answer.json()
    except ValueError:
        content = None
    if isinstance(content, dict) and {"status", "code", "detail"} <= content.keys():
        problem = content
    raise ProblemError(problem)


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
