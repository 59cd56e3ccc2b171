"""The images of a data set, over HTTP. Judges: Pillow, and numpy on the arrays that were kept."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.store.tables import AssetStatus
from tests.api.conftest import Api

Check = Callable[..., dict[str, Any]]


def photos(channels: int = 3, count: int = 12, **more: Any) -> ImageSet:
    """Noise of 9 rows and 6 columns; cat, dog, cat, …; the last third is the test split."""
    rng = np.random.default_rng(channels)
    return ImageSet(
        images=rng.integers(0, 256, (count, channels, 9, 6), np.uint8),
        labels=np.arange(count) % 2,
        classes=["cat", "dog"],
        example_ids=[f"photos/{i}.png" for i in range(count)],
        splits=np.repeat([SPLITS.index("train"), SPLITS.index("test")], [count - 4, 4]).astype(
            np.int8
        ),
        groups=[("north", "south", "<b>east</b>")[i % 3] for i in range(count)],
        **more,
    )


def pixels(content: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def listed(api: Api, dataset_id: str, **query: Any) -> list[int]:
    """The indices of a whole list, page by page."""
    found: list[int] = []
    while True:
        answer = api.http.get(f"/v1/datasets/{dataset_id}/images", params={"limit": 2, **query})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert len(body["data"]) <= 2
        found += [item["index"] for item in body["data"]]
        assert body["has_more"] == (body["next_cursor"] is not None)
        if not body["has_more"]:
            return found
        query["after"] = body["next_cursor"]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pixels_are_those_that_are_stored(api: Api, channels: int) -> None:
    image_set = photos(channels)
    dataset_id = api.dataset(content_sha256=api.keep(image_set))
    for i in (0, 7, 11):
        answer = api.http.get(f"/v1/datasets/{dataset_id}/images/{i}")
        assert answer.headers["content-type"] == "image/png"
        expected = (
            image_set.images[i, :3].transpose(1, 2, 0) if channels >= 3 else image_set.images[i, 0]
        )
        np.testing.assert_array_equal(pixels(answer.content), expected)


def test_a_thumbnail_is_the_image_made_smaller_and_never_larger(api: Api) -> None:
    image_set = photos()
    path = f"/v1/datasets/{api.dataset(content_sha256=api.keep(image_set))}/images/3"
    small = api.http.get(path, params={"size": 4})
    expected = Image.fromarray(image_set.images[3].transpose(1, 2, 0))
    expected.thumbnail((4, 4))
    np.testing.assert_array_equal(pixels(small.content), np.asarray(expected))
    assert pixels(small.content).shape == (4, 3, 3)
    assert pixels(api.http.get(path, params={"size": 500}).content).shape == (9, 6, 3)


def test_an_image_is_kept_by_its_browser_and_told_from_every_other(api: Api) -> None:
    path = f"/v1/datasets/{api.dataset(content_sha256=api.keep(photos()))}/images"
    tags = set()
    for place in ("0", "1", "1?size=4", "1?size=5"):
        first = api.http.get(f"{path}/{place}")
        assert first.headers["cache-control"] == "private, max-age=3600"
        assert first.headers["vary"] == "Authorization, Cookie"
        tags.add(tag := first.headers["etag"])
        again = api.http.get(f"{path}/{place}", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert len(tags) == 4
    assert api.http.get(f"{path}/0", headers={"If-None-Match": tag}).status_code == 200


def test_images_are_listed_by_split_class_and_group(api: Api) -> None:
    image_set = photos()
    dataset_id = api.dataset(content_sha256=api.keep(image_set))
    i = np.arange(12)
    for query, wanted in (
        ({}, i >= 0),
        ({"split": "test"}, i >= 8),
        ({"label": "dog"}, i % 2 == 1),
        ({"group": "<b>east</b>"}, i % 3 == 2),
        ({"split": "train", "label": "cat", "group": "north"}, (i < 8) & (i % 6 == 0)),
    ):
        assert listed(api, dataset_id, **query) == np.flatnonzero(wanted).tolist(), query
    first = api.http.get(f"/v1/datasets/{dataset_id}/images", params={"split": "test"}).json()
    assert first["data"][1] == {
        "index": 9,
        "example_id": "photos/9.png",
        "labels": ["dog"],
        "split": "test",
        "group": "north",
        "cluster": None,
        "image": f"/v1/datasets/{dataset_id}/images/9",
    }
    assert api.http.get(first["data"][1]["image"]).status_code == 200


def test_an_image_of_several_labels_is_listed_with_each_of_them(api: Api) -> None:
    images = photos().images[:3]
    labels = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]], np.uint8)
    image_set = ImageSet(images, labels, ["cat", "dog", "fox"], ["a", "b", "c"], clusters="xxy")
    dataset_id = api.dataset(content_sha256=api.keep(image_set))
    assert listed(api, dataset_id, label="dog") == [0, 2]
    shown = api.http.get(f"/v1/datasets/{dataset_id}/images").json()["data"]
    assert [item["labels"] for item in shown] == [["cat", "dog"], [], ["dog", "fox"]]
    assert [item["cluster"] for item in shown] == ["x", "x", "y"]
    assert {item["split"] for item in shown} == {item["group"] for item in shown} == {None}


def test_images_that_are_not_there_are_refused_in_a_sentence(api: Api, problem: Check) -> None:
    path = f"/v1/datasets/{api.dataset(content_sha256=api.keep(photos()))}/images"
    body = problem(api.http.get(f"{path}/12"), 404, "not_found")
    assert "from 0 to 11; got 12" in body["detail"]
    always = {"If-None-Match": "*"}
    problem(api.http.get(f"{path}/12", headers=always), 404, "not_found")
    for place in ("-1", "1.5", "one", str(2**40), "1?size=0", "1?size=5000"):
        problem(api.http.get(f"{path}/{place}"), 422, "invalid_request")
    for query, expected in (
        ({"label": "fox"}, "expected one of cat, dog; got 'fox'"),
        ({"group": "west"}, "expected one of <b>east</b>, north, south; got 'west'"),
        ({"split": "validation"}, "expected one of train, test; got 'validation'"),
        ({"after": "!"}, "expected a `next_cursor` that this list has given"),
    ):
        body = problem(api.http.get(path, params=query), 422, "invalid_request")
        (field,) = query
        assert [(one["pointer"], one["detail"]) for one in body["errors"]] == [
            (f"/query/{field}", expected)
        ]
    plain = api.dataset(
        content_sha256=api.keep(ImageSet(photos().images[:2], np.arange(2), ["a", "b"], ["0", "1"]))
    )
    body = problem(
        api.http.get(f"/v1/datasets/{plain}/images", params={"group": "x"}), 422, "invalid_request"
    )
    assert "expected none, as there is no group" in body["detail"]


def test_images_are_of_a_data_set_that_is_ready_and_the_callers_own(
    api: Api, problem: Check
) -> None:
    dataset_id = api.dataset(content_sha256=api.keep(photos()))
    waiting = api.dataset(status=AssetStatus.VALIDATING, summary=None, content_sha256=None)
    for path in (f"/v1/datasets/{waiting}/images", f"/v1/datasets/{waiting}/images/0"):
        problem(api.http.get(path), 409, "not_ready")
    first = api.http.post("/v1/api-keys", json={"name": "first", "scopes": ["admin"]}).json()
    reader, stranger = (
        api.http.post(
            "/v1/api-keys",
            json={"name": "k", "scopes": ["read"], "tenant": tenant},
            headers={"Authorization": f"Bearer {first['key']}"},
        ).json()["key"]
        for tenant in ("local", "other")
    )
    for path in (f"/v1/datasets/{dataset_id}/images", f"/v1/datasets/{dataset_id}/images/0"):
        tag = {"If-None-Match": "*"}  # what is in a browser opens nothing either
        problem(api.http.get(path, headers=tag), 401, "unauthorized")
        theirs = {**tag, "Authorization": f"Bearer {stranger}"}
        problem(api.http.get(path, headers=theirs), 404, "not_found")
        ours = {"Authorization": f"Bearer {reader}"}
        assert api.http.get(path, headers=ours).status_code == 200
