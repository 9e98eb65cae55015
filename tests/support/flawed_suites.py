"""The contract's tests on adapters with one flaw each. pytest runs this file in a separate process."""

import os
import tempfile

import numpy as np
import pytest

from ort_rknn.adapter import Query
from ort_rknn.adapter.testing import AdapterContract, Case
from support.flawed_adapter import MAGIC, FlawedAdapter

#: Flaw -> the tests that fail because of it, or some of them: those are run.
FLAWS = {
    "": [],
    "a priority in words": ["test_name_and_priority"],
    "a closer look in words": ["test_a_closer_look"],
    "files only": ["test_a_model_in_memory[doubles]"],
    "one model at a time": ["test_cases_side_by_side"],
    "closes its siblings": ["test_contexts_of_one_model_are_independent"],
    "bound to its thread": ["test_a_context_goes_from_thread_to_thread"],
    "find leaks": ["test_find_has_no_side_effects"],
    "find changes its mind": ["test_find_has_no_side_effects"],
    "find raises": ["test_a_device_that_is_not_there_is_an_absence"],
    "an absence without a reason": ["test_a_device_that_is_not_there_is_an_absence"],
    "cores that the SoC lacks": ["test_find_describes_devices"],
    "the devices of another adapter": ["test_find_describes_devices"],
    "seen by everybody": ["test_virtual_devices_are_for_who_asks"],
    "a dtype that numpy lacks": ["test_a_loaded_model_describes_its_tensors[doubles]"],
    "a name that is not the model's": ["test_a_loaded_model_describes_its_tensors[doubles]"],
    "output shapes as stored": ["test_shapes_of_shape_sets[doubles]"],
    "garbage is a ValueError": ["test_what_is_no_model_is_refused[garbage]"],
    "a failed load leaks": ["test_what_is_no_model_is_refused[garbage]"],
    "a missing file is an OSError": ["test_a_file_that_is_not_there_is_refused"],
    "takes every setting": ["test_a_setting_is_honored_or_refused[collect_layers]"],
    "takes operators that are not there": ["test_custom_operators_that_are_not_there_are_refused"],
    "lends weights that go": ["test_weights_of_another_model"],
    "y is off": ["test_the_outputs_are_right[doubles]"],
    "float16 for float32": ["test_the_outputs_are_right[doubles]"],
    "inputs are changed": ["test_the_outputs_are_right[doubles]"],
    "writes too much": ["test_the_outputs_are_right[doubles]"],
    "only the first run counts": ["test_the_outputs_are_right[doubles]"],
    "the layout is ignored": ["test_channels_last_is_right_or_refused[doubles]"],
    "stored bits are float32's": ["test_stored_outputs_are_right_or_refused[doubles]"],
    "serves every form": ["test_impossible_forms_are_refused[doubles]"],
    "times backwards": ["test_times_of_a_run"],
    "a failed run is an OSError": ["test_a_run_that_fails_is_an_error"],
    "a failed run gives the outputs before": ["test_a_run_that_fails_is_an_error"],
    "fails for ever": ["test_a_run_that_fails_is_an_error"],
    "the offset is ignored": ["test_bound_buffers_are_right_or_refused[doubles]"],
    "the mask is forgotten": ["test_a_context_is_on_its_cores"],
    "runs on another core": ["test_a_context_is_on_its_cores"],
    "takes every mask": ["test_a_core_that_is_not_there_is_refused"],
    "a refused mask leaks": ["test_a_core_that_is_not_there_is_refused"],
    "a refused mask has no name": ["test_a_core_that_is_not_there_is_refused"],
    "contexts share memory": ["test_threads_with_a_context_each"],
    "the context stays": ["test_what_is_opened_is_closed[doubles]"],
    "the model stays": ["test_what_is_opened_is_closed[doubles]"],
    "nothing is counted": ["test_what_is_opened_is_closed[doubles]"],
    "load leaks a descriptor": ["test_descriptors_are_closed"],
    "close only once": ["test_close_can_be_called_again"],
    "runs after close": ["test_nothing_works_after_close"],
    "contexts of closed models": ["test_nothing_works_after_close"],
    "a child closes": ["test_a_forked_child"],
    "no load in a child": ["test_a_forked_child"],
}

folder = tempfile.mkdtemp(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
MODEL = os.path.join(folder, "doubles.rknn")
with open(MODEL, "wb") as file:
    file.write(MAGIC)
x = np.arange(48, dtype=np.float32).reshape(1, 2, 4, 6)
ids = np.arange(5)
DOUBLES = Case("doubles", MODEL, {"x": x, "ids": ids}, {"y": x * 2, "n": ids + 1})
OTHERS = Case("others", MODEL, {"x": 1 - x, "ids": ids + 7}, {"y": 2 - x * 2, "n": ids + 8})


def suite(flaw):
    class Suite(AdapterContract):
        query = Query(device="doubling", environ={})
        cases = [DOUBLES, OTHERS]

        @pytest.fixture
        def adapter(self):
            self.made = FlawedAdapter(flaw)
            yield self.made
            for descriptor in self.made.kept:
                os.close(descriptor)

        def left_open(self):
            return 0 if flaw == "nothing is counted" else self.made.driver.opened()

        def fail_next_run(self):
            self.made.driver.failing = 1
            return True

        def cores_of_last_run(self):
            return self.made.driver.cores_of_last_run

    chosen = {test.partition("[")[0] for test in FLAWS[flaw]}
    for test in [test for test in vars(AdapterContract) if test.startswith("test_") and flaw]:
        if test not in chosen:
            setattr(Suite, test, None)  # pytest ignores it
    return Suite


for number, name in enumerate(FLAWS):
    globals()[f"Test{number}"] = suite(name)
