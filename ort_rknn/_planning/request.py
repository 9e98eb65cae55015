"""What the user asked for: providers in all of onnxruntime's spellings, provider options, environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .._errors import OptionError
from .._options import ALIASES, PROVIDER, Options, read_options

OUR_NAMES = frozenset((PROVIDER, *ALIASES))
Policy = Literal["respect", "prefer", "only"]
_POLICIES: tuple[Policy, ...] = ("respect", "prefer", "only")


@dataclass(frozen=True, slots=True)
class Request:
    """One session's wishes about where it runs."""

    options: Options
    """For the NPU; defaults where the user gave none."""
    wants_npu: bool
    """The NPU comes first: named, or no provider was named, or the policy puts it there."""
    asked: bool
    """The user said so (named the provider, gave it options, set our environment), so a fallback is worth a warning."""
    strict: bool
    """No fallback to the CPU: what cannot go to the NPU is an error."""
    strict_by: str
    """What made it strict, for messages."""
    named: bool
    """Ours is among ``providers``."""
    other_providers: Any
    """``providers`` without ours, as onnxruntime takes it."""
    other_options: Any
    """``provider_options`` that belong to ``other_providers``."""
    overtaken: tuple[str, ...] = ()
    """Providers that were named before ours, which comes first all the same; but for the CPU, see ``after_cpu``."""
    after_cpu: bool = False
    """The CPU was named before ours, and the list is law: it takes every node that it can run, as in onnxruntime."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for the sessions of a whole program (the import swap sets it), where they do not say otherwise."""

    policy: Policy | None = None
    """None: ``ORT_RKNN_POLICY``."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Provider options for the NPU; those that a session brings itself win."""


_defaults = Defaults()


def set_defaults(defaults: Defaults) -> Defaults:
    """Put others in place; returns those that were. Raises OptionError for a bad policy or bad options."""
    global _defaults
    if defaults.policy is not None and defaults.policy not in _POLICIES:
        raise OptionError(f"policy={defaults.policy!r}: one of {', '.join(_POLICIES)} is wanted")
    read_options(defaults.options)
    before, _defaults = _defaults, defaults
    return before


def default_options() -> Options:
    """The defaults' provider options, read."""
    return read_options(_defaults.options)


def policy() -> Policy:
    """The defaults' policy, else ``ORT_RKNN_POLICY``. Raises OptionError for another word."""
    if _defaults.policy is not None:
        return _defaults.policy
    text = os.environ.get("ORT_RKNN_POLICY") or "respect"
    for known in _POLICIES:
        if text == known:
            return known
    raise OptionError(f"environment variable ORT_RKNN_POLICY={text!r}: one of {', '.join(_POLICIES)} is wanted")


def strict_policy() -> str:
    """Policy "only" as the user set it, for messages."""
    return "ORT_RKNN_POLICY=only" if _defaults.policy is None else "policy='only'"


def _over_defaults(given: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """The defaults' options under those that were given. Of the two that exclude each other, the given one stays."""
    if not _defaults.options:
        return given
    rivals = {"schedule": "tp_mode", "tp_mode": "schedule"}
    kept = {k: v for k, v in _defaults.options.items() if rivals.get(k) not in (given or {})}
    return {**kept, **(given or {})}


def read_request(providers: Any, provider_options: Any, *, no_cpu: bool) -> Request:
    """Sort out what belongs to the NPU.

    ``no_cpu``: the session config says ``session.disable_cpu_ep_fallback=1``. Raises OptionError for bad options of
    ours; what is malformed otherwise is left for onnxruntime to refuse.
    """
    rule = policy()
    named, given, others, other_options = _split(providers, provider_options)
    in_environment = bool(os.environ.get("ORT_RKNN_DEVICE"))
    strict_env = os.environ.get("ORT_RKNN_STRICT") == "1"
    nobody_named = _is_empty(providers)
    wants = named or nobody_named or rule != "respect"
    options = read_options(_over_defaults(given) if wants else given)
    strict_by = ""
    asked = wants and (
        named or given is not None or bool(_defaults.options) or in_environment or strict_env or rule != "respect"
    )
    if wants:
        if rule == "only":
            strict_by = strict_policy()
        elif strict_env:
            strict_by = "ORT_RKNN_STRICT=1"
        elif no_cpu and asked:
            strict_by = "session.disable_cpu_ep_fallback=1"
    overtaken = _overtaken(providers) if named else ()
    return Request(
        options=options,
        wants_npu=wants,
        asked=asked,
        strict=bool(strict_by),
        strict_by=strict_by,
        named=named,
        other_providers=others,
        other_options=other_options,
        overtaken=overtaken,
        after_cpu="CPUExecutionProvider" in overtaken and rule == "respect",
    )


def _is_empty(providers: Any) -> bool:
    return providers is None or (isinstance(providers, (list, tuple)) and not providers)


def _split(providers: Any, provider_options: Any) -> tuple[bool, Mapping[str, object] | None, Any, Any]:
    """(ours is named, options of ours, the other providers, their options)."""
    if isinstance(providers, str) and providers in OUR_NAMES:
        providers = [providers]
    if _is_empty(providers):
        return False, _only_options(provider_options), providers, None
    if not isinstance(providers, Sequence) or isinstance(providers, str):
        return False, None, providers, provider_options  # onnxruntime says what is wrong with it
    ours = [i for i, item in enumerate(providers) if _name_of(item) in OUR_NAMES]
    if not ours:
        return False, None, providers, provider_options
    if len(ours) > 1:
        raise OptionError(f"providers names the NPU {len(ours)} times: {[_name_of(providers[i]) for i in ours]}")
    place = ours[0]
    item = providers[place]
    inline = item[1] if isinstance(item, tuple) and len(item) == 2 else None
    if not isinstance(item, str) and not isinstance(inline, Mapping):
        raise OptionError(f"providers: {item!r} is neither a name nor a tuple (name, dict of options)")
    separate: Any = None
    other_options = provider_options
    if isinstance(provider_options, Mapping):
        separate, other_options = provider_options, None
    elif isinstance(provider_options, Sequence) and not isinstance(provider_options, str):
        if len(provider_options) != len(providers):
            if len(provider_options) != 1:
                raise OptionError(
                    "'providers' and 'provider_options' should be the same length if both are given; got "
                    f"{len(providers)} and {len(provider_options)}"
                )
            separate, other_options = provider_options[0], None
        else:
            separate = provider_options[place]
            other_options = [o for i, o in enumerate(provider_options) if i != place]
        if not isinstance(separate, Mapping):
            raise OptionError(f"'provider_options' values must be dicts; got {separate!r}")
    elif provider_options is not None:
        raise OptionError(f"provider_options should be a dict or a list of dicts; got {provider_options!r}")
    if inline and separate:
        raise OptionError("options for the NPU were given twice: in the providers tuple and in provider_options")
    others = [other for i, other in enumerate(providers) if i != place]
    return True, inline or separate or {}, others, other_options if others else None


def _overtaken(providers: Any) -> tuple[str, ...]:
    if isinstance(providers, str):
        return ()
    names = [_name_of(item) for item in providers]
    ours = next(i for i, name in enumerate(names) if name in OUR_NAMES)
    return tuple(name for name in names[:ours] if name is not None)


def _name_of(item: Any) -> Any:
    name = item[0] if isinstance(item, tuple) and item else item
    return name if isinstance(name, str) else None


def _only_options(provider_options: Any) -> Mapping[str, object] | None:
    """Options without providers belong to the NPU."""
    if provider_options is None or isinstance(provider_options, Mapping):
        return provider_options
    if isinstance(provider_options, Sequence) and not isinstance(provider_options, str):
        if not provider_options:
            return None
        if len(provider_options) == 1 and isinstance(provider_options[0], Mapping):
            return provider_options[0]
        raise OptionError(
            f"provider_options without providers belongs to {PROVIDER}: a dict or a list of one dict is wanted; "
            f"got {provider_options!r}"
        )
    raise OptionError(f"provider_options should be a dict or a list of dicts; got {provider_options!r}")
