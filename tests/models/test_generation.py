"""Generation: batches against single prompts, against transformers, sampling, stopping, hooks."""

from __future__ import annotations

import pytest
import torch

from fairlead.core.errors import ConfigError, ModelError
from fairlead.models import site_hook
from fairlead.models.generation import generate_ids, stop_ids

PROMPTS = [[5, 9, 30, 17, 8], [11, 7], [40, 12, 23], [60, 3, 4, 5, 6, 7, 8], [9], [33, 10]]


def texts(rows):
    return [" ".join(f"w{i}" for i in row) for row in rows]


def test_a_padded_batch_answers_like_single_prompts(tiny, causal_family):
    model = tiny.model(causal_family)
    together = model.generate(texts(PROMPTS), max_new_tokens=8)
    alone = [model.generate([text], max_new_tokens=8)[0] for text in texts(PROMPTS)]
    assert together == alone
    assert len(set(together)) > 1, "a model that answers everything alike proves nothing"
    assert model.generate(texts(PROMPTS), max_new_tokens=8, batch_size=2) == together


def test_greedy_is_the_argmax_of_full_forward_passes(tiny, causal_family):
    """The cache against no cache."""
    model = tiny.model(causal_family)
    stops = stop_ids(model)
    for prompt in PROMPTS[:3]:
        ids, expected = list(prompt), []
        for _ in range(8):
            with torch.no_grad():
                token = int(model.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                break
            expected.append(token)
            ids.append(token)
        assert generate_ids(model, [prompt], max_new_tokens=8, stops=stops) == [expected]


def test_greedy_is_transformers_generate(tiny):
    for name in ("llama", "gemma3", "gpt2", "mamba"):
        model = tiny.model(name)
        ids = torch.tensor([PROMPTS[0]])
        theirs = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        ours = generate_ids(model, [PROMPTS[0]], max_new_tokens=8, stops=set())
        assert ours[0] == theirs[0, ids.shape[1] :].tolist()


def test_sampling_repeats_by_seed_and_does_not_depend_on_batches(tiny):
    model = tiny.model("llama")
    options = {"max_new_tokens": 6, "temperature": 1.0}
    one = model.generate(texts(PROMPTS), seed=1, **options)
    assert one == model.generate(texts(PROMPTS), seed=1, batch_size=1, **options)
    assert one != model.generate(texts(PROMPTS), seed=2, **options)


def test_sampling_follows_the_distribution(tiny):
    model = tiny.model("llama")
    prompt = PROMPTS[0]
    with torch.no_grad():
        expected = model.hf(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    num = 4000
    draws = torch.rand(num, 1, generator=torch.Generator().manual_seed(0))
    found = generate_ids(model, [prompt] * num, max_new_tokens=1, stops=set(), temperature=1.0, draws=draws)
    counts = torch.bincount(torch.tensor([row[0] for row in found]), minlength=64) / num
    error = (expected * (1 - expected) / num).sqrt()
    assert ((counts - expected).abs() <= 5 * error + 1 / num).all()


def test_stops_at_the_stop_token_and_the_rest_goes_on(tiny):
    model = tiny.model("llama")
    free = generate_ids(model, PROMPTS, max_new_tokens=8, stops=set())
    stop = free[0][3]
    stopped = generate_ids(model, PROMPTS, max_new_tokens=8, stops={stop})
    for row, whole in zip(stopped, free, strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)
    assert generate_ids(model, PROMPTS, max_new_tokens=8, stops=set(range(64))) == [[]] * len(PROMPTS)


def test_chat_template_system_and_end_of_turn(tiny):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["w62", "w63"]}
    )  # end of turn, opening of a turn
    tokenizer.chat_template = (
        "{% for m in messages %}w63 {{ {'system': 'w60', 'user': 'w61', 'assistant': 'w59'}[m.role] }} {{ "
        "m.content }} w62 "
        "{% endfor %}{% if add_generation_prompt %}w63 w59{% endif %}"
    )
    from fairlead.models import Model

    model = Model.wrap(tiny.hf("llama"), tokenizer, "chat")
    assert stop_ids(model) == {2, 62}
    from fairlead.models.generation import prompt_ids

    assert prompt_ids(model, "w5 w6", system="w7") == [63, 60, 7, 62, 63, 61, 5, 6, 62, 63, 59]
    assert prompt_ids(model, "w5 w6", chat=False) == [5, 6]
    asked = model.generate(["w5 w6"], system="w7")
    assert asked == model.generate(
        [[{"role": "system", "content": "w7"}, {"role": "user", "content": "w5 w6"}]]
    )


def test_hooks_act_during_generation(tiny, causal_family):
    """Steering changes the answers; adding zero (placebo) does not; and nothing is left afterwards."""
    model = tiny.model(causal_family)
    base = model.generate(texts(PROMPTS), max_new_tokens=6)
    vector = 5 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    with site_hook(model, "layers.1.resid_post", lambda h: h + vector):
        steered = model.generate(texts(PROMPTS), max_new_tokens=6)
    with site_hook(model, "layers.1.resid_post", lambda h: h + 0 * vector):
        placebo = model.generate(texts(PROMPTS), max_new_tokens=6)
    assert steered != base and placebo == base
    with site_hook(model, "layers.1.resid_post", lambda h: h + vector, when="grad"):
        assert model.generate(texts(PROMPTS), max_new_tokens=6) == base  # generation runs without gradients


def test_a_row_that_is_full_may_stay_in_the_batch_of_others(tiny):
    """Positions that GPT-2 has no embedding for: the first row ends at the model's last one, the others go on."""
    model = tiny.model("gpt2")
    prompts = [[5] * 60, [7, 9], [11, 12, 13], [20, 21]]
    together = generate_ids(model, prompts, max_new_tokens=30, stops=set())
    alone = [generate_ids(model, [prompt], max_new_tokens=30, stops=set())[0] for prompt in prompts]
    assert together == alone and [len(row) for row in together] == [4, 30, 30, 30]


def test_refusals(tiny):
    with pytest.raises(ModelError, match="encoder cannot generate"):
        tiny.model("bert").generate(["w5"])
    model = tiny.model("gpt2")
    with pytest.raises(ModelError, match="prompt 1 has 64 tokens"):
        model.generate(["w5", " ".join(["w5"] * 64)])
    with pytest.raises(ConfigError):
        model.generate(["w5"], max_new_tokens=0)
    assert model.generate([]) == []
    near = generate_ids(model, [[5] * 60], max_new_tokens=48, stops=set())
    assert len(near[0]) == 4, "generation ends where the model's positions end"


@pytest.mark.realdata
def test_stories260k_tells_a_story(real_data):
    from fairlead.models import load_model

    model = load_model(real_data / "models" / "stories260K")
    story, other = model.generate(["Once upon a time", "The cat sat"], max_new_tokens=20)
    assert story.startswith((",", " there")) and story != other
