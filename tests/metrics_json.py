"""Made-up contents of metrics.json of any size and height, without records."""

from __future__ import annotations

from typing import Any

from latent_tts.aggregation import BestOfN, Hybrid, MajorityVoting, WeightedVoting, k_grid
from latent_tts.evaluation.strategies import COVERAGE, GREEDY, SINGLE, of_aggregation, of_search, strategies_to_json
from latent_tts.search import BeamSearch, ParticleFiltering

AGGREGATIONS: list[Any] = [
    MajorityVoting(),
    BestOfN(),
    WeightedVoting(),
    *(BestOfN(reduction) for reduction in ("mean", "min", "last", "product")),
    *(WeightedVoting(reduction, temperature=0.125) for reduction in ("mean", "min", "last", "product")),
    WeightedVoting("product", weighting="sigmoid", temperature=0.0625),
    BestOfN("product", skip_invalid=True),
    Hybrid(),
]
EVALUATED = {
    "backbone": {
        "name": "models/coconut-of-a-long-name-0.5b",
        "fingerprint": "ab",
        "kind": "coconut",
        "num_latents": 6,
    },
    "reward_model": {"name": "tiny-rm", "fingerprint": "cd"},
    "written": None,
    "sampler": {"name": "MonteCarloDropout", "p": 0.125, "sites": "residual", "scope": "prompt+latent"},
    "seed": 0,
    "data": {"source": "a-folder/of-problems/with-a-long-name.jsonl"},
}


def make_metrics_json(
    num_rollouts: int, height: float, num_aggregations: int = 3, num_problems: int = 500, spread: float = 0.03
) -> dict[str, Any]:
    """Metrics in which everything lies about a height in 0..1 (at 0 and at 1 on it), some with searches."""
    ks = k_grid(num_rollouts)
    parts = AGGREGATIONS[:num_aggregations]
    searches = [of_search(BeamSearch()), of_search(ParticleFiltering(16))] if num_aggregations > 1 else []
    curves = [(of_aggregation(part, k), i, k) for i, part in enumerate(parts) for k in ks]
    covered = [(COVERAGE.at(k), -1, k) for k in ks]
    values = {one: _value(height, i, k, spread) for one, i, k in (*covered, *curves)}
    values |= {one: _value(height, i, 4, spread) for i, one in enumerate((GREEDY, SINGLE, *searches))}
    reach = 0.04
    return {
        "evaluated": EVALUATED,
        "num_problems": num_problems,
        "num_rollouts": num_rollouts,
        "invalid_answer_rate": 0.01,
        "nonfinite_rollouts": 0,
        "strategies": strategies_to_json(
            [*(one for one, _, _ in covered), GREEDY, SINGLE, *(c[0] for c in curves), *searches]
        ),
        "coverage": {str(k): values[COVERAGE.at(k)] for k in ks},
        "accuracy": {
            "greedy": values[GREEDY],
            "single": values[SINGLE],
            **{part.name: {str(k): values[of_aggregation(part, k)] for k in ks} for part in parts},
            **{one.method: {str(one.budget): values[one]} for one in searches},
        },
        "confidence_interval": {one.key: [max(0, v - reach), min(1, v + reach)] for one, v in values.items()},
        "difference_to_majority_voting": {},
        "head_room_recovered": {},
        "diversity": {"mean": None, "per_step": [None] * 6}
        if num_rollouts == 1
        else {"mean": 0.2, "per_step": [0.1, 0.15, 0.2, 0.2, 0.25, 0.3]},
        "token_steps": {
            "greedy": 65.0,
            "rollouts": {str(k): 50.0 + 15 * k for k in ks},
            **{part.name: {str(k): 50.0 + (15 + 9 * part.needs_scores) * k for k in ks} for part in parts},
            **{one.method: {str(one.budget): 200.0 + 90 * i} for i, one in enumerate(searches)},
        },
        "throughput": {"rollouts_per_second": 118.04},
    }


def _value(height: float, number: int, k: int, spread: float) -> float:
    """Coverage rises with k, the others lie close together below it; all stay in 0..1, and at 0 and 1 they meet."""
    rise = spread * (k.bit_length() if number < 0 else 1 - number / 7)
    return height + rise * min(height, 1 - height) / 0.5
