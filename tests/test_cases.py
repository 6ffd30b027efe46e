"""Situations that people have reported of projects like this one, each by its script or file, give what is right."""

from __future__ import annotations

from commands.retired import without_retired


def test_an_old_command_line_is_taken_with_a_word_on_what_has_no_effect_any_more(capsys):
    """As the case of a scheduler's signal gives it."""
    args = ["--model.num_rollouts", "2", "--model.num_bootstrap", "100", "--data.size=6", "--model.num_bootstrap=5"]
    assert without_retired(args) == ["--model.num_rollouts", "2", "--data.size=6"]
    assert (
        capsys.readouterr().err.count("--model.num_bootstrap has no effect any more: intervals are closed forms") == 2
    )
