"""A model with names for its places: capture, forward passes, log-probabilities, generation.

`Model` wraps a transformers model and its tokenizer and adds nothing to the computation. Capture reads the
tensors of an ordinary forward pass by hooks and ends it at the deepest site that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fairlead.core.errors import ModelError
from fairlead.core.run import atomic_path
from fairlead.core.site import Site
from fairlead.models import families, hooks
from fairlead.models.fingerprint import fingerprint
from fairlead.models.generation import Follower, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fairlead.data import Encoded


class BatchLike(Protocol):
    """What a forward pass needs of a batch (`fairlead.data.Batch` is one)."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids `[batch, seq]`."""
        ...

    @property
    def attention_mask(self) -> Tensor:
        """`[batch, seq]`, 0 on padding."""
        ...


class Model:
    """A transformers model with its tokenizer and its sites.

    Attributes:
        hf: The transformers model, in evaluation mode after loading.
        tokenizer: Its tokenizer, with a pad token.
        name: Name or folder it was loaded from.
        resolved: Its sites (`fairlead.models.families.Sites`).
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.hf, self.tokenizer, self.name = hf, tokenizer, name
        families.settle(hf)
        self.resolved = families.Sites(hf)

    @classmethod
    def wrap(cls, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "in memory") -> Model:
        """A `Model` of objects in memory; checks that they fit together.

        Raises:
            ModelError: The tokenizer has ids that the model has no embedding for; or no list of blocks is
                found.
        """
        from fairlead.models.loading import check_tokenizer, set_pad_token

        check_tokenizer(tokenizer, hf, name)
        set_pad_token(tokenizer)
        return cls(hf, tokenizer, name)

    @property
    def family(self) -> str:
        """Name of the layout that locates the sites, "generic" for an unknown architecture."""
        return self.resolved.family.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture and weights as they are now (see `fairlead.models.fingerprint`)."""
        return fingerprint(self.hf)

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return self.resolved.num_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(families.text_config(self.hf.config).hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embedding's weights, and so of activations."""
        embedding: Any = self.hf.get_input_embeddings()
        return embedding.weight.dtype

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only what is before them (else: an encoder)."""
        return families.is_causal(self.hf)

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return families.max_length_of(self.hf.config, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Token id for padding."""
        pad: Any = self.tokenizer.pad_token_id
        return int(pad)

    def sites(self, kind: str | None = None) -> list[Site]:
        """The sites of this model, in the order of the forward pass; of one kind where given."""
        return self.resolved.all(kind)

    def default_site(self) -> Site:
        """The residual stream after the middle layer."""
        return Site("resid_post", min(self.num_layers // 2, self.num_layers - 1))

    def module_at(self, site: str | Site) -> nn.Module:
        """The module whose input or output holds a site.

        Raises:
            SiteError: No such site; lists those there are.
        """
        return self.resolved.place(site).module

    def read_site(
        self, site: str | Site, args: tuple = (), kwargs: dict | None = None, output: Any = None
    ) -> Tensor:
        """The value of a site in the inputs or output of `module_at(site)`, for hooks of one's own."""
        return families.read_value(self.resolved.place(site), args, kwargs or {}, output)

    def capture(
        self,
        batch: BatchLike,
        sites: Iterable[str | Site],
        *,
        stop_early: bool = True,
        grad: bool = False,
    ) -> dict[str, Tensor]:
        """Values at sites in one forward pass.

        Args:
            batch: Anything with `input_ids` and `attention_mask` `[batch, seq]`.
            sites: Where; negative layers count from the end.
            stop_early: End the forward pass at the deepest site (else: run all blocks, without the head).
            grad: Keep the graph, so that one can call `backward` on what is returned.

        Returns:
            `str(site)` to `[batch, seq, d]`, in the model's dtype. Positions of padding hold no meaning.
            Tensors are those of the forward pass, not copies. The model's mode (training, evaluation) is left
            as it is.

        Raises:
            SiteError: No such site; lists those there are.
        """
        inputs = self.inputs(batch)
        backbone = families.backbone_of(self.hf)
        if families.accepts(backbone, "use_cache") and not grad:
            inputs["use_cache"] = False
        return hooks.capture(
            self.resolved, lambda: backbone(**inputs), sites, stop_early=stop_early, grad=grad
        )

    def inputs(self, batch: BatchLike) -> dict[str, Any]:
        """Arguments of a forward pass, on the model's device; positions count real tokens only.

        Raises:
            ModelError: Padding on the left of a model that ignores the attention mask (RWKV).
        """
        device = self.device
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids.to(device),
            "attention_mask": batch.attention_mask.to(device),
        }
        if bool(
            batch.attention_mask[:, 0].all()
        ):  # no padding on the left: the model's own positions are right
            if not self.resolved.family.reads_mask:
                del inputs["attention_mask"]
            return inputs
        if not self.resolved.family.reads_mask:
            raise ModelError(
                f"{self.name}: this architecture ignores the attention mask, padding on the left would be "
                f"read as "
                "text. Next: pad on the right."
            )
        if self.is_causal and families.accepts(families.backbone_of(self.hf), "position_ids"):
            inputs["position_ids"] = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp_min(0)
        return inputs

    def forward(self, batch: BatchLike, **kwargs: Any) -> Float[Tensor, "batch seq vocab"]:
        """Logits; with gradients where the caller has them on. `kwargs` go to the transformers model.

        Raises:
            ModelError: The model has no language-modelling head.
        """
        inputs = self.inputs(batch)
        if families.accepts(self.hf, "use_cache"):
            inputs["use_cache"] = False
        output = self.hf(**inputs, **kwargs)
        if getattr(output, "logits", None) is None:
            raise ModelError(
                f"{self.name}: {type(self.hf).__name__} has no language-modelling head. Next: load a "
                f"checkpoint with one."
            )
        return output.logits

    def token_logprobs(self, batch: BatchLike) -> Float[Tensor, "batch seq"]:
        """Log-probability in nats of each token given those before it; 0 at the first position.

        Aligned with `batch.loss_mask`: position t holds log p(token t | tokens before t). Padding holds no
        meaning.

        Raises:
            ModelError: An encoder has none.
        """
        if not self.is_causal:
            raise ModelError(
                f"{self.name}: an encoder gives no next-token probabilities. Next: use a causal model."
            )
        logits = self.forward(batch)[:, :-1].float()
        targets = batch.input_ids[:, 1:].to(logits.device)
        scores = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        return torch.nn.functional.pad(scores, (1, 0))

    @torch.no_grad()
    def logprobs(self, encoded: Sequence[Encoded], *, batch_size: int = 32) -> list[Tensor]:
        """Per-token log-probabilities of encodings, in their order.

        Returns:
            Per encoding a float32 tensor `[seq]` on the CPU, aligned with its `input_ids` and `loss_mask`; 0
            at the first position.

        Raises:
            ModelError: An encoder has none.
        """
        from dataclasses import replace

        from fairlead.data import iter_batches

        places = [replace(item, index=place) for place, item in enumerate(encoded)]
        scores: list[Tensor] = [torch.empty(0)] * len(encoded)
        for batch in iter_batches(places, batch_size=batch_size, pad_id=self.pad_id):
            rows = self.token_logprobs(batch).cpu()
            for place, row in zip(batch.index.tolist(), rows, strict=True):
                scores[place] = row[: len(encoded[place].input_ids)].clone()
        return scores

    def generate(
        self,
        prompts: Sequence[str | Sequence[Any]],
        *,
        system: str | None = None,
        max_new_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
        chat: bool | None = None,
        progress: str | None = None,
        follower: Follower | None = None,
        against: tuple[Model, float] | None = None,
    ) -> list[str]:
        """Answers to prompts, in their order (see `fairlead.models.generation.generate`)."""
        return generate(
            self,
            prompts,
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            chat=chat,
            progress=progress,
            follower=follower,
            against=against,
        )

    def save(self, folder: str | Path) -> Path:
        """Write model and tokenizer as a Hugging Face folder, all or nothing.

        Raises:
            RunError: The disk is full or the place cannot be written; what stood there is untouched.
        """
        from fairlead.core.errors import RunError

        folder = Path(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            try:
                self.hf.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
            except OSError:
                raise
            except Exception as error:  # safetensors reports a full disk as an error of its own
                if "SafetensorError" not in type(error).__name__:
                    raise
                raise RunError(
                    f"{folder}: cannot write the weights ({error}). Next: free space and repeat."
                ) from error
        return folder

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, family={self.family!r}, num_layers={self.num_layers}, "
            f"d_model={self.d_model}, "
            f"device={str(self.device)!r})"
        )
