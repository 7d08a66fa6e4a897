"""What becomes of the things that users return; the fitness of EA4LLM against its formula."""

import array
import collections
import math

import numpy
import pytest
import torch

from lightning_evo.evaluation.fitness import (
    Fitness,
    as_fitness,
    as_record,
    as_records,
    fitness_of_loss,
    fitness_of_step,
    number_of,
    token_log_probability,
)
from lightning_evo.evaluation.job import Refusal


class Column:
    """Converts itself, as the columns of tables and the arrays of other libraries do."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return numpy.array(self.values, dtype)


@pytest.mark.parametrize(
    ("value", "expected", "dtype"),
    [
        (torch.tensor(2.5), 2.5, torch.float32),
        (torch.tensor([1.0, 2.0, 6.0]), 3.0, torch.float32),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), 1.5, torch.float64),
        (torch.tensor([256.0, 257.0, 258.0, 259.0]).bfloat16(), 257.5, torch.float32),  # 256, 256, 258 and 260
        (torch.tensor([True, False, True, True]), 0.75, torch.float64),
        (torch.tensor([1, 2, 4]), 7 / 3, torch.float64),
        (torch.tensor([200, 200], dtype=torch.uint8), 200.0, torch.float64),
        (3, 3.0, torch.float64),
        (0.5, 0.5, torch.float64),
        (True, 1.0, torch.float64),
        (numpy.float64(0.25), 0.25, torch.float64),
        (numpy.float32(0.25), 0.25, torch.float64),
        (numpy.int64(4), 4.0, torch.float64),
        (numpy.bool_(True), 1.0, torch.float64),
        (2**24 + 1, 2.0**24 + 1, torch.float64),  # float32 would lose the one, and tie what differs
        (torch.tensor(2**24 + 1), 2.0**24 + 1, torch.float64),
        ([1.0, 2.0, 6.0], 3.0, torch.float64),
        ((0.5, 1, True, numpy.float32(0.5), numpy.bool_(False)), 0.6, torch.float64),
        ([True, False, True, True], 0.75, torch.float64),
        ([2**24 + 1, 2**24 + 3], 2.0**24 + 2, torch.float64),
        ([torch.tensor(1.0), torch.tensor([3.0])], 2.0, torch.float32),
        ([torch.tensor(1.0), 2], 1.5, torch.float64),
        (collections.deque([1, 2]), 1.5, torch.float64),
        (range(5), 2.0, torch.float64),
        (array.array("f", [1.0, 2.0]), 1.5, torch.float64),
        (numpy.array([1.0, 2.0, 6.0]), 3.0, torch.float64),
        (numpy.array([200, 200], dtype=numpy.uint8), 200.0, torch.float64),
        (numpy.array([True, False]), 0.5, torch.float64),
        (numpy.array([1.0, 2.0], dtype=numpy.float16)[::-1], 1.5, torch.float64),
        (numpy.array(2.5), 2.5, torch.float64),
        (Column([1.0, 4.0]), 2.5, torch.float64),
    ],
)
def test_as_fitness(value, expected, dtype):
    fitness = as_fitness(value)
    assert fitness.shape == ()
    assert fitness.dtype == dtype
    assert fitness.item() == pytest.approx(expected, rel=1e-7)


def test_short_floats_are_averaged_in_float32():
    values = torch.full((4096,), 1 + 2**-7, dtype=torch.bfloat16)
    values[0] = 2.0
    assert as_fitness(values).item() == pytest.approx(values.double().mean().item(), rel=1e-6)


def test_the_fitness_does_not_hold_on_to_graph_or_storage():
    weight = torch.tensor(2.0, requires_grad=True)
    fitness = as_fitness(weight)
    assert not fitness.requires_grad
    with torch.no_grad():
        weight.fill_(5.0)  # as the restore after a member does with the weights
    assert fitness == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_failures_pass_through(value):
    assert as_fitness(torch.tensor([1.0, value])).item() == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("good", TypeError, r"`fitness_step` returned str \('good'\), which can't be compared"),
        (None, TypeError, "returned NoneType"),
        ({"reward": 1.0}, TypeError, "returned dict"),
        ({1.0, 2.0}, TypeError, "returned set"),
        ((value for value in (1.0, 2.0)), TypeError, "returned generator"),
        (b"good", TypeError, "returned bytes"),
        (numpy.float64, TypeError, "returned type"),
        ([1.0, "good"], TypeError, r"a list with str \('good'\) at position 1; fitness must be real numbers"),
        ((1.0, None), TypeError, r"a tuple with NoneType \(None\) at position 1.* Fitness\(values, missing=…\)"),
        ([[1.0, 2.0], [3.0]], TypeError, r"a list with list \(\[1.0, 2.0\]\) at position 0"),
        ([torch.zeros(2)], TypeError, "a list with Tensor"),
        ([1j], TypeError, "a list with complex"),
        ([], ValueError, "an empty list"),
        (numpy.zeros(0), ValueError, "an empty array"),
        (numpy.zeros((2, 3)), ValueError, r"an array of shape \[2, 3\]"),
        (numpy.array(["good"]), TypeError, "an array of <U4; fitness must be real numbers"),
        (numpy.array([1j]), TypeError, "an array of complex128"),
        (1 + 2j, TypeError, "returned complex"),
        (torch.tensor(1j), TypeError, "complex tensor"),
        (torch.zeros(2, 3), ValueError, r"shape \[2, 3\].*\.mean\(dim=1\)"),
        (torch.zeros(0), ValueError, "empty tensor"),
    ],
)
def test_what_is_no_fitness(value, kind, message):
    with pytest.raises(kind, match=message):
        as_fitness(value)


# --- Fitness --------------------------------------------------------------------------------------------------------

nan, inf = math.nan, math.inf
VALUES, MISSING = torch.tensor([1.0, 2.0, 6.0, 7.0]), torch.tensor([False, True, False, True])


@pytest.mark.parametrize(
    ("fitness", "expected"),
    [
        (torch.tensor([1.0, 2.0]), 1.5),
        (3, 3.0),
        (Fitness(VALUES), 4.0),
        (Fitness(2.5), 2.5),
        (Fitness(VALUES, 0.5), [4.0, 0.5]),
        (Fitness(True, torch.tensor([1.0, 2.0]).mean()), [1.0, 1.5]),
        (Fitness(VALUES, torch.tensor([1, 2, 3, 6])), [4.0, 3.0]),
        (Fitness(VALUES > 1, torch.tensor(3.0).bfloat16()), [0.75, 3.0]),
        (Fitness(VALUES, nan), [4.0, -inf]),
        (Fitness(VALUES, torch.tensor([1.0, inf, 1.0, 1.0])), [4.0, -inf]),
        (Fitness(VALUES, missing=MISSING), [3.5, nan, 1.0, nan, 6.0, nan]),
        (Fitness(VALUES, 2.0, MISSING), [3.5, 2.0, 1.0, nan, 6.0, nan]),
        (Fitness(VALUES, torch.tensor([1.0, nan, 2.0, nan]), MISSING), [3.5, 1.5, 1.0, nan, 6.0, nan]),
        (Fitness(VALUES.where(~MISSING, nan), missing=MISSING), [3.5, nan, 1.0, nan, 6.0, nan]),
        (Fitness(VALUES.where(MISSING, nan), missing=MISSING), [nan, nan, nan, nan, nan, nan]),
        (Fitness(VALUES, -1.0, torch.ones(4, dtype=torch.bool)), [0.0, -1.0, nan, nan, nan, nan]),
        (Fitness(VALUES.tolist(), [1, 2, 3, 6], MISSING.tolist()), [3.5, 2.0, 1.0, nan, 6.0, nan]),
        (Fitness(VALUES.numpy(), missing=MISSING.numpy()), [3.5, nan, 1.0, nan, 6.0, nan]),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_what_a_member_reports(fitness, expected, together):
    record = as_record(fitness)
    if together:  # in a forward with another member
        record = torch.func.vmap(lambda number: as_record(fitness) + 0 * number)(torch.zeros(2, dtype=torch.float64))[1]
    expected = torch.tensor(expected, dtype=record.dtype)
    assert record.dtype == torch.float64 or record.dim() == 0
    torch.testing.assert_close(record, expected, equal_nan=True, rtol=0, atol=0)
    fitness, tie_breaker = [*expected.flatten()[:2].tolist(), nan][:2]
    assert number_of(record) == pytest.approx(
        fitness if math.isnan(tie_breaker) else fitness + tie_breaker, nan_ok=True
    )


def test_members_of_one_forward_report_their_own():
    def fitness(number):
        values = VALUES * number
        return as_record(Fitness(values > 3, -values.sum(), values > 12))

    found = torch.func.vmap(fitness)(torch.tensor([1.0, 2.0]))
    expected = [[0.5, -16.0, 0.0, 0.0, 1.0, 1.0], [2 / 3, -32.0, 0.0, 1.0, 1.0, nan]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_a_declined_batch_has_no_number():
    assert math.isnan(number_of(None))
    assert number_of(2) == 2


@pytest.mark.parametrize(
    ("fitness", "kind", "message"),
    [
        (Fitness("good"), TypeError, "returned str"),
        (Fitness(torch.zeros(2, 3), 1.0), ValueError, r"shape \[2, 3\]"),
        (Fitness(1.0, torch.tensor(1j)), TypeError, "tie breaker must be real numbers"),
        (Fitness(VALUES, VALUES[:2]), ValueError, r"tie breaker of shape \[2\] for values of shape \[4\]"),
        (Fitness(VALUES, missing=MISSING.float()), TypeError, "`missing` as torch.float32. Return a bool tensor"),
        (Fitness(VALUES, missing=[1, 0, 0, 0]), TypeError, "`missing` as torch.float64"),
        (Fitness(VALUES, missing="none"), TypeError, "`missing` as str"),
        (Fitness([1.0, 2.0], missing=[True]), ValueError, r"`missing` of shape \[1\] for values of shape \[2\]"),
        (Fitness(VALUES, missing=MISSING[:2]), ValueError, r"`missing` of shape \[2\] for values of shape \[4\]"),
        (Fitness(1.0, missing=torch.tensor(True)), ValueError, r"`missing` of shape \[\] for values of shape \[\]"),
    ],
)
def test_what_is_no_record(fitness, kind, message):
    with pytest.raises(kind, match=message):
        as_record(fitness)


@pytest.mark.parametrize(
    "output", [torch.tensor(1.5), torch.tensor([1.5]), torch.tensor([[1.5]]), {"loss": torch.tensor(1.5), "x": 2}, 1.5]
)
def test_a_loss_is_the_negative_of_a_fitness(output):
    fitness = fitness_of_loss(output)
    assert fitness.shape == ()
    assert fitness.item() == -1.5


def per_sample(losses):
    """What a step returns that gives one loss for each sample, too."""
    return {"loss": torch.tensor(100.0), "loss_per_sample": losses}


@pytest.mark.parametrize("output", [None, {"loss": None}])
def test_a_skipped_step_has_no_fitness(output):
    assert fitness_of_loss(output) is None


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        ({"losses": 1}, TypeError, "without the key 'loss'"),
        ("loss", TypeError, "`training_step` returned str"),
        (torch.zeros(3), ValueError, r"loss of shape \[3\].*fitness_step"),
        ([1.0, 2.0], TypeError, r"`training_step` returned a list \(\[1.0, 2.0\]\) as the loss.*`fitness_step`"),
        ({"loss": numpy.zeros(2)}, TypeError, "`training_step` returned an array"),
        (per_sample(torch.tensor(1.0)), ValueError, r"returned `loss_per_sample` of shape \[\].*reduction='none'"),
        (per_sample(torch.zeros(4, 7)), ValueError, r"returned `loss_per_sample` of shape \[4, 7\]"),
        (per_sample(0.5), ValueError, r"returned `loss_per_sample` of shape \[\]"),
        (per_sample("none"), TypeError, "returned str"),
        (per_sample([1.0, None]), TypeError, "`loss_per_sample` must be real numbers"),
        (per_sample(torch.zeros(2, dtype=torch.complex64)), TypeError, "`loss_per_sample` must be real numbers"),
        (per_sample([]), ValueError, "nothing to compare"),
        ({"loss_per_sample": [1.0]}, TypeError, "without the key 'loss'"),
    ],
)
def test_what_is_no_loss(output, kind, message):
    with pytest.raises(kind, match=message):
        fitness_of_loss(output)


@pytest.mark.parametrize(
    "losses",
    [
        torch.tensor([1.0, 2.0, 6.0]),
        torch.tensor([1, 2, 6], dtype=torch.uint8),
        torch.tensor([1.0, 2.0, 6.0], dtype=torch.bfloat16),
        [1, 2.0, numpy.float32(6)],
        numpy.array([1, 2, 6]),
    ],
)
@pytest.mark.parametrize("maximize", [False, True])
def test_losses_of_samples_are_the_fitness(losses, maximize):
    """What ``loss`` says does not count: it may hold more, such as a penalty."""
    fitness = fitness_of_loss(per_sample(losses), maximize)
    assert fitness.is_floating_point()
    assert fitness.tolist() == [1, 2, 6] if maximize else [-1, -2, -6]
    assert as_record(fitness) == (3 if maximize else -3)


def test_losses_of_samples_without_a_loss():
    assert fitness_of_loss({"loss": None, "loss_per_sample": torch.ones(3)}) is None  # the step is skipped
    assert fitness_of_loss({"loss": torch.tensor(2.0), "loss_per_sample": None}) == -2


# --- token_log_probability ------------------------------------------------------------------------------------------


def by_hand(logits, tokens, mask):
    """EA4LLM, Eq. 10, with plain loops: sum_t m_t log p(x_{t+1} | x_{<=t}) / sum_t m_t."""
    results = []
    for sample in range(len(tokens)):
        total = count = 0.0
        for t in range(tokens.shape[1] - 1):
            if mask[sample][t + 1]:
                scores = [math.exp(score) for score in logits[sample][t].tolist()]
                total += math.log(scores[tokens[sample][t + 1]] / sum(scores))
                count += 1
        results.append(total / count if count else 0.0)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_token_log_probability(dtype):
    logits, tokens = torch.randn(3, 7, 11).to(dtype), torch.randint(11, (3, 7))
    mask = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 1]])
    for given in (None, mask, mask.bool(), mask.float()):
        result = token_log_probability(logits, tokens, given)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert result.tolist() == pytest.approx(
            by_hand(logits, tokens, torch.ones(3, 7) if given is None else mask), rel=1e-5
        )


def test_padding_has_no_influence():
    logits, tokens = torch.randn(2, 6, 5), torch.randint(5, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = token_log_probability(logits, tokens, mask)
    assert expected[1] == 0  # only one real token: nothing is predicted
    logits[:, 4:], tokens[:, 4:] = math.nan, -100
    assert torch.equal(token_log_probability(logits, tokens, mask), expected)
    short = token_log_probability(logits[:1, :4], tokens[:1, :4])
    torch.testing.assert_close(short, expected[:1])


@pytest.mark.parametrize(
    ("logits", "tokens", "mask"),
    [((2, 5), (2, 5), None), ((2, 5, 3), (2, 4), None), ((2, 5, 3), (2, 5), (2, 4)), ((2, 5, 3), (2, 5), (5,))],
)
def test_shapes_that_do_not_fit(logits, tokens, mask):
    with pytest.raises(ValueError, match=r"token_log_probability needs logits \[samples, length, vocabulary\]"):
        token_log_probability(
            torch.zeros(logits), torch.zeros(tokens, dtype=torch.long), None if mask is None else torch.ones(mask)
        )


def test_fitness_step_may_leave_out_the_batch_index():
    assert float(fitness_of_step(lambda batch: batch, 7)(3.0)) == 3
    assert float(fitness_of_step(lambda batch, batch_idx: batch + batch_idx, 7)(3.0)) == 10
    with pytest.raises(TypeError, match="returned NoneType"):
        fitness_of_step(lambda batch: None, 7)(3.0)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda batch: batch, 1.0),
        (lambda batch, batch_idx: batch + batch_idx, 6.0),
        (lambda batch, number: batch + number, 6.0),
        (lambda batch, batch_idx=0: batch + batch_idx, 6.0),
        (lambda batch, temperature=0.5: batch + temperature, 1.5),
        (lambda batch, *, flag=2: batch + flag, 3.0),
    ],
)
def test_the_batchs_number_goes_where_it_is_asked_for(step, expected):
    assert float(fitness_of_step(step, 5)(torch.tensor(1.0))) == expected


def test_lists_of_members_that_share_a_forward():
    """Tensors of ``vmap`` in a list are stacked: each member has its own."""
    found = torch.func.vmap(lambda number: as_record([number, 2 * number, 0.0]))(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0], dtype=torch.float64))


# --- rows of members ------------------------------------------------------------------------------------------------


def test_records_of_rows():
    """Each member's are those that it would report alone."""
    values, missing = torch.rand(6), torch.tensor([False, True, False, False, False, True])
    for whole in (
        Fitness(values),
        Fitness(values, tie_breaker=-values),
        Fitness(values, missing=missing),
        Fitness(values.tolist(), -values, missing.numpy()),
    ):
        for member, record in enumerate(as_records(whole, members=2, samples=3)):
            rows = slice(3 * member, 3 * member + 3)
            alone = {n: v if v is None else torch.as_tensor(v)[rows] for n, v in vars(whole).items()}
            torch.testing.assert_close(record, as_record(Fitness(**alone)), equal_nan=True)


def test_several_values_for_a_row_are_its_members():
    assert [record.item() for record in as_records(torch.arange(8.0), members=2, samples=2)] == [1.5, 5.5]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(1.0), "is one number for the whole batch: return one value per sample from `fitness_step`, or"),
        (0.5, "is one number for the whole batch"),
        (torch.zeros(3), "has 3 values for 6 rows of members"),
        (torch.zeros(4), "has 4 values for 6 rows of members"),
        (Fitness(torch.zeros(6), tie_breaker=1.0), "the fitness's tie_breaker is one number for the whole batch"),
    ],
)
def test_no_value_for_each_row(value, message):
    with pytest.raises(Refusal, match=message):
        as_records(value, members=2, samples=3)
