"""The tests: one for each promise of :mod:`ort_rknn.adapter.contract`."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest

from ..._rknpu import CORE_MASK_ALL, SOC_CORES, core_masks
from ..contract import (
    Absence,
    Adapter,
    AdapterError,
    Context,
    Device,
    Model,
    ModelSource,
    NotBindable,
    Query,
    RknnError,
    SettingError,
    Survey,
)
from ._case import Case, CaseRuns
from ._checks import check_cores, check_info, impossible_forms, refused
from ._processes import in_forked_child, open_descriptors

#: Non-default fields of LoadSettings.
_SETTINGS: dict[str, Any] = {
    "run_timeout_ms": 60_000,
    "share_weights": False,
    "custom_op_default_path": True,
    "priority": "low",
    "collect_layers": True,
}


class AdapterContract:
    """Tests of one adapter. A subclass provides its fixture ``adapter``, :attr:`query`, :attr:`cases` and
    :meth:`left_open`; it may override the other methods that do not begin with ``test_``."""

    query: ClassVar[Query] = Query()
    """A query for which ``find`` sees the device to test with: its first one."""
    cases: ClassVar[Sequence[Case]] = ()
    """At least one. Tests without a case use the first."""

    @pytest.fixture
    def adapter(self) -> Any:
        """The adapter. To be overridden."""
        raise NotImplementedError("a subclass of AdapterContract needs a fixture 'adapter' that gives the adapter")

    def left_open(self) -> int:
        """The number of contexts and models open in the runtime: more while one is open than before and after. The
        adapter chooses what to count, but it must not be a count that ``close()`` itself decrements. To be
        overridden."""
        raise NotImplementedError("a subclass of AdapterContract needs left_open(), which counts what is open")

    def fail_next_run(self) -> bool:
        """Make the next run fail in the runtime. False: not possible, and so not tested."""
        return False

    def cores_of_last_run(self) -> int | None:
        """The core mask that the last run really used, as reported by the runtime. None: it reports none."""
        return None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test that takes a case on each case."""
        if not self.cases:
            raise pytest.UsageError(f"{type(self).__name__} has no cases: an adapter is tested with at least one")
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=[case.name for case in self.cases])

    @pytest.fixture
    def device(self, adapter: Adapter) -> Device:
        """The device that the tests run on."""
        found = adapter.find(self.query)
        assert found.devices, f"find({self.query}) sees no device: {found.absences}"
        return found.devices[0]

    def open_before(self) -> int:
        """:meth:`left_open`, without what earlier tests left to the garbage collector."""
        gc.collect()
        return self.left_open()

    @contextmanager
    def loaded(self, adapter: Adapter, device: Device, case: Case, **settings: Any) -> Iterator[Model]:
        """The case's model, closed at the end."""
        with closing(adapter.load(device, case.source(), case.settings(**settings))) as model:
            yield model

    # find ------------------------------------------------------------------------------------------------------

    def test_name_and_priority(self, adapter: Adapter) -> None:
        assert isinstance(adapter.name, str) and adapter.name, f"name is {adapter.name!r}"
        assert isinstance(adapter.priority, int), f"priority is {adapter.priority!r}"

    def test_find_describes_devices(self, adapter: Adapter) -> None:
        survey = adapter.find(self.query)
        assert isinstance(survey, Survey), f"find() gives a {type(survey).__name__}"
        for device in survey.devices:
            assert device.adapter == adapter.name, f"device.adapter is {device.adapter!r}, not {adapter.name!r}"
            assert device.name, "a device has no name"
            assert device.soc in SOC_CORES, f"device.soc is {device.soc!r}; known are {', '.join(SOC_CORES)}"
            assert 1 <= device.cores <= SOC_CORES[device.soc], f"a {device.soc} with {device.cores} cores"
            texts = {**device.details, "runtime": device.runtime}
            assert all(isinstance(text, str) for pair in texts.items() for text in pair), f"not text: {texts}"

    def test_find_has_no_side_effects(self, adapter: Adapter) -> None:
        first = adapter.find(self.query)
        descriptors, opened = open_descriptors(), self.open_before()
        for _ in range(5):
            assert adapter.find(self.query) == first, "find() gives another answer when asked again"
        assert open_descriptors() <= descriptors, "find() leaves descriptors open"
        assert self.left_open() == opened, "find() leaves something open"

    def test_a_device_that_is_not_there_is_an_absence(self, adapter: Adapter) -> None:
        survey = adapter.find(replace(self.query, device="no-such-device"))
        assert survey.devices == (), f"asked for 'no-such-device', find() gives {survey.devices}"
        for absence in survey.absences:
            assert absence.adapter == adapter.name, f"absence.adapter is {absence.adapter!r}, not {adapter.name!r}"
            assert absence.reason.strip(), "an absence has no reason"

    def test_virtual_devices_are_for_who_asks(self, adapter: Adapter) -> None:
        for device in adapter.find(replace(self.query, device=None)).devices:
            assert not device.virtual, f"nobody asked for a device, and the virtual {device.name!r} is seen"

    def test_a_closer_look(self, adapter: Adapter, device: Device) -> None:
        check = getattr(adapter, "check", None)
        if check is not None:
            found = check(device)
            assert found is None or isinstance(found, Absence), f"check() gives a {type(found).__name__}"

    # load ------------------------------------------------------------------------------------------------------

    def test_a_loaded_model_describes_its_tensors(self, adapter: Adapter, device: Device, case: Case) -> None:
        with self.loaded(adapter, device, case) as model:
            for what, infos, arrays in (
                ("input", model.inputs, case.inputs),
                ("output", model.outputs, case.outputs),
            ):
                names = [info.name for info in infos]
                assert sorted(names) == sorted(arrays), f"the {what}s are {names}, in the case {list(arrays)}"
                for info in infos:
                    check_info(what, info)
            assert all(isinstance(t, str) for pair in model.versions.items() for t in pair), f"{model.versions}"

    def test_shapes_of_shape_sets(self, adapter: Adapter, device: Device, case: Case) -> None:
        with self.loaded(adapter, device, case) as model:
            sets = model.shape_sets
            if case.shape_set is None:
                assert sets == (), f"the case is of a static model, and shape_sets is {sets}"
                assert model.output_shapes(None) == tuple(i.shape for i in model.outputs), model.output_shapes(None)
                return
            assert case.shape_set < len(sets), f"the case has shape set {case.shape_set} of {len(sets)}"
            fed = tuple(case.inputs[info.name].shape for info in model.inputs)
            assert sets[case.shape_set] == fed, f"set {case.shape_set} is {sets[case.shape_set]}, the inputs {fed}"
            for index in range(len(sets)):
                shapes = model.output_shapes(index)
                assert len(shapes) == len(model.outputs), f"set {index} has {len(shapes)} output shapes"

    def test_a_model_in_memory(self, adapter: Adapter, device: Device, case: Case) -> None:
        with open(case.compiled, "rb") as file:
            source = ModelSource(data=file.read())
        with closing(adapter.load(device, source, case.settings())) as model, closing(model.context(0)) as context:
            CaseRuns(model, case).check(context)

    @pytest.mark.parametrize("content", [b"", b"not a model" * 100], ids=["empty", "garbage"])
    def test_what_is_no_model_is_refused(self, adapter: Adapter, device: Device, content: bytes) -> None:
        opened = self.open_before()
        with refused("content that is no model"):
            adapter.load(device, ModelSource(data=content), self.cases[0].settings()).close()
        assert self.left_open() == opened, "a load that failed leaves something open"

    def test_a_file_that_is_not_there_is_refused(self, adapter: Adapter, device: Device) -> None:
        with refused("a path without a file"):
            adapter.load(device, ModelSource(path="/nowhere/m.rknn"), self.cases[0].settings()).close()

    @pytest.mark.parametrize("name", _SETTINGS)
    def test_a_setting_is_honored_or_refused(self, adapter: Adapter, device: Device, name: str) -> None:
        case, opened = self.cases[0], self.open_before()
        try:
            model = adapter.load(device, case.source(), case.settings(**{name: _SETTINGS[name]}))
        except SettingError:
            assert self.left_open() == opened, "a refused setting leaves something open"
            return
        with closing(model), closing(model.context(0)) as context:
            CaseRuns(model, case).check(context)
            if name == "collect_layers":
                table = getattr(context, "layer_table", None)
                assert table is not None, "collect_layers was accepted, and a context has no layer_table()"
                assert isinstance(table(), str), f"layer_table() gives a {type(table()).__name__}"

    def test_custom_operators_that_are_not_there_are_refused(self, adapter: Adapter, device: Device) -> None:
        case, opened = self.cases[0], self.open_before()
        with refused("a library of custom operators that is not there"):
            settings = case.settings(custom_op_paths=("/nowhere/libno.so",))
            adapter.load(device, case.source(), settings).close()
        assert self.left_open() == opened, "a refused setting leaves something open"

    def test_weights_of_another_model(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with ExitStack() as stack:
            lender = stack.enter_context(self.loaded(adapter, device, case))
            try:
                borrower = stack.enter_context(self.loaded(adapter, device, case, share_with=lender))
            except SettingError:
                return
            lender.close()  # it is unloaded after the borrower, whichever is closed first
            with closing(borrower.context(0)) as context:
                CaseRuns(borrower, case).check(context)

    # run -------------------------------------------------------------------------------------------------------

    def test_the_outputs_are_right(self, adapter: Adapter, device: Device, case: Case) -> None:
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            runs = CaseRuns(model, case)
            for _ in range(3):  # with new buffers each time
                runs.check_after_others(context)

    def test_channels_last_is_right_or_refused(self, adapter: Adapter, device: Device, case: Case) -> None:
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            runs = CaseRuns(model, case, channels_last=True)
            try:
                results = runs.run(context)
            except AdapterError:
                return
            case.check(results)

    def test_stored_outputs_are_right_or_refused(self, adapter: Adapter, device: Device, case: Case) -> None:
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            stored, widened = CaseRuns(model, case, stored=True), CaseRuns(model, case)
            try:
                results = stored.run(context)
            except AdapterError:
                return
            case.check(results)
            widened.check(context)  # forms may alternate
            case.check(stored.run(context))

    def test_impossible_forms_are_refused(self, adapter: Adapter, device: Device, case: Case) -> None:
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            runs = CaseRuns(model, case)
            for what, form in impossible_forms(runs.form, model):
                with refused(f"a form with {what}"):
                    runs.run(context, form)
            runs.check(context)  # the context still works

    def test_times_of_a_run(self, adapter: Adapter, device: Device) -> None:
        with self.loaded(adapter, device, self.cases[0]) as model, closing(model.context(0)) as context:
            CaseRuns(model, self.cases[0]).check(context)
            times = getattr(context, "times", None)
            if times is not None:
                assert len(times) == 4 and sorted(times) == list(times), (
                    f"times is {times}: not four, one after another"
                )

    def test_a_run_that_fails_is_an_error(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            runs = CaseRuns(model, case)
            runs.check(context)
            if not self.fail_next_run():
                pytest.skip("fail_next_run() makes no run fail here")
            with pytest.raises(RknnError) as caught:
                runs.run(context)
            error = caught.value
            assert error.call and isinstance(error.code, int) and error.code < 0, f"{error.call!r}, {error.code!r}"
            assert error.call in str(error) and str(error.code) in str(error), f"the text is {str(error)!r}"
            runs.check(context)  # and the next run is right

    def test_bound_buffers_are_right_or_refused(self, adapter: Adapter, device: Device, case: Case) -> None:
        allocate = getattr(adapter, "allocate", None)
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            if allocate is None or not hasattr(context, "run_bound"):
                return
            try:
                os.close(allocate(device, 4096, cached=True))
            except AdapterError as error:
                pytest.skip(f"this system gives no memory of the NPU's: {error}")
            for stored in (False, True):
                runs = CaseRuns(model, case, channels_last=True, narrow=True, stored=stored)
                for _ in range(2):  # with new buffers each time
                    try:
                        runs.check_bound(context, partial(allocate, device, cached=True))  # type: ignore[arg-type]
                    except NotBindable:
                        break
            CaseRuns(model, case).check(context)  # and runs as usual

    # contexts --------------------------------------------------------------------------------------------------

    def test_a_context_is_on_its_cores(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with self.loaded(adapter, device, case) as model:
            for mask in (*core_masks(device.cores), CORE_MASK_ALL):
                with closing(model.context(mask)) as context:
                    assert context.core_mask == mask, f"context({mask:#x}).core_mask is {context.core_mask:#x}"
                    CaseRuns(model, case).check(context)
                    check_cores(mask, self.cores_of_last_run(), device.cores)

    def test_a_core_that_is_not_there_is_refused(self, adapter: Adapter, device: Device) -> None:
        case, opened, mask = self.cases[0], self.open_before(), 1 << max(device.cores, 1)
        with self.loaded(adapter, device, case) as model:
            with refused(f"core mask {mask:#x} of a device with {device.cores} cores") as caught:
                model.context(mask).close()
            text = str(caught.value).lower()
            assert f"{mask:#x}" in text or str(mask) in text, f"the error does not name the mask: {text}"
            with closing(model.context(0)) as context:
                CaseRuns(model, case).check(context)
        assert self.left_open() == opened, "a refused core mask leaves something open"

    def test_contexts_of_one_model_are_independent(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as second:
            runs = CaseRuns(model, case)
            with closing(model.context(0)) as first:
                runs.check(first)
                runs.check(second)  # one form on two contexts
            runs.check(second)

    def test_cases_side_by_side(self, adapter: Adapter, device: Device) -> None:
        with ExitStack() as stack:
            pairs = []
            for case in self.cases:
                model = stack.enter_context(self.loaded(adapter, device, case))
                pairs.append((CaseRuns(model, case), stack.enter_context(closing(model.context(0)))))
            for runs, context in [*pairs, *reversed(pairs)]:
                runs.check(context)

    def test_threads_with_a_context_each(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with ExitStack() as stack:
            model = stack.enter_context(self.loaded(adapter, device, case))
            contexts = [stack.enter_context(closing(model.context(0))) for _ in range(3)]
            _on_threads([_repeated(CaseRuns(model, case), context) for context in contexts])

    def test_a_context_goes_from_thread_to_thread(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            runs = CaseRuns(model, case)
            for _ in range(3):
                _on_threads([_repeated(runs, context)])
            runs.check(context)

    # close -----------------------------------------------------------------------------------------------------

    def test_what_is_opened_is_closed(self, adapter: Adapter, device: Device, case: Case) -> None:
        before = self.open_before()
        model = adapter.load(device, case.source(), case.settings())
        contexts = [model.context(0), model.context(0)]
        CaseRuns(model, case).check(contexts[0])
        assert self.left_open() > before, "a model and two contexts are open, and left_open() counts none of them"
        for context in contexts:
            context.close()
        model.close()
        assert self.left_open() == before, f"left_open() is {self.left_open()} after close(), {before} before load()"

    def test_descriptors_are_closed(self, adapter: Adapter, device: Device) -> None:
        case, descriptors = self.cases[0], []
        for _ in range(4):
            with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
                CaseRuns(model, case).check(context)
            descriptors.append(open_descriptors())
        assert descriptors[-1] <= descriptors[0], f"open descriptors after each load and close: {descriptors}"

    def test_close_can_be_called_again(self, adapter: Adapter, device: Device) -> None:
        case, before = self.cases[0], self.open_before()
        with self.loaded(adapter, device, case) as other, closing(other.context(0)) as bystander:
            model = adapter.load(device, case.source(), case.settings())
            context = model.context(0)
            for _ in range(3):
                context.close()
            for _ in range(3):
                model.close()
            context.close()
            CaseRuns(other, case).check(bystander)
        assert self.left_open() == before, "closing again closed or opened something"

    def test_nothing_works_after_close(self, adapter: Adapter, device: Device) -> None:
        with self.loaded(adapter, device, self.cases[0]) as model:
            context, runs = model.context(0), CaseRuns(model, self.cases[0])
            runs.check(context)
            context.close()
            with refused("a run of a closed context"):
                runs.run(context)
        before = self.open_before()
        with refused("a context of a closed model"):
            model.context(0).close()
        assert self.left_open() == before, "a context of a closed model was opened"

    # fork ------------------------------------------------------------------------------------------------------

    def test_a_forked_child(self, adapter: Adapter, device: Device) -> None:
        case = self.cases[0]
        with self.loaded(adapter, device, case) as model, closing(model.context(0)) as context:
            runs = CaseRuns(model, case)
            runs.check(context)

            def in_child() -> None:
                context.close()
                model.close()
                (again, *_) = adapter.find(self.query).devices
                with self.loaded(adapter, again, case) as own, closing(own.context(0)) as mine:
                    CaseRuns(own, case).check(mine)

            problem = in_forked_child(in_child)
            assert not problem, f"in a forked child, which closed what it inherited and loaded for itself: {problem}"
            runs.check(context)
            with closing(model.context(0)) as another:
                runs.check(another)


# Threads -------------------------------------------------------------------------------------------------------


def _repeated(runs: CaseRuns, context: Context) -> Callable[[], None]:
    def work() -> None:
        for _ in range(10):
            runs.check_after_others(context)

    return work


def _on_threads(works: Sequence[Callable[[], None]]) -> None:
    """Run each on its own thread. Raises the first one's error."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
