"""What routing is asked for a client's request.

Rules: tokens are counted where their bound might exceed a limit; a name that is neither a size nor a variant of the
release is refused; a key's class holds whatever the request says.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.serving import affinity
from pipeline.serving.decision import Hint, Priority, Request
from pipeline.serving.gateway.ask import Ask, Kind
from pipeline.serving.gateway.callers import KeyEntry
from pipeline.serving.gateway.fleet import Fleet
from pipeline.serving.gateway.offers import Offers
from pipeline.serving.gateway.problems import Problem
from pipeline.serving.gateway.tokens import Counter


def classed(ask: Ask, entry: KeyEntry | None) -> Ask:
    """Return what is asked in the class that the key allows."""
    if entry is None or entry.priority is Priority.INTERACTIVE:
        return ask
    return replace(ask, priority=entry.priority)


async def question(ask: Ask, counter: Counter, fleet: Fleet) -> Request:
    """Return what routing is asked; raises Problem where the model is unknown."""
    hint, variant = ask.hint, None
    if hint is None:
        hint, variant = Hint.AUTO, _variant(ask.model, fleet.offers)
    within = min(fleet.policy.tiny_prompt_tokens - 1, fleet.context() - (ask.max_tokens or 1)) - ask.given_tokens
    tokens, counted = await counter.count(ask.texts, chat=ask.kind is not Kind.COMPLETIONS, enough=within)
    return Request(
        prompt_tokens=tokens + ask.given_tokens,
        max_tokens=ask.max_tokens,
        hint=hint,
        family=ask.family,
        sensitive=ask.sensitive,
        priority=ask.priority,
        deadline_ms=ask.deadline_ms,
        affinity=ask.session or affinity.prefix_key(ask.texts[0] if ask.texts else ""),
        variant=variant,
        counted=counted,
    )


def _variant(model: str, offers: Offers) -> str:
    if any(name == model for name, _ in offers):
        return model
    message = f"no model {model!r}; GET /v1/models lists what there is, 'auto' lets the gateway choose"
    raise Problem(404, "model_not_found", message, param="model")
