"""The Open Inference Protocol (KServe V2) over the same models and the same scoring process.

https://github.com/kserve/open-inference-protocol, HTTP part, with its extensions for binary tensors
and for statistics: what its clients speak works here. A model is named by its id; it has one
version. Its input `images` takes

- FP32 or UINT8 (N, C, H, W), floats in [0, 1];
- BYTES (N,): PNG, JPEG or WebP files, as binary data or, in JSON, in base64;

and its output `scores` is FP64 (N,). The parameter `positive` names the classes to score: a text,
or a list of texts. Errors are problems as everywhere, with the protocol's `error` beside.
"""

import asyncio
import struct
from array import array
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from adap.api import bodies
from adap.api.assets import AssetId
from adap.api.deps import HouseDep, Reader, Writer
from adap.api.errors import ApiError, ErrorItem, explain_validation, problems
from adap.api.guarded import GuardedRoute
from adap.api.long_texts import LongTexts
from adap.api.routes.health import ScoringState
from adap.api.routes.scoring import Images, find_target, off_the_loop, scores_of
from adap.worker.scoring.link import ScoringGoneError

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=GuardedRoute)

INPUT, OUTPUT = "images", "scores"
HEADER_BYTES = "Inference-Header-Content-Length"
MAX_NUMBERS = 800_000  # of one 512x512 image of three channels, and some more
_DTYPES = {"UINT8": "uint8", "FP32": "float32"}

Parameters = dict[str, Any]


class InputTensor(BaseModel):
    """An input: numbers here, or `binary_data_size` bytes of them after the JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["images"]
    shape: list[Annotated[int, Field(ge=1, le=2**20)]] = Field(min_length=1, max_length=4)
    datatype: Literal["UINT8", "FP32", "BYTES"]
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None = Field(None, description="flat or nested, row by row")


class OutputRequest(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["scores"]
    parameters: Parameters = Field(default_factory=dict)


class InferenceRequest(BaseModel):
    """`POST /v2/models/{model_id}/infer`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = Field(None, max_length=200)
    parameters: Parameters = Field(default_factory=dict)
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputRequest] | None = Field(None, max_length=1)


class TensorMetadata(BaseModel):
    """An input or output of a model; -1 is any number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str] = ["1"]
    platform: str = "adap"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """What this server is."""

    name: str = "adap"
    version: str
    extensions: list[str] = ["binary_tensor_data", "statistics"]


class Ready(BaseModel):
    """Whether scores can be had."""

    ready: bool


class Live(BaseModel):
    """The process answers."""

    live: bool = True


class OutputTensor(BaseModel):
    """Scores, in `data` or as binary data after the JSON."""

    name: str = OUTPUT
    datatype: str = "FP64"
    shape: list[int]
    parameters: Parameters | None = None
    data: list[float] | None = None


class InferenceAnswer(BaseModel):
    """The scores of the images, in their order."""

    model_name: str
    model_version: str = "1"
    id: str | None = None
    outputs: list[OutputTensor]


class Statistics(BaseModel):
    """How many images were scored since the scoring process started, in how many passes.

    `execution_count` counts the passes that had images of the model, `batch_stats` by how many.
    """

    model_stats: list[dict[str, Any]]


@router.get("")
def describe_server() -> ServerMetadata:
    """Name, version and extensions."""
    return ServerMetadata(version=version("adap-audit"))


@router.get("/health/live")
async def server_live() -> Live:
    """The process answers; looks at nothing else."""
    return Live()


@router.get("/health/ready", responses=problems("scoring_unavailable"))
async def server_ready(scoring: ScoringState) -> Ready:
    """200 where the scoring process answers, 503 where it does not."""
    if scoring != "ok":
        raise ApiError(
            "scoring_unavailable",
            "Expected a scoring process that answers, got none.",
            headers={"Retry-After": "2"},
        )
    return Ready(ready=True)


@router.get("/models/{model_id}", responses=problems("not_found", "not_ready"))
async def describe_model(model_id: AssetId, house: HouseDep, caller: Reader) -> ModelMetadata:
    """The input and output of a model."""
    spec = (await find_target(house, caller, model_id)).manifest.input
    shape = [-1, spec.channels, spec.height, spec.width]
    return ModelMetadata(
        name=model_id,
        inputs=[TensorMetadata(name=INPUT, datatype="FP32", shape=shape)],
        outputs=[TensorMetadata(name=OUTPUT, datatype="FP64", shape=[-1])],
    )


@router.get("/models/{model_id}/ready", responses=problems("not_found", "not_ready"))
async def model_ready(model_id: AssetId, house: HouseDep, caller: Reader) -> Ready:
    """200 where the model can be scored with; its weights are loaded when they are needed."""
    await find_target(house, caller, model_id)
    return Ready(ready=True)


@router.get(
    "/models/{model_id}/stats", responses=problems("not_found", "not_ready", "scoring_unavailable")
)
async def model_statistics(model_id: AssetId, house: HouseDep, caller: Reader) -> Statistics:
    """How much was scored, and in how large batches."""
    await find_target(house, caller, model_id)
    try:
        async with asyncio.timeout(2):
            status = await house.scoring.ask({"ask": "status", "model_id": model_id})
    except (ScoringGoneError, TimeoutError) as error:
        raise ApiError(
            "scoring_unavailable", "Expected a scoring process that answers, got none."
        ) from error
    sizes: dict[str, int] = status["batch_sizes"]
    return Statistics(
        model_stats=[
            {
                "name": model_id,
                "version": "1",
                "inference_count": status["images"],
                "execution_count": sum(sizes.values()),
                "batch_stats": [
                    {"batch_size": int(size), "compute_infer": {"count": count}}
                    for size, count in sorted(sizes.items(), key=lambda item: int(item[0]))
                ],
            }
        ]
    )


@router.post(
    "/models/{model_id}/infer",
    response_model=InferenceAnswer,
    response_model_exclude_none=True,
    responses=problems(
        *("not_found", "not_ready", "too_large", "invalid_config", "invalid_data", "invalid_model"),
        *("overloaded", "scoring_unavailable", "timed_out"),
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def infer(
    model_id: AssetId,
    request: Request,
    house: HouseDep,
    caller: Writer,
    header_bytes: Annotated[
        int | None,
        Header(
            alias=HEADER_BYTES, ge=1, le=2**40, description="length of the JSON, before binary data"
        ),
    ] = None,
) -> InferenceAnswer | Response:
    """Score images, given and answered as tensors."""
    target = await find_target(house, caller, model_id)
    body = await request.body()
    asked, images = await off_the_loop(_read, body, header_bytes)
    scores = await scores_of(request, house, target, images)
    output = OutputTensor(shape=[len(scores)])
    answer = InferenceAnswer(model_name=model_id, id=asked.id, outputs=[output])
    if not _wants_binary(asked):
        output.data = scores
        return answer
    content = struct.pack(f"<{len(scores)}d", *scores)
    output.parameters = {"binary_data_size": len(content)}
    head = answer.model_dump_json(exclude_none=True).encode()
    return Response(
        head + content,
        media_type="application/octet-stream",
        headers={HEADER_BYTES: str(len(head))},
    )


def _read(body: bytes, header_bytes: int | None) -> tuple[InferenceRequest, Images]:
    """The request and its images, still unopened."""
    end = len(body) if header_bytes is None else header_bytes
    if end > len(body):
        raise _refused(f"{HEADER_BYTES}", f"expected at most {len(body)} bytes of JSON, got {end}")
    texts = LongTexts(body[:end])
    if (numbers := texts.rest.count(b",")) > MAX_NUMBERS:
        raise _refused(
            "data",
            f"expected at most {MAX_NUMBERS} numbers in JSON, got {numbers}: send fewer images, or "
            "their tensor as binary data, with `binary_data_size`",
        )
    bodies.check_size(texts.rest, most_values=None)
    try:
        given = from_json(texts.rest)
    except ValueError as error:
        raise ApiError("invalid_request", f"/body: expected JSON, got {error!s:.200}") from error
    try:
        asked = InferenceRequest.model_validate(texts.put_back(given, images=("inputs", "data")))
    except ValidationError as error:
        raise explain_validation(error) from error
    tensor, binary = asked.inputs[0], body[end:]
    size = tensor.parameters.get("binary_data_size")
    if size is not None and (size != len(binary) or tensor.data is not None):
        raise _refused("binary_data_size", f"expected {len(binary)} and no `data`, got {size!r}")
    if size is None and (binary or tensor.data is None):
        raise _refused("data", "expected numbers, or binary data with its size, got neither")
    positive = asked.parameters.get("positive")
    positive = [positive] if isinstance(positive, str) else positive
    if positive is not None and not (
        isinstance(positive, list) and all(isinstance(name, str) for name in positive)
    ):
        raise _refused("positive", f"expected a class, or a list of them, got {positive!r:.80}")
    if tensor.datatype == "BYTES":
        files = list(_elements(binary) if size is not None else _decoded(tensor.data or [], texts))
        if tensor.shape not in ([len(files)], [len(files), 1]):
            raise _refused("shape", f"expected [{len(files)}], got {tensor.shape}")
        return asked, Images("files", files, positive=positive)
    if len(tensor.shape) != 4:
        raise _refused("shape", f"expected (N, C, H, W), got {tensor.shape}")
    data = binary if size is not None else _packed(tensor)
    dtype = _DTYPES[tensor.datatype]
    return asked, Images("tensor", [data], dtype=dtype, shape=tensor.shape, positive=positive)


def _elements(binary: bytes) -> Iterator[bytes]:
    """The elements of BYTES as binary data: each after its length in 4 little-endian bytes."""
    position = 0
    while position < len(binary):
        start = position + 4
        position = start + int.from_bytes(binary[position:start], "little")
        if position > len(binary):
            raise _refused("data", "expected elements after their lengths, got a cut one")
        yield binary[start:position]


def _decoded(data: list[Any], texts: LongTexts) -> Iterator[bytes]:
    try:
        for text in _flat(data):
            yield texts.decode(text)
    except (ValueError, TypeError) as error:
        raise _refused("data", f"expected files in base64, got {str(error)[:100]}") from error


def _packed(tensor: InputTensor) -> bytes:
    try:
        return array("B" if tensor.datatype == "UINT8" else "f", _flat(tensor.data)).tobytes()
    except (TypeError, ValueError, OverflowError) as error:
        raise _refused(
            "data", f"expected numbers of {tensor.datatype}, got {str(error)[:100]}"
        ) from error


def _flat(data: Any, depth: int = 4) -> Iterator[Any]:
    """The elements of lists that may be nested."""
    for item in data:
        if isinstance(item, list) and depth:
            yield from _flat(item, depth - 1)
        else:
            yield item


def _wants_binary(asked: InferenceRequest) -> bool:
    """By the output's own parameter, else by the request's."""
    whole = asked.parameters.get("binary_data_output", False)
    outputs = asked.outputs or []
    return bool(outputs[0].parameters.get("binary_data", whole) if outputs else whole)


def _refused(what: str, detail: str) -> ApiError:
    item = ErrorItem(pointer=f"/body/inputs/0/{what}", detail=detail)
    return ApiError("invalid_request", f"{item.pointer}: {item.detail}", errors=[item])
