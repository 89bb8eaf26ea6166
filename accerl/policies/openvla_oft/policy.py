"""OpenVLA-OFT as a `Policy`: observations in, actions of the environment out; see the package's picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from accerl.config import ConfigError
from accerl.policies.action_tokens import sample_tokens, soft_labels
from accerl.policies.openvla_oft import actions, images
from accerl.policies.openvla_oft.config import OpenVLAOFTConfig
from accerl.policies.openvla_oft.graphs import GraphedForward
from accerl.policies.openvla_oft.model import OpenVLAModel, Prediction
from accerl.policies.openvla_oft.tokenizer import PromptEncoder, load_tokenizer
from accerl.policies.value_head import ValueHead
from accerl.rl.tokens import chosen, log_prob_and_entropy
from accerl.types import Blob, EnvSpec, Evaluation, ObservationBatch, PolicyOutput


class OpenVLAOFT(nn.Module):
    """The policy, with random weights; `from_pretrained` gives one with those of a public checkpoint.

    A stored decision's blob is its tokens, int16, counted from the first action token.

    Raises:
        ConfigError: no such tokenizer, or one with other ids than Llama 2's.
    """

    def __init__(self, config: OpenVLAOFTConfig):
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.model = OpenVLAModel(config).to(getattr(torch, config.dtype))
        self.value_head = self._new_value_head()
        self.tokenizer = load_tokenizer(config.tokenizer)
        self._encode = PromptEncoder(config.prompt_length)
        self._actions = actions.action_table(config.norm_stats["action"], config.gripper)
        self._graphs: GraphedForward | None = None
        self.freeze_vision(config.freeze_vision)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        any_head: bool = False,
        **chosen: Any,
    ) -> Self:
        """The policy of a public checkpoint; see `accerl.policies.openvla_oft.checkpoint.load`."""
        from accerl.policies.openvla_oft.checkpoint import load

        return load(cls, source, device=device, dtype=dtype, any_head=any_head, **chosen)

    def save_pretrained(self, folder: str | Path, source: str | Path | None = None) -> None:
        """Write a public checkpoint; see `accerl.policies.openvla_oft.checkpoint.save`."""
        from accerl.policies.openvla_oft.checkpoint import save

        save(self, Path(folder), source)

    def check_env(self, spec: EnvSpec) -> None:
        """Images may have any size, they are resized; proprioception is not compared if it is not looked at."""
        mine = {"num_cameras": self.config.num_images, "proprio_dim": self.config.proprio_dim}
        mine |= {"action_dim": self.config.action_dim, "chunk_length": self.config.chunk_length}
        for field, value in mine.items():
            if value is not None and value != (theirs := getattr(spec, field)):
                raise ValueError(
                    f"policy.checkpoint: made for {field}={value}, but the environment has {theirs}; change env"
                )

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        prediction = self._predict(observations)
        log_probs = torch.log_softmax(prediction.logits, dim=-1)
        tokens = sample_tokens(log_probs, seeds)
        chunk = tokens.view(-1, self.config.chunk_length, self.config.action_dim)
        action = self._actions.to(tokens.device)[chunk, torch.arange(self.config.action_dim, device=tokens.device)]
        value = self._value(prediction.states, observations)
        return PolicyOutput(action, chosen(log_probs, tokens), value, {"tokens": tokens.to(torch.int16)})

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        prediction = self._predict(observations)
        tokens = blob["tokens"].to(prediction.logits.device).long()
        log_prob, entropy = log_prob_and_entropy(torch.log_softmax(prediction.logits, dim=-1), tokens)
        return Evaluation(log_prob, entropy, self._value(prediction.states, observations))

    def value(self, observations: ObservationBatch) -> Float[Tensor, " batch"]:
        with torch.no_grad():
            states = self._predict(observations).states
        return self._value(states, observations)

    def imitation_loss(
        self,
        observations: ObservationBatch,
        actions: Float[Tensor, "batch chunk action"],
        mask: Bool[Tensor, "batch chunk"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the action tokens among the 256, nats a token; upstream's is among the whole vocabulary."""
        log_probs = torch.log_softmax(self._predict(observations).logits, dim=-1)
        tokens = self.tokens_of(actions).to(log_probs.device)
        if self.config.label_width:
            labels = soft_labels(tokens, log_probs.shape[-1], self.config.label_width)
            cross_entropy = -(labels * log_probs).sum(-1)
        else:
            cross_entropy = -chosen(log_probs, tokens)
        of_actions = cross_entropy.view(*mask.shape, -1).mean(-1)
        return torch.where(mask.to(log_probs.device), of_actions, 0.0).sum() / mask.sum()

    def tokens_of(self, action: Float[Tensor, "batch chunk action"]) -> Int[Tensor, "batch token"]:
        """The tokens that demonstrated actions of the environment become."""
        of_data_set = actions.to_dataset(action.double().cpu().numpy(), self.config.gripper)
        normalized = actions.normalize(of_data_set, self.config.norm_stats["action"])
        return actions.to_tokens(torch.from_numpy(normalized)).flatten(1)

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Of the 256 rows, which train as a whole where all else has low-rank additions."""
        return self.model.language_model.lm_head.parameters()

    def freeze_vision(self, frozen: bool) -> None:
        """Whether the vision backbone, FiLM's part of it included, stays as it is; the projector trains."""
        self.config = self.config.model_copy(update={"freeze_vision": frozen})
        self.model.freeze_vision(frozen)

    def gradient_checkpointing_enable(self) -> None:
        """The blocks run a second time in the backward pass, which keeps only their inputs until then."""
        self.model.gradient_checkpointing_enable()

    def compile_network(self) -> None:
        """Compile the network for each size of a batch that comes; prompts of every length share it."""
        self.model.compile(fullgraph=True, dynamic=False)

    def capture_network(self) -> None:
        """Without gradients, replay a CUDA graph of the network for each size of a batch.

        Raises:
            ConfigError: the weights are on no GPU.
        """
        device = self.model.projector.fc1.weight.device
        if device.type != "cuda":
            raise ConfigError(f"inference.cuda_graphs: the policy is on {device}, not on a GPU; leave it out")
        self._graphs = GraphedForward(self.model)

    def renew_value_head(self, device: torch.device | str) -> None:
        """Random weights again, float32."""
        self.value_head = self._new_value_head().to(device)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "openvla_oft", **self.config.model_dump(mode="json")}

    def _new_value_head(self) -> ValueHead:
        return ValueHead(
            self.config.llama().hidden_size,
            self.config.max_decisions,
            probability=self.config.value_probability,
            pooling=self.config.value_pooling,
        )

    def _predict(self, observations: ObservationBatch) -> Prediction:
        device = self.model.projector.fc1.weight.device
        pixels = images.process(observations.images.to(device), self.config.images)
        proprio = self._proprio(observations).to(device) if self.config.proprio_dim else None
        prompts = self._encode(self.tokenizer, observations.instructions, device)
        if self._graphs is not None and not torch.is_grad_enabled():
            return self._graphs(prompts, pixels, proprio)
        return self.model(prompts, pixels, proprio)

    def _value(self, states: Tensor, observations: ObservationBatch) -> Float[Tensor, " batch"]:
        dtype = self.value_head.out.weight.dtype
        return self.value_head(states.to(dtype), observations.episode_step).float()

    def _proprio(self, observations: ObservationBatch) -> Float[Tensor, "batch proprio"]:
        normalized = actions.normalize(observations.proprio.double().cpu().numpy(), self.config.norm_stats["proprio"])
        return torch.from_numpy(normalized).float()
