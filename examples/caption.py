"""Caption a picture with a vision-language model on mmkern's ops.

python examples/caption.py --model Qwen/Qwen3-VL-2B-Instruct --image photo.jpg
python examples/caption.py        # a random model of that family and size "tiny", offline
"""

import argparse

import torch

import mmkern


def tiny():
    """A random Qwen3-VL and the inputs of one picture of 4 x 6 patches."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4
        },
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
        "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    tokens = {"image_token_id": 63, "vision_start_token_id": 61, "vision_end_token_id": 60}
    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    ids = torch.tensor([[5, 61, *[63] * 6, 60, 7, 9]])
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == 63).int(),
        "pixel_values": torch.randn(24, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
    return Qwen3VLForConditionalGeneration(config).eval(), inputs, lambda ids: str(ids.tolist())


def pretrained(name, image):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(name)
    content = [{"type": "image", "path": image}, {"type": "text", "text": "Describe the picture."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.bfloat16).eval()
    return model, inputs, processor.tokenizer.decode


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a model of the hub, or a folder; default: a random one")
    parser.add_argument("--image", help="a file or an address, to go with --model")
    parser.add_argument("--tokens", type=int, default=16, help="how many to generate at most")
    args = parser.parse_args()
    model, inputs, decode = pretrained(args.model, args.image) if args.model else tiny()
    print(mmkern.patch(model))
    out = model.generate(**inputs, max_new_tokens=args.tokens, do_sample=False)
    print(decode(out[0, inputs["input_ids"].shape[1] :]))


if __name__ == "__main__":
    main()
