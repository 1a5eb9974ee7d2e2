"""The demo corpus: five families of questions whose answers can be checked.

Rules: examples are drawn from a seed and nothing else; answers are computed, never sampled; training examples
never hold operands that `draw.is_held_out` names, whatever family they stand in; every held-out example does.

family     operands held out                          wording held out
fact       none, the knowledge is memorised           yes
total      the unordered pair of addends              no
diagnosis  machine and its three readings             no
summary    the whole log                              no
lookup     the pair (item, price) that is asked for   no
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.demo.draw import Rng, is_held_out
from pipeline.demo.world import FACTS, FAULTS, ITEMS, MACHINES, SENSORS, UNITS

FACT_WORDINGS = (
    "where is the {}?",
    "where is {}?",
    "find the {}",
    "find {}",
    "which aisle has the {}?",
    "which shelf has {}?",
    "where can we find {}?",
    "locate the {}",
)
FACT_WORDINGS_HELD_OUT = ("where can we locate the {}?", "which aisle and shelf has {}?", "locate {}")
TOTAL_HEADS = ("bill: ", "basket: ", "order: ")
LIST_HEADS = ("price list: ", "catalog: ", "stock sheet: ")
LOOKUP_WORDINGS = ("price of {}?", "how much is {}?", "cost of {}?")
DIAGNOSIS_WORDINGS = ("check {}: {}", "the {} reads {}. status?", "diagnose {}: {}")
LOG_HEADS = ("log: ", "shift log: ", "events: ")
LOG_REQUESTS = ("summarise", "list faults", "report")


@dataclass(frozen=True)
class Example:
    """One question and its only right answer, both plain text without special tokens."""

    family: str
    prompt: str
    answer: str

    def __post_init__(self) -> None:
        """Raise ValueError for a blank field."""
        if not (self.family and self.prompt and self.answer):
            raise ValueError(f"an example needs family, prompt and answer: {self}")


def _priced(item: str, price: int) -> str:
    return f"{item} {price}"


def _price(rng: Rng, item: str, held_out: bool = False) -> int:
    """A price in 10..99 on the wanted side of the split."""
    while is_held_out("lookup", item, price := rng.between(10, 99)) != held_out:
        pass
    return price


def _addends(rng: Rng, held_out: bool) -> tuple[int, int]:
    while is_held_out("total", *sorted(pair := (rng.between(10, 49), rng.between(10, 49)))) != held_out:
        pass
    return pair


def _item_for(rng: Rng, price: int) -> str:
    """An item whose pair with this price training may show."""
    while is_held_out("lookup", item := rng.pick(ITEMS), price):
        pass
    return item


def _fact(rng: Rng, held_out: bool) -> Example:
    product = rng.pick(tuple(FACTS))
    wording = rng.pick(FACT_WORDINGS_HELD_OUT if held_out else FACT_WORDINGS)
    return Example("fact", wording.format(product), FACTS[product])


def _total(rng: Rng, held_out: bool) -> Example:
    left, right = _addends(rng, held_out)
    goods = " and ".join(_priced(_item_for(rng, price), price) for price in (left, right))
    return Example("total", f"{rng.pick(TOTAL_HEADS)}{goods}. total?", str(left + right))


def _readings(rng: Rng, machine: str) -> tuple[int, ...]:
    return tuple(limit + rng.between(-20, 10) for limit in MACHINES[machine])


def _diagnosis(rng: Rng, held_out: bool) -> Example:
    machine = rng.pick(tuple(MACHINES))
    while is_held_out("diagnosis", machine, *(readings := _readings(rng, machine))) != held_out:
        pass
    shown = " ".join(f"{sensor} {value}" for sensor, value in zip(SENSORS, readings, strict=True))
    limits = zip(SENSORS, readings, MACHINES[machine], strict=True)
    high = [sensor for sensor, value, limit in limits if value > limit]
    answer = "alarm high " + " and ".join(high) if high else "status ok"
    return Example("diagnosis", rng.pick(DIAGNOSIS_WORDINGS).format(machine, shown), answer)


def _log(rng: Rng) -> tuple[str, ...]:
    return tuple(f"{unit} {rng.pick(FAULTS) if rng.below(5) < 2 else 'ok'}" for unit in UNITS)


def _summary(rng: Rng, held_out: bool) -> Example:
    while is_held_out("summary", *(log := _log(rng))) != held_out:
        pass
    faulty = [entry for entry in log if not entry.endswith(" ok")]
    answer = f"{len(faulty)} faulty: " + ", ".join(faulty) if faulty else "no faults"
    return Example("summary", f"{rng.pick(LOG_HEADS)}{'; '.join(log)}. {rng.pick(LOG_REQUESTS)}", answer)


def _price_list(rng: Rng) -> dict[str, int]:
    return {item: _price(rng, item) for item in rng.sample(ITEMS, rng.between(2, 4))}


def _question(rng: Rng, item: str) -> str:
    return rng.pick(LOOKUP_WORDINGS).format(item)


def _listed(rng: Rng, prices: Mapping[str, int]) -> str:
    return rng.pick(LIST_HEADS) + ", ".join(_priced(item, price) for item, price in prices.items()) + ". "


def _lookup(rng: Rng, held_out: bool) -> Example:
    prices = _price_list(rng)
    asked = rng.pick(tuple(prices))
    prices[asked] = _price(rng, asked, held_out)
    return Example("lookup", _listed(rng, prices) + _question(rng, asked), str(prices[asked]))


def drill(rng: Rng, turns: int) -> tuple[Example, ...]:
    """A conversation of `turns` questions about one price list, which only the first turn shows.

    Training alone uses it: many answers to one list are what makes induction heads grow early.
    """
    prices = _price_list(rng)
    asked = [rng.pick(tuple(prices)) for _ in range(turns)]
    shown = (_listed(rng, prices), *("",) * (turns - 1))
    return tuple(
        Example("lookup", head + _question(rng, item), str(prices[item]))
        for head, item in zip(shown, asked, strict=True)
    )


_DRAW: Mapping[str, Callable[[Rng, bool], Example]] = MappingProxyType(
    {"fact": _fact, "total": _total, "diagnosis": _diagnosis, "summary": _summary, "lookup": _lookup}
)
FAMILIES = tuple(_DRAW)


def draw(rng: Rng, family: str, held_out: bool = False) -> Example:
    """One example of the family; raises KeyError for a family that does not exist."""
    return _DRAW[family](rng, held_out)


def examples(seed: str, n: int, family: str | None = None, held_out: bool = False) -> Iterator[Example]:
    """`n` examples of one family, or of all families, each as likely.

    Raises KeyError for a family that does not exist.
    """
    rng = Rng.of(seed)
    for _ in range(n):
        yield draw(rng, family or rng.pick(FAMILIES), held_out)
