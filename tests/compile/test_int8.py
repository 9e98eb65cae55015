"""The search for an int8 build: which ways are tried, in which order, and which is taken."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._compile import int8
from ort_rknn._compile.accuracy import OutputAccuracy
from ort_rknn._compile.converter import ConversionError
from ort_rknn._compile.cuts import CutPlan, candidate_plans, tails, with_heads
from ort_rknn._compile.observe import observe, random_feeds

SHAPES = {"x": (1, 3, 16, 16)}


@pytest.fixture
def detector(tmp_path):
    """A body, two heads of one convolution each, and a join of both outputs."""
    return save(tmp_path, heads=1)


def save(folder, heads):
    random = np.random.default_rng(0)
    weights, nodes = [], []

    def conv(source, out, channels, inputs, kernel):
        value = random.standard_normal((channels, inputs, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"{out}_w"))
        nodes.append(helper.make_node("Conv", [source, f"{out}_w"], [out], pads=[kernel // 2] * 4, name=out))

    conv("x", "body", 32, 3, 3)
    conv("body", "deep", 32, 32, 3)
    conv("deep", "box", 4, 32, heads)
    conv("deep", "cls", 2, 32, heads)
    nodes.append(helper.make_node("Sigmoid", ["cls"], ["scores"], name="scores"))
    nodes.append(helper.make_node("Concat", ["box", "scores"], ["y"], axis=1, name="y"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [value("y", TensorProto.FLOAT, [1, 6, 16, 16])],
        weights,
    )
    path = folder / "d.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def looked_at(path):
    model = onnx.load(path)
    return model, observe(model, str(path.parent), [random_feeds(model, SHAPES)])


def names(model, plan):
    return {model.graph.node[index].name for index in plan.on_cpu}


def test_the_tail_is_what_follows_the_last_weights(detector):
    model, observed = looked_at(detector)
    joins, tail = tails(model.graph)
    assert {model.graph.node[i].name for i in tail} == {"scores", "y"}
    assert {model.graph.node[i].name for i in joins} == {"y"}
    found = candidate_plans(model, observed, whole=True)
    assert found[0].whole
    assert names(model, found[1]) == {"scores", "y"}
    assert [plan.algorithm for plan in found] == ["normal"] * 2 + ["rounded"] * 2 + ["mmse"] * 2 + ["normal"] * 2
    assert names(model, found[2]) == names(model, found[4]) == {"scores", "y"}
    assert names(model, found[3]) == names(model, found[5]) == {"scores", "y", "box", "cls"}
    assert [plan.hybrid for plan in found] == [False] * 6 + [True] * 2


def test_heads_that_are_much_work_stay_on_the_npu(tmp_path):
    model, observed = looked_at(save(tmp_path, heads=5))
    (cut,) = (plan for plan in candidate_plans(model, observed, whole=True)[1:2])
    assert with_heads(model, observed, cut) is None


class Judged(OutputAccuracy):
    """An output that uses up a given share of the bound."""

    def __init__(self, share):
        super().__init__("y")
        self.share = share

    def problem(self, accuracy):
        return "too far" if self.share > 1 else None

    def used_share(self, accuracy):
        return self.share


class Told(int8.Search):
    """A search with predefined builds: the share by the plan's name, or a refusal."""

    def __init__(self, path, shares, budget=10.0, seconds=1.0, **given):
        self.told, self.tried, self.took = shares, [], seconds

        class Job:
            progress = staticmethod(lambda text: None)

        Job.path = str(path)
        samples = type("Samples", (), {"feed": lambda self, index: random_feeds(onnx.load(path), SHAPES)})()
        super().__init__(type("Recipe", (), {"job": Job}), samples, 0.99, budget, **given)
        self.look = looked_at(path)

    def _attempt(self, plan):
        kind = "whole" if plan.whole else f"{len(plan.on_cpu)} {plan.algorithm}{' hybrid' if plan.hybrid else ''}"
        self.tried.append(kind)
        share = self.told.get(kind, 9.0)
        if isinstance(share, BaseException):
            raise share
        made = type("Made", (), {"model": self.look[0], "observed": self.look[1]})
        return int8.Int8Attempt(plan, (Judged(share),), 1.0, made, self.took, 0.99)


def test_a_whole_that_is_near_enough_ends_the_search(detector):
    search = Told(detector, {"whole": 0.2})
    assert int8.best_of(search.run()).whole
    assert search.tried == ["whole"]


def test_what_holds_the_bound_is_made_better_at_the_same_cost(detector):
    search = Told(detector, {"2 normal": 0.6, "2 rounded": 0.55, "4 rounded": 0.5, "2 mmse": 0.5, "4 mmse": 0.4})
    best = int8.best_of(search.run())
    assert search.tried == ["whole", "2 normal", "2 rounded", "4 rounded", "2 mmse", "4 mmse"]
    assert len(best.plan.on_cpu) == 4 and best.plan.algorithm == "mmse"


def test_a_refinement_that_is_near_enough_ends_the_search(detector):
    search = Told(detector, {"2 normal": 0.6, "2 rounded": 0.3})
    assert int8.best_of(search.run()).plan.algorithm == "rounded"
    assert search.tried == ["whole", "2 normal", "2 rounded"]


def test_a_refinement_that_first_holds_the_bound_is_followed_by_others_and_not_by_float16(detector):
    search = Told(detector, {"2 normal": 1.2, "2 rounded": 0.6, "4 rounded": 0.7})
    assert int8.best_of(search.run()).plan.algorithm == "rounded"
    assert search.tried == ["whole", "2 normal", "2 rounded", "4 rounded", "2 mmse", "4 mmse"]


def test_a_refinement_that_is_worse_is_not_taken(detector):
    search = Told(detector, {"whole": 0.6, "whole mmse": 0.9})
    assert int8.best_of(search.run()).plan == CutPlan("as a whole", whole=True)


def test_a_refinement_that_breaks_the_bound_does_not_end_the_search(detector):
    search = Told(detector, {"2 normal": 0.6, "2 rounded": 1.1, "2 mmse": 1.1, "4 mmse": 0.4})
    assert len(int8.best_of(search.run()).plan.on_cpu) == 4
    assert search.tried == ["whole", "2 normal", "2 rounded", "4 rounded", "2 mmse", "4 mmse"]


def test_refinements_are_not_begun_without_time_for_them(detector):
    search = Told(detector, {"2 normal": 0.6}, budget=1.0, seconds=30.0)
    assert int8.best_of(search.run()).plan.algorithm == "normal"
    assert search.tried == ["whole", "2 normal"]


def test_ctrl_c_keeps_the_best_so_far(detector):
    search = Told(detector, {"whole": 3.0, "2 normal": 0.5, "2 rounded": KeyboardInterrupt()})
    assert int8.best_of(search.run()).used_share == 0.5
    with pytest.raises(KeyboardInterrupt):
        Told(detector, {"whole": KeyboardInterrupt()}).run()


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ([(0.0, 0.02), (0.0, 0.01)], 1),  # both hold the bound
        ([(0.0, 0.2), (0.0, 0.1)], 1),  # neither does, by its largest error
        ([(0.25, 0.0), (0.12, 0.4)], 1),  # cosines of 0.894 and 0.972
        ([(0.075, 0.0), (0.0, 0.1)], 1),  # cosines of 0.989 and 1
    ],
)
def test_the_attempt_whose_cosine_is_best_is_taken_if_cosines_violate_the_bound(errors, best):
    attempts = []
    for everywhere, once in errors:
        want = np.full((1, 4096), 0.5)
        got = want + np.resize([everywhere, -everywhere], want.shape)
        got[0, 0] += once
        judged = OutputAccuracy("y")
        judged.add(want, got)
        attempts.append(int8.Int8Attempt(CutPlan("p"), (judged,), 1.0, None, 1.0, 0.99))
    assert int8.best_of(attempts) is attempts[best]


def test_a_refused_whole_is_tried_in_parts(detector):
    search = Told(detector, {"whole": ConversionError("no"), "0 normal": 0.1})
    assert int8.best_of(search.run()).plan.name == "in parts"
    assert search.tried == ["whole", "0 normal"]


def test_shape_sets_and_a_batch_are_tried_as_a_whole_only(detector):
    search = Told(detector, {"whole": 3.0}, only_whole=True)
    plans = [attempt.plan for attempt in search.run()]
    assert all(plan.whole and not plan.on_cpu for plan in plans)
    assert [plan.algorithm for plan in plans] == ["normal", "rounded", "mmse", "normal"]
    assert [plan.hybrid for plan in plans] == [False, False, False, True]
    refused = Told(detector, {"whole": ConversionError("no")}, only_whole=True)
    with pytest.raises(ConversionError, match="no"):
        refused.run()
    assert refused.tried == ["whole"]


def test_nothing_that_can_be_built_is_an_error(detector):
    refined = [f"{nodes} {how}" for nodes in (2, 4) for how in ("rounded", "mmse")]
    every = ("whole", "0 normal", "2 normal", *refined, "2 normal hybrid", "whole hybrid")
    with pytest.raises(ConversionError, match="no"):
        Told(detector, dict.fromkeys(every, ConversionError("no"))).run()
