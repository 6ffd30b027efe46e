"""A quick start: Lightning imports torchmetrics, which imports everything that any of its metrics might want.

Its metrics of speech, text and image pull in scipy, transformers' model classes and matplotlib wherever these are installed,
which takes longer than torch and Lightning together. The metrics used here need none of them.
"""

from __future__ import annotations

from unittest.mock import patch

_EXTRAS = ("matplotlib", "scipy", "transformers")


def import_torchmetrics_alone() -> None:
    """Imports torchmetrics as if those packages were not installed; comes before the first import of Lightning.

    The process then lacks the metrics that need them (BERTScore, CLIPScore, InfoLM) and the metrics' own ``plot``; the
    packages themselves can be imported as ever.
    """
    from lightning_utilities.core import imports

    installed, importable = imports.RequirementCache.__bool__, imports.package_available
    with (
        patch.object(
            imports.RequirementCache, "__bool__", lambda self: not _is_extra(self.requirement) and installed(self)
        ),
        patch.object(imports, "package_available", lambda name: not _is_extra(name) and importable(name)),
    ):
        import torchmetrics  # noqa: F401


def _is_extra(requirement: str | None) -> bool:
    return requirement is not None and requirement.startswith(_EXTRAS)
