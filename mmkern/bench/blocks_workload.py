"""A block workload: how to build it and what it is called; the tables of them are beside this."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: what is said of inputs that are images
PHOTOS = "photographs"


@dataclass(frozen=True)
class BlockWorkload:
    """build() makes the module, in float32, and its keyword inputs.

    library: what build() imports. wide: names of inputs, and parts of names of weights, that stay
    float32 in every dtype, as the model keeps them.
    """

    name: str
    library: str
    model: str
    shape: str
    scale: str
    build: Callable
    inputs: str = "random"
    wide: tuple = ()
    quick: bool = False
    compiles: bool = True

    def missing(self):
        """The library that the block needs and that is not installed, or None."""
        return None if importlib.util.find_spec(self.library) else self.library


def normal(*shape):
    """A random normal input."""
    return torch.randn(shape)
