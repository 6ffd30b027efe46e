"""The settings of a run of any content: the same ones go on, and any that differ are named."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from latent_tts.evaluation.settings import differences, flatten

NAMES = st.text("abc_", min_size=1, max_size=4)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
OPTIONS = st.dictionaries(
    NAMES, VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=3), max_size=5
)


@given(OPTIONS)
def test_settings_are_the_same_after_a_journey_through_the_file(options: dict[str, Any]):
    settings = flatten({"model": options})
    assert differences(json.loads(json.dumps(settings)), json.loads(json.dumps(settings))) == []


@given(OPTIONS, NAMES, VALUES.filter(lambda value: value is not None and value is not False))
def test_a_setting_that_differs_is_named_whichever_run_has_it(options: dict[str, Any], name: str, value: Any):
    options = {key: one for key, one in options.items() if key != name} | {"always": 0}
    plain, more = flatten({"model": options}), flatten({"model": options | {name: value}})
    for stored, current in ((plain, more), (more, plain)):
        (sentence,) = differences(stored, current)
        assert sentence.startswith(f"model.{name} was ")


@given(OPTIONS, NAMES)
def test_a_run_that_is_older_than_an_option_has_it_switched_off(options: dict[str, Any], name: str):
    options = {key: one for key, one in options.items() if key != name} | {"always": 0}
    older, newer = flatten({"model": options}), flatten({"model": options | {name: False}})
    assert differences(older, newer) == differences(newer, older) == []


def test_a_setting_that_both_runs_name_is_off_or_null_by_its_own_value():
    """What null says is the option's own matter: where both name it, null, false and 0 are three values."""
    (sentence,) = differences({"data.split": None}, {"data.split": False})
    assert sentence == "data.split was null and is false now"
    assert differences({}, {"data.seed": 0}) == ["data.seed was null and is 0 now"]
