"""SFT examples as token rows: prompt ids unscored, response ids scored, cut as pairs are."""

from collections.abc import Iterator, Sequence

import numpy as np

from engine.errors import DataError
from engine.preferences.instructions import Instruction
from engine.preferences.ledger import Ledger
from engine.preferences.pairs import TokenRow
from engine.preferences.templates import Template
from engine.preferences.tokenizing import Limits, fit_response

CUTS = ("prompt_cut", "response_cut")  # ledger notes on examples that stay; every other reason is a drop


def token_rows(examples: Sequence[Instruction], template: Template, limits: Limits, ledger: Ledger) -> list[TokenRow]:
    """One row an example, in order, less those whose response has no room; cuts and drops go into the ledger."""
    rendered = list(_rendered(examples, template, ledger))
    prompts = template.encode_prompts([text for _, text in rendered])
    responses = template.response_ids([example.response for example, _ in rendered])
    rows = []
    for (example, _), prompt, response in zip(rendered, prompts, responses, strict=True):
        kept = template.cut_prompt(prompt, limits.max_prompt_length)
        scored, response_cut = fit_response(response, template.end_ids, limits.max_length - len(kept))
        _note(example, len(kept), len(scored), (len(prompt) - len(kept), response_cut), ledger)
        if scored:
            ids = np.array([*kept, *scored], dtype=np.int32)
            rows.append(TokenRow(ids, np.arange(len(ids)) >= len(kept)))
    return rows


def _rendered(examples: Sequence[Instruction], template: Template, ledger: Ledger) -> Iterator[tuple[Instruction, str]]:
    for example in examples:
        try:
            text = template.render_prompt(example.prompt)
        except DataError as error:
            detail = " ".join(filter(None, (error.problem, error.found)))
            ledger.add("refused_by_template", source=example.source, row=example.row, detail=detail)
        else:
            yield example, text


def _note(example: Instruction, prompt: int, response: int, cuts: tuple[int, int], ledger: Ledger) -> None:
    """Enters an example's drop, or else its cuts, by the numbers of ids that are left and that were cut."""
    left = f"left: prompt {prompt}, response {response} tokens"
    if not response:
        ledger.add("no_scored_token", source=example.source, row=example.row, detail=left)
        return
    for reason, cut in zip(CUTS, cuts, strict=True):
        if cut:
            ledger.add(reason, source=example.source, row=example.row, detail=f"{cut} tokens cut; {left}")
