"""A tiny Kimi-VL with the names, attributes and signatures of its repository's own code.

That code is on the hub only; these classes stand for it. What they keep of it: module and
parameter names, the packed call of the vision layers with complex rope tables, the list of images
before the projector, MLA with an additive mask, the tuple that a text layer returns, experts as
separate MLPs.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

IMAGE = 63


class PytorchGELUTanh(nn.Module):
    def forward(self, x):
        return F.gelu(x, approximate="tanh")


class MLP2(nn.Module):
    def __init__(self, dims, activation):
        super().__init__()
        self.fc0 = nn.Linear(dims[0], dims[1])
        self.fc1 = nn.Linear(dims[1], dims[2])
        self.activation = activation

    def forward(self, x):
        return self.fc1(self.activation(self.fc0(x)))


def turned(x, freqs):
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * freqs.unsqueeze(-2)).flatten(-2).type_as(x)


class MoonVitEncoderLayer(nn.Module):
    def __init__(self, num_heads, hidden_dim, mlp_dim, *, attn_implementation="sdpa"):
        super().__init__()
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.hidden_size_per_attention_head = hidden_dim // num_heads
        self.attn_implementation = attn_implementation
        self.norm0 = nn.LayerNorm(hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.mlp = MLP2([hidden_dim, mlp_dim, hidden_dim], PytorchGELUTanh())
        self.wqkv = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.wo = nn.Linear(hidden_dim, hidden_dim)

    def attention_qkvpacked(self, x, cu_seqlens, rope_freqs_cis=None):
        if self.attn_implementation == "flash_attention_2":
            raise ImportError("flash_attn is not installed")
        shape = (3, self.num_heads, self.hidden_size_per_attention_head)
        q, k, v = self.wqkv(x).unflatten(-1, shape).unbind(-3)
        q, k = turned(q, rope_freqs_cis), turned(k, rope_freqs_cis)
        segment = torch.bucketize(torch.arange(len(x)), cu_seqlens[1:], right=True)
        mask = segment[:, None] == segment[None, :]
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        if self.attn_implementation == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, mask)
        else:  # the published "eager" adds the mask as a number, and so attends to every image
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + mask
            out = scores.softmax(-1) @ v
        return self.wo(out.transpose(0, 1).flatten(1))

    def forward(self, hidden_states, cu_seqlens, rope_freqs_cis=None):
        residual = hidden_states
        hidden_states = self.attention_qkvpacked(
            self.norm0(hidden_states), cu_seqlens, rope_freqs_cis=rope_freqs_cis
        )
        residual = residual + hidden_states
        return residual + self.mlp(self.norm1(residual))


class MoonViTEncoderLayer(MoonVitEncoderLayer):
    """Kimi-K2.5's: the longest segment comes before the rope table."""

    def forward(self, hidden_states, cu_seqlens, max_seqlen, rope_freqs_cis=None):
        return super().forward(hidden_states, cu_seqlens, rope_freqs_cis)


class Rope2DPosEmb(nn.Module):
    def __init__(self, dim, theta_base=10000):
        super().__init__()
        self.dim = dim
        self.theta_base = theta_base

    def get_freqs_cis(self, grid_hws):
        freqs = self.theta_base ** -(torch.arange(0, self.dim, 4).float() / self.dim)
        tables = []
        for h, w in grid_hws.tolist():
            y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            angle = torch.stack([p.flatten()[:, None] * freqs for p in (x, y)], -1).flatten(1)
            tables.append(torch.polar(torch.ones_like(angle), angle))
        return torch.cat(tables)


class MoonVitEncoder(nn.Module):
    def __init__(self, hidden_dim, num_layers, block_cfg):
        super().__init__()
        self.rope_2d = Rope2DPosEmb(hidden_dim // block_cfg["num_heads"])
        self.blocks = nn.ModuleList(
            [MoonVitEncoderLayer(hidden_dim=hidden_dim, **block_cfg) for _ in range(num_layers)]
        )
        self.final_layernorm = nn.LayerNorm(hidden_dim)

    def forward(self, hidden_states, grid_hws):
        freqs = self.rope_2d.get_freqs_cis(grid_hws)
        cu_seqlens = F.pad(grid_hws.prod(-1).cumsum(0), (1, 0)).int()
        for block in self.blocks:
            hidden_states = block(hidden_states, cu_seqlens, rope_freqs_cis=freqs)
        return self.final_layernorm(hidden_states)


class Learnable2DInterpPosEmb(nn.Module):
    def __init__(self, height, width, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(height, width, dim))

    def forward(self, x, grid_hws):
        grid = self.weight.permute(2, 0, 1)[None]
        sizes = [F.interpolate(grid, size=s, mode="bicubic") for s in grid_hws.tolist()]
        return x + torch.cat([s[0].flatten(1).T for s in sizes])


class MoonVisionPatchEmbed(nn.Module):
    def __init__(self, out_dim, patch_size, pos_emb_height, pos_emb_width):
        super().__init__()
        self.proj = nn.Conv2d(3, out_dim, patch_size, patch_size)
        self.pos_emb = Learnable2DInterpPosEmb(pos_emb_height, pos_emb_width, out_dim)

    def forward(self, x, grid_hws):
        return self.pos_emb(self.proj(x).view(x.size(0), -1), grid_hws)


class MoonVitPretrainedModel(nn.Module):
    def __init__(self, width, mlp, layers, heads, patch_size):
        super().__init__()
        self.patch_embed = MoonVisionPatchEmbed(width, patch_size, 4, 4)
        self.encoder = MoonVitEncoder(width, layers, {"num_heads": heads, "mlp_dim": mlp})

    def forward(self, pixel_values, grid_hws):
        x = self.encoder(self.patch_embed(pixel_values, grid_hws), grid_hws)
        images = x.split(grid_hws.prod(-1).tolist())
        return [
            image.view(h // 2, 2, w // 2, 2, -1).transpose(1, 2).reshape(h * w // 4, 4, -1)
            for image, (h, w) in zip(images, grid_hws.tolist(), strict=True)
        ]


class KimiVLMultiModalProjector(nn.Module):
    def __init__(self, width, text_width):
        super().__init__()
        self.hidden_size = 4 * width
        self.pre_norm = nn.LayerNorm(width, eps=1e-5)
        self.linear_1 = nn.Linear(self.hidden_size, self.hidden_size)
        self.act = ACT2FN["gelu"]
        self.linear_2 = nn.Linear(self.hidden_size, text_width)

    def forward(self, image_features):
        x = self.pre_norm(torch.cat(image_features, dim=0)).view(-1, self.hidden_size)
        return self.linear_2(self.act(self.linear_1(x)))


class DeepseekV3RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class DeepseekV3MLP(nn.Module):
    def __init__(self, width, mlp):
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp, bias=False)
        self.up_proj = nn.Linear(width, mlp, bias=False)
        self.down_proj = nn.Linear(mlp, width, bias=False)
        self.act_fn = ACT2FN["silu"]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DeepseekV3MoE(nn.Module):
    """Every expert takes part, by a softmax of the router: no choice hangs on a rounding."""

    def __init__(self, width, mlp, experts):
        super().__init__()
        self.experts = nn.ModuleList([DeepseekV3MLP(width, mlp) for _ in range(experts)])
        self.gate = nn.Linear(width, experts, bias=False)
        self.shared_experts = DeepseekV3MLP(width, mlp)

    def forward(self, x):
        share = self.gate(x).softmax(-1)
        y = sum(share[..., i, None] * expert(x) for i, expert in enumerate(self.experts))
        return y + self.shared_experts(x)


class DeepseekV3RotaryEmbedding(nn.Module):
    def __init__(self, dim, base=800000.0):
        super().__init__()
        freqs = base ** -(torch.arange(0, dim, 2).float() / dim)
        self.register_buffer("inv_freq", freqs, persistent=False)

    def forward(self, x, seq_len=None):
        angle = torch.arange(seq_len, device=x.device)[:, None] * self.inv_freq.float()
        angle = torch.cat((angle, angle), -1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def halves_turned(x, cos, sin):
    """(B, H, S, D), whose adjacent pairs become two halves."""
    x = x.unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class DeepseekV3Attention(nn.Module):
    """MLA with the published names; the mask is additive, (B, 1, Sq, Sk), and must be there."""

    def __init__(self, width, heads, rank, nope, rope, value, layer_idx=0):
        super().__init__()
        self.num_heads, self.qk_nope_head_dim, self.qk_rope_head_dim = heads, nope, rope
        self.kv_lora_rank, self.v_head_dim, self.layer_idx = rank, value, layer_idx
        self.attention_dropout, self.softmax_scale = 0.0, 1.2 * (nope + rope) ** -0.5
        self.q_proj = nn.Linear(width, heads * (nope + rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, rank + rope, bias=False)
        self.kv_a_layernorm = DeepseekV3RMSNorm(rank)
        self.kv_b_proj = nn.Linear(rank, heads * (nope + value), bias=False)
        self.o_proj = nn.Linear(heads * value, width, bias=False)
        self.rotary_emb = DeepseekV3RotaryEmbedding(rope)

    def forward(
        self, hidden_states, attention_mask=None, position_ids=None, past_key_value=None,
        output_attentions=False, use_cache=False, **kwargs,
    ):  # fmt: skip
        assert attention_mask is not None
        heads = (self.num_heads, -1)
        q = self.q_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        q, q_rope = q.tensor_split([self.qk_nope_head_dim], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states).tensor_split(
            [self.kv_lora_rank], -1
        )
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, heads).transpose(1, 2)
        k, v = kv.tensor_split([self.qk_nope_head_dim], -1)
        length = k.shape[2]
        if past_key_value is not None:
            length += past_key_value.get_usable_length(length, self.layer_idx)
        tables = [t[position_ids].unsqueeze(1) for t in self.rotary_emb(v, seq_len=length)]
        q = torch.cat((q, halves_turned(q_rope, *tables)), -1)
        k_rope = halves_turned(k_rope.unsqueeze(1), *tables).expand(-1, self.num_heads, -1, -1)
        k = torch.cat((k, k_rope), -1)
        if past_key_value is not None:
            k, v = past_key_value.update(k, v, self.layer_idx, {})
        scores = q @ k.transpose(-2, -1) * self.softmax_scale + attention_mask
        weights = scores.softmax(-1, torch.float32).to(q.dtype)
        out = self.o_proj((weights @ v).transpose(1, 2).flatten(2))
        return out, weights if output_attentions else None, past_key_value


class DeepseekV3DecoderLayer(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.self_attn = DeepseekV3Attention(width, heads, rank=16, nope=8, rope=8, value=6)
        self.mlp = mlp
        self.input_layernorm = DeepseekV3RMSNorm(width)
        self.post_attention_layernorm = DeepseekV3RMSNorm(width)

    def forward(
        self, hidden_states, attention_mask=None, position_ids=None, past_key_value=None,
        output_attentions=False, use_cache=False, **kwargs,
    ):  # fmt: skip
        branch, weights, present = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states), attention_mask=attention_mask,
            position_ids=position_ids, past_key_value=past_key_value,
            output_attentions=output_attentions, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        hidden_states = hidden_states + branch
        outputs = (hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)),)
        if output_attentions:
            outputs += (weights,)
        if use_cache:
            outputs += (present,)
        return outputs


class Cache:
    """What the published layers ask of transformers' cache."""

    def __init__(self):
        self.kept = {}

    def get_usable_length(self, length, layer_idx=0):
        return self.kept[layer_idx][0].shape[2] if layer_idx in self.kept else 0

    def update(self, k, v, layer_idx, cache_kwargs):
        if layer_idx in self.kept:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kept[layer_idx], (k, v), strict=True))
        self.kept[layer_idx] = k, v
        return k, v


def step_inputs(x, past=0, keep=None):
    """The mask and the positions of a step; keep (B, Sk) bool: the keys that take part."""
    length = x.shape[1]
    seen = torch.ones(length, past + length, dtype=torch.bool).tril(past).expand(len(x), 1, -1, -1)
    if keep is not None:
        seen = seen & keep[:, None, None]
    mask = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, -1e4)
    return {"attention_mask": mask, "position_ids": torch.arange(past, past + length)[None]}


class DeepseekV3Model(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.embed_tokens = nn.Embedding(IMAGE + 1, width)
        mlps = DeepseekV3MLP(width, mlp), DeepseekV3MoE(width, mlp // 2, 3)
        self.layers = nn.ModuleList([DeepseekV3DecoderLayer(width, heads, m) for m in mlps])
        for i, layer in enumerate(self.layers):
            layer.self_attn.layer_idx = i
        self.norm = DeepseekV3RMSNorm(width)

    def forward(self, x, output_attentions=False, cache=None, keep=None):
        attentions = []
        step = step_inputs(x, cache.get_usable_length(1) if cache else 0, keep)
        for layer in self.layers:
            x, *rest = layer(
                x, past_key_value=cache, output_attentions=output_attentions, use_cache=True, **step
            )
            attentions += rest[:-1]
        return self.norm(x), attentions


class DeepseekV3ForCausalLM(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.model = DeepseekV3Model(width, heads, mlp)
        self.lm_head = nn.Linear(width, IMAGE + 1, bias=False)


class KimiVLForConditionalGeneration(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_tower = MoonVitPretrainedModel(32, 48, 2, 4, patch_size=4)
        self.multi_modal_projector = KimiVLMultiModalProjector(32, 48)
        self.language_model = DeepseekV3ForCausalLM(48, 4, 64)

    def forward(self, input_ids, pixel_values, image_grid_hws, output_attentions=False):
        text = self.language_model
        embeds = text.model.embed_tokens(input_ids)
        features = self.multi_modal_projector(self.vision_tower(pixel_values, image_grid_hws))
        place = (input_ids == IMAGE)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(place, features.to(embeds.dtype))
        hidden, attentions = text.model(embeds, output_attentions)
        return text.lm_head(hidden), attentions


def kimi_vl():
    """Two images, of 4 x 6 and 2 x 4 patches: 6 and 2 tokens."""
    ids = torch.randint(3, 60, (2, 11))
    ids[0, 2:8] = ids[1, 2:4] = IMAGE
    return KimiVLForConditionalGeneration(), {
        "input_ids": ids,
        "pixel_values": torch.randn(32, 3, 4, 4),
        "image_grid_hws": torch.tensor([[4, 6], [2, 4]]),
    }
