"""The settings of a run of any content: the same ones go on, and any that differ are named."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from latent_tts.evaluation.run_folder import differences, flatten

NAMES = st.text("abc_", min_size=1, max_size=4)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
OPTIONS = st.dictionaries(
    NAMES, VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=3), max_size=5
)


@given(OPTIONS)
def test_settings_are_the_same_after_a_journey_through_the_file(options: dict[str, Any]):
    settings = flatten({"model": options})
    assert differences(json.loads(json.dumps(settings)), json.loads(json.dumps(settings))) == []


@given(OPTIONS, NAMES, VALUES.filter(lambda value: value is not None))
def test_a_setting_that_differs_is_named_whichever_run_has_it(options: dict[str, Any], name: str, value: Any):
    options = {key: one for key, one in options.items() if key != name} | {"always": 0}
    plain, more = flatten({"model": options}), flatten({"model": options | {name: value}})
    for stored, current in ((plain, more), (more, plain)):
        (sentence,) = differences(stored, current)
        assert sentence.startswith(f"model.{name} was ")
