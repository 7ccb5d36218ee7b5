"""Fine-tune a DiT block on mmkern's ops, sharded by FSDP2.

    torchrun --nproc-per-node 2 examples/finetune_fsdp.py

Runs on CPUs with gloo, and on GPUs with nccl where there are any. Patch first, then shard.
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mmkern


def build():
    """A DiT of one block, patched, and a batch for each rank."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=1, sample_size=16,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    return model, mmkern.patch(model)


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    model, report = build()
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    model.to(device)
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    first = dist.get_rank() == 0
    if first:
        print(report)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1 + dist.get_rank())
    x, target = torch.randn(2, 2, 4, 16, 16, device=device)
    for step in range(10):
        noise = model(
            x, timestep=torch.tensor([3, 871], device=device),
            class_labels=torch.tensor([1, 4], device=device),
        ).sample  # fmt: skip
        loss = (noise - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = loss.detach() / dist.get_world_size()
        dist.all_reduce(loss)
        if first:
            print(f"step {step}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
