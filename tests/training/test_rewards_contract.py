"""The contract with TRL's GRPO: fails loudly when TRL changes under `fairlead.training.rewards.grpo`."""

from __future__ import annotations

import copy
import inspect
from importlib import import_module

import torch
import trl
from reward_world import DoubtOf, run

from fairlead.models import load_model

LOGPS = "_get_per_token_logps_and_entropies"


def names_of(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_what_the_adapter_overrides_and_calls_is_there():
    grpo = trl.GRPOTrainer
    assert "rollout_func" in names_of(grpo.__init__)
    single = names_of(grpo._generate_single_turn)
    assert single[1:5] == ["prompt_ids", "images", "multimodal_fields", "num_generations"]
    rest = list(inspect.signature(grpo._generate_single_turn).parameters.values())[5:]
    assert all(one.default is not inspect.Parameter.empty for one in rest), "rollouts pass four arguments"
    assert names_of(grpo._generate_and_score_completions) == ["self", "inputs"]
    assert names_of(grpo.compute_loss)[1:] == ["model", "inputs", "return_outputs", "num_items_in_batch"]
    assert names_of(grpo._compute_loss) == ["self", "model", "inputs"]
    for name in ("_send_telemetry", "create_model_card", LOGPS):
        assert callable(getattr(grpo, name)), name


def test_advantages_of_tokens_go_through_trls_own_loss(micro, tmp_path, monkeypatch):
    """The gradient is that of -sum(advantage x log-probability) / tokens, each token with its own advantage."""
    seen = []
    compute = trl.GRPOTrainer._compute_loss

    def and_check(self, model, inputs):
        if not seen:
            given, ids = inputs["advantages"], inputs["completion_ids"]
            weights = model.get_input_embeddings().weight
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(ids.shape, generator=generator)
            loss = compute(self, model, {**inputs, "advantages": drawn})
            (found,) = torch.autograd.grad(loss, weights)
            rows = torch.cat([inputs["prompt_ids"], ids], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            logits = model(rows, attention_mask=mask).logits[:, -ids.shape[1] - 1 : -1] / self.temperature
            logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
            ours = inputs["completion_mask"]
            by_hand = -(drawn * logps * ours).sum() / inputs["num_items_in_batch"]
            (wanted,) = torch.autograd.grad(by_hand, weights)
            seen.append(
                (given.shape == ids.shape, found, wanted, int(ours.sum() - inputs["num_items_in_batch"]))
            )
        return compute(self, model, inputs)

    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", and_check)
    run(micro.model, DoubtOf(micro.model, "b1"), tmp_path, steps=1, kl=0.0, intervention_share=0.0)
    ((by_token, found, wanted, difference),) = seen
    assert by_token, "the adapter gives each token an advantage"
    assert difference == 0 and wanted.abs().max() > 1e-4
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-6)


class Client:
    """A vLLM server of the client's interface: holds the weights that it was sent, samples, and says with which log-probabilities."""

    made: list[Client] = []  # noqa: RUF012

    def __init__(self, **settings) -> None:
        self.settings, self.model, self.sent, self.asked = settings, None, [], []
        self.generator = torch.Generator().manual_seed(0)
        Client.made.append(self)

    def init_communicator(self, device) -> None:
        self.device = device

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, named) -> None:
        weights = {name: value.clone() for name, value in named}
        assert [name for name, *_ in metadata] == list(weights)
        self.sent.append(weights)
        self.model.load_state_dict(weights, strict=False)

    def reset_prefix_cache(self) -> None:
        pass

    @torch.no_grad()
    def generate(self, *, prompts, features, n, temperature, max_tokens, **rest):
        self.asked.append((n, [tuple(prompt) for prompt in prompts]))
        ids, logprobs = [], []
        for prompt in (prompt for prompt in prompts for _ in range(n)):
            own, told = [], []
            while len(own) < max_tokens and (not own or own[-1] != self.model.config.eos_token_id):
                logits = self.model(torch.tensor([[*prompt, *own]])).logits[0, -1] / temperature
                logps = logits.log_softmax(-1)
                own.append(int(torch.multinomial(logps.exp(), 1, generator=self.generator)))
                told.append([float(logps[own[-1]])])
            ids.append(own)
            logprobs.append(told)
        return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": logprobs}


def test_rollouts_by_a_vllm_server_make_the_round_through_the_adapter(micro, tmp_path, monkeypatch):
    start = copy.deepcopy(micro.model.hf).eval()
    start.config.eos_token_id = micro.model.tokenizer.eos_token_id
    Client.made.clear()
    for name in ("trl.import_utils", "trl.generation.vllm_generation"):
        monkeypatch.setattr(import_module(name), "is_vllm_available", lambda *a, **k: True)

    def connect(**settings):
        client = Client(**settings)
        client.model = start
        return client

    monkeypatch.setattr(import_module("trl.generation.vllm_generation"), "VLLMClient", connect)
    ratios, hinted = [], []
    compute = trl.GRPOTrainer._compute_loss

    def and_note(self, model, inputs):
        known = ~torch.isnan(inputs["sampling_per_token_logps"])
        mask = inputs["completion_mask"].bool()
        ratios.append(inputs["importance_sampling_ratio"].expand_as(mask)[mask & known])
        hinted.append(int((mask & ~known).any(1).sum()))
        loss = compute(self, model, inputs)
        assert torch.isfinite(loss)
        return loss

    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", and_note)
    found = run(
        micro.model,
        DoubtOf(micro.model, "b1"),
        tmp_path,
        steps=4,
        rollouts="vllm",
        vllm_mode="server",
        intervention_share=0.5,
        threshold=0.5,
        hints=("arr matey",),
        monitor_every=0,
    )
    (client,) = Client.made
    assert len(client.sent) == 4, "the weights of every step are sent before its rollouts"
    assert [n for n, _ in client.asked] == [1, 4] * 4, "an answer to intervene on, then the group"
    assert all(len(prompts) == 4 for _, prompts in client.asked), "one prompt a group"
    name = next(iter(client.sent[0]))
    assert torch.equal(client.sent[0][name], micro.model.hf.state_dict()[name])
    assert not torch.equal(client.sent[0][name], client.sent[-1][name]), "later steps ask the trained student"
    for own in ratios:
        torch.testing.assert_close(own, torch.ones_like(own), rtol=1e-3, atol=1e-3)
    assert sum(hinted) == sum(step.hints for step in found.steps) > 0, (
        "hints have no log-probability, and no weight of one"
    )
    trained = load_model(tmp_path / "model").hf.state_dict()[name]
    assert not torch.equal(trained, client.sent[-1][name])
