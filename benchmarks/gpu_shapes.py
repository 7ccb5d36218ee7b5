"""What gpu_check.py times: ops at the full shapes of real models, and the peers of each.

models: ViT-L/16, SigLIP so400m, Qwen3-VL, Kimi-VL, DiT-XL/2, SD3, FLUX.1, Wan2.1, AutoencoderKL.
"""

import contextlib
import functools
import importlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmkern import cases
from mmkern.bench import eager
from mmkern.cases import Case, Ints
from mmkern.ops.patch_embed import as_patches

F32 = torch.float32


class T(cases.T):
    """Made on the device: a CPU takes seconds for what these shapes hold."""

    def make(self, dtype, device, generator):
        base, view = cases.LAYOUTS[self.layout](tuple(self.shape))
        values = torch.randn(base, device=device) * self.scale + self.offset
        if self.kind != "normal":
            values = {"angle_cos": torch.cos, "angle_sin": torch.sin}[self.kind](values * 3)
        return view(values.to(self.dtype or dtype))


def _attention(name, q, k, v=None, **kwargs):
    return Case("attention", name, {"q": T(q), "k": T(k), "v": T(v or k), **kwargs})


def _square(name, batch, tokens, heads, dim, heads_k=None, **kwargs):
    k = (batch, tokens, heads_k or heads, dim)
    return _attention(name, (batch, tokens, heads, dim), k, **kwargs)


def _packed(name, lengths, heads, dim):
    cu = Ints(tuple(sum(lengths[:i]) for i in range(len(lengths) + 1)))
    t = T((sum(lengths), heads, dim), "qkv")
    most = {"max_seqlen_q": max(lengths), "max_seqlen_k": max(lengths)}
    args = {"q": t, "k": t, "v": t, "cu_seqlens_q": cu, "cu_seqlens_k": cu, **most}
    return Case("attention", name, args)


def _patch(name, x, weight, tokens=None):
    args = {"x": T(x), "weight": T(weight, scale=0.05), "bias": T(weight[:1])}
    return Case("patch_embed", name, args | ({"pos_embed": T(tokens)} if tokens else {}))


def _mlp(name, rows, width, hidden, out, merge=1, **kwargs):
    args = {
        "x": T((rows, width)), "w1": T((hidden, width * merge**2), scale=0.02),
        "b1": T((hidden,)), "w2": T((out, hidden), scale=0.02), "b2": T((out,)),
    }  # fmt: skip
    if merge > 1:
        args |= {
            "merge": merge,
            "norm": "layer",
            "norm_weight": T((width,)),
            "norm_bias": T((width,)),
        }
    return Case("mlp", name, {**args, **kwargs})


def _modulated(name, batch, tokens, width, dtype=None, per_token=False):
    x = (batch, tokens, width)
    m = T(x if per_token else (batch, width), dtype=dtype)
    args = {"x": T(x), "branch": T(x), "gate": m, "shift": m, "scale": m}
    return Case("gated_modulate", name, args)


def _rope(name, batch, tokens, heads, heads_k, dim, **kwargs):
    table = {n: T((tokens, dim), kind=f"angle_{n}", dtype=F32) for n in ("cos", "sin")}
    q, k = (T((batch, tokens, h, dim)) for h in (heads, heads_k))
    return Case("rope", name, {"q": q, "k": k, **table, **kwargs})


CASES = [
    *(_square(f"d128_{n}", 65536 // n // 4, n, 16, 128) for n in (4096, 8192, 16384)),
    *(_square(f"d72_{n}", 16384 // n, n, 16, 72) for n in (4096, 16384)),
    _square("d128_8192_causal", 2, 8192, 16, 128, causal=True),
    _square("vit_l16", 8, 197, 16, 64),
    _square("so400m", 16, 729, 16, 72),
    _square("dit_xl2_512", 8, 1024, 16, 72),
    _square("sd3", 2, 4429, 24, 64),
    _square("flux", 1, 4608, 24, 128),
    _square("wan_1_3b", 1, 32760, 12, 128),
    _attention("wan_cross", (1, 32760, 12, 128), (1, 512, 12, 128)),
    _square("qwen3_8b_prefill", 1, 4096, 32, 128, 8, causal=True),
    _attention("qwen3_8b_decode", (1, 1, 32, 128), (1, 4096, 8, 128), causal=True),
    _attention(
        "kimi_mla", (1, 4096, 16, 192), (1, 4096, 16, 192), (1, 4096, 16, 128), causal=True
    ),
    _square("vae_512", 1, 4096, 1, 512),
    _packed("packed_64", (64,) * 256, 16, 72),
    _packed("packed_256", (256,) * 64, 16, 72),
    _packed("packed_1024", (1024,) * 16, 16, 72),
    _packed("packed_mixed", (64, 1000, 300, 130, 740, 64, 520, 256) * 4, 16, 72),
    _patch("vit_l16", (8, 3, 224, 224), (1024, 3, 16, 16), (196, 1024)),
    _patch("so400m", (16, 3, 384, 384), (1152, 3, 14, 14), (729, 1152)),
    _patch("qwen3_vl", (4096, 1536), (1152, 3, 2, 16, 16)),
    _patch("dit_xl2_512", (8, 4, 64, 64), (1152, 4, 2, 2), (1024, 1152)),
    _patch("wan_1_3b", (1, 16, 21, 60, 104), (1536, 16, 1, 2, 2)),
    _mlp("qwen3_vl", 4096, 1152, 4608, 4096, 2, activation="gelu"),
    _mlp("llava_15", 576, 1024, 4096, 4096, activation="gelu"),
    _mlp("llava_ov", 5832, 1152, 3584, 3584, activation="gelu"),
    _mlp("dit_xl2", 8192, 1152, 4608, 1152, activation="gelu_tanh"),
    _mlp("flux", 4608, 3072, 12288, 3072, activation="gelu_tanh"),
    _modulated("dit_xl2_256", 32, 256, 1152),
    _modulated("dit_xl2_512", 8, 1024, 1152),
    _modulated("sd3", 2, 4096, 1536),
    _modulated("flux", 1, 4608, 3072),
    _modulated("wan_1_3b", 1, 32760, 1536, F32),
    _modulated("wan_per_token", 1, 32760, 1536, F32, per_token=True),
    *(
        Case("rms_norm", f"{r}x{c}", {"x": T((r, c)), "weight": T((c,)), "residual": T((r, c))})
        for r, c in ((16384, 2048), (16384, 4096), (8192, 8192), (131072, 128))
    ),
    _rope("qwen3_8b", 1, 4096, 32, 8, 128),
    _rope("flux_qk_norm", 1, 4608, 24, 24, 128, interleaved=True,
          q_weight=T((128,)), k_weight=T((128,))),
    _rope("kimi_vision", 1, 4096, 16, 16, 72),
    *(
        Case("glu", f"{r}x{c}", {"gate": T((r, c)), "up": T((r, c)), "activation": "silu"})
        for r, c in ((4096, 12288), (32768, 4096))
    ),
]  # fmt: skip


def _sdpa(backend, q, k, v, causal=False):
    if causal and q.shape[1] == 1:
        causal = False
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(backend):
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


def _flex():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    masks = {}

    def run(q, k, v, causal=False):
        sizes = q.shape[1], k.shape[1]
        if causal and sizes not in masks:
            shift = sizes[1] - sizes[0]
            masks[sizes] = create_block_mask(
                lambda b, h, i, j: i + shift >= j, None, None, *sizes, device=q.device
            )
        mask, grouped = masks.get(sizes) if causal else None, q.shape[2] != k.shape[2]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=grouped)

    return run


def _flex_packed():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    masks = []

    def run(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        if not masks:
            of_q, of_k = (
                torch.bucketize(torch.arange(len(t), device=t.device), cu[1:], right=True)
                for t, cu in ((q, cu_seqlens_q), (k, cu_seqlens_k))
            )
            masks.append(
                create_block_mask(
                    lambda b, h, i, j: of_q[i] == of_k[j], None, None, len(q), len(k), q.device
                )
            )
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        return compiled(q, k, v, block_mask=masks[0])[0].transpose(0, 1)

    return run


def _varlen(function):
    def run(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        return function(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    return run


def _imported(module, name):
    """The function, or None where its package is not installed or does not import."""
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:  # a package built for another torch raises what it likes
        return None


def _attention_peers(packed):
    if packed:
        found = {
            "torch varlen_attn": _imported("torch.nn.attention.varlen", "varlen_attn"),
            "flash-attn": _imported("flash_attn", "flash_attn_varlen_func"),
        }
        libraries = {name: _varlen(f) for name, f in found.items() if f}
        return {"FlexAttention": _flex_packed(), **libraries}
    peers = {
        f"SDPA {name}": functools.partial(_sdpa, getattr(SDPBackend, f"{name.upper()}_ATTENTION"))
        for name in ("flash", "cudnn", "efficient")
    }
    peers["FlexAttention"] = _flex()
    flash = _imported("flash_attn", "flash_attn_func")
    if flash:
        peers["flash-attn"] = flash
    return peers


def _gemm_alone():
    """patch_embed's product and nothing else, of patches that lie ready: less than the op does."""
    patches = []

    def run(x, weight, bias=None, pos_embed=None):
        if not patches:
            pixels = x.dim() == weight.dim() and weight.dim() > 2
            ready = as_patches(x, weight) if pixels else x
            patches.append(ready.reshape(-1, weight[0].numel()).contiguous())
        return patches[0] @ weight.flatten(1).T

    return run


def peers(case, backward=False):
    """{name: function with the arguments of the case}: eager, torch.compile, and libraries."""
    plain = getattr(eager, case.function)
    found = {"eager": plain, "torch.compile": torch.compile(plain, dynamic=False)}
    if case.op == "attention":
        found |= _attention_peers("cu_seqlens_q" in case.args)
    elif case.op == "patch_embed":
        found["unfold + linear"] = eager.patch_embed_linear
        if not backward:
            found["GEMM alone"] = _gemm_alone()
    elif case.op == "rms_norm":
        apply = _imported("liger_kernel.ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
        if apply:
            found["Liger"] = lambda x, weight, residual: apply.apply(x, residual, weight, 1e-6)
    elif case.op == "glu":
        apply = _imported("liger_kernel.ops.swiglu", "LigerSiLUMulFunction")
        if apply:
            # its backward writes the gradients over gate and up, which the others read; the copies
            # are of the forward, which is not timed then
            own = torch.clone if backward else lambda t: t
            found["Liger"] = lambda gate, up, activation: apply.apply(own(gate), own(up))
    return found


@contextlib.contextmanager
def fresh_compiler():
    """Forget what torch.compile knows: its limit of recompilations is not a peer's fault."""
    torch._dynamo.reset()
    yield
