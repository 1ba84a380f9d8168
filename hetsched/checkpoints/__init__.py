"""Checkpoints: runs of long loops that can be taken up again where they stood. See docs/decisions/0016-checkpoints-between-pieces.md."""

from hetsched.checkpoints.asked import Checkpoint

__all__ = ["Checkpoint"]
