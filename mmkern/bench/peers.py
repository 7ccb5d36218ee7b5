"""Other libraries' kernels for the ops: one short registration for each op and peer.

A peer takes the public function's arguments and returns what it returns. ``module`` is what it
needs; where that does not import the result lists the peer as absent, with the reason. A peer that
does not take a case returns NotImplemented, one that gives a wrong result gets no time.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmkern.bench import eager

PEERS = []


@dataclass(frozen=True)
class Peer:
    """One registration. devices: the device types that it runs on, () for any."""

    op: str
    name: str
    module: str
    devices: tuple
    call: Callable


def peer(op, name, module="torch", devices=(), overwrites=False):
    """Register the decorated function as peer ``name`` of the public function ``op``.

    overwrites: it writes results over its arguments, or gradients over those it is given, so that
    it must not share them with the other contestants.
    """

    def register(call):
        call.overwrites = overwrites
        PEERS.append(Peer(op, name, module, devices, call))
        return call

    return register


def of(function, device):
    """{name: call} of the peers of a public function that can run on ``device``."""
    return {
        p.name: p.call
        for p in PEERS
        if p.op == function and _missing(p.module) is None and _fits(p, device)
    }


def absent(device):
    """{name: reason} of the libraries that do not import, and of the peers of other devices."""
    found = {}
    for p in PEERS:
        reason = _missing(p.module)
        if reason is None and not _fits(p, device):
            reason = f"runs on {', '.join(p.devices)} alone"
        if reason:
            found[p.name] = reason
    return found


def _fits(registered, device):
    return not registered.devices or device.type in registered.devices


@functools.cache
def _missing(module):
    try:
        importlib.import_module(module)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        return f"{module} does not import ({type(error).__name__}: {text})"
    return None


def own(call, tensors):
    """A dict's tensors; copies of them where ``call`` writes over what it is given."""
    if not getattr(call, "overwrites", False):
        return tensors
    return {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in tensors.items()}


def takes(call, kwargs):
    """Whether a peer takes a case: it does not where it returns NotImplemented."""
    with torch.no_grad():
        return call(**own(call, kwargs)) is not NotImplemented


def _sdpa(backend):
    def call(**kwargs):
        with sdpa_kernel(backend):
            return eager.attention(**kwargs)

    return call


peer("attention", "SDPA math")(_sdpa(SDPBackend.MATH))
peer("attention", "SDPA flash")(_sdpa(SDPBackend.FLASH_ATTENTION))
peer("attention", "SDPA efficient", devices=("cuda",))(_sdpa(SDPBackend.EFFICIENT_ATTENTION))
peer("attention", "SDPA cuDNN", devices=("cuda",))(_sdpa(SDPBackend.CUDNN_ATTENTION))


@functools.cache
def _flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def _causal_mask(queries, keys, device):
    from torch.nn.attention.flex_attention import create_block_mask

    offset = keys - queries
    return create_block_mask(
        lambda b, h, q, k: q + offset >= k, None, None, queries, keys, device=device
    )


@peer("attention", "FlexAttention")
def flex_attention(q, k, v, *, causal=False, scale=None, **options):
    """Compiled; on the CPU it has no backward. Packed sequences would need a mask of their own."""
    training = torch.is_grad_enabled() and q.requires_grad
    if any(value is not None for value in options.values()) or (training and q.is_cpu):
        return NotImplemented
    mask = _causal_mask(q.shape[1], k.shape[1], q.device) if causal else None
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = _flex()(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


@peer("attention", "flash-attn", module="flash_attn", devices=("cuda",))
def flash_attn(
    q, k, v, *, causal=False, scale=None, window=None, key_padding_mask=None,
    cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
):  # fmt: skip
    """flash_attn_func, and flash_attn_varlen_func for packed sequences."""
    import flash_attn as library

    if key_padding_mask is not None or q.dtype == torch.float32:
        return NotImplemented
    left_right = (window, window) if isinstance(window, int) else window or (-1, -1)
    options = {"softmax_scale": scale, "causal": causal, "window_size": left_right}
    if cu_seqlens_q is None:
        return library.flash_attn_func(q, k, v, **options)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return library.flash_attn_varlen_func(q, k, v, *lengths, **options)


@peer("attention", "torch_npu", module="torch_npu", devices=("npu",))
def npu_attention(q, k, v, *, causal=False, scale=None, **options):
    """npu_fusion_attention without a mask."""
    import torch_npu

    if causal or any(value is not None for value in options.values()):
        return NotImplemented
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch_npu.npu_fusion_attention(q, k, v, q.shape[2], "BSND", scale=scale)[0]


@peer("rms_norm", "Liger", module="liger_kernel.transformers.functional", devices=("cuda", "npu"))
def liger_rms_norm(x, weight=None, *, eps=1e-6, residual=None, cast="after"):
    """liger_rms_norm in Llama's order of casts."""
    from liger_kernel.transformers import functional

    if weight is None or residual is not None or cast != "after":
        return NotImplemented
    return functional.liger_rms_norm(x, weight, eps, 0.0, "llama", False)


@peer("rms_norm", "torch_npu", module="torch_npu", devices=("npu",))
def npu_rms_norm(x, weight=None, *, eps=1e-6, residual=None, cast="after"):
    """npu_rms_norm, npu_add_rms_norm."""
    import torch_npu

    if weight is None:
        return NotImplemented
    if residual is None:
        return torch_npu.npu_rms_norm(x, weight, eps)[0]
    y, _, h = torch_npu.npu_add_rms_norm(x, residual, weight, eps)
    return h, y


@peer(
    "glu", "Liger", module="liger_kernel.transformers.functional", devices=("cuda", "npu"),
    overwrites=True,
)  # fmt: skip
def liger_glu(gate, up=None, *, activation="silu", gate_first=True):
    """liger_swiglu, and liger_geglu for the tanh form."""
    from liger_kernel.transformers import functional

    call = {"silu": functional.liger_swiglu, "gelu_tanh": functional.liger_geglu}.get(activation)
    if call is None or up is None:
        return NotImplemented
    return call(gate, up)


@peer("glu", "torch_npu", module="torch_npu", devices=("npu",))
def npu_glu(gate, up=None, *, activation="silu", gate_first=True):
    """npu_swiglu of a packed tensor."""
    import torch_npu

    if up is not None or activation != "silu" or not gate_first:
        return NotImplemented
    return torch_npu.npu_swiglu(gate, dim=-1)


@peer(
    "rope", "Liger", module="liger_kernel.transformers.functional", devices=("cuda", "npu"),
    overwrites=True,
)  # fmt: skip
def liger_rope(q, k, cos, sin, *, interleaved=False, q_weight=None, k_weight=None, eps=1e-6):
    """liger_rope on (B, H, S, D)."""
    from liger_kernel.transformers import functional

    if interleaved or q_weight is not None or q.dim() != 4 or cos.shape[-1] != q.shape[-1]:
        return NotImplemented
    heads_first = (t.transpose(1, 2) for t in (q, k))
    out = functional.liger_rope(*heads_first, cos[None], sin[None])
    return tuple(t.transpose(1, 2) for t in out)


@peer("rope", "torch_npu", module="torch_npu", devices=("npu",))
def npu_rope(q, k, cos, sin, *, interleaved=False, q_weight=None, k_weight=None, eps=1e-6):
    """npu_rotary_mul of q and of k."""
    import torch_npu

    if interleaved or q_weight is not None or q.dim() != 4 or cos.shape[-1] != q.shape[-1]:
        return NotImplemented
    tables = [t[None, :, None].to(q.dtype) for t in (cos, sin)]
    return tuple(torch_npu.npu_rotary_mul(t, *tables) for t in (q, k))
