"""The time until a command's first batch is mostly that of its imports."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Within it the large packages are imported without Python's cyclic garbage collector.

    They make half a million objects that live as long as the process, and the collector would walk all of them again and
    again to find no garbage: a quarter of the imports' time. Afterwards they are set aside (`gc.freeze`), so that no later
    collection walks them either, and processes forked for the data share their pages.
    """
    if not gc.isenabled() or "torch" in sys.modules:  # somebody else has chosen, or there is nothing left to gain
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
