"""How many problems of a source can be resampled, why the others can't, and what resampled ones look like.

python -m commands.resampling_report --source data/gsm8k/train.jsonl --show 20
"""

import sys

from commands.tools import run_tool
from datamodules.resampling.resampled import Resampled, templates_of
from datamodules.sources.catalogue import find_table
from datamodules.sources.rows import GoodRows, to_example, to_question
from latent_tts.errors import UserError


def main(
    source: str,
    split: str = "train",
    exclude: list[str] | None = None,
    show: int = 20,
    seed: int = 0,
    skip_bad_rows: bool = False,
) -> None:
    """Print how many problems can be resampled, the reasons of the others, and examples.

    Args:
        source: A file, a known set such as gsm8k, or the id of a hub set.
        split: Split of a hub set.
        exclude: Files and sets whose questions, with these or other numbers, are kept out.
        show: Number of resampled problems to print.
        seed: Seed of these problems.
        skip_bad_rows: Whether rows that can't be read are left out.
    """
    rows = GoodRows(find_table(source, split), to_example, skip_bad_rows)
    examples = list(rows)
    excluded = [q for name in exclude or [] for q in GoodRows(find_table(name), to_question, skip_bad_rows)]
    templates, left_out = templates_of((example for example in examples if example is not None), excluded)
    left_out["it has no steps"] += examples.count(None)
    print(
        f"{len(templates)} of {len(examples)} problems can be resampled ({len(templates) / len(examples):.1%}); of the others"
    )
    for reason, count in left_out.most_common():
        print(f"{count:7}  {reason}")
    if not templates:
        raise UserError(f"no problem of {source!r} can be resampled: name another source")
    resampled = Resampled(templates, seed)
    for i in range(show):
        example = resampled.example(i)
        print(f"\n[{i}] {example.question}\n    {' '.join(example.steps)}  {example.answer}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
