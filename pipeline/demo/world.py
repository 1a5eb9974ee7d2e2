"""The small world the demo corpus speaks of: goods on shelves and machines with limits.

Rules: everything here is constant; what looks random was drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pipeline.demo.draw import Rng

ITEMS = (
    *("tea", "rice", "soap", "milk", "salt", "oats", "beans", "flour", "honey", "pasta", "juice", "bread"),
    *("butter", "cheese", "coffee", "sugar", "pepper", "onion", "apple", "lemon"),
    *("candle", "brush", "towel", "glue"),
)
KINDS = ("black", "green", "red", "dry", "mini", "gold")
SENSORS = ("temp", "vib", "load")
UNITS = ("pump", "fan", "press", "oven")
FAULTS = ("leak", "stall", "noise", "jam", "trip", "overheat")


def _facts() -> Mapping[str, str]:
    rng = Rng.of("facts")
    products = sorted(rng.sample([f"{kind} {item}" for item in ITEMS for kind in KINDS], 96))
    return MappingProxyType({product: f"aisle {rng.between(1, 24)} shelf {rng.pick('ABCDEF')}" for product in products})


def _machines() -> Mapping[str, tuple[int, int, int]]:
    rng = Rng.of("machines")
    return MappingProxyType(
        {unit: (5 * rng.between(10, 16), 5 * rng.between(7, 14), 5 * rng.between(10, 16)) for unit in UNITS}
    )


FACTS = _facts()
"""Where each product is: `aisle 12 shelf C` by product."""

MACHINES = _machines()
"""The highest normal reading of each sensor, in the order of `SENSORS`, by machine; whole units."""
