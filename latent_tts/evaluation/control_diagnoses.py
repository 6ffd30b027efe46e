"""Whether latents matter: what several runs show together, a plain one and its controls (`latent_tts.evaluation.controls`)."""

from __future__ import annotations

from latent_tts.evaluation.comparison import ComparedRun, Comparison
from latent_tts.evaluation.diagnoses import Diagnosis, points


def diagnose_runs(comparison: Comparison) -> list[Diagnosis]:
    """Whether latents matter, where the baseline is a plain run and others are its controls (`--model.latent_control`)."""
    if _control(comparison.baseline_run) is not None:
        return []
    return [found for run in comparison.runs if (found := idle_latents(run)) is not None]


def idle_latents(run: ComparedRun) -> Diagnosis | None:
    """A control run whose accuracy is not below that of the plain run it is compared with; None for any other run."""
    control = _control(run)
    paired = None if control is None else run.full_differences.get("single")
    if control is None or paired is None or paired.high < 0:
        return None
    return Diagnosis(
        "latents do not matter",
        f"With the latents replaced ({control}: {run.name}) a single rollout is right for {points(paired)} points more or less: "
        "no loss that the problems show.",
        "accuracy_over_k",
        "The answer is read off the prompt: sampling latents and scoring them has nothing to act on. Train the backbone with "
        "more latents in place of written steps, or evaluate more problems.",
    )


def _control(run: ComparedRun) -> str | None:
    found: str | None = (run.metrics.get("evaluated") or {}).get("latent_control")
    return found
