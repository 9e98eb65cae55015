"""The contexts of a model: opened according to the dispatch, and monitored if there are several cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..adapter.contract import Model
from .calls import Call
from .core_use import users_of
from .dispatch import Dispatch
from .health import Core, Health
from .lanes import Lane, Lease
from .work import Work


def open_contexts(
    model: Model, dispatch: Dispatch, device: str, leases: list[Lease], *, by_shape: bool
) -> tuple[Lane, ...]:
    """Open all contexts. Returns one lane per lane of the dispatch; they are all the same if the first idle context
    takes a run.

    Each context is appended to ``leases`` as soon as it is open: the caller closes them, even if this raises.
    Raises RknnError or AdapterError if a context cannot be opened.
    """
    by_lane: list[list[Lease]] = [[] for _ in dispatch.lanes]
    for _ in range(dispatch.contexts_per_lane):
        for plan, own in zip(dispatch.lanes, by_lane):
            own.append(Lease(model.context(plan.core_mask), plan.label, users_of(device, plan.core_mask)))
            leases.append(own[-1])
    if dispatch.first_idle:
        return (Lane(leases, by_shape=by_shape, by_use=True),) * len(by_lane)
    return tuple(Lane(own, by_shape=by_shape) for own in by_lane)


def watch_cores(
    model: Model,
    dispatch: Dispatch,
    leases: Sequence[Lease],
    lanes: Sequence[Lane],
    work: Work,
    call: Callable[[], Call | None] | None,
    changed: Callable[[], None],
) -> Health:
    """The health of several cores. ``call`` returns a call to test them with; None: the next run is the test.
    ``changed``: see :class:`~.health.Health`."""
    cores = [
        Core(plan.label, lane, [lease for lease in leases if lease.label == plan.label])
        for plan, lane in zip(dispatch.lanes, lanes)
    ]
    masks = {plan.label: plan.core_mask for plan in dispatch.lanes}

    def renew(lease: Lease) -> None:
        lease.context = model.context(masks[lease.label])
        lease.shape_set = None

    def trial(lease: Lease) -> None:
        known = call() if call is not None else None
        if known is not None:
            work.attempt(known, lease)

    return Health(cores, work.label, renew, trial, changed)
