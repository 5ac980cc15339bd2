"""Concepts of a dictionary: groups of latents that act alike, labelled and with examples.

Steps: 1. mean activation of every latent in every text of a corpus (`latent_profile`); 2. grouping (`group_latents`); 3. a second
pass over part of the texts collects, per concept, its mean activation in each text, its part in prompts and responses, its density
and the texts in which it peaks; 4. labels from the tokens that set its texts apart, scored on texts held out from the labelling.

Memory is bounded by `max_texts x d_dict` numbers; more latents mean fewer texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fairlead.concepts.grouping import MERGE_SIMILARITY, MIN_SIMILARITY, group_latents
from fairlead.concepts.labels import detect_words, make_label, score_label, shows_concept, split_words
from fairlead.concepts.profiles import iter_hidden, latent_profile, membership
from fairlead.core.errors import DictionaryError
from fairlead.core.records import Concept, TokenContext
from fairlead.data import Encoded, token_text
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

_MAX_CELLS = 100_000_000  # float32 numbers of the profile: 400 MB


class _Evidence:
    """Sums over tokens, and the strongest texts, of each concept."""

    def __init__(self, num_concepts: int, num_texts: int, num_kept: int) -> None:
        self.response = np.zeros(num_concepts)
        self.total = np.zeros(num_concepts)
        self.active = np.zeros(num_concepts)
        self.tokens = 0
        self.text_mean = np.zeros((num_texts, num_concepts), dtype=np.float32)
        self.best_value = torch.full((num_kept, num_concepts), -1.0)
        self.best_text = torch.zeros(num_kept, num_concepts, dtype=torch.long)

    def add(self, acts: Tensor, used: Tensor, wanted: Tensor, index: Tensor) -> None:
        flat = acts[used].numpy().astype(np.float64)
        self.total += flat.sum(0)
        self.active += (flat > 0).sum(0)
        self.tokens += flat.shape[0]
        self.response += acts[wanted].double().sum(0).numpy()
        mean = (acts * used[..., None]).sum(1) / used.sum(1, keepdim=True).clamp_min(1)
        self.text_mean[index.numpy()] = mean.numpy()
        peak = (acts * used[..., None]).amax(1)
        value = torch.cat([self.best_value, peak])
        text = torch.cat([self.best_text, index[:, None].expand(-1, peak.shape[1])])
        self.best_value, order = value.topk(self.best_value.shape[0], dim=0)
        self.best_text = text.gather(0, order)


@torch.no_grad()
def build_concepts(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    num_examples: int = 8,
    min_group_similarity: float = MIN_SIMILARITY,
    merge_similarity: float = MERGE_SIMILARITY,
    max_texts: int = 4000,
    label_texts: int = 1500,
    window: int = 24,
    num_tokens: int = 12,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Concept]:
    """Group the latents of a dictionary and describe the groups, on a corpus.

    Args:
        model: The model the dictionary was made for.
        dictionary: Checked against the model.
        encoded: The corpus: the wider, the better the groups tell apart what else could be meant.
        num_examples: Contexts kept per concept.
        min_group_similarity: Mean correlation of latents within a tight group.
        merge_similarity: Correlation at which groups are joined (see grouping.py).
        max_texts: Texts used for grouping, drawn at random where there are more.
        label_texts: Of these, texts used for labels and examples; a fifth of them is held out for `label_score`.
        window: Tokens shown around the strongest.
        num_tokens: Tokens kept per concept.
        seed: Of the draw.

    Returns:
        Disjoint concepts in order of their first latent, whose number is the id ("c12"), so that ids are stable within a
        dictionary and a grouping. Latents that never fire on the corpus belong to none.

    Raises:
        DictionaryError: Made for another model; or no latent fires on the corpus.
    """
    dictionary.check(model)
    room = max(50, _MAX_CELLS // dictionary.d_dict)
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [encoded[place] for place in order[: min(max_texts, room)]]
    profile = latent_profile(model, dictionary, texts, batch_size=batch_size)
    groups = group_latents(profile, min_similarity=min_group_similarity, merge_similarity=merge_similarity)
    groups = [dictionary.unit_of(group) for group in groups]
    if not groups:
        raise DictionaryError(
            "no latent fires on the corpus. Next: use texts like those the dictionary was trained on."
        )
    texts = texts[:label_texts]
    evidence = _Evidence(len(groups), len(texts), min(num_examples, len(texts)))
    member = membership(groups, dictionary.d_dict).to(dictionary.decoder.device)
    for batch, hidden, used, wanted in iter_hidden(
        model, dictionary, texts, batch_size=batch_size, label="labels"
    ):
        acts = (dictionary.strengths(dictionary.encode(hidden)) @ member).float().cpu()
        evidence.add(acts, used, wanted, batch.index)
    shown = _contexts(model, dictionary, texts, groups, evidence, window=window)
    types, counts, word_ids = _count_words(texts, model.tokenizer)
    held_out = np.arange(len(texts)) % 5 == 4
    held_ids = [word_ids[place] for place in np.flatnonzero(held_out)]
    concepts = []
    for place, group in enumerate(groups):
        mean = evidence.text_mean[:, place]
        shows = shows_concept(mean)
        score = detect_words(counts[~held_out], shows[~held_out])
        best = [int(word) for word in np.argsort(-score)[:num_tokens] if score[word] > 0]
        tokens = tuple(types[word] for word in best)
        share = float(evidence.response[place] / evidence.total[place]) if evidence.total[place] > 0 else 0.5
        if float(np.sum(evidence.response)) >= float(np.sum(evidence.total)):
            share = 0.5  # plain texts: there are no prompts from which answers could be told apart
        label_score = score_label(held_ids, mean[held_out], best) if held_ids and best else None
        concepts.append(
            Concept(
                id=f"c{group[0]}",
                label=make_label(tokens, share),
                site=str(dictionary.site),
                latents=tuple(group),
                tokens=tokens,
                examples=shown[place],
                density=float(evidence.active[place] / max(evidence.tokens, 1)),
                label_score=label_score,
            )
        )
    return concepts


def _count_words(texts: Sequence[Encoded], tokenizer: Any) -> tuple[list[str], csr_array, list[list[int]]]:
    """Words that occur, their counts in each text `[text, word]`, and each text as numbers of words; no special tokens."""
    special = set(tokenizer.all_special_ids)
    pieces: dict[int, str] = {}
    number: dict[str, int] = {}
    rows = []
    for text in texts:
        for token in text.input_ids:
            if token not in pieces:
                pieces[token] = " " if token in special else token_text(tokenizer, token)
        words = split_words(text.input_ids, [pieces[token] for token in text.input_ids])
        rows.append([number.setdefault(word, len(number)) for word, _ in words])
    column = np.concatenate([np.asarray(row, dtype=int) for row in rows])
    place = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return (
        list(number),
        csr_array((np.ones(len(column)), (place, column)), shape=(len(rows), len(number))),
        rows,
    )


def _contexts(
    model: Model,
    dictionary: Dictionary,
    texts: Sequence[Encoded],
    groups: Sequence[Sequence[int]],
    evidence: _Evidence,
    *,
    window: int,
) -> list[tuple[TokenContext, ...]]:
    """The stretch around the strongest token of each concept's strongest texts, strongest first."""
    wanted: dict[int, list[int]] = {}
    for rank in range(evidence.best_text.shape[0]):
        for group in range(len(groups)):
            if evidence.best_value[rank, group] > 0:
                wanted.setdefault(int(evidence.best_text[rank, group]), []).append(group)
    member = membership(groups, dictionary.d_dict).to(dictionary.decoder.device)
    found: dict[tuple[int, int], TokenContext] = {}
    needed = sorted(wanted)
    pieces: dict[int, str] = {}
    for batch, hidden, used, _ in iter_hidden(model, dictionary, [texts[place] for place in needed]):
        acts = (
            (dictionary.strengths(dictionary.encode(hidden)) @ member).float().cpu() * used[..., None]
        ).numpy()
        for row, local in enumerate(batch.index.tolist()):
            place = needed[local]
            ids = texts[place].input_ids
            for group in wanted[place]:
                scores = acts[row, : len(ids), group]
                start = max(0, min(int(scores.argmax()) - window * 2 // 3, len(ids) - window))
                stretch = range(start, min(start + window, len(ids)))
                for at in stretch:
                    pieces.setdefault(ids[at], token_text(model.tokenizer, ids[at]))
                found[place, group] = TokenContext(
                    tokens=tuple(pieces[ids[at]] for at in stretch),
                    scores=tuple(round(float(scores[at]), 4) for at in stretch),
                )
    return [
        tuple(
            found[int(evidence.best_text[rank, group]), group]
            for rank in range(evidence.best_text.shape[0])
            if evidence.best_value[rank, group] > 0
        )
        for group in range(len(groups))
    ]
