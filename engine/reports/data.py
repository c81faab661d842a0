"""The pages of the data: what came in, what became of it, how long it is, and what it looks like to a model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engine.artifact import HANDED_DOWN, Artifact
from engine.errors import DataError, StoreError
from engine.reports.behind import behind
from engine.reports.drawing import AFTER, BEFORE, PLAIN
from engine.reports.evaluation import contents
from engine.reports.ledgers import CUTS, where_rows_went
from engine.reports.markdown import escape, is_number, number, share, table
from engine.reports.page import Part, TokenView

if TYPE_CHECKING:
    from engine.preferences.drift import Drift, Tally
    from engine.reports.lengths import Lengths
    from engine.reports.sampled import Sampled

_GONE = "Its tables were removed; what is told here is what the manifest has of them."
_NAMED = 12  # sources
_SIGNS = {"␣": "␣ is a space", "⏎": "⏎ is the end of a line", "₁": "字₁ 字₂ are parts of one character"}
_CANDIDATES = 20  # for the pair that is shown


def download_parts(artifact: Artifact) -> Iterator[Part]:
    """Rows read, kept and refused with reasons, pairs by source, lengths in characters; without what is gone."""
    metrics = artifact.metrics
    yield _GONE if artifact.pruned else ""
    yield _read(metrics)
    yield from _told(lambda: where_rows_went("Where the rows went", artifact, {"kept": _rows_kept(metrics)}))
    yield from _told(lambda: _by_source(artifact))
    yield from _told(lambda: _in_characters(artifact))


def tokenize_parts(artifact: Artifact) -> Iterator[Part]:
    """What was cut and dropped, lengths in tokens with the cuts, one typical pair; without what is gone."""
    yield _GONE if artifact.pruned else ""
    yield from _told(lambda: _cuts(artifact))
    yield from _told(lambda: _in_tokens(artifact))
    yield from _told(lambda: _typical_pair(artifact))


def subsample_parts(artifact: Artifact) -> Iterator[Part]:
    """Which pairs were taken, and shares by source and by length before and after; without what is gone."""
    metrics = artifact.metrics
    yield _GONE if artifact.pruned else ""
    yield from _told(lambda: where_rows_went("Where the pairs went", artifact, _taken(metrics)))
    if metrics.get("duplicates") == metrics.get("contradictions") == 0:
        yield "There are no duplicates and no contradictions among them."
    yield from _told(lambda: _shares(artifact))


def _told(parts: Callable[[], Iterator[Part]]) -> Iterator[Part]:
    """As many of the parts as can be told: of a file that is gone none, and a word where one is broken."""
    try:
        yield from parts()
    except StoreError:
        return
    except (DataError, KeyError, TypeError, ValueError) as error:
        problem = error.problem if isinstance(error, DataError) else "a table does not hold what it should"
        yield f"*Something is left out here: {escape(problem, 200)}.*"


def _read(metrics: Mapping[str, Any]) -> str:
    read, pairs, refused = (metrics.get(name) for name in ("rows_read", "pairs", "refused"))
    if not (is_number(read) and is_number(pairs) and is_number(refused)):
        return ""
    which = f"{number(refused)} of {number(read)} rows ({share(refused / read)}) were" if refused else "no row was"
    several = "" if pairs == read - refused else f" from {number(read - refused)} rows"
    return f"{number(pairs)} pairs were read{several}, and {which} refused.{_formats(metrics)}"


def _formats(metrics: Mapping[str, Any]) -> str:
    """The formats, each with what it was told by where that was recorded."""
    recognised, formats = metrics.get("recognised"), metrics.get("formats")
    if isinstance(recognised, list) and all(isinstance(each, Mapping) for each in recognised):
        told = [f"{each.get('format')} ({each.get('why')})" for each in recognised[:_NAMED]]
    else:
        told = list(map(str, formats)) if isinstance(formats, list) else []
    return f" Format: {escape('; '.join(told), 300)}." if told else ""


def _rows_kept(metrics: Mapping[str, Any]) -> float | None:
    """Rows that hold a pair, or several."""
    read, refused = metrics.get("rows_read"), metrics.get("refused")
    return read - refused if is_number(read) and is_number(refused) else None


def _by_source(artifact: Artifact) -> Iterator[Part]:
    from engine.preferences.schema import PAIRS, read_batches
    from engine.reports.pictures import Bar, bars

    counts: Counter[str] = Counter()
    for batch in read_batches(artifact.file("pairs.parquet"), PAIRS, ["source"]):
        for entry in batch["source"].value_counts().to_pylist():
            counts[entry["values"] or ""] += entry["counts"]
    named = counts.most_common(_NAMED)
    rest = counts.total() - sum(count for _, count in named)
    if len(counts) == 1:
        yield f"All pairs come from {escape(named[0][0], 80)}."
    elif counts:
        others = [(f"{number(len(counts) - _NAMED)} others", rest)] if rest else []
        yield bars("Pairs by source", [Bar(name, [count]) for name, count in named + others], [("pairs", PLAIN)])


def _in_characters(artifact: Artifact) -> Iterator[Part]:
    from engine.reports.lengths import in_characters
    from engine.reports.sampled import sampled

    found = sampled(artifact.file("pairs.parquet"))
    if found.rows:
        lengths = in_characters(found)
        yield found.words
        yield lengths.responses("Length of the responses", "characters")
        yield lengths.table("characters")
        yield lengths.words()


def _cuts(artifact: Artifact) -> Iterator[Part]:
    """What the limits took away. All rows are counted, which four columns of numbers allow."""
    from engine.preferences.schema import TOKENS, read_batches

    columns = [f"{cut}_tokens" for cut in CUTS]
    pairs, lost, rows, with_cut = Counter[str](), Counter[str](), 0, 0
    for batch in read_batches(artifact.file("pairs.parquet"), TOKENS, columns):
        numbers = {name: batch[name].to_numpy(zero_copy_only=False) for name in columns}
        rows, with_cut = rows + batch.num_rows, with_cut + int((sum(numbers.values()) > 0).sum())
        pairs.update({name: int((cut > 0).sum()) for name, cut in numbers.items()})
        lost.update({name: int(cut.sum()) for name, cut in numbers.items()})
    kept = {"whole": rows - with_cut, "with something cut away": with_cut}
    yield from where_rows_went("What became of the pairs", artifact, kept)
    cells = [[what, number(pairs[f"{cut}_tokens"]), number(lost[f"{cut}_tokens"])] for cut, what in CUTS.items()]
    yield table(["cut away", "pairs", "tokens"], cells) if with_cut else "No pair was cut."
    yield _limits(contents(artifact, HANDED_DOWN))


def _limits(limits: Mapping[str, Any]) -> str:
    row, prompt = limits.get("max_length"), limits.get("max_prompt_length")
    if not is_number(row) or not is_number(prompt):
        return ""
    return f"A prompt may have {number(prompt)} tokens, and {number(row)} together with a response."


def _in_tokens(artifact: Artifact) -> Iterator[Part]:
    import numpy as np

    from engine.reports.lengths import in_tokens, with_cut
    from engine.reports.sampled import sampled

    found = sampled(artifact.file("pairs.parquet"))
    if not found.rows:
        return
    lengths, limits = in_tokens(found), contents(artifact, HANDED_DOWN)
    whole = np.concatenate([lengths.prompts + lengths.chosen, lengths.prompts + lengths.rejected])
    yield found.words
    yield lengths.responses("Scored tokens of the responses", "tokens")
    yield with_cut("Prompt and response together", "rows", whole, limits.get("max_length"), y="rows")
    yield with_cut("Length of the prompts", "prompts", lengths.prompts, limits.get("max_prompt_length"), y="pairs")
    yield lengths.table("tokens")
    yield lengths.words()


def _typical_pair(artifact: Artifact) -> Iterator[Part]:
    """A pair that is not cut and of middling length; the same each time. One that spells a secret is passed over."""
    from engine.reports.lengths import in_tokens
    from engine.reports.sampled import sampled
    from engine.reports.token_view import COLUMNS, token_view
    from engine.secrets import redact

    found = sampled(artifact.file("pairs.parquet"), 5_000)
    if not found.rows:
        return
    for at in _middling(found, in_tokens(found)):
        row = found.row(at, COLUMNS)
        if all(redact(row[name]) == row[name] for name in ("prompt", "chosen", "rejected")):
            view = token_view(artifact, row)
            yield view
            yield _reading(view)
            return


def _reading(view: TokenView) -> str:
    """How to read the tokens; only signs that occur are explained."""
    shown = "".join(token.text for _, tokens in view.rows for token in tokens)
    signs = ", ".join(words for sign, words in _SIGNS.items() if sign in shown)
    return (
        f"The model reads the prompt and is scored on the response, whose tokens are set apart.{signs and f' {signs}.'}"
    )


def _middling(found: "Sampled", lengths: "Lengths") -> list[int]:
    """Rows by how near they are to the median length; those that were cut come last."""
    import numpy as np

    columns = [f"{cut}_tokens" for cut in CUTS]
    cut = np.concatenate([sum(rows[name].to_numpy() for name in columns) > 0 for rows in found.tables(columns)])
    total = 2 * lengths.prompts + lengths.chosen + lengths.rejected
    order: list[int] = np.lexsort([np.abs(total - np.median(total)), cut])[:_CANDIDATES].tolist()
    return order


def _taken(metrics: Mapping[str, Any]) -> dict[str, Any]:
    there, train, held_out = (metrics.get(name) for name in ("pairs_in", "train_pairs", "eval_pairs"))
    aside = [metrics.get(name, 0) for name in ("duplicates", "contradictions")]
    counted = [there, train, held_out, *aside]
    rest = there - sum(counted[1:]) if all(map(is_number, counted)) else None
    return {"to train on": train, "held out to judge by": held_out, "not drawn": rest}


def _shares(artifact: Artifact) -> Iterator[Part]:
    """The shares of all pairs, as tokenize tallied them, beside those of the pairs to train on."""
    from engine.preferences.drift import drifts
    from engine.reports.sampled import sampled
    from engine.secrets import redacted

    found, source = sampled(artifact.file("train.parquet")), behind(artifact, "tokenize")
    after = redacted(_tally(found).records())
    moved = drifts(source.metrics if source else after, after)
    if moved:
        yield found.words
    for each in moved:
        yield from _moved(each, known=source is not None)


def _tally(found: "Sampled") -> "Tally":
    from engine.preferences.drift import Tally
    from engine.reports.lengths import in_tokens

    tally = Tally()
    for rows in found.tables(["source"]):
        tally.add_sources(rows)
    lengths = in_tokens(found)
    for side in (lengths.chosen, lengths.rejected):
        tally.add_lengths(side)
    return tally


def _moved(moved: "Drift", *, known: bool) -> Iterator[Part]:
    """Bars of one dimension's shares; `known`: whether those before are."""
    from engine.preferences.drift import LENGTHS
    from engine.reports.pictures import Bar, bars

    shares = {name: (before, after) for name, before, after in moved.shares}
    if len(shares) == 1:
        return
    order = [name for name in LENGTHS if name in shares] or sorted(shares, key=lambda name: -max(shares[name]))[:_NAMED]
    of = "tokens of the responses" if moved.dimension != "source" else "source"
    if not known:
        yield bars(f"Shares by {of}", [Bar(name, shares[name][1:]) for name in order], [("after", AFTER)], form=share)
        return
    series = [("all pairs", BEFORE), ("to train on", AFTER)]
    yield bars(f"Shares by {of}", [Bar(name, shares[name]) for name in order], series, form=share)
    name, before, after = moved.shares[0]
    yield f"The largest move: {escape(name, 80)}, from {share(before)} to {share(after)}."
