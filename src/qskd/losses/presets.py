"""Methods by name: every option of Query Selection KD, its presets and the ablations worth comparing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

from qskd.errors import ConfigError, UnsupportedNeed
from qskd.losses import TERMS
from qskd.losses.term import Term
from qskd.models.adapter import Need
from qskd.models.channels import kept_together
from qskd.selection.groups import GroupQuerySelection


@dataclass(frozen=True, slots=True)
class LapdSettings:
    """Options of ``LocalAlignmentPrediction``, explained there."""

    weight: float = 1.0  # of the whole term; 0 switches it off
    scope: Literal["group", "image", "index"] = "group"
    top_up: bool = True
    layers: Literal["all", "last"] = "all"
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    hard_negative_weight: float = 1.0
    hard_negative_box_weight: float = 0.0
    weight_by_giou: bool = False
    temperature: float = 1.0
    single_mean: bool = False

    def __post_init__(self) -> None:
        _check_weights("lapd", self)


@dataclass(frozen=True, slots=True)
class AgfdSettings:
    """Options of ``AttentionGuidedFeature``, explained there."""

    weight: float = 5.0  # of the whole term; 0 switches it off
    mask: Literal["attention", "none"] = "attention"  # "none" is ``UnmaskedFeature``
    norm: Literal["mass", "area"] = "mass"
    projection: Literal["auto", "linear"] = "auto"
    normalise: bool = True
    norm_per_level: bool = False
    epsilon: float = 1e-6
    power: float = 1.0

    def __post_init__(self) -> None:
        _check_weights("agfd", self)


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """Everything that makes a method: which queries count, what is imitated, how much."""

    selection: GroupQuerySelection = field(default_factory=GroupQuerySelection)
    lapd: LapdSettings = field(default_factory=LapdSettings)
    agfd: AgfdSettings = field(default_factory=AgfdSettings)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms in use, by their names in ``TERMS``."""
        feature = "agfd" if self.agfd.mask == "attention" else "feature"
        weights = {"lapd": self.lapd.weight, feature: self.agfd.weight}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def needs(self) -> frozenset[Need]:
        """What these terms need of a teacher."""
        return frozenset(need for name in self.weights for need in TERMS[name].needs)


class DetrFacts(Protocol):
    """What a term has to know of a model before it has read anything; every adapter knows it."""

    @property
    def family(self) -> str:
        """``config.model_type``."""

    @property
    def provides(self) -> frozenset[Need]:
        """What its views hold."""

    @property
    def num_layers(self) -> int:
        """L."""

    @property
    def num_queries(self) -> int:
        """Q."""

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """D of each level."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level."""


def _check_weights(room: str, settings: LapdSettings | AgfdSettings) -> None:
    """Refuse weights that are negative or not finite."""
    for option in fields(settings):
        value = getattr(settings, option.name)
        if option.name.endswith("weight") and not 0.0 <= value < math.inf:
            raise ConfigError(f"{room}.{option.name} is {value}; it must be finite, and 0 or more. 0 switches it off.")


_OFF_LAPD, _OFF_AGFD = LapdSettings(weight=0.0), AgfdSettings(weight=0.0)

PRESETS: dict[str, MethodSettings] = {
    "qskd": MethodSettings(),
    # The third-party code in TPRD, without its errors: no limits, pairs of the whole image, one mean.
    "qskd_tprd": MethodSettings(
        selection=GroupQuerySelection(cap=None, max_hard_negatives=None),
        lapd=LapdSettings(scope="image", top_up=False, single_mean=True, hard_negative_box_weight=1.0),
        agfd=AgfdSettings(weight=100.0, norm="area", normalise=False, power=2.0),
    ),
    "none": MethodSettings(lapd=_OFF_LAPD, agfd=_OFF_AGFD),
    "positives": MethodSettings(selection=GroupQuerySelection(select="positives")),
    "all_queries": MethodSettings(
        selection=GroupQuerySelection(select="all"), lapd=LapdSettings(hard_negative_box_weight=1.0)
    ),
    "index_aligned": MethodSettings(
        selection=GroupQuerySelection(select="all"), lapd=LapdSettings(scope="index", hard_negative_box_weight=1.0)
    ),
    "features": MethodSettings(lapd=_OFF_LAPD),
    "predictions": MethodSettings(agfd=_OFF_AGFD),
    "unmasked_features": MethodSettings(agfd=AgfdSettings(mask="none")),
}
"""Methods by name. "qskd" is the default; those after "qskd_tprd" take one thing away from it, or select no queries."""


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> MethodSettings:
    """The settings of a preset with some options changed.

    Args:
        name: a key of ``PRESETS``.
        overrides: values by dotted name, as in ``{"selection.cap": 5}``, or nested, as in
            ``{"selection": {"cap": 5}}``.

    Raises:
        ConfigError: there is no such preset or option, or a value is of the wrong type or out of range.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no method '{name}'. Methods: {', '.join(PRESETS)}.")
    return _replaced(PRESETS[name], _nested(overrides or {}), "")


def option_names() -> list[str]:
    """Every option by its dotted name."""
    rooms = [room for room in fields(MethodSettings)]
    return [f"{room.name}.{option.name}" for room in rooms for option in fields(_room_type(room.name))]


def options_of(settings: MethodSettings) -> dict[str, Any]:
    """The value of every option by its dotted name."""
    rooms = {room.name: getattr(settings, room.name) for room in fields(settings)}
    return {
        f"{name}.{option.name}": getattr(room, option.name) for name, room in rooms.items() for option in fields(room)
    }


def build_terms(
    settings: MethodSettings, *, student: DetrFacts, teacher: DetrFacts, begins_alike: bool = False
) -> dict[str, tuple[Term, float]]:
    """The terms whose weight is not 0, by name, with their weights.

    Args:
        settings: the method.
        student: what is known of the student.
        teacher: what is known of the teacher.
        begins_alike: whether the student begins with evenly spaced channels of the teacher's.

    Raises:
        UnsupportedNeed: a term needs what the student's or the teacher's adapter does not provide.
        ConfigError: student and teacher have no memory level of the same stride.
    """
    built: dict[str, tuple[Term, float]] = {}
    for name, weight in settings.weights.items():
        _check_needs(name, student, teacher)
        if name == "lapd":
            built[name] = (_build_lapd(settings, student), weight)
        else:
            built[name] = (_build_feature(name, settings.agfd, student, teacher, begins_alike), weight)
    return built


def _build_lapd(settings: MethodSettings, student: DetrFacts) -> Term:
    options = _options(settings.lapd, without=("weight",))
    return TERMS["lapd"](
        num_student_layers=student.num_layers,
        num_student_queries=student.num_queries,
        selection=settings.selection,
        **options,
    )


def _build_feature(
    name: str, settings: AgfdSettings, student: DetrFacts, teacher: DetrFacts, begins_alike: bool
) -> Term:
    return TERMS[name](
        student_channels=student.memory_channels,
        teacher_channels=teacher.memory_channels,
        student_strides=student.strides,
        teacher_strides=teacher.strides,
        begins_alike=kept_together(teacher.family) if begins_alike else None,
        **_options(settings, without=("weight", "mask")),
    )


def _check_needs(name: str, student: DetrFacts, teacher: DetrFacts) -> None:
    # Whose attention counts is the teacher's alone.
    needs = {"teacher": TERMS[name].needs, "student": TERMS[name].needs - {Need.ATTENTION}}
    for side, facts in (("student", student), ("teacher", teacher)):
        missing = sorted(need.value for need in needs[side] - facts.provides)
        if missing:
            weight = "--lapd_weight" if name == "lapd" else "--agfd_weight"
            raise UnsupportedNeed(
                f"'{name}' needs {', '.join(missing)} of the {side}, which the {facts.family} adapter does "
                f"not provide. Choose another {side}, or give {weight} 0."
            )


def _options(settings: Any, *, without: tuple[str, ...]) -> dict[str, Any]:
    return {option.name: getattr(settings, option.name) for option in fields(settings) if option.name not in without}


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names taken apart; a later override of the same option wins."""
    nested: dict[str, Any] = {}
    for name, value in overrides.items():
        head, _, rest = name.partition(".")
        inner = {rest: value} if rest else value
        if isinstance(inner, Mapping):
            nested[head] = nested.get(head, {}) | _nested(inner)
        else:
            nested[head] = inner
    return nested


def _replaced(settings: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """A copy of a frozen dataclass with changes, each checked against its annotation."""
    hints = get_type_hints(type(settings))
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in hints:
            raise ConfigError(f"There is no option '{prefix}{name}'. Options: {', '.join(option_names())}.")
        old = getattr(settings, name)
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"'{prefix}{name}' holds options by name, but {value!r} was given.")
            values[name] = _replaced(old, value, f"{prefix}{name}.")
        else:
            values[name] = _checked(f"{prefix}{name}", value, hints[name])
    return replace(settings, **values)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value, an int made a float where a float is expected."""
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for one in allowed:
        if get_origin(one) is Literal:
            if value in get_args(one):
                return value
        elif one is float and type(value) is int:
            return float(value)
        elif type(value) is one:
            return value
    expected = " or ".join(_expected(one) for one in allowed)
    raise ConfigError(f"'{name}' is {value!r}; expected {expected}.")


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    return "None" if hint is type(None) else str(hint.__name__)


def _room_type(name: str) -> Any:
    return get_type_hints(MethodSettings)[name]
