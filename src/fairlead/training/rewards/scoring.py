"""The reward function that TRL calls: claims of the rollouts, read by the probe, judged by the reward table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fairlead.core.claims import ClaimSpan
from fairlead.training import processes
from fairlead.training.rewards.claims import Splitter
from fairlead.training.rewards.config import RewardConfig
from fairlead.training.rewards.reading import Text, read_claims, readout_on, tokens_of
from fairlead.training.rewards.rollout import Rollouts, Setting
from fairlead.training.rewards.table import MixController, Verdict, judge_intervention, judge_plain

if TYPE_CHECKING:
    from fairlead.core.nouns import SpanReadout
    from fairlead.models import Model

OUTCOMES = ("maintained", "corrected", "retracted", "answered", "abstained", "bad_format")


class Scored(NamedTuple):
    """A rollout with what it earned.

    Attributes:
        setting: What it went on from.
        text: The whole answer with its claims, as it was read.
        claims: Those that the rollout itself made, with scores.
        verdict: Outcome and rewards.
        spans: Tokens of each claim in the completion (half open).
    """

    setting: Setting
    text: Text
    claims: tuple[ClaimSpan, ...]
    verdict: Verdict
    spans: tuple[tuple[int, int], ...]


class ProbeReward:
    """One reward per rollout; keeps the step's rollouts (`latest`) for the dense advantages, the record and the monitors.

    Args:
        rollouts: What was asked.
        reader: Gives the model that the readout reads: the frozen copy, or the student in the set-ups that say so.
        config: Settings.
        readout: Reads claims.
        splitter: Finds them.
        on_move: Told of every move of lambda: (step, value).
    """

    __name__ = "probe_reward"

    def __init__(
        self,
        rollouts: Rollouts,
        reader: Callable[[], Model],
        *,
        config: RewardConfig,
        readout: SpanReadout,
        splitter: Splitter,
        on_move: Callable[[int, float], None] | None = None,
    ) -> None:
        self.rollouts, self.reader, self.config = rollouts, reader, config
        self.readout, self.splitter, self.on_move = readout, splitter, on_move
        self.controller = MixController(config.table)
        self.latest: list[Scored] = []
        self.summary: dict[str, float] = {}

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        **rest: Any,
    ) -> list[float | None]:
        """Rewards of a process's share of a step."""
        step = rest["trainer_state"].global_step
        settings = self.rollouts.settings
        assert len(settings) == len(completions), "TRL scores other rollouts than it has just made"
        texts = [self._text(setting, answer) for setting, answer in zip(settings, completions, strict=True)]
        model = self.reader()
        readout = readout_on(self.readout, model) if self.config.reads_student else self.readout
        read = read_claims(model, readout, texts)
        self.latest = [
            self._judge(*row) for row in zip(settings, texts, read, completions, completion_ids, strict=True)
        ]
        self._account(step)
        return [one.verdict.reward * self.config.reward_weight for one in self.latest]

    def _text(self, setting: Setting, answer: str) -> Text:
        """The whole answer as it is read, with the claims of the rollout alone."""
        lead = lead_of(setting, answer)
        claims = self.splitter(setting.question, lead + answer)
        own = tuple(claim for claim in claims if claim.start >= len(lead))
        return Text(setting.prompt_ids, lead + answer, own)

    def _judge(
        self,
        setting: Setting,
        text: Text,
        claims: tuple[ClaimSpan, ...],
        answer: str,
        ids: list[int],
    ) -> Scored:
        tokenizer, table = self.rollouts.model.tokenizer, self.config.table
        complete = bool(ids) and ids[-1] == tokenizer.eos_token_id
        if setting.flagged is None:
            verdict = judge_plain(answer, claims, complete=complete, table=table)
        else:
            verdict = judge_intervention(
                setting.flagged,
                answer,
                claims,
                complete=complete,
                table=table,
                retract_lambda=self.controller.value,
            )
        return Scored(
            setting,
            text,
            claims,
            verdict,
            place_claims(tokenizer, ids, claims, len(lead_of(setting, answer))),
        )

    def _account(self, step: int) -> None:
        """Bring the step's counts together (all processes), move lambda, keep the summary."""
        counts = Counter(one.verdict.outcome for one in self.latest if not one.setting.hinted)
        plain = [one for one in self.latest if one.setting.flagged is None and not one.setting.hinted]
        scores = [claim.score or 0.0 for one in self.latest for claim in one.claims]
        own = [
            *(float(counts[name]) for name in OUTCOMES),
            sum(one.verdict.reward for one in self.latest),
            float(len(self.latest)),
            float(sum(scores)),
            float(len(scores)),
            float(sum(one.setting.hinted for one in self.latest)),
            float(sum(len(one.claims) for one in plain)),
            float(len(plain)),
        ]
        total = [sum(values) for values in zip(*processes.gather(own), strict=True)]
        found = dict(zip(OUTCOMES, total, strict=False))
        reward, rows, score, claims, hints, plain_claims, plain_rows = total[len(OUTCOMES) :]
        if (
            self.controller.update(int(found["corrected"]), int(found["retracted"]))
            and self.on_move is not None
        ):
            self.on_move(step, self.controller.value)
        self.summary = {
            "reward": reward / max(rows, 1),
            "score": score / claims if claims else float("nan"),
            "claims": claims / max(rows, 1),
            "plain_claims": plain_claims / plain_rows if plain_rows else float("nan"),
            "hints": hints,
            "retract_lambda": self.controller.value,
            **{name: float(value) for name, value in found.items()},
        }


def lead_of(setting: Setting, answer: str) -> str:
    """What stands before a rollout, with a space where the tokenizer dropped the rollout's own."""
    return setting.before + " " if setting.before and not answer[:1].isspace() else setting.before


def place_claims(
    tokenizer: Any, ids: Sequence[int], claims: Sequence[ClaimSpan], before: int
) -> tuple[tuple[int, int], ...]:
    """Where claims of an answer stand in the tokens it was written with (`before`: characters that stood there already)."""
    if not claims:
        return ()
    ends = [len(tokenizer.decode(ids[: k + 1], skip_special_tokens=True)) for k in range(len(ids))]
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    return tuple(tokens_of(offsets, claim.start - before, claim.end - before) for claim in claims)
