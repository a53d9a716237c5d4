"""Optimizers over named parameters, one fused native call a step, and learning-rate schedules.

A step clips by value, then by global norm, then updates in place, with PyTorch's formulas.
"""

from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .schedules import ConstantLR, CosineLR, ExponentialLR, Schedule, StepLR, WarmUp

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "ConstantLR",
    "CosineLR",
    "ExponentialLR",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "StepLR",
    "WarmUp",
]
