"""What a server's pod asks for: memory from what was measured of the variant, GPUs from how it is split.

Rules: pure; without a measurement there is no size, and nothing is guessed. Keys and values are counted in f32 for
every head, as if none were shared: a model may take less, never more.
"""

from __future__ import annotations

from pipeline.errors import StageError
from pipeline.manifest.statement import VariantEntry

F32 = 4  # bytes
BATCH = 512  # tokens decoded together
HEAD = 64  # numbers of a head, the fewest that models of these tiers have
PROMPTS = 128 << 20  # bytes of prompts that left their slots
AGENT = 192 << 20  # bytes of the agent, and of the server's own code
SHARE = 0.8  # of its memory that a node plans with
STEP = 64 << 20  # bytes that sizes are rounded up to


def edge_memory(entry: VariantEntry, slots: int, context: int) -> int:
    """Return the bytes that a node with so many slots of so many tokens takes."""
    model = entry.model
    cached = slots * context * model.layers * 2 * model.hidden * F32
    scores = context * max(1, model.hidden // HEAD) * BATCH * F32
    return _rounded((measured(entry) + cached + scores + PROMPTS) / SHARE + AGENT)


def large_memory(entry: VariantEntry) -> int:
    """Return the bytes that a large server takes on its host: weights pass through, whatever the GPUs hold."""
    weights = sum(f.size for f in entry.files)
    return _rounded(max(measured(entry), weights) / SHARE + AGENT)


def gpus(entry: VariantEntry) -> int:
    """Return how many GPUs the variant is split over."""
    return entry.model.tensor_parallel


def measured(entry: VariantEntry) -> int:
    """Return the peak resident bytes of the process that decoded; raises StageError where none was measured."""
    found = [m.peak_rss_bytes for m in entry.measurements]
    if not found:
        raise StageError(
            f"{entry.name} has no measurement, so its memory is unknown", hint="release it with one: edge-release check"
        )
    return max(found)


def quantity(size: int) -> str:
    """Return bytes as Kubernetes writes them."""
    return f"{size >> 20}Mi"


def _rounded(size: float) -> int:
    return -(-int(size) // STEP) * STEP
