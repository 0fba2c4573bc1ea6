"""Method options given as flags; the options themselves are tested in ``losses/test_presets.py``."""

from dataclasses import fields

import pytest

from qskd.errors import ConfigError
from qskd.losses.presets import PRESETS, option_names
from qskd.runs.options import DataOptions, MethodOptions, ModelOptions, PairOptions
from qskd.trainer import DistillationConfig


@pytest.mark.parametrize("name", PRESETS)
def test_without_flags_a_method_is_its_preset(name):
    assert MethodOptions(method=name).settings() == PRESETS[name]


def test_every_option_of_a_method_is_a_flag():
    flags = {field.name for field in fields(MethodOptions)}
    assert flags == {name.replace(".", "_") for name in option_names()} | {"method", "preflight"}


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("selection_cap", "5", 5),
        ("selection_cap", "none", None),
        ("selection_cap", 5, 5),  # from a YAML file or Python
        ("selection_threshold", "0.3", 0.3),
        ("selection_threshold", "-0.5", -0.5),
        ("selection_threshold", "0", 0.0),
        ("selection_class_agreement", "1e-3", 0.001),
        ("selection_select", "positives", "positives"),
        ("lapd_weight", "0", 0.0),
        ("lapd_top_up", "false", False),
        ("lapd_top_up", "No", False),
        ("lapd_weight_by_giou", "true", True),
        ("agfd_epsilon", "1e-8", 1e-8),
        ("agfd_weight", "2.", 2.0),
        ("agfd_mask", "none", "none"),  # here a value of its own
        ("agfd_norm", "area", "area"),
    ],
)
def test_a_flags_text_means_what_it_looks_like(flag, text, value):
    settings = MethodOptions(**{flag: text}).settings()
    room, _, option = flag.partition("_")
    found = getattr(getattr(settings, room), option)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"method": "qsdk"}, "There is no method 'qsdk'. Methods: qskd"),
        ({"selection_cap": "many"}, "'selection.cap' is 'many'; expected int or None"),
        ({"selection_cap": "2.5"}, "'selection.cap' is 2.5"),
        ({"selection_cap": "0"}, "selection.cap is 0; give at least 1"),
        ({"agfd_mask": "[a"}, "'agfd.mask' is '[a'; expected 'attention' or 'none'"),
        ({"lapd_top_up": "3"}, "'lapd.top_up' is 3"),
        ({"lapd_weight": "none"}, "'lapd.weight' is None; expected float"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(flags, told):
    with pytest.raises(ConfigError) as caught:
        MethodOptions(**flags).settings()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "kinds",
    [(ModelOptions, DataOptions, DistillationConfig), (PairOptions, DataOptions, MethodOptions, DistillationConfig)],
)
def test_no_two_groups_of_options_share_a_name(kinds):
    names = [field.name for kind in kinds for field in fields(kind) if field.init]
    assert len(names) == len(set(names))
