"""What the user asked for: providers in every form that onnxruntime accepts, provider options, environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any, Literal

from .._environment import switched_on
from .._errors import OptionError, did_you_mean
from .._options import ALIASES, PROVIDER, Options, from_environment, is_option, option_names, read_options

log = logging.getLogger("ort_rknn")

OUR_NAMES = frozenset((PROVIDER, *ALIASES))
_CPU = "CPUExecutionProvider"
#: onnxruntime's session config entry: nothing may run on the CPU.
NO_CPU = "session.disable_cpu_ep_fallback"
Policy = Literal["respect", "prefer", "only"]
_POLICIES: tuple[Policy, ...] = ("respect", "prefer", "only")


@dataclass(frozen=True, slots=True)
class Request:
    """What one session asks for about where it runs."""

    options: Options
    """For the NPU; the defaults if the user gave none."""
    wants_npu: bool
    """The NPU comes first: it was named, no provider was named, or the policy puts it first."""
    asked: bool
    """The user asked for the NPU (named the provider, gave it options, set our environment), so a fallback deserves a
    warning."""
    strict: bool
    """No fallback to the CPU: if the model cannot run on the NPU, that is an error."""
    strict_by: str
    """What made it strict, for messages."""
    named: bool
    """Our provider is in ``providers``."""
    other_providers: Any
    """``providers`` without ours, in onnxruntime's form."""
    other_options: Any
    """The ``provider_options`` of ``other_providers``."""
    overtaken: tuple[str, ...] = ()
    """Providers named before ours. Ours comes first nevertheless, except after the CPU: see ``after_cpu``."""
    must_stay: str = ""
    """Why the session runs on the CPU although the NPU comes first; "" if nothing prevents the NPU."""
    notes: tuple[str, ...] = ()
    """Remarks on what the request led to, for ``explain()``."""
    unchanged: bool = False
    """The program was written for onnxruntime alone, and no call that the CPU can serve may fail."""
    after_cpu: bool = False
    """The CPU was named before ours, and the order is binding: the CPU takes every node that it can run, as in
    onnxruntime."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Process-wide defaults for sessions (set by the import swap); a session's own settings override them."""

    policy: Policy | None = None
    """None: ``ORT_RKNN_POLICY``."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Provider options for the NPU; a session's own options override them."""
    unchanged: bool = False
    """The program was written for onnxruntime alone: with policy "prefer", no call that the CPU can serve may fail."""


_defaults = Defaults()


def set_defaults(defaults: Defaults) -> Defaults:
    """Set the defaults and return the previous ones. Raises OptionError for a bad policy or bad options."""
    global _defaults
    if defaults.policy is not None and defaults.policy not in _POLICIES:
        raise OptionError(f"policy={defaults.policy!r}: expected one of {', '.join(_POLICIES)}")
    read_options(defaults.options)
    before, _defaults = _defaults, defaults
    return before


def default_options() -> Options:
    """The provider options of the defaults, parsed."""
    return read_options(_defaults.options)


def policy() -> Policy:
    """The policy of the defaults, else ``ORT_RKNN_POLICY``. Raises OptionError for an unknown policy."""
    if _defaults.policy is not None:
        return _defaults.policy
    text = os.environ.get("ORT_RKNN_POLICY") or "respect"
    for known in _POLICIES:
        if text == known:
            return known
    raise OptionError(f"environment variable ORT_RKNN_POLICY={text!r}: expected one of {', '.join(_POLICIES)}")


def strict_policy() -> str:
    """The user's setting that made the policy "only", for messages."""
    return "ORT_RKNN_POLICY=only" if _defaults.policy is None else "policy='only'"


def _over_defaults(given: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """The defaults' options, overridden by the given ones. Of two options that exclude each other, the given one
    wins."""
    if not _defaults.options:
        return given
    rivals = {"schedule": "tp_mode", "tp_mode": "schedule"}
    kept = {k: v for k, v in _defaults.options.items() if rivals.get(k) not in (given or {})}
    return {**kept, **(given or {})}


def check_keywords(kwargs: Mapping[str, Any], known: Collection[object]) -> None:
    """Raise OptionError for a keyword argument of the session that is not in ``known``, and say where it belongs.

    onnxruntime ignores unknown keywords. Under the import swap they are logged and ignored as well: a program written
    for onnxruntime alone must not fail because of us.
    """
    for name, value in kwargs.items():
        if name in known:
            continue
        if _defaults.unchanged:
            log.warning("InferenceSession() takes no argument %r; it is ignored, as onnxruntime does", name)
            continue
        if is_option(name):
            raise OptionError(
                f"InferenceSession() takes no argument {name!r}: it is a provider option, "
                f"provider_options={{{name!r}: {value!r}}}"
            )
        places = ("path_or_bytes", "sess_options", "providers", "provider_options")
        words = (*places, *(word for word in known if isinstance(word, str)), *option_names())
        hint = did_you_mean(name, words)
        raise OptionError(
            f"InferenceSession() takes no argument {name!r}{hint or ''}"
            + ("" if hint else "; options for the NPU go into provider_options, others into sess_options")
        )


def read_request(providers: Any, provider_options: Any, *, no_cpu: bool, must_stay: str = "") -> Request:
    """Separate what belongs to the NPU from what belongs to other providers.

    ``no_cpu``: the session config sets ``session.disable_cpu_ep_fallback=1``. ``must_stay``: see :class:`Request`.
    Raises OptionError for bad options of ours, and for ``providers`` that name ours in a form that onnxruntime does not
    accept, or misspelled. Other malformed arguments are left for onnxruntime to reject.
    """
    rule = policy()
    named, given, others, other_options = _split(providers, provider_options)
    in_environment = from_environment("device") is not None
    strict_env = switched_on("ORT_RKNN_STRICT")
    nobody_named = _is_empty(providers)
    wants = named or nobody_named or rule != "respect"
    options = read_options(_over_defaults(given) if wants else given)
    notes: list[str] = []
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
    if wants and "on_missing_shape" not in options.given:
        options = options._replace(on_missing_shape=_on_missing_shape(rule))
    if wants and "convert" not in options.given:
        options = options._replace(convert="on_load" if from_environment("convert") == "on_load" else "off")
    if options.on_missing_shape == "cpu":
        why_not = strict_by
        if options.output_dtype == "native" and "on_missing_shape" not in options.given:
            why_not = why_not or "output_dtype='native' asks for what only a compiled model gives"
        if why_not:
            options = options._replace(on_missing_shape="error")
            notes.append(f"a call of a shape that was not compiled is an error, not run on the CPU: {why_not}")
    if no_cpu and named:
        # onnxruntime rejects a CPU provider named together with this entry; nothing may run there anyway.
        others, other_options = _without_cpu(others, other_options)
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
        must_stay=must_stay if wants else "",
        notes=tuple(notes),
        unchanged=_defaults.unchanged and rule == "prefer" and not strict_by,
        after_cpu=_CPU in overtaken and rule == "respect",
    )


def _on_missing_shape(rule: Policy) -> Literal["error", "cpu"]:
    """The rule if neither the session nor the defaults set one. Raises OptionError for a bad
    ``ORT_RKNN_ON_MISSING_SHAPE``."""
    word = from_environment("on_missing_shape")
    if word is None:
        return "cpu" if _defaults.unchanged and rule == "prefer" else "error"
    return "cpu" if word == "cpu" else "error"


def names_ours(providers: Any) -> bool:
    """Whether a list of providers includes ours. Raises OptionError as :func:`read_request` does."""
    return _split(providers, None)[0]


def _is_empty(providers: Any) -> bool:
    return providers is None or (isinstance(providers, (list, tuple)) and not providers)


def _split(providers: Any, provider_options: Any) -> tuple[bool, Mapping[str, object] | None, Any, Any]:
    """Returns (ours is named, our options, the other providers, their options)."""
    if isinstance(providers, str) and providers in OUR_NAMES:
        providers = [providers]
    if _is_empty(providers):
        return False, _only_options(provider_options), providers, None
    if not isinstance(providers, Sequence) or isinstance(providers, (str, bytes)):
        _check_names(providers)
        return False, None, providers, provider_options  # onnxruntime reports what is wrong with it
    _check_names(providers)
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


def _check_names(providers: Any) -> None:
    """Raise OptionError if our provider is named in a form that onnxruntime does not accept, or misspelled.

    onnxruntime prints an error in both cases and continues on the CPU.
    """
    if isinstance(providers, (str, bytes)):
        items: Sequence[Any] = [providers]
    elif isinstance(providers, Iterable):
        items = list(islice(providers, _LOOKED_AT))
    else:
        return
    named = False
    for item in items:
        bare, plain = _first_name(item)
        name = bare.decode(errors="replace") if isinstance(bare, bytes) else bare
        if not isinstance(name, str):
            continue
        meant = PROVIDER if name in OUR_NAMES else _meant(name)
        if meant is None:
            continue
        if name not in OUR_NAMES or isinstance(bare, bytes):
            shown = bare if isinstance(bare, bytes) else name
            raise OptionError(f"providers: there is no {shown!r}; did you mean {meant!r}?")
        if not plain:
            raise OptionError(
                f"providers: {item!r} is a {type(item).__name__}; onnxruntime takes a tuple (name, dict of options)"
            )
        named = True
    if named and not isinstance(providers, (Sequence, str)):
        raise OptionError(f"providers should be a list or a tuple; got {type(providers).__name__}: {providers!r}")


_LOOKED_AT = 64
_DEEPEST = 8


def _first_name(item: Any) -> tuple[Any, bool]:
    """What an item of ``providers`` names, as text or bytes, and whether it is in a place where onnxruntime reads it.

    It reads a name, or the first element of a tuple; people also nest lists and arrays, or use members of an Enum.
    """
    plain = True
    if isinstance(item, tuple) and item:
        item = item[0]
    for _ in range(_DEEPEST):
        if isinstance(item, (str, bytes)):
            break
        plain = False
        if isinstance(item, Enum):
            item = item.value
        elif isinstance(item, Mapping):
            item = next(iter(item), None)
        else:
            try:
                item = item[0]
            except (TypeError, LookupError):
                return None, False
    return item, plain


def _meant(name: str) -> str | None:
    """Our provider's name where ``name`` is a misspelling of it; None for other names."""
    if name == _CPU:
        return None
    import difflib

    import onnxruntime

    theirs = {*onnxruntime.get_all_providers(), *onnxruntime.get_available_providers()}
    if name in theirs:
        return None
    word = name.strip().casefold()
    stem = "".join(c for c in word.removesuffix("executionprovider") if c.isalnum())
    if stem.startswith(_STEMS) or stem == "npu":
        return PROVIDER
    names = {known.casefold(): known for known in (*theirs, *OUR_NAMES)}
    close = difflib.get_close_matches(word, names, 1, 0.85)
    return PROVIDER if close and names[close[0]] in OUR_NAMES else None


#: Prefixes of our provider's possible names.
_STEMS = ("rknn", "rknpu", "rockchip", "rk35")


def _without_cpu(others: Any, options: Any) -> tuple[Any, Any]:
    kept = [i for i, item in enumerate(others) if _name_of(item) != _CPU]
    return [others[i] for i in kept], [options[i] for i in kept] if options else options


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
    """The options given without providers, which belong to the NPU; None if there are none."""
    if provider_options is None or isinstance(provider_options, Mapping):
        return provider_options
    if isinstance(provider_options, Sequence) and not isinstance(provider_options, str):
        if not provider_options:
            return None
        if len(provider_options) == 1 and isinstance(provider_options[0], Mapping):
            return provider_options[0]
        raise OptionError(
            f"provider_options without providers belongs to {PROVIDER}: expected a dict or a list of one dict; "
            f"got {provider_options!r}"
        )
    raise OptionError(f"provider_options should be a dict or a list of dicts; got {provider_options!r}")
