"""A conversation with a finished model, and with what it was before its training: each goes on from its own answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.models.generation import GenerationSettings, generate

if TYPE_CHECKING:
    from engine.evaluation.subject import Subject

Message = dict[str, str]


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        ended: False when it was cut off at the longest an answer may be.
        forgot: whether the beginning of the conversation was left out, because the model takes no more at once.
    """

    text: str
    ended: bool
    forgot: bool


@dataclass
class Speaker:
    """One side of the conversation: the model as it is, or with its adapter switched off.

    Attributes:
        start: whether it is the policy that the training started from.
        history: what was asked and what it answered, the system message left out.
    """

    start: bool
    history: list[Message] = field(default_factory=list)


class Chat:
    """Asks one model, or both, the same; nothing of a turn is kept where it failed."""

    def __init__(self, subject: "Subject", settings: GenerationSettings, *, beside: bool, seed: int = 0) -> None:
        """Args:
        beside: whether the starting policy answers, too.
        seed: of what is sampled; each turn draws its own numbers, the same for both sides.
        """
        self.speakers = [Speaker(start) for start in ((True, False) if beside else (False,))]
        self.system = ""
        self._subject, self._settings, self._seed = subject, settings, seed

    @property
    def turns(self) -> int:
        """How many questions were answered since the beginning."""
        return len(self.speakers[-1].history) // 2

    def reset(self) -> None:
        """Begins anew, under the same system message."""
        for speaker in self.speakers:
            speaker.history.clear()

    def ask(self, text: str) -> list[Said]:
        """What each speaker says to this, in their order.

        Raises:
            DataError: the template cannot write this message; the conversation is as it was.
            ModelError: the model's context has no room for an answer.
        """
        question = {"role": "user", "content": text}
        answers = [self._answer(speaker, [*speaker.history, question]) for speaker in self.speakers]
        for speaker, said in zip(self.speakers, answers, strict=True):
            speaker.history += [question, {"role": "assistant", "content": said.text}]
        return answers

    def _answer(self, speaker: Speaker, messages: Sequence[Message]) -> Said:
        """Rendered, cut and ended as evaluation does it."""
        from contextlib import nullcontext

        subject, form = self._subject, self._subject.template
        system = [{"role": "system", "content": self.system}] if self.system else []
        [whole] = form.prompt_ids([[*system, *messages]])
        asked = form.cut_prompt(whole, subject.max_prompt_length)
        with subject.model.disable_adapter() if speaker.start else nullcontext():
            [said] = generate(
                subject.model,
                [asked],
                settings=self._settings,
                seed=self._seed + self.turns,
                batch_size=1,
                pad_id=form.tokenizer.pad_token_id,
                eos_ids=form.stop_ids,
                device=subject.device,
            )
        text = str(form.tokenizer.decode(said.ids, skip_special_tokens=True))
        return Said(text, said.ended, len(asked) < len(whole))
