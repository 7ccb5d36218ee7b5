"""Draw pictures with a class-conditional DiT on mmkern's ops.

python examples/sample_dit.py --model facebook/DiT-XL-2-256 --labels 207 360
python examples/sample_dit.py        # a random model, offline: noise in, noise out
"""

import argparse

import torch

import mmkern


def tiny():
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    return DiTPipeline(transformer, vae, DDIMScheduler())


def pretrained(name):
    from diffusers import DiTPipeline

    return DiTPipeline.from_pretrained(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a DiT pipeline of the hub, or a folder; default: random")
    parser.add_argument("--labels", type=int, nargs="+", default=[207], help="ImageNet classes")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", default="sample", help="start of the files' names")
    args = parser.parse_args()
    pipeline = pretrained(args.model) if args.model else tiny()
    for name in ("transformer", "vae"):
        print(f"{name}\n{mmkern.patch(getattr(pipeline, name))}")
    images = pipeline(
        args.labels, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)
    ).images
    for i, image in enumerate(images):
        image.save(f"{args.output}-{i}.png")
        print(f"{args.output}-{i}.png: {image.width} x {image.height}")


if __name__ == "__main__":
    main()
