"""Judging outputs against the ONNX's: what one cosine over an output hides."""

import numpy as np
import pytest

from ort_rknn._compile.accuracy import OutputAccuracy, lines_of

random = np.random.default_rng(0)


def judged(want, got, accuracy=0.99):
    one = OutputAccuracy("y")
    one.add(np.asarray(want), np.asarray(got))
    return one, one.problem(accuracy)


def test_the_same_values_are_within_any_bound():
    value = random.standard_normal((1, 8, 4, 4)).astype(np.float32)
    one, problem = judged(value, value.copy())
    assert problem is None
    assert one.cosine == pytest.approx(1)
    assert one.largest == 0


def test_scores_that_vanish_beside_boxes_are_found_though_the_cosine_of_the_whole_is_near_1():
    boxes, scores = random.random((1, 4, 64)) * 640, random.random((1, 3, 64))
    want = np.concatenate([boxes, scores], 1)
    got = want.copy()
    got[:, 4:] = 0
    whole = np.vdot(want, got) / np.linalg.norm(want) / np.linalg.norm(got)
    assert whole > 0.999
    one, problem = judged(want, got)
    assert one.mixed
    assert "cosine 0.0000" in problem


@pytest.mark.parametrize("axis", [1, 2])
def test_groups_are_found_along_any_axis(axis):
    want = np.concatenate([random.random((1, 64, 64)) * 300, random.random((1, 64, 64))], axis)
    got = want + np.where(want > 1, 0.5, 0.0)
    assert judged(want, got)[1] is None  # half a pixel of 300 in the boxes, nothing in the scores
    assert judged(want, want + 0.1)[1] is not None  # a tenth in the scores


def test_bounded_outputs_have_a_bound_on_the_largest_error():
    want = np.full((1, 1000), 0.5)
    got = want.copy()
    got[0, 7] = 0.55
    one, problem = judged(want, got)
    assert one.cosine > 0.999
    assert problem.startswith("largest error 0.05")
    assert one.place == (0, 0, 7)
    assert judged(want, got, 0.9)[1] is None


def test_probabilities_too_small_for_float16_are_not_judged_beside_larger_ones():
    """float16 makes 0 of a class that never occurs; in an output of such values alone, that is everything."""
    common, never = random.random((1, 4, 64)), random.random((1, 3, 64)) * 1e-8
    want, got = np.concatenate([common, never], 1), np.concatenate([common, never * 0], 1)
    one, problem = judged(want, got)
    assert one.mixed and problem is None
    assert judged(never, never * 0)[1] is not None
    assert judged(want * 640, got * 640)[1] is not None  # no probabilities
    got[:, 4:] = 0.02
    assert judged(want, got)[1] is not None
    seldom = np.concatenate([common, never * 1e5], 1)
    assert judged(seldom, np.concatenate([common, never * 0], 1))[1] is not None


def test_feature_maps_of_any_size_are_one_group():
    sizes = np.exp(random.standard_normal(64)).reshape(1, 64, 1, 1)
    one, _ = judged(random.standard_normal((1, 64, 8, 8)) * sizes, np.zeros((1, 64, 8, 8)))
    assert not one.mixed


def test_shapes_that_differ_and_values_that_are_no_numbers_are_reported():
    assert "[1, 2]" in judged(np.zeros((1, 2)), np.zeros((1, 3)))[1]
    assert "not a number" in judged(np.zeros((1, 2)), np.array([[0, np.nan]]))[1]


def test_top_1_is_reported_for_classes():
    one, _ = judged([[0.1, 0.9], [0.8, 0.2]], [[0.2, 0.8], [0.4, 0.6]])
    assert one.same_top == 0.5
    assert "same top-1 50.0%" in lines_of([one], 0.99)[0]


def test_masks_and_labels_are_counted_and_text_is_compared():
    mask = random.random((1, 1000)) > 0.5
    flipped = mask.copy()
    flipped[0, :5] ^= True
    one, problem = judged(mask, flipped)  # as a number, the largest error would be 1
    assert problem is None and one.same == 0.995
    assert one.used_share(0.99) == pytest.approx(0.5)
    flipped[0, :20] = ~mask[0, :20]
    assert judged(mask, flipped)[1] == "98.00% of the values are the same"
    labels = np.arange(100)
    assert judged(labels, np.where(labels == 3, 7, labels))[1] is None
    pixels = random.integers(0, 255, (1, 3, 8, 8)).astype(np.uint8)
    assert judged(pixels, pixels + np.uint8(1))[1] is None  # not one the same, and a good picture
    assert judged(pixels, np.zeros_like(pixels))[1] is not None
    words = np.array(["cat", "dog"], object)
    assert judged(words, words)[1] is None
    assert judged(words, words[::-1])[1] == "0.00% of the values are the same"
    assert "the same 100.00%" in lines_of([judged(words, words)[0]], 0.99)[0]
