"""The judge is counting: what was drawn, how often, and in which order."""

import io
import math
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adap.core.errors import ConfigError, DataError
from adap.core.training.sampling import ClassSampler, PlainSampler, PositiveSampler


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def targets_of(positives, negatives):
    """Positives scattered among the negatives."""
    targets = torch.zeros(positives + negatives)
    targets[torch.randperm(len(targets), generator=generator())[:positives]] = 1
    return targets


def plain(examples=10, *, batch_size=4, seed=0):
    return PlainSampler(examples, batch_size=batch_size, generator=generator(seed))


def positive(positives=3, negatives=9, *, batch_size=4, positives_per_batch=2, seed=0):
    return PositiveSampler(
        targets_of(positives, negatives),
        batch_size=batch_size,
        positives_per_batch=positives_per_batch,
        generator=generator(seed),
    )


def labels_of(counts, *, unlabelled=0):
    """(N, K): so many positives of each class, and some of none."""
    labels = torch.zeros((sum(counts) + unlabelled, len(counts)))
    first = 0
    for number, count in enumerate(counts):
        labels[first : first + count, number] = 1
        first += count
    return labels[torch.randperm(len(labels), generator=generator())]


def classes(counts=(2, 1, 4), *, batch_size=4, unlabelled=3, seed=0):
    return ClassSampler(
        labels_of(counts, unlabelled=unlabelled),
        batch_size=batch_size,
        positives_per_batch=batch_size // 2,
        generator=generator(seed),
    )


SAMPLERS = pytest.mark.parametrize("make", [plain, positive, classes])


def epochs(sampler, count):
    return [batch.tolist() for _ in range(count) for batch in sampler]


@given(
    positives=st.integers(1, 12),
    negatives=st.integers(1, 30),
    batch_size=st.integers(2, 10),
    data=st.data(),
)
def test_every_positive_is_drawn_equally_often_give_or_take_one_and_every_negative_too(
    positives, negatives, batch_size, data
):
    wanted = data.draw(st.integers(1, batch_size - 1))
    targets = targets_of(positives, negatives)
    sampler = PositiveSampler(
        targets, batch_size=batch_size, positives_per_batch=wanted, generator=generator(1)
    )
    drawn = torch.zeros(len(targets), dtype=torch.int64)
    for _ in range(3):
        for batch in sampler:
            assert batch.dtype == torch.int64
            assert batch.shape == (batch_size,)
            assert targets[batch].sum() == wanted
            drawn += batch.bincount(minlength=len(targets))
            for group in (drawn[targets == 1], drawn[targets == 0]):
                assert group.max() - group.min() <= 1
    assert drawn.sum() == 3 * math.ceil(len(targets) / batch_size) * batch_size


@given(examples=st.integers(1, 40), batch_size=st.integers(1, 12))
def test_plain_batches_have_one_size_and_draw_every_example_equally_often(examples, batch_size):
    drawn = torch.zeros(examples, dtype=torch.int64)
    sampler = plain(examples, batch_size=batch_size)
    for _ in range(3):
        for batch in sampler:
            assert batch.shape == (min(batch_size, examples),)
            drawn += batch.bincount(minlength=examples)
            assert drawn.max() - drawn.min() <= 1
    assert drawn.min() >= 3  # no epoch leaves anyone out


@pytest.mark.slow
@given(examples=st.integers(2, 60), batch_size=st.integers(2, 12), positives=st.integers(1, 59))
def test_an_epoch_has_the_same_number_of_batches_with_any_sampler(examples, batch_size, positives):
    positives = min(positives, examples - 1)
    steps = math.ceil(examples / batch_size)
    samplers = (
        plain(examples, batch_size=batch_size),
        positive(positives, examples - positives, batch_size=batch_size, positives_per_batch=1),
        classes((positives, examples - positives), batch_size=batch_size, unlabelled=0),
    )
    for sampler in samplers:
        assert len(sampler) == steps
        assert [len(list(sampler)) for _ in range(2)] == [steps, steps]


def test_a_single_positive_fills_its_half_of_every_batch():
    sampler = positive(1, 500, batch_size=128, positives_per_batch=64)
    the_one = targets_of(1, 500).argmax().item()
    for batch in sampler:
        assert batch[:64].tolist() == [the_one] * 64
        assert the_one not in batch[64:]


@pytest.mark.slow
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=7),
    unlabelled=st.integers(0, 5),
    batch_size=st.integers(2, 24),
    data=st.data(),
)
def test_each_class_has_its_share_of_every_batch_and_draws_its_positives_equally_often(
    counts, unlabelled, batch_size, data
):
    places = data.draw(st.integers(1, batch_size - 1))
    labels = labels_of(counts, unlabelled=unlabelled)  # one class at most: so it shows for which
    sampler = ClassSampler(
        labels, batch_size=batch_size, positives_per_batch=places, generator=generator(1)
    )
    least, remainder = divmod(places, len(counts))
    drawn, rest = torch.zeros((2, len(labels)), dtype=torch.int64)
    for _ in range(3):
        for batch in sampler:
            assert batch.dtype == torch.int64
            assert batch.shape == (batch_size,)
            of_classes = labels[batch[:places]].sum(dim=0)
            assert of_classes.sum() == places
            assert least <= of_classes.min()
            assert remainder > 0 or of_classes.max() == least
            drawn += batch[:places].bincount(minlength=len(labels))
            rest += batch[places:].bincount(minlength=len(labels))
            assert rest.max() - rest.min() <= 1
            for column in labels.T:
                mine = drawn[column == 1]
                assert mine.max() - mine.min() <= 1
            by_class = drawn.float() @ labels
            assert by_class.max() - by_class.min() <= (1 if remainder else 0)


def test_an_example_of_two_classes_is_drawn_for_each_and_a_single_one_often_enough():
    labels = torch.tensor([[1, 1], [0, 1], [0, 0], [0, 0]])
    sampler = ClassSampler(labels, batch_size=6, positives_per_batch=4, generator=generator())
    for batch in sampler:
        assert batch[:2].tolist() == [0, 0], "the one positive of the first class"
        assert sorted(batch[2:4].tolist()) == [0, 1]


def test_more_classes_than_places_take_turns():
    labels = torch.eye(10)
    sampler = ClassSampler(labels, batch_size=5, positives_per_batch=4, generator=generator())
    drawn = torch.stack([batch[:4] for _ in range(5) for batch in sampler])
    assert len(drawn) == 10
    assert (drawn.flatten().bincount() == 4).all()


@pytest.mark.parametrize("column", [[0, 0, 0], [1, 1, 1]])
def test_a_class_without_both_sides_is_refused(column):
    labels = torch.tensor([[1, 0, 0], column]).T
    with pytest.raises(DataError, match=f"got {sum(column)} positives of class 1 among 3"):
        ClassSampler(labels, batch_size=3, positives_per_batch=2, generator=generator())


@SAMPLERS
def test_one_seed_gives_one_sequence_and_another_seed_another(make):
    assert epochs(make(seed=3), 3) == epochs(make(seed=3), 3)
    assert epochs(make(seed=3), 3) != epochs(make(seed=4), 3)


@SAMPLERS
def test_each_epoch_is_shuffled_anew(make):
    sampler = make()
    assert epochs(sampler, 1) != epochs(sampler, 1)


@SAMPLERS
def test_neither_sampler_touches_the_global_generator(make):
    before = torch.get_rng_state()
    epochs(make(), 2)
    assert torch.equal(torch.get_rng_state(), before)


@SAMPLERS
@pytest.mark.parametrize("drawn", range(8))  # within and between epochs of three batches
def test_a_sampler_resumed_after_any_batch_goes_on_as_if_never_stopped(make, drawn):
    def batches(sampler):
        while True:
            yield from (batch.tolist() for batch in sampler)

    sampler = make()
    list(islice(batches(sampler), drawn))
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    resumed = make(seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    expected = list(islice(batches(sampler), 7))
    assert list(islice(batches(resumed), 7)) == expected


def test_a_saved_state_is_not_changed_by_the_sampler_going_on():
    sampler = plain()
    list(sampler)
    state = sampler.state_dict()
    expected = epochs(sampler, 2)
    sampler.load_state_dict(state)
    assert epochs(sampler, 2) == expected


@pytest.mark.parametrize("other", [plain(11), positive(4, 8), positive(3, 10)])
def test_the_state_of_other_examples_is_refused(other):
    with pytest.raises(ConfigError, match=r"sampler of \[3, 9\] examples, got one of"):
        positive().load_state_dict(other.state_dict())


@pytest.mark.parametrize(("positives", "negatives"), [(0, 5), (5, 0), (0, 0)])
def test_a_single_class_is_refused(positives, negatives):
    with pytest.raises(DataError, match=f"got {positives} positives among"):
        positive(positives, negatives)


@pytest.mark.parametrize("wanted", [0, 4, 5])
def test_a_batch_without_room_for_both_classes_is_refused(wanted):
    with pytest.raises(ConfigError, match=f"between 1 and 3 positives .* got {wanted}"):
        positive(batch_size=4, positives_per_batch=wanted)


def test_no_examples_are_refused():
    with pytest.raises(DataError, match="at least one example, got 0"):
        plain(0)
