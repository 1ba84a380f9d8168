"""Costed graphs, with nothing to execute: `planning` plans them, `draft` books them, `interchange` and `dot` read other formats."""
