"""The page of all runs that the server of reports opens with: when, what, how it ended, and its link."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from engine.errors import StoreError
from engine.processes import is_gone
from engine.reports.brief import Tone, badge
from engine.reports.markdown import duration, plain
from engine.runs import RunRecord, all_runs
from engine.secrets import outgoing

if TYPE_CHECKING:
    from jinja2 import Template

SHOWN = 200  # runs; the others open by their links as well
_FRAME = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --paper: #fefefe; --ink: #24292f; --muted: #59636e; --line: #d8dee4;
  --hover: #f3f5f7; --link: #0969db; --good: #1a7f37; --bad: #cf222e; --open: #59636e; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1317; --ink: #e6ebf0; --muted: #97a1ab; --line: #2f363d;
  --hover: #1a2027; --link: #5aa6f8; --good: #4cc26a; --bad: #ff7b72; --open: #9ba5b0; } }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
pre { white-space: pre-wrap; }
ul { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--line); }
li { border-bottom: 1px solid var(--line); }
a { color: var(--link); }
li a { display: grid; grid-template-columns: 12.5rem 10.5rem minmax(6rem, 1fr) 6.5rem; gap: 0 1rem;
  padding: .6rem .4rem; color: inherit; text-decoration: none; }
li a:hover, li a:focus-visible { background: var(--hover); }
.when, .took { color: var(--muted); font-variant-numeric: tabular-nums; }
.profile { color: var(--link); }
.profile small { color: var(--muted); font-size: .85em; }
.took { text-align: right; }
.state { font-weight: 600; }
.state::before { content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .5em;
  border-radius: 50%; background: currentcolor; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.open { color: var(--open); }
@media (max-width: 44rem) {
  li a { grid-template-columns: 1fr auto; }
  .state, .profile { grid-column: 1 / -1; }
  .when { order: 1; } .took { order: 2; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if rows %}<ul>
{% for row in rows %}<li><a href="{{ row.address }}">
<span class="state {{ row.tone }}">{{ row.state }}</span>
<span class="when">{{ row.when }}</span>
<span class="profile"><b>{{ row.profile }}</b> <small>{{ row.changed }}</small></span>
<span class="took">{{ row.took }}</span>
</a></li>
{% endfor %}</ul>
{% endif %}{% if words %}<p>{{ words }}</p>
{% endif %}{% if text %}<pre>{{ text }}</pre>
{% endif %}{% if link %}<p><a href="/">All runs</a></p>
{% endif %}</body>
</html>
"""


@dataclass(frozen=True)
class Row:
    """One run on the page, in plain text.

    Attributes:
        address: the path that its report opens under.
        state: the verdict in a word or two, and `tone` what that means.
        changed: what its caller set apart from its profile.
    """

    address: str
    state: str
    tone: Tone
    when: str
    profile: str
    changed: str
    took: str


def runs_page(roots: Mapping[str, Path]) -> str:
    """The latest runs of all artifacts folders as HTML.

    Args:
        roots: the folders by the name that they have in addresses.
    """
    found = [(folder.name, key, folder) for key, root in roots.items() for folder in all_runs(root)]
    rows = [row for _, key, folder in sorted(found, reverse=True)[:SHOWN] if (row := _row(key, folder))]
    words = "" if rows else "There is no run yet."
    if len(found) > SHOWN:
        words = f"{len(found) - SHOWN:,} earlier runs are not listed; their links open all the same."
    return _template().render(title="Runs", rows=rows, words=words)


def message_page(title: str, words: str = "", text: str = "") -> str:
    """A page that says something else, with a link to the page of all runs; `text` keeps its lines."""
    return _template().render(title=title, words=words, text=outgoing(text), link=True)


def address_of(key: str, run: str) -> str:
    """The path of a run's report: `/runs/<name of the artifacts folder>/<id of the run>/`."""
    return f"/runs/{key}/{quote(run, safe='')}/"


def was_killed(record: RunRecord) -> bool:
    """Whether a record says that its run is under way although nobody is left who could end it."""
    return record.state == "running" and is_gone(record.process)


def _row(key: str, folder: Path) -> Row | None:
    try:
        record = RunRecord.load(folder)
    except StoreError:
        return None
    state, tone = badge(replace(record, state="crashed") if was_killed(record) else record)
    return Row(
        address=address_of(key, folder.name),
        state=plain(state, 40),
        tone=tone,
        when=plain(re.sub(r"T(\d\d:\d\d).*", r" \1", record.started_at), 40),
        profile=plain(record.profile, 80),
        changed=plain(", ".join(each for each in record.overrides if not each.startswith("runtime.")), 120),
        took=duration(record.seconds) if record.seconds is not None else "",
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(_FRAME)
