"""Fine-tune one block of a diffusion transformer on mmkern's ops, sharded by FSDP2.

    torchrun --nproc-per-node 2 examples/finetune_fsdp.py

Runs on CPUs with gloo, and on GPUs with nccl where there are any. Patch first, then shard.
"""

import gc
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mmkern


def build(device):
    """A small SD3, patched, of which one block learns; the report; and a batch to learn."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=16,
        out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    # a new model ends in a layer of zeros, which no gradient passes
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    model.requires_grad_(False)
    model.transformer_blocks[0].requires_grad_(True)
    report = mmkern.patch(model.to(device))
    torch.manual_seed(1 + dist.get_rank())
    batch = {
        "hidden_states": torch.randn(2, 4, 16, 16, device=device),
        "encoder_hidden_states": torch.randn(2, 7, 32, device=device),
        "pooled_projections": torch.randn(2, 16, device=device),
        "timestep": torch.tensor([3.0, 871.0], device=device),
    }
    return model, report, batch


def train(device):
    """Ten steps; prints the loss of each."""
    model, report, batch = build(device)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    first = dist.get_rank() == 0
    if first:
        print(report)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3)
    target = torch.randn_like(batch["hidden_states"])
    for step in range(10):
        noise = model(**batch).sample
        loss = (noise - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = loss.detach() / dist.get_world_size()
        dist.all_reduce(loss)
        if first:
            print(f"step {step}: loss {loss.item():.4f}")


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    train(device)
    # a process group that the sharded model keeps alive until the interpreter ends can abort there
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
