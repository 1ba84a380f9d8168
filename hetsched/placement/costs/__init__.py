"""Seconds and joules of launches and copies: the cost models and the objective."""

from hetsched.placement.costs.estimate import CostModel, Estimate
from hetsched.placement.costs.roofline import RooflineCosts

__all__ = ["CostModel", "Estimate", "RooflineCosts"]
