"""The Triton kernels against the CPU path, in Triton's interpreter (in a process of its own: it must be told before triton is imported)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import torch
from fairlead.dictionaries import sparse, triton_kernels, DictionaryConfig, find_kind
from fairlead.dictionaries.kinds import StepState
from fairlead.dictionaries.sparse import Pairs, decode, gather_dot, transpose, transposed_product

sparse.kernels = lambda rows: None  # the oracle: torch
draws = torch.Generator().manual_seed(0)
for num, latents, width, density in ((7, 40, 300, 0.2), (5, 12, 16, 0.0), (1, 3, 257, 1.0)):
    acts = torch.rand(num, latents, generator=draws) * (torch.rand(num, latents, generator=draws) < density)
    pairs = sparse.dense_to_pairs(acts)
    rows = torch.randn(latents, width, generator=draws)
    left = torch.randn(num, width, generator=draws)

    def all_three():
        value, table = pairs.value.clone().requires_grad_(), rows.clone().requires_grad_()
        out = decode(pairs._replace(value=value), table)
        grads = torch.autograd.grad((out * left).sum(), [value, table])
        layout = transpose(pairs, latents)
        return out, *grads, gather_dot(pairs, left, rows), transposed_product(layout, pairs.value, left)

    oracle = all_three()
    sparse.kernels = lambda rows: triton_kernels
    found = all_three()
    sparse.kernels = lambda rows: None
    for place, (one, other) in enumerate(zip(found, oracle, strict=True)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=lambda m: f"product {place}: {m}")

x = torch.randn(24, 16, generator=draws)
for kind in ("batch_topk", "block_sparse"):
    config = DictionaryConfig(kind=kind, d_dict=32, k=4).sized(16)
    params = find_kind(kind).start(x, config, torch.Generator().manual_seed(0))
    state = StepState(0.0, torch.arange(32) // 2 % 5 == 0)
    one = find_kind(kind).step(params, x, config, state)
    sparse.kernels = lambda rows: triton_kernels
    two = find_kind(kind).step(params, x, config, state)
    sparse.kernels = lambda rows: None
    for name in one.grads:
        torch.testing.assert_close(two.grads[name], one.grads[name], atol=1e-5, rtol=1e-3)
print("equal")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_give_what_the_cpu_path_gives():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_on_a_gpu():
    import torch

    from fairlead.dictionaries import sparse

    draws = torch.Generator().manual_seed(0)
    acts = torch.rand(64, 512, generator=draws) * (torch.rand(64, 512, generator=draws) < 0.05)
    rows, left = torch.randn(512, 300, generator=draws), torch.randn(64, 300, generator=draws)
    here, there = (sparse.dense_to_pairs(acts.to(device)) for device in ("cpu", "cuda"))
    assert sparse.kernels(rows.cuda()).__name__.endswith("triton_kernels")
    pieces = [
        (
            sparse.decode(pairs, rows.to(device)),
            sparse.gather_dot(pairs, left.to(device), rows.to(device)),
            sparse.transposed_product(sparse.transpose(pairs, 512), pairs.value, left.to(device)),
        )
        for pairs, device in ((here, "cpu"), (there, "cuda"))
    ]
    for one, other in zip(*pieces, strict=True):
        torch.testing.assert_close(other.cpu(), one, atol=1e-4, rtol=1e-4)
