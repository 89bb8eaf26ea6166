r"""OpenVLA-OFT with discrete action tokens (Kim et al. 2025), numerically equal to the published model.

config.py       what rebuilds it, from and to the public config.json
images.py       uint8 frames ─► pixel values
vision.py       pixel values ─► patches: DINOv2 and SigLIP, fused, projected
tokenizer.py    instruction ─► prompt ids
layout.py       patches, proprio, prompt, empty action tokens ─► one static sequence
model.py        sequence ─► Llama, bidirectional ─► hidden states and logits of the action tokens
actions.py      action tokens ◄─► actions of the environment
policy.py       all of it behind `accerl.protocols.Policy`, with a value head
checkpoint.py   the public files ◄─► a policy; shards.py tensor by tensor, film.py what FiLM saves apart
graphs.py       the model's forward as one CUDA graph for each size of a batch
reward.py       a success classifier out of a policy's first layers
tiny.py         a small one for any environment

images ─► vision ─► patches ─┐
proprio ─► one token ────────┼─► layout ─► model ─► logits ─► tokens ─► actions
instruction ─► prompt ids ───┘               └─ hidden states, detached ─► value head
"""

from accerl.policies.openvla_oft.config import OpenVLAOFTConfig as OpenVLAOFTConfig
from accerl.policies.openvla_oft.policy import OpenVLAOFT as OpenVLAOFT
from accerl.policies.openvla_oft.tiny import start_weights as start_weights
from accerl.policies.openvla_oft.tiny import tiny_config as tiny_config
