"""Notices to a webhook: automations of the server that tell when a run ends badly or a night does not begin.

Slack, Mattermost, Rocket.Chat and Google Chat take what is sent: JSON with one key, `text`. The address may hold a
token, so it is kept in a block as a secret, and nothing here or on the server prints it.
"""

from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect import get_client
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict
from pydantic import SecretStr

from engine.errors import ConfigError, PipelineError
from flows._automation import put

BLOCK = "dpo-notices"
NIGHTLY = "nightly"
# A run under Prefect that ends by a state of these names is told: it broke, or its model was not put in service.
TOLD = ("Failed", "TimedOut", "Crashed", "Kept")
BEGUN = ("Pending", "Running", "Cancelled", "Completed", "Failed", "Crashed")
LATE_SECONDS = 3600.0  # a worker that is started again within the hour takes the night up, and nobody need be woken
_ENDED = (
    "{{ flow_run.name }}: {{ event.payload.validated_state.name }}\n"
    "{{ (event.payload.validated_state.message or '')|truncate(1500) }}\n"
    "{{ flow_run|ui_url }}"
)
_NOT_BEGUN = (  # a run has no name of its own before it begins
    "{flow}/{nightly}: the run of {{{{ flow_run.next_scheduled_start_time }}}} has not begun\n"
    "No worker takes it up. `make deploy` starts one; under systemd its unit's journal says what is wrong.\n"
    "{{{{ flow_run|ui_url }}}}"
)
_NOTE = "Set up by `make notify`; what is changed here is set again by the next one, but for being paused."


class NoticeError(PipelineError):
    """The address does not take notices. It is not named, since it may hold a token."""


def ended_badly(flow: str, block: UUID) -> AutomationCore:
    """Tells of each run of `flow`, of any deployment or none, that ends in one of the states `TOLD`."""
    return AutomationCore(
        name=f"{flow}: notices of runs that end badly",
        description=_NOTE,
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={f"prefect.flow-run.{name}" for name in TOLD},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=_is("flow", flow),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[CallWebhook(block_document_id=block, payload=_payload(_ENDED))],
    )


def not_begun(flow: str, block: UUID, within: float = LATE_SECONDS) -> AutomationCore:
    """Tells of each scheduled run of `flow`'s nightly deployment that has not begun `within` seconds after it was due.

    The server itself marks a run as late that nobody took up; a schedule that is off makes no runs, so none is late.
    """
    return AutomationCore(
        name=f"{flow}: notices of nights that do not begin",
        description=_NOTE,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.Late"},
            expect={f"prefect.flow-run.{name}" for name in BEGUN},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=[_is("flow", flow), _is("deployment", NIGHTLY)],
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=within),
        ),
        actions=[CallWebhook(block_document_id=block, payload=_payload(_NOT_BEGUN.format(flow=flow, nightly=NIGHTLY)))],
    )


def checked(url: str) -> str:
    """The address of a webhook as it was given.

    Raises:
        ConfigError: it is none of http or https. What was given is not repeated.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or any(each.isspace() or not each.isprintable() for each in url):
        raise ConfigError(
            "this is no address that a notice can be sent to",
            expected="http:// or https://, a host, and what else the service gave you",
            found="an address (not repeated here: it may hold a token)" if url else "none",
            fix="make notify URL='https://…'",
        )
    return url


def try_out(url: str, flow: str) -> int:
    """Sends one notice to the address and returns the HTTP status that it was taken with.

    Raises:
        NoticeError: nothing answers there, or what answers does not take it.
    """
    text = f"{flow}: notices of runs that end badly, and of nights that do not begin, come here from now on."
    try:
        status = httpx.post(url, json={"text": text}, timeout=20.0).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoticeError(
            "nothing takes a notice at that address; nothing was set up", found=type(error).__name__, fix=_FIX
        ) from None
    if not 200 <= status < 300:
        raise NoticeError(
            "what answers at that address takes no notice; nothing was set up", found=f"HTTP status {status}", fix=_FIX
        )
    return status


_FIX = "look at the address once more, and whether this machine reaches it, then run make notify again"


async def set_up(flow: str, url: str) -> None:
    """Keeps the address and creates the automations, or brings both up to date; there is never a second one."""
    headers = SecretDict({"Content-Type": "application/json"})
    block = await Webhook(url=SecretStr(url), headers=headers).save(BLOCK, overwrite=True)
    async with get_client() as client:
        for wanted in (ended_badly(flow, block), not_begun(flow, block)):
            await put(client, wanted)


def _is(role: str, name: str) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": [role], "prefect.resource.name": [name]})


def _payload(text: str) -> str:
    """A Jinja template of the JSON to send; what is put in is escaped by it, so a quote in an error breaks nothing."""
    return f"{{% set text %}}{text}{{% endset %}}" + '{"text": {{ text|string|tojson }}}'
