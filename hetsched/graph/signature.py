"""The parameters of a user's function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters in order.

    From Python 3.14 on an annotation is worked out when somebody asks for it, and may be of a name that is there for type checkers only: such a one
    is left as it is written, where `inspect.signature` would raise `NameError`.
    """
    if sys.version_info >= (3, 14):
        import annotationlib

        return list(inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF).parameters.values())
    return list(inspect.signature(function).parameters.values())
