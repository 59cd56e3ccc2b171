"""The header is judged by the safetensors library itself: what we accept, it reads the same way."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import deserialize
from safetensors.numpy import save, save_file

from adap.models.errors import ModelFileError, TaskError
from adap.models.header import (
    MANIFEST_KEY,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    InputSpec,
    Manifest,
    OutputSpec,
    embedded_manifest,
    read_header,
)

MANIFEST = Manifest(
    architecture="small_cnn",
    input=InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.25]),
    positive=["8"],
    training={"epochs": 30},
)

ARRAYS: dict[str, NDArray[Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float16),
}


def assemble(header: Any, data: bytes = b"") -> bytes:
    """A file with this header, whether it is sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(content: bytes, folder: Path) -> Any:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return read_header(path)


def test_the_header_of_a_file_that_the_library_wrote_is_read(tmp_path: Path) -> None:
    header = read(save(ARRAYS, metadata={"who": "me"}), tmp_path)
    assert header.metadata == {"who": "me"}
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        "a": (2, 3),
        "b": (),
        "empty": (0, 4),
    }
    assert {tensor.dtype for tensor in header.tensors.values()} == {"F32", "I64", "F16"}


def test_only_the_header_is_read_from_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    size = 2**40
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    path.write_bytes(assemble({"a": entry}))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)  # a sparse file of a terabyte
    assert read_header(path).tensors["a"].shape == (size,)


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

DAMAGED = {
    "header longer than the file": (struct.pack("<Q", 99) + b"{}", "cut short"),
    "header over the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "at most 1048576"),
    "header that is not JSON": (assemble(b"{'a': 1}"), "not"),
    "header that is not UTF-8": (assemble(b'{"\xff": 1}'), "not"),
    "nesting that exhausts a recursive parser": (
        assemble(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "not",
    ),
    "a number of 5,000 digits": (assemble(b'{"a":' + b"9" * 5000 + b"}"), "not"),
    "a name that occurs twice": (
        assemble(b'{"a":' + json.dumps(TENSOR).encode() + b',"a":1}', bytes(8)),
        "occurs twice",
    ),
    "metadata that is not text": (assemble({"__metadata__": {"a": 1}}), "metadata"),
    "metadata that is not an object": (assemble({"__metadata__": "a"}), "metadata"),
    "an entry that is not an object": (assemble({"a": 1}), "data_offsets"),
    "an entry with one more key": (assemble({"a": {**TENSOR, "url": "x"}}, bytes(8)), "shape"),
    "an unknown dtype": (assemble({"a": {**TENSOR, "dtype": "OBJECT"}}, bytes(8)), "dtype"),
    "a dtype that is not text": (assemble({"a": {**TENSOR, "dtype": ["F32"]}}, bytes(8)), "dtype"),
    "a negative dimension": (assemble({"a": {**TENSOR, "shape": [-2]}}, bytes(8)), "shape"),
    "a dimension that is a boolean": (
        assemble({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
        "shape",
    ),
    "a dimension that is a float": (assemble({"a": {**TENSOR, "shape": [2.0]}}, bytes(8)), "shape"),
    "a dimension beyond all memory": (
        assemble({"a": {**TENSOR, "shape": [2**62, 2**62]}}, bytes(8)),
        "shape",
    ),
    "sizes that overflow around one of none": (
        assemble({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}),
        "sizes for 'a' that a tensor can have",
    ),
    "too many dimensions": (assemble({"a": {**TENSOR, "shape": [1] * 9}}, bytes(8)), "shape"),
    "a shape larger than its bytes": (assemble({"a": {**TENSOR, "shape": [3]}}, bytes(8)), "12"),
    "three offsets": (assemble({"a": {**TENSOR, "data_offsets": [0, 4, 8]}}, bytes(8)), "offsets"),
    "offsets in the wrong order": (
        assemble({"a": {**TENSOR, "data_offsets": [8, 0]}}, bytes(8)),
        "bytes",
    ),
    "overlapping tensors": (
        assemble({"a": TENSOR, "b": {**TENSOR, "data_offsets": [4, 12]}}, bytes(12)),
        "byte 8",
    ),
    "a hole between tensors": (
        assemble({"a": TENSOR, "b": {**TENSOR, "data_offsets": [12, 20]}}, bytes(20)),
        "byte 8",
    ),
    "data that is cut short": (assemble({"a": TENSOR}, bytes(7)), "8 bytes of data, got 7"),
    "data with a tail": (assemble({"a": TENSOR}, bytes(9)), "8 bytes of data, got 9"),
    "too many tensors": (
        assemble(
            {
                str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
                for i in range(MAX_TENSORS + 1)
            }
        ),
        "at most 10000 tensors",
    ),
    "a name with a line break": (assemble({"a\n": TENSOR}, bytes(8)), r"a\\n"),
    "a name of half a surrogate pair": (
        assemble(b'{"\\ud800":' + json.dumps(TENSOR).encode() + b"}", bytes(8)),
        "udc00|ud800",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[case]
    with pytest.raises(ModelFileError, match=reason) as caught:
        read(content, tmp_path)
    message = str(caught.value)
    assert message.startswith("damaged safetensors file: expected ")
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("length", range(9))
def test_a_file_shorter_than_any_header_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="expected a safetensors file, got"):
        read(save(ARRAYS)[:length], tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "U8", "BOOL", "F8_E4M3", "f32"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 32), min_size=2, max_size=2) | JSON_VALUES,
    },
    optional={"extra": JSON_VALUES},
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=4), ENTRIES | JSON_VALUES
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Noise, any header before any data, or a sound file with a few bytes changed or cut."""
    kind = draw(st.sampled_from(["noise", "header", "near miss"]))
    if kind == "noise":
        return draw(st.binary(max_size=64))
    if kind == "header":
        return assemble(json.dumps(draw(HEADERS)).encode(), draw(st.binary(max_size=64)))
    content = bytearray(save(ARRAYS, metadata={MANIFEST_KEY: MANIFEST.as_json()}))
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@given(content=files())
def test_whatever_is_sent_is_refused_or_read_as_the_library_reads_it(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        header = read(content, tmp_path_factory.mktemp("fuzz"))
        embedded_manifest(header)
    except ModelFileError:
        return
    theirs = {name: (view["dtype"], tuple(view["shape"])) for name, view in deserialize(content)}
    assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == theirs


def test_a_manifest_comes_back_from_the_file_that_carries_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(ARRAYS, path, metadata={MANIFEST_KEY: MANIFEST.as_json()})
    assert embedded_manifest(read_header(path)) == MANIFEST


def test_a_file_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert embedded_manifest(read(save(ARRAYS), tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "manifest"),
        ('{"architecture": "small_cnn"}', "input: expected a value, got none"),
        (MANIFEST.as_json().replace('"channels":1', '"channels":2'), "2 values in mean"),
        (MANIFEST.as_json().replace("0.25", "0"), "std above 0"),
        (MANIFEST.as_json().replace("0.25", "1e999"), "finite"),
        (MANIFEST.as_json().replace("30", "1e999"), "plain JSON values"),
        (MANIFEST.as_json().replace("30", '"\\ud800"'), "Invalid JSON"),
        (MANIFEST.as_json().replace("positive", "url"), "url: no such field"),
    ],
)
def test_a_manifest_that_is_not_valid_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    header = read(save(ARRAYS, metadata={MANIFEST_KEY: text}), tmp_path)
    with pytest.raises(ModelFileError, match=reason):
        embedded_manifest(header)


def test_a_manifest_never_holds_what_json_cannot_carry() -> None:
    with pytest.raises(ValidationError, match="plain JSON values"):
        Manifest(architecture="small_cnn", input=MANIFEST.input, training={"when": object()})


# --- outputs --------------------------------------------------------------------------------------

# as written before a network could have more than one logit
OLD_TEXT = (
    '{"architecture":"small_cnn","input":{"channels":1,"height":8,"mean":[0.5],"std":[0.25],'
    '"width":8},"positive":["8"],"training":{"epochs":30}}'
)
PETS = OutputSpec(kind="multiclass", classes=["cat", "dog", "other"])


def test_a_manifest_that_names_no_outputs_has_one_logit_and_keeps_its_text(
    tmp_path: Path,
) -> None:
    read_back = embedded_manifest(read(save(ARRAYS, metadata={MANIFEST_KEY: OLD_TEXT}), tmp_path))
    assert read_back == MANIFEST
    assert read_back.output == OutputSpec(kind="logit")
    assert read_back.as_json() == OLD_TEXT
    said = Manifest.model_validate_json(
        OLD_TEXT.replace('"positive"', '"output":{"kind":"logit","classes":null},"positive"')
    )
    assert (said, said.as_json()) == (MANIFEST, OLD_TEXT)


def test_classes_travel_in_their_order(tmp_path: Path) -> None:
    texts = set()
    for classes in (["cat", "dog", "other"], ["dog", "cat", "other"]):
        output = OutputSpec(kind="multilabel", classes=classes)
        manifest = MANIFEST.model_copy(update={"output": output})
        text = manifest.as_json()
        texts.add(text)
        assert json.loads(text)["output"] == {"kind": "multilabel", "classes": classes}
        header = read(save(ARRAYS, metadata={MANIFEST_KEY: text}), tmp_path)
        assert embedded_manifest(header) == manifest
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"kind": "softmax", "classes": ["a", "b"]}, "Input should be 'logit', 'multiclass'"),
        ({"kind": "logit", "classes": ["a", "b"]}, "expected no classes for the kind logit"),
        ({"kind": "multiclass"}, "expected classes for the kind multiclass"),
        ({"kind": "multilabel", "classes": None}, "expected classes for the kind multilabel"),
        ({"kind": "multiclass", "classes": ["a"]}, "at least 2 items"),
        ({"kind": "multiclass", "classes": [str(i) for i in range(1001)]}, "at most 1000 items"),
        ({"kind": "multiclass", "classes": ["a", "b", "a"]}, "expected each class once"),
        ({"kind": "multiclass", "classes": ["a", ""]}, "at least 1 character"),
        ({"kind": "multiclass", "classes": ["a", "b" * 201]}, "at most 200 characters"),
        ({"kind": "multiclass", "classes": ["a", "b\n"]}, r"printable characters, got 'b\\n'"),
        ({"kind": "multiclass", "classes": ["a", 1]}, "valid string"),
        (
            {"kind": "multiclass", "classes": ["a", "b"], "threshold": 0},
            "no such field; allowed: kind",
        ),
    ],
)
def test_outputs_that_cannot_be_are_refused(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        OutputSpec.model_validate(value)
    text = json.dumps({**json.loads(OLD_TEXT), "output": value})
    with pytest.raises(ValidationError, match=reason):
        Manifest.model_validate_json(text)


@pytest.mark.parametrize(
    ("kind", "positive", "columns"),
    [
        ("multiclass", ["dog"], [1]),
        ("multiclass", ["other", "cat"], [0, 2]),
        ("multiclass", ["cat", "cat"], [2]),
        ("multilabel", ["other"], [0]),
        ("multilabel", ["dog", "dog"], [1]),
    ],
)
def test_positive_classes_are_found_among_the_logits(
    kind: Any, positive: list[str], columns: list[int]
) -> None:
    assert OutputSpec(kind=kind, classes=["other", "dog", "cat"]).columns(positive) == columns


def test_one_logit_is_the_score_of_whatever_is_positive() -> None:
    for positive in (None, [], ["cat"]):
        assert OutputSpec().columns(positive) == [0]


@pytest.mark.parametrize(
    ("kind", "positive", "sentence"),
    [
        ("multiclass", None, "expected positive classes, .* each of cat, dog, other; got none"),
        ("multilabel", [], "expected positive classes, .* each of cat, dog, other; got none"),
        ("multiclass", ["cat", "emu", "\x1b"], r"\(cat, dog, other\), got 'emu', '\\x1b'"),
        ("multiclass", ["other", "dog", "cat"], "a class against .* got all of cat, dog, other"),
        ("multilabel", ["other", "cat"], "expected one positive class .* got cat, other"),
    ],
)
def test_classes_that_have_no_score_are_refused(
    kind: Any, positive: list[str] | None, sentence: str
) -> None:
    with pytest.raises(TaskError, match=sentence):
        OutputSpec(kind=kind, classes=PETS.classes).columns(positive)


def test_a_refusal_names_no_more_than_twenty_classes() -> None:
    output = OutputSpec(kind="multiclass", classes=[f"c{i:03d}" for i in range(1000)])
    numbers = OutputSpec(kind="multiclass", classes=["0", "1", "2"])
    with pytest.raises(TaskError, match=r"are numbers; add the model again .* --classes cat,…"):
        numbers.columns(["cat"])
    with pytest.raises(TaskError, match="c018, c019, …; got none"):
        output.columns(None)


# Judge: the kernel's own figures for a process that does nothing else.
MEASURED = """
import os, resource, sys
from pathlib import Path
from adap.models.errors import ModelFileError
from adap.models.header import embedded_manifest, read_header

def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_maxrss * 1024, used.ru_utime + used.ru_stime

memory, seconds = spent()
try:
    embedded_manifest(read_header(Path(sys.argv[1])))
except ModelFileError:
    pass
print(spent()[0] - memory, spent()[1] - seconds)
"""
FULL = MAX_HEADER_BYTES
DENSE = {  # headers as large as may be, each as dear as its kind can be
    "empty lists": b'{"a":[' + b"[]," * (FULL // 3 - 4) + b"[]]}",
    "nested lists": b'{"a":' + b"[" * (FULL // 2 - 8) + b"]" * (FULL // 2 - 8) + b"}",
    "nested objects": b'{"a":' * (FULL // 6 - 2) + b"1" + b"}" * (FULL // 6 - 2),
    "objects": b'{"a":[' + b"{}," * (FULL // 3 - 4) + b"{}]}",
    "names": b"{" + b",".join(b'"%06x":1' % i for i in range(FULL // 11 - 1)) + b"}",
    "numbers": b'{"a":[' + b"1e9," * (FULL // 4 - 4) + b"1]}",
    "long numbers": b'{"a":[' + (b"9" * 4000 + b",") * (FULL // 4001 - 1) + b"1]}",
    "escapes": b'{"' + b"\\u0041" * (FULL // 6 - 4) + b'":1}',
    "metadata": b'{"__metadata__":{'
    + b",".join(b'"%06x":""' % i for i in range(FULL // 12 - 4))
    + b"}}",
    "a manifest": json.dumps({"__metadata__": {MANIFEST_KEY: "[" * (FULL - 200)}}).encode(),
    "tensors": json.dumps(
        {
            f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
            for i in range(MAX_TENSORS)
        },
        separators=(",", ":"),
    ).encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENSE)
def test_no_header_costs_much_memory_or_time(tmp_path: Path, kind: str) -> None:
    assert FULL // 2 < len(DENSE[kind]) <= FULL
    path = tmp_path / "model.safetensors"
    path.write_bytes(assemble(DENSE[kind]))
    with path.open("r+b") as file:
        file.truncate(2**33)  # sparse: the weights are not what costs
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, path], capture_output=True, text=True, check=True
    )
    memory, seconds = map(float, run.stdout.split())
    assert memory < 200 * 2**20
    assert seconds < 2
