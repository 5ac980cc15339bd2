"""Rewards in the micro world: a readout that doubts some of its words, and questions."""

from __future__ import annotations

import torch

from fairlead.core.claims import ClaimSpan
from fairlead.core.site import Site
from fairlead.training.rewards import Question, RewardConfig, StopRule, fit_rewards

SETTINGS = {
    "steps": 6,
    "groups": 4,
    "group_size": 4,
    "lr": 2e-3,
    "max_new_tokens": 5,
    "warmup_steps": 0,
    "monitor_every": 3,
    "monitor_prompts": 6,
    "checkpoint_every": 0,
    "stop": dict.fromkeys(StopRule.model_fields),
}


class DoubtOf:
    """P(unsupported) is high for spans with a certain word: linear in the activations where words enter."""

    def __init__(self, model, word: str) -> None:
        table = model.hf.get_input_embeddings().weight.detach().clone()
        self.sites = (Site.parse("embed"),)
        away = table[model.tokenizer.convert_tokens_to_ids(word)] - table.mean(0)
        centred = table - table.mean(0)
        vector = torch.linalg.solve(centred.T @ centred + 1e-4 * torch.eye(table.shape[1]), away)
        top = (table @ vector).topk(2).values  # the word's own score, and the next
        self.vector = 12 * vector / float(top[0] - top[1])
        self.bias = -6 * float(top.sum() / (top[0] - top[1]))

    def token_scores(self, activations):
        return torch.sigmoid(activations["embed"] @ self.vector.to(activations["embed"]) + self.bias)

    def span_scores(self, activations, spans):
        scores = self.token_scores(activations)
        return torch.stack([scores[s.row, s.start : s.end].amax() for s in spans])


def split(question, response):
    """Each word that is not said by the injected text is a claim."""
    found, start = [], 0
    for word in response.split():
        start = response.index(word, start)
        if word[0] in "ab" and word[1:].isdigit():
            found.append(ClaimSpan(start=start, end=start + len(word), text=word, value=word))
        start += len(word)
    return found


def label(question, response):
    """b-words are wrong."""
    return [
        claim.model_copy(update={"label": "contradicted" if claim.value.startswith("b") else "supported"})
        for claim in split(question, response)
    ]


def questions(num: int = 8) -> list[Question]:
    return [Question(f"s{k}", ({"role": "user", "content": f"s{k % 8}"},)) for k in range(num)]


def settings(**changes) -> RewardConfig:
    return RewardConfig.make({**SETTINGS, **changes})


def run(model, readout, folder, *, verifier=label, asked=None, resume=False, **changes):
    folder.mkdir(exist_ok=True)
    return fit_rewards(
        model,
        asked or questions(),
        readout,
        config=settings(**changes),
        folder=folder,
        splitter=split,
        verifier=verifier,
        resume=resume,
    )
