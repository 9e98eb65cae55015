"""The contexts of a model: opened as the dispatch says, and looked after where there are several cores."""

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
    """Open them all; one lane for each of the dispatch's, which are the same where the first idle context takes a run.

    ``leases`` gets each one as soon as it is open: who calls closes them, also when this raises.
    Raises RknnError or AdapterError if a context cannot be had.
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
    """The health of several cores. ``call`` gives what to try them with; None: the next run is the trial.
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
