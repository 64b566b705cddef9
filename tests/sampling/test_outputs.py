"""Whatever a model returns: the tensor is found, the rest is averaged or equal, a loss is that of the mean."""

import collections
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dropout.sampling import Task
from lightning_dropout.sampling import outputs as outputs_file
from lightning_dropout.sampling.outputs import Rest, check_output, select
from lightning_dropout.sampling.prediction import Statistics
from lightning_dropout.sampling.structures import leaves_of

FIXED = torch.Generator().manual_seed(0)
LOGITS, FEATURES, NUMBERS = torch.randn(4, 3, generator=FIXED), torch.randn(4, 8, generator=FIXED), torch.arange(4)
PREDICTIVE = torch.full((4, 3), 7.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Pair(NamedTuple):
    logits: Any
    features: Any


@dataclass(frozen=True)
class Frozen:
    logits: Any
    features: Any


@dataclass(slots=True)
class Slots:
    logits: Any
    features: Any


@dataclass
class Late:
    """Neither made by its constructor alone nor to be made twice."""

    logits: Any
    features: Any = field(init=False)
    made: list[int] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.features is not None


def late(logits: Any, features: Any) -> Late:
    made = object.__new__(Late)
    made.logits, made.features, made.made = logits, features, []
    return made


class OnlyItems(dict[str, Any]):
    """Refuses ``update``, as the outputs of transformers do, and a constructor call with a mapping."""

    def __init__(self, *, logits: Any, features: Any) -> None:
        super().__init__(logits=logits, features=features)

    def update(self, *_: Any, **__: Any) -> None:
        raise AssertionError("update")


STRUCTURES: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda a, b: {"logits": a, "features": b},
    "OrderedDict": lambda a, b: collections.OrderedDict(logits=a, features=b),
    "defaultdict": lambda a, b: collections.defaultdict(list, logits=a, features=b),
    "UserDict": lambda a, b: collections.UserDict(logits=a, features=b),
    "read-only mapping": lambda a, b: types.MappingProxyType({"logits": a, "features": b}),
    "dict with its own constructor": lambda a, b: OnlyItems(logits=a, features=b),
    "named tuple": Pair,
    "frozen dataclass": Frozen,
    "dataclass with slots": Slots,
    "dataclass with __post_init__": late,
}


def leaf(outputs: Any, name: str) -> Any:
    return outputs[name] if isinstance(outputs, Mapping) else getattr(outputs, name)


def filled(passes: list[Any], output: Any = None, task: Task = "raw", inputs: Any = (), predictive: Any = None) -> Any:
    rest = Rest(passes[0], output, task, 1, inputs)
    for outputs in passes:
        rest.update(outputs)
    return rest.fill(PREDICTIVE if predictive is None else predictive)


@pytest.mark.parametrize("output", [None, "logits"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_structure_comes_back_as_it_was(kind: str, output: str | None) -> None:
    make = STRUCTURES[kind]
    first, second = make(LOGITS, {"deep": [FEATURES]}), make(LOGITS + 1, {"deep": [FEATURES + 2]})
    rest = Rest(first, output, "raw", 1, inputs=())
    assert rest.update(first) is LOGITS
    rest.update(second)
    result = rest.fill(PREDICTIVE)
    assert type(result) is type(first)
    assert result is not first
    assert leaf(result, "logits") is PREDICTIVE
    torch.testing.assert_close(leaf(result, "features")["deep"][0], FEATURES + 1)
    assert leaf(first, "logits") is LOGITS
    assert leaf(first, "features")["deep"][0] is FEATURES


@pytest.mark.parametrize("kind", [tuple, list])
def test_sequences(kind: type) -> None:
    result = filled([kind([FEATURES, LOGITS, None]), kind([FEATURES, -LOGITS, None])], "1")
    assert type(result) is kind
    assert result[0].equal(FEATURES)
    assert result[1] is PREDICTIVE
    assert result[2] is None


def test_results_of_torchs_own_functions() -> None:
    result = filled([LOGITS.sort(dim=1, stable=True)] * 2, "0")
    assert type(result) is torch.return_types.sort
    assert result.values is PREDICTIVE
    assert result.indices.equal(LOGITS.argsort(dim=1))


# What is selected.


@pytest.mark.parametrize(
    ("outputs", "output", "task"),
    [
        (LOGITS, None, "raw"),
        ((LOGITS,), None, "raw"),
        ([None, "name", LOGITS, NUMBERS], None, "raw"),
        ({"loss": LOGITS.sum(), "deep": {"features": LOGITS, "aux_loss": LOGITS}}, None, "raw"),
        ({"features": FEATURES, "logits": LOGITS}, None, "raw"),
        ({"features": FEATURES, "out": LOGITS}, "out", "raw"),
        ({"features": FEATURES, "deep": ({"out": LOGITS}, FEATURES)}, "deep.0.out", "raw"),
        ({"a.b": LOGITS, "c": FEATURES}, "a.b", "raw"),
        ({0: FEATURES, 1: LOGITS}, "1", "raw"),
        ([FEATURES, Pair(LOGITS, None)], "1.logits", "raw"),
        ((FEATURES, LOGITS), lambda outputs: outputs[1], "raw"),
        (types.SimpleNamespace(logits=LOGITS), lambda outputs: outputs.logits, "raw"),
        (LOGITS, lambda outputs: outputs, "multiclass"),
    ],
)
def test_what_is_meant_is_selected(outputs: Any, output: Any, task: Task) -> None:
    assert select(outputs, output, task, 1) is LOGITS


@pytest.mark.parametrize(
    ("outputs", "output", "place"),
    [
        ((LOGITS, -LOGITS), None, None),
        ([LOGITS, -LOGITS], None, None),
        (Pair(LOGITS, -LOGITS), None, None),
        ({"heads": [LOGITS, -LOGITS], "features": FEATURES}, "heads", "heads"),
        ({"features": FEATURES, "logits": (LOGITS, -LOGITS)}, None, "logits"),
    ],
)
def test_two_heads_come_back_where_they_stood(outputs: Any, output: str | None, place: str | None) -> None:
    rest = Rest(outputs, output, "gaussian", 1, ())
    pair = rest.update(outputs)
    assert isinstance(pair, tuple)
    assert pair[0] is LOGITS
    result = rest.fill((PREDICTIVE, -PREDICTIVE))
    assert type(result) is type(outputs)
    pair = result[place] if place else result
    assert type(pair) is type(outputs[place] if place else outputs)
    assert pair[0].equal(PREDICTIVE)
    assert pair[1].equal(-PREDICTIVE)


def test_two_halves_beside_others() -> None:
    outputs = {"out": LOGITS.repeat(1, 2), "features": FEATURES}
    assert filled([outputs], "out", "gaussian")["out"] is PREDICTIVE


@pytest.mark.parametrize(
    ("outputs", "output", "task", "message"),
    [
        ({"out": LOGITS, "aux": FEATURES}, None, "raw", r'dict of `out` float32 \(4, 3\), `aux` .*`output=` .*"out"'),
        ((LOGITS, FEATURES), None, "multiclass", r"a floating tensor, but got tuple of `0` float32 \(4, 3\), `1` "),
        ((LOGITS, FEATURES, LOGITS), None, "gaussian", "or a pair of them, but got tuple"),
        ([{"boxes": LOGITS, "scores": FEATURES}], None, "raw", r"list of `0\.boxes` float32 \(4, 3\), `0\.scores`"),
        ({"loss": LOGITS.sum()}, None, "raw", r"dict of `loss` float32 \(\); .* or a function that returns a tensor"),
        ({"labels": NUMBERS}, None, "raw", r"dict of `labels` int64 \(4,\); .* or a function"),
        ({}, None, "raw", "a floating tensor, but got dict"),
        (None, None, "raw", "a floating tensor, but got NoneType"),
        (types.SimpleNamespace(logits=LOGITS), None, "raw", "but got SimpleNamespace; sample a function of it"),
        ({"out": LOGITS}, "output", "raw", r"`output` to name a field .*, but got 'output'; it returns dict of `out` "),
        ({"out": LOGITS}, "ou", "raw", "but got 'ou'"),
        (LOGITS, "logits", "raw", "but got 'logits'; it returns Tensor"),
        ({"deep": {"out": LOGITS}}, "deep", "raw", "a floating tensor, but got dict"),
        ({"logits": NUMBERS}, None, "raw", r"got a torch\.int64 tensor"),
        ({"logits": LOGITS.softmax(1)}, None, "multiclass", 'pass task="probabilities"'),
        (LOGITS, lambda outputs: "text", "raw", "a floating tensor, but got str"),
    ],
)  # fmt: skip
def test_what_could_be_several_things_is_asked_for(outputs: Any, output: Any, task: Task, message: str) -> None:
    for choose in (select, lambda *arguments: Rest(*arguments, inputs=())):
        with pytest.raises(ValueError, match=message):
            choose(outputs, output, task, 1)


@pytest.mark.parametrize("output", [0, ["logits"], b"logits"], ids=repr)
def test_a_place_is_a_path_or_a_function(output: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected `output` to be a dotted path"):
        check_output(output)
    for fine in (None, "out.aux", len):
        check_output(fine)


def test_a_long_list_of_fields_is_cut() -> None:
    with pytest.raises(ValueError, match="`19`") as error:
        select([LOGITS] * 500, None, "raw", 1)
    assert len(str(error.value)) < 1000


# The rest, averaged.


def check_means(rest_class: type[Rest], dtype: torch.dtype, offset: float, tolerance: float) -> None:
    passes = [(torch.randn(5, dtype=torch.float64) + offset).to(dtype) for _ in range(300)]
    rest = rest_class({"logits": LOGITS, "features": passes[0]}, None, "raw", 1, ())
    for features in passes:
        rest.update({"logits": LOGITS, "features": features})
    mean = rest.fill(PREDICTIVE)["features"]
    assert mean.dtype == dtype
    exact = torch.stack(passes).double().mean(0)
    torch.testing.assert_close(mean.double(), exact.to(dtype).double(), rtol=tolerance, atol=0)


MEANS = [
    (torch.float64, 1e3, 1e-14),
    (torch.float32, 1e3, 1e-6),
    (torch.bfloat16, 10.0, 8e-3),
    (torch.float16, 60_000.0, 1e-3),
]


@pytest.mark.parametrize(("dtype", "offset", "tolerance"), MEANS)
def test_other_tensors_are_averaged_in_their_own_precision(dtype: torch.dtype, offset: float, tolerance: float) -> None:
    check_means(Rest, dtype, offset, tolerance)


class LastPass(Rest):
    def _take_in(self, path: str, first: Any, leaf: Any) -> None:
        self._means[path] = leaf


class FirstPass(Rest):
    def _take_in(self, path: str, first: Any, leaf: Any) -> None:
        self._means[path] = first


class SumInOwnPrecision(Rest):
    def _take_in(self, path: str, first: Any, leaf: Any) -> None:
        before = self._means.get(path, torch.zeros_like(leaf)) * (self._count - 1)
        self._means[path] = (before + leaf) / self._count


@pytest.mark.parametrize(("mutant", "case"), [(LastPass, 1), (FirstPass, 1), (SumInOwnPrecision, 3)])
def test_another_mean_is_killed(mutant: type[Rest], case: int) -> None:
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_means(mutant, *MEANS[case])


def test_passes_that_are_written_over_are_averaged_all_the_same() -> None:
    buffer = torch.zeros(5)
    rest = Rest({"logits": LOGITS, "features": buffer}, None, "raw", 1, ())
    for value in (1.0, 2.0, 6.0):
        rest.update({"logits": LOGITS, "features": buffer.fill_(value)})
    assert rest.fill(PREDICTIVE)["features"].tolist() == [3.0] * 5
    assert buffer.tolist() == [6.0] * 5


def test_what_is_equal_in_all_passes_keeps_every_bit_and_infinities_stay() -> None:
    features = torch.tensor([0.1, 1 / 3, 1e30, -math.inf, math.inf, math.nan])
    result = filled([{"logits": LOGITS, "features": features.clone()} for _ in range(7)])["features"]
    torch.testing.assert_close(result, features, rtol=0, atol=0, equal_nan=True)


def test_a_selection_takes_in_nothing() -> None:
    rest = Rest((FEATURES, LOGITS), "1", "raw", 1, ())
    rest.update((FEATURES, LOGITS))
    for _ in range(3):
        assert rest.select((FEATURES + 1, PREDICTIVE)) is PREDICTIVE
    assert rest.fill(PREDICTIVE)[0].equal(FEATURES)


def test_a_function_leaves_no_rest() -> None:
    """Its place is unknown, so the predictive comes alone; nothing beside it needs to agree."""
    rest = Rest((FEATURES, LOGITS, "one"), lambda outputs: outputs[1], "raw", 1, ())
    rest.update((FEATURES, LOGITS, "one"))
    assert rest.update((FEATURES[:2], -LOGITS, "two")).equal(-LOGITS)  # type: ignore[union-attr]
    assert rest.fill(PREDICTIVE) is PREDICTIVE


# The rest, refused.


class Cache:
    """Compares by identity, and is made anew in every pass."""


Change = tuple[Any, Any, str]
CHANGES: dict[str, Change] = {
    "integers": (NUMBERS, NUMBERS + 1, r"`rest` in the output to be equal in all passes, .* int64 \(4,\) and int64"),
    "booleans": (NUMBERS > 1, NUMBERS > 2, "`rest` in the output to be equal in all passes"),
    "a label": ("cat", "dog", "'cat' and 'dog', which differ; pass `output=\"logits\"`, .* None, or leave the field"),
    "a number": (0.5, 0.25, "0.5 and 0.25"),
    "an appearing tensor": (None, FEATURES, r"None and float32 \(4, 8\)"),
    "a disappearing tensor": (FEATURES, None, r"float32 \(4, 8\) and None"),
    "objects": (Cache(), Cache(), "an object of Cache and an object of Cache"),
    "arrays": (NUMBERS.numpy(), NUMBERS.numpy() + 1, "which differ"),
    "arrays of two shapes": (NUMBERS.numpy(), NUMBERS.numpy()[:3], "which differ"),
    "shapes": (FEATURES, FEATURES[:3], r"`rest` in the output to have one shape .* but got \(4, 8\) and \(3, 8\)"),
    "shapes that broadcast": (FEATURES, FEATURES[:1], r"\(4, 8\) and \(1, 8\)"),
    "lengths": ([FEATURES], [FEATURES, FEATURES], r"Expected the same fields in all passes, but got `rest\.1`"),
    "keys": ({"a": 1}, {"b": 1}, r"the same fields in all passes, but got `rest\.a` in some only"),
}


def check_refusal(change: Change) -> None:
    before, after, message = change
    rest = Rest({"logits": LOGITS, "rest": before}, None, "raw", 1, ())
    rest.update({"logits": LOGITS, "rest": before})
    with pytest.raises(ValueError, match=message):
        rest.update({"logits": LOGITS, "rest": after})


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_and_has_no_mean_is_refused_by_name(change: str) -> None:
    check_refusal(CHANGES[change])


@pytest.mark.parametrize("change", ["integers", "a label", "objects", "an appearing tensor"])
def test_a_blind_comparison_is_killed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_file, "_equal", lambda one, other: True)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_refusal(CHANGES[change])


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_none_where_the_user_has_said_what_to_average(change: str) -> None:
    before, after, _ = CHANGES[change]
    for first, second in ((before, after), (after, before)):
        passes = [{"logits": LOGITS, "rest": each, "features": FEATURES} for each in (first, second)]
        result = filled(passes, "logits")
        assert all(leaf is None for leaf in leaves_of(result["rest"]).values())
        assert result["features"].equal(FEATURES)
        assert result["logits"] is PREDICTIVE


@pytest.mark.parametrize("output", ["logits", "head.0.a"])
def test_what_cannot_be_averaged_takes_its_field_along(output: str) -> None:
    """Boxes with other labels are those of other things, though there are as many."""
    first = {"logits": LOGITS, "head": [{"a": LOGITS, "b": 1}], "things": boxes(2), "some": FEATURES}
    second = {"logits": LOGITS, "head": [{"a": LOGITS, "b": 2}], "things": boxes(2) + boxes(1), "more": FEATURES}
    result = filled([first, second], output)
    assert result["things"] == [{"boxes": None, "labels": None, "scores": None}]
    assert result["some"] is None
    if output == "logits":
        assert result["head"] == [{"a": None, "b": None}]
    else:
        assert result["head"] == [{"a": PREDICTIVE, "b": None}]
        assert result["logits"].equal(LOGITS)


class Filled:
    """A cache, which is one object where passes are folded, or are given it."""

    def __init__(self) -> None:
        self.layers = [{"keys": FEATURES}]
        self.owner = self


@pytest.mark.parametrize("count", [1, 2])
def test_an_object_that_keeps_tensors_never_leaves(count: int) -> None:
    passes = [{"logits": LOGITS, "deep": [Filled()]}] * count
    with pytest.raises(ValueError, match=r"got `deep\.0`, an object of Filled that keeps .*; pass `output=\"logits\"`"):
        filled(passes)
    assert filled(passes, "logits")["deep"] == [None]
    assert filled(passes, lambda outputs: outputs["logits"]) is PREDICTIVE


def test_what_is_equal_in_all_passes_is_no_trouble() -> None:
    cache = Cache()
    rest = [NUMBERS, NUMBERS > 1, None, "name", 3, cache, NUMBERS.numpy(), (), {}]
    copies = [NUMBERS.clone(), NUMBERS > 1, None, "name", 3, cache, NUMBERS.numpy().copy(), (), {}]
    result = filled([{"logits": LOGITS, "rest": rest}, {"logits": LOGITS, "rest": copies}])["rest"]
    assert result[0].equal(NUMBERS)
    assert result[2:6] == [None, "name", 3, cache]
    assert result[7:] == [(), {}]


def boxes(count: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.rand(count, 4), "labels": torch.ones(count).long(), "scores": torch.rand(count)}]


def test_lists_of_boxes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"`0\.boxes` float32 \(3, 4\), `0\.labels` int64 \(3,\), `0\.scores`"):
        Rest(boxes(3), None, "raw", 1, ())
    rest = Rest(boxes(3), "0.boxes", "raw", 1, ())
    with pytest.raises(
        ValueError, match=r"`0\.boxes` in the output to have one shape .*\(3, 4\) and \(5, 4\); .*boxes"
    ):
        rest.select(boxes(5))
    rest = Rest({"logits": LOGITS, "b": boxes(3)}, None, "raw", 1, ())
    with pytest.raises(ValueError, match=r"`b\.0\.labels` .*, but got int64 \(3,\) and int64 \(3,\), which differ"):
        rest.update({"logits": LOGITS, "b": [{**boxes(3)[0], "labels": torch.arange(3)}]})
    rest = Rest(boxes(3), lambda outputs: outputs[0]["scores"], "raw", 1, ())
    with pytest.raises(ValueError, match=r"the output to have one shape in all passes, but got \(3,\) and \(5,\)"):
        rest.update(boxes(5))


def test_a_selected_tensor_of_another_shape_never_broadcasts() -> None:
    for outputs, other in [(LOGITS, LOGITS[:1]), ((LOGITS, FEATURES), (LOGITS[:1], FEATURES)), (LOGITS, None)]:
        rest = Rest(outputs, None if outputs is LOGITS else "0", "raw", 1, ())
        with pytest.raises(ValueError, match="one shape in all passes, but got"):
            rest.update(other)
    rest = Rest((LOGITS, LOGITS), None, "gaussian", 1, ())
    with pytest.raises(ValueError, match=r"but got \[\(4, 3\), \(4, 3\)\] and \[\(4, 3\), \(1, 3\)\]"):
        rest.update((LOGITS, LOGITS[:1]))


# Losses.

LABELS = torch.tensor([0, 2, 1, -100])


def with_loss(logits: Tensor, name: str = "loss") -> dict[str, Any]:
    return {name: F.cross_entropy(logits, LABELS), "logits": logits}


def check_loss(name: str = "loss", output: str | None = None) -> None:
    passes = [with_loss(torch.randn(4, 3) * 3, name) for _ in range(20)]
    statistics = Statistics("multiclass", 1)
    rest = Rest(passes[0], output, "multiclass", 1, ((torch.randn(4, 5),), {"batch": [LABELS]}))
    for outputs in passes:
        statistics.update(rest.update(outputs))
    prediction = statistics.result(passes[0]["logits"])
    result = rest.fill(prediction.predictive)
    likelihood = prediction.mean.log().gather(1, LABELS[:3, None]).mean()
    torch.testing.assert_close(result[name], -likelihood)


@pytest.mark.parametrize("output", [None, "logits"])
@pytest.mark.parametrize("name", ["loss", "ce_loss"])
def test_a_loss_is_that_of_the_mean_prediction(name: str, output: str | None) -> None:
    check_loss(name, output)


def test_the_mean_of_the_losses_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_file, "is_loss", lambda path: False)
    with pytest.raises(AssertionError, match="Scalars are not close"):
        check_loss()


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (F.cross_entropy(LOGITS, LABELS), ()),
        (F.cross_entropy(LOGITS, LABELS), ((LABELS + 1).clamp_min(-100),)),
        (F.cross_entropy(LOGITS, LABELS) + 0.01, (LABELS,)),
        (F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1), (LABELS,)),
        (F.cross_entropy(LOGITS, LABELS, weight=torch.tensor([1.0, 2.0, 3.0])), (LABELS,)),
        (F.l1_loss(LOGITS, FEATURES[:, :3]), (FEATURES[:, :3],)),
    ],
)
def test_a_loss_that_cannot_be_computed_again_is_refused_in_the_first_pass(loss: Tensor, inputs: Any) -> None:
    for name in ("loss", "deep.loss", "aux_loss"):
        outputs = {"logits": LOGITS, "deep": {"loss": loss}} if "." in name else {"logits": LOGITS, name: loss}
        with pytest.raises(ValueError, match=rf"Expected `{name}` .*; call the model without labels in this step and"):
            Rest(outputs, None, "raw", 1, inputs)
        Rest(outputs, lambda outputs: outputs["logits"], "raw", 1, inputs)


def test_no_loss_stays_none() -> None:
    result = filled([{"loss": None, "logits": LOGITS}, {"loss": None, "logits": -LOGITS}])
    assert result == {"loss": None, "logits": PREDICTIVE}


def test_losses_that_are_no_losses_of_the_passes() -> None:
    """Without a tensor there is nothing to compute again: what is equal stays, what differs is refused."""
    assert filled([{"loss": 0.5, "logits": LOGITS}] * 2)["loss"] == 0.5
    for output in (None, "logits"):
        with pytest.raises(
            ValueError, match=r"`loss` in the output to be equal .* 0\.5 and 0\.7, which differ; call the"
        ):
            filled([{"loss": 0.5, "logits": LOGITS}, {"loss": 0.7, "logits": LOGITS}], output)
        with pytest.raises(ValueError, match=r"the same fields in all passes, but got `loss` in some only"):
            filled([{"logits": LOGITS}, {"loss": 0.7, "logits": LOGITS}], output)
    assert filled([{"loss": LOGITS, "logits": FEATURES}], "loss")["loss"] is PREDICTIVE  # asked for by name


# Real models.


class Tiny(nn.Module):
    """Runs a tiny model of transformers with its dropout on, several times."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        import transformers

        kind = transformers.GPT2Config if "GPT2" in name else transformers.BertConfig
        sizes: dict[str, Any] = (
            {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
            if "GPT2" in name
            else {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        )
        self.net = getattr(transformers, name)(kind(vocab_size=20, initializer_range=1.0, **sizes, **options)).train()

    def passes(self, count: int = 5, **inputs: Any) -> list[Any]:
        with torch.no_grad():
            return [self.net(**inputs) for _ in range(count)]


TOKENS = torch.randint(0, 20, (4, 6), generator=FIXED)
MODELS: dict[str, tuple[str, dict[str, Any], Tensor, Task, int, Callable[[Tensor, Tensor], Tensor]]] = {
    "classes": ("BertForSequenceClassification", {"num_labels": 3}, NUMBERS % 3, "multiclass", 1, F.cross_entropy),
    "values": (
        "BertForSequenceClassification", {"num_labels": 1}, FEATURES[:, 0], "regression", 1,
        lambda values, labels: F.mse_loss(values[:, 0], labels),
    ),
    "labels": (
        "BertForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"},
        (LOGITS > 0).float(), "multilabel", 1, F.binary_cross_entropy_with_logits,
    ),
    "tokens": (
        "BertForTokenClassification", {"num_labels": 3}, (TOKENS % 3).masked_fill(TOKENS > 15, -100), "multiclass", 2,
        lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
    ),
    "masked words": (
        "BertForMaskedLM", {}, TOKENS.masked_fill(TOKENS > 9, -100), "multiclass", -1,
        lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
    ),
    "next words": (
        "GPT2LMHeadModel", {"use_cache": False}, TOKENS, "multiclass", 2,
        lambda logits, labels: F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_losses_of_transformers(kind: str) -> None:
    name, options, labels, task, class_dim, criterion = MODELS[kind]
    inputs = {"input_ids": TOKENS, "labels": labels}
    passes = Tiny(name, **options).passes(**inputs, output_hidden_states=True)
    rest, statistics = Rest(passes[0], None, task, class_dim, ((), inputs)), Statistics(task, class_dim)
    for outputs in passes:
        statistics.update(rest.update(outputs))
    prediction = statistics.result(passes[0].logits)
    result = rest.fill(prediction.predictive)
    assert type(result) is type(passes[0])
    assert result.logits is prediction.predictive
    assert result[1] is prediction.predictive  # also by its place
    torch.testing.assert_close(result.loss, criterion(prediction.predictive, labels))
    mean = torch.stack([outputs.loss for outputs in passes]).mean()
    assert not torch.allclose(result.loss, mean, rtol=1e-4), "the mean of the losses would do as well"
    states = torch.stack([outputs.hidden_states[-1] for outputs in passes])
    assert isinstance(result.hidden_states, tuple)
    torch.testing.assert_close(result.hidden_states[-1], states.mean(0))


def test_transformers_without_labels() -> None:
    passes = Tiny("BertForSequenceClassification", num_labels=3).passes(input_ids=TOKENS)
    result = filled(passes)
    assert result.loss is None
    assert list(result) == ["logits"]
    assert result.logits is PREDICTIVE


def test_a_loss_of_two_heads_and_a_cache_are_refused_by_name() -> None:
    inputs = {"input_ids": TOKENS, "start_positions": NUMBERS, "end_positions": NUMBERS}
    (outputs,) = Tiny("BertForQuestionAnswering").passes(1, **inputs)
    with pytest.raises(ValueError, match="`loss` in the output to follow from"):
        Rest(outputs, "start_logits", "multiclass", 1, ((), inputs))
    passes = Tiny("GPT2LMHeadModel").passes(2, input_ids=TOKENS)
    with pytest.raises(ValueError, match=r"got `past_key_values`, .*DynamicCache.*, for decoders `use_cache=False`\.$"):
        filled(passes, task="multiclass")
    assert filled(passes, "logits").past_key_values is None
