"""Decoding the golden prompts: what is asked of an engine, and what decoding them once gives, whichever engine it is.

Rules: prompts are tokenized once and every run answers the same ids; one folder a run, written by the process that
decoded and read by the check; what comes back is one number a position, so that a check's memory does not grow with the
vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.catalog.golden import Example, GoldenPrompt, Match
from pipeline.errors import StageError, ToolError
from pipeline.manifest.encoding import Count, Record

REQUESTS_FILE = "requests.json"
RUN_FILE = "run.json"
LOGITS_FILE = "forced.f32"
F32_BYTES = 4


class Request(Record):
    """A prompt in tokens.

    `forced` are the ids of the prompt and the expected answer together, of which the first `prompt_length` are the
    prompt; their next-token distributions are compared. At most `max_tokens` are generated after `prompt`.
    """

    id: str
    prompt: list[Count]
    forced: list[Count]
    prompt_length: Count
    max_tokens: Count

    @classmethod
    def of(cls, prompt: GoldenPrompt, tokenize: Callable[[str, str | None], list[int]]) -> Request:
        """Return a golden prompt in tokens, by a function of the prompt and, where given, its answer."""
        ids = tokenize(prompt.prompt, None)
        # A pattern is no answer to be forced; of such a prompt only its own positions are compared.
        forced = ids if prompt.match is Match.REGEX else tokenize(prompt.prompt, prompt.expected)
        return cls.between(prompt.id, ids, forced, max_tokens=prompt.max_tokens)

    @classmethod
    def between(cls, name: str, prompt: list[int], forced: list[int], *, max_tokens: int = 0) -> Request:
        """Return a request by a prompt's ids, and those of prompt and answer together."""
        return cls(
            id=name,
            prompt=prompt,
            forced=forced,
            prompt_length=common_prefix(prompt, forced),
            max_tokens=max_tokens,
        )

    @property
    def answer_start(self) -> int:
        """The forced position that predicts the answer's first token; behind the last where there is no answer."""
        return self.prompt_length - 1 if self.prompt_length < len(self.forced) else len(self.forced)


class Requests(Record):
    """All golden prompts in tokens, in their file's order."""

    requests: list[Request]

    @property
    def rows(self) -> int:
        """Forced positions of all requests together: rows of a file of logits."""
        return sum(len(request.forced) for request in self.requests)

    def at(self, places: Sequence[int]) -> Requests:
        """Return the requests at some places alone."""
        return Requests(requests=[self.requests[place] for place in places])

    def without_answers(self) -> Requests:
        """Return the same requests with nothing to generate: for the forced logits alone."""
        return Requests(requests=[r.model_copy(update={"max_tokens": 0}) for r in self.requests])


class GoldenAnswer(Record):
    """One prompt's answer.

    `tokens` are the generated ids without the end token; `ttft_ns` and `step_ns` are wall-clock nanoseconds to the
    first token and for each later one; `margins` the gap of the two highest logits at each generated token, the end
    token included. Against a reference run: `kl` (nats, reference over this run) at each forced position, `nll` and
    `reference_nll` the negative log-likelihood of each forced token but the first.
    """

    id: str
    tokens: list[Count]
    text: str
    ttft_ns: Count
    step_ns: list[Count]
    margins: list[float] = Field(default_factory=list)
    kl: list[float] = Field(default_factory=list)
    nll: list[float] = Field(default_factory=list)
    reference_nll: list[float] = Field(default_factory=list)


class GoldenRun(Record):
    """All answers of one run, the tokens of further passes, and the peak resident bytes of the decoding processes."""

    vocabulary: Count
    peak_rss_bytes: Count
    answers: list[GoldenAnswer]
    repeats: list[list[list[Count]]] = Field(default_factory=list)
    engine: dict[str, str] = Field(default_factory=dict)

    @property
    def tokens(self) -> list[list[int]]:
        return [answer.tokens for answer in self.answers]

    @property
    def repeatable(self) -> bool:
        """Whether every further pass, of which there must be one, gave the same tokens."""
        return bool(self.repeats) and all(tokens == self.tokens for tokens in self.repeats)


def read_requests(path: Path) -> Requests:
    """Return the requests in a file; raises StageError where they are missing or damaged."""
    try:
        return Requests.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as e:
        raise StageError(
            f"{path}: no usable requests: {str(e).splitlines()[0]}", hint="dvc repro, or fetch the build again"
        ) from e


def read_run(folder: Path) -> GoldenRun:
    """Return what a decoding process wrote into `folder`; raises ToolError where it is not whole."""
    try:
        return GoldenRun.model_validate_json((folder / RUN_FILE).read_bytes())
    except (OSError, ValidationError) as e:
        raise ToolError(
            f"the decoding process left no usable result: {str(e).splitlines()[0]}", hint="look at its messages"
        ) from e


def some_of_each(prompts: Sequence[GoldenPrompt | Example], count: int) -> list[int]:
    """Return the places of the first `count` prompts of each family, ascending: what a slow machine is asked."""
    asked: Counter[str] = Counter()
    places = []
    for place, prompt in enumerate(prompts):
        asked[prompt.family] += 1
        if asked[prompt.family] <= count:
            places.append(place)
    return places


def select(requests: Requests, logits: Path, places: Sequence[int], out: Path) -> tuple[Path, Path]:
    """Write the requests at some places, and their rows of a file of logits, into `out`; return both paths.

    Raises:
        StageError: the logits are not of these requests.
    """
    out.mkdir(parents=True, exist_ok=True)
    row, rest = divmod(logits.stat().st_size, max(1, requests.rows))
    if rest or row % F32_BYTES:
        raise StageError(f"{logits} is not of these requests", hint="dvc repro, or fetch the build again")
    chosen, rows = out / REQUESTS_FILE, out / LOGITS_FILE
    chosen.write_bytes(requests.at(places).encode())
    with logits.open("rb") as source, rows.open("wb") as target:
        for start, count in _spans(requests, places):
            source.seek(start * row)
            target.write(source.read(count * row))
    return chosen, rows


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading ids two sequences share: the prompt's length within prompt and answer."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _spans(requests: Requests, places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each chosen request."""
    wanted, start = set(places), 0
    for place, request in enumerate(requests.requests):
        if place in wanted:
            yield start, len(request.forced)
        start += len(request.forced)
