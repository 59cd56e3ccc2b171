"""A stratified sample of an audit: counted, and compared with the whole."""

import numpy as np
import pytest

from adap.core.audit.plan import Piece, ScoresPiece, Subject, make_plan
from adap.core.audit.sampling import audited_rows, check_sample, sample_doubt
from adap.core.config.audits import AuditConfig
from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.errors import DataError

CAT = Task(positive=["cat"])


@pytest.fixture(scope="module")
def pets() -> ImageSet:
    """200 examples, every tenth a cat; the second half is for testing."""
    return ImageSet(
        images=np.zeros((200, 1, 2, 2), np.uint8),
        labels=np.where(np.arange(200) % 10 == 0, 0, 1),
        classes=["cat", "dog"],
        example_ids=[str(i) for i in range(200)],
        splits=np.repeat(np.array([0, 2], np.int8), 100),
    )


def config(sample: int | None, seed: int = 0) -> AuditConfig:
    return AuditConfig(sample=sample, seed=seed, shard_size=16)


def test_each_side_comes_in_its_share_from_its_own_split(pets: ImageSet) -> None:
    rows = audited_rows(pets, "test", CAT, config(50))
    assert len(set(rows.tolist())) == 50
    assert (np.diff(rows) > 0).all()
    assert rows.min() >= 100
    assert (pets.labels[rows] == 0).sum() == 5


def test_the_seed_alone_decides_which(pets: ImageSet) -> None:
    first, again, other = (audited_rows(pets, None, CAT, config(80, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sample", [None, 100, 5000])
def test_a_sample_of_all_there_are_is_no_sample(pets: ImageSet, sample: int | None) -> None:
    rows = audited_rows(pets, "test", CAT, config(sample))
    assert np.array_equal(rows, np.arange(100, 200))
    assert sample_doubt(config(sample).sampled(100), 100, seed=0) is None


def test_every_example_is_as_likely_as_another_of_its_side(pets: ImageSet) -> None:
    drawn = [audited_rows(pets, "test", CAT, config(50, seed)) - 100 for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    # 200 expected, with a standard deviation of 10
    assert counts.min() > 150
    assert counts.max() < 250


def test_a_sample_without_two_of_each_side_is_refused_with_the_size_that_would_do(
    pets: ImageSet,
) -> None:
    with pytest.raises(DataError) as caught:
        audited_rows(pets, "test", CAT, config(14))
    assert str(caught.value) == (
        "expected a sample with at least 2 positives and 2 negatives, got 1 positives (cat) and 13 "
        "negatives in a sample of 14 of 100, each side in its share: sample 20 or more"
    )
    check_sample(20, positives=10, examples=100, named="cat")
    with pytest.raises(DataError, match="got 13 positives"):
        check_sample(14, positives=90, examples=100, named="cat")
    part = " in the train split"
    with pytest.raises(DataError, match=r"in the train split, got 1 .* of 400, .*: sample 80 or"):
        check_sample(40, positives=10, examples=100, named="cat", part=part, whole=400)
    check_sample(80, positives=10, examples=100, named="cat", part=part, whole=400)


def plan(sample: int | None, seed: int = 0) -> list[Piece]:
    subject = Subject(
        tenant="us", model="m", dataset="d", surrogate=None, split=None, examples=200, image=(2, 2)
    )
    return make_plan(config(sample, seed), [CAT], subject)


def test_the_plan_covers_the_sample_under_keys_of_its_own() -> None:
    def keys(pieces: list[Piece]) -> set[str]:
        scores = [piece for piece in pieces if isinstance(piece, ScoresPiece)]
        return {column.key for piece in scores for column in piece.columns}

    pieces = [piece for piece in plan(50) if isinstance(piece, ScoresPiece)]
    assert [(piece.start, piece.stop) for piece in pieces] == [
        (0, 16),
        (16, 32),
        (32, 48),
        (48, 50),
    ]
    assert not keys(plan(50)) & keys(plan(60))
    assert not keys(plan(50)) & keys(plan(50, seed=1))
    assert keys(plan(None)) == keys(plan(200))


def test_a_sample_of_clusters_says_that_they_are_in_it_in_part() -> None:
    names = [f"patient {i // 4}" for i in range(12)]
    said = sample_doubt(12, 200, clusters=names, seed=0)
    assert said is not None
    assert "of 3 clusters the sample holds parts; intervals draw each part whole" in said
    assert "clusters" not in str(sample_doubt(12, 200, seed=0))
