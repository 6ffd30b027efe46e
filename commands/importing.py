"""The time until a command's first batch is mostly that of its imports."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from callbacks.signals import STOP

_END_WITHIN = 20.0  # seconds that a signal waits for the imports' end: on a network's file system they may take long


@contextmanager
def importing() -> Iterator[None]:
    """Within it the large packages are imported without Python's cyclic garbage collector.

    They make half a million objects that live as long as the process, and the collector would walk all of them again and
    again to find no garbage: a quarter of the imports' time. Afterwards they are set aside (`gc.freeze`), so that no later
    collection walks them either, and processes forked for the data share their pages.

    A signal waits for the end of the imports: packages written in C make an error of their own of one that is interrupted.
    """
    if not gc.isenabled() or "torch" in sys.modules:  # somebody else has chosen, or there is nothing left to gain
        yield
        return
    gc.disable()
    STOP.hold(_END_WITHIN)
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        STOP.release()
