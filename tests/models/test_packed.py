"""A model in a zip or gzip is found by its bytes; what is no sound archive of one is refused."""

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as as_safetensors

from tests.models.test_fitting import behind, network, refused, saved, scores, state, take_in


def zipped(members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def checkpoint() -> bytes:
    return saved(behind("module.", state()))


BESIDE = {
    "__MACOSX/out/._model.pt": b"PK\x03\x04",
    "out/._model.pt": b"PK\x03\x04",
    "out/.DS_Store": b"\0",
    "out/config.json": b'{"epoch": 3}',
    "out/README.md": b"best so far",
}

PACKED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a zip": (lambda: zipped({"model.pt": checkpoint()}), "unpacked from a zip: 'model.pt'"),
    "beside other files": (
        lambda: zipped({"out/last.ckpt": checkpoint(), **BESIDE}),
        "unpacked from a zip: 'out/last.ckpt'",
    ),
    "stored": (
        lambda: zipped({"m.safetensors": as_safetensors(state())}, method=zipfile.ZIP_STORED),
        "unpacked from a zip: 'm.safetensors'",
    ),
    "lzma": (lambda: zipped({"m": checkpoint()}, method=zipfile.ZIP_LZMA), "unpacked from a zip"),
    "gzip": (lambda: gzip.compress(checkpoint()), "unpacked from gzip"),
}


@pytest.mark.parametrize("case", PACKED)
def test_a_packed_model_scores_as_the_one_that_was_packed(case: str, tmp_path: Path) -> None:
    content, said = PACKED[case]
    converted = take_in(content(), tmp_path)
    assert converted.steps[0].startswith(said)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = network()((images - 0.4) / 0.3)
    assert torch.allclose(scores(converted, images), wanted, atol=1e-6)


def test_of_two_packed_models_none_is_taken(tmp_path: Path) -> None:
    both = zipped({"best.pt": checkpoint(), "last.pt": checkpoint()})
    assert "got 2: 'best.pt', 'last.pt'; send the one that is meant" in refused(both, tmp_path)


@pytest.mark.parametrize("pack", [lambda data: zipped({"model.pt": data}), gzip.compress])
def test_what_unpacks_to_far_more_than_weights_do_is_stopped(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    bomb = pack(b"PK\x03\x04" + bytes(80 * 1024**2))
    assert "unpacks to more" in refused(bomb, tmp_path)
    assert (tmp_path / "unpacked").stat().st_size <= 64 * 1024**2


@pytest.mark.parametrize("pack", [lambda data: zipped({"model.pt": data}), gzip.compress])
def test_a_damaged_archive_is_no_internal_error(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    whole = bytearray(pack(checkpoint()))
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    assert "damaged or encrypted" in refused(bytes(whole), tmp_path)


def test_an_archive_in_an_archive_and_one_of_no_model_are_named(tmp_path: Path) -> None:
    nested = zipped({"outer.zip": zipped({"model.pt": checkpoint()})})
    assert "got a zip archive" in refused(nested, tmp_path)
    assert "got a zip archive" in refused(zipped(BESIDE), tmp_path)
    assert "got a gzip archive" in refused(gzip.compress(b"numbers"), tmp_path)
