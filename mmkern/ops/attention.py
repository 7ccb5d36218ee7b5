"""softmax(Q K^T * scale) V and its log-sum-exp, batched or packed.

Source: Dao et al., "FlashAttention" (the online softmax and its backward from the log-sum-exp).
Packing, windows and the bottom-right causal alignment mean what they mean in flash-attention.
"""

import functools
import math

import torch
from torch.autograd.function import once_differentiable

from mmkern import library
from mmkern.ops import _check
from mmkern.ops._math import accumulate, given

_compiling = torch.compiler.is_compiling


def _keep(sq, sk, key_padding_mask, causal, left, right, device):
    """Which keys each query sees, broadcastable to (B, Hk, G, Sq, Sk); None: all of them."""
    right = 0 if causal else right
    # where key j lies from the position of query i, the last query being at the last key
    offset = torch.arange(sk, device=device) - torch.arange(sq, device=device)[:, None] - (sk - sq)
    limits = ([offset <= right] if right >= 0 else []) + ([offset >= -left] if left >= 0 else [])
    keep = functools.reduce(torch.logical_and, limits) if limits else None
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None, None, :]
        keep = padding if keep is None else keep & padding
    return keep


def _grouped(x, heads_k):
    """(B, S, H, D) -> (B, Hk, G, S, D): the query heads of one key head side by side."""
    return x.transpose(1, 2).unflatten(1, (heads_k, -1) if x.shape[2] else (heads_k, 0))


def _scores(q, k, scale, key_padding_mask, causal, left, right):
    """Scaled scores, a product in the input dtype; -inf where a query does not see a key."""
    hk = k.shape[2]
    scores = accumulate(_grouped(q, hk) @ _grouped(k, hk).transpose(-1, -2) * scale)
    keep = _keep(q.shape[1], k.shape[1], key_padding_mask, causal, left, right, q.device)
    return scores if keep is None else scores.masked_fill(~keep, -math.inf)


def _weights(scores):
    """The softmax of the scores; 0, not NaN, in a row that sees no key."""
    unseen = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores, -1).masked_fill(unseen, 0.0)


def _dense(q, k, v, key_padding_mask, causal, left, right, scale):
    """The batched case as eager PyTorch computes it: scores in the input dtype, softmax in fp32."""
    b, sq, hq, _ = q.shape
    hk, dv = v.shape[2:]
    scores = _scores(q, k, scale, key_padding_mask, causal, left, right)
    lse = torch.logsumexp(scores, -1)
    out = _weights(scores).to(v.dtype) @ _grouped(v, hk)
    out = out.reshape(b, hq, sq, dv).transpose(1, 2).contiguous()
    return out, lse.reshape(b, hq, sq).contiguous()


def _dense_backward(grad_out, grad_lse, q, k, v, key_padding_mask, causal, left, right, scale):
    hk = k.shape[2]
    qw, kw, vw, gw = (accumulate(_grouped(t, hk)) for t in (q, k, v, grad_out))
    p = _weights(_scores(q, k, scale, key_padding_mask, causal, left, right))
    dp = gw @ vw.transpose(-1, -2)
    # equal to rowsum(grad_out * out), but exact where a row sees one key and the two cancel
    delta = (p * dp).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(delta.dtype).reshape(delta.shape)
    ds = p * (dp - delta) * scale

    def ungrouped(grad, like):
        return grad.flatten(1, 2).transpose(1, 2).to(like.dtype).contiguous()

    dq = ungrouped(ds @ kw, q)
    dk = ungrouped((ds.transpose(-1, -2) @ qw).sum(2, keepdim=True), k)
    dv = ungrouped((p.transpose(-1, -2) @ gw).sum(2, keepdim=True), v)
    return dq, dk, dv


def _segments(cu_seqlens_q, cu_seqlens_k):
    q, k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    return [(slice(q[i], q[i + 1]), slice(k[i], k[i + 1])) for i in range(len(q) - 1)]


def reference(
    q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    causal, window_left, window_right, scale,
):  # fmt: skip
    """(out, lse) as eager PyTorch computes them; packed segments one by one."""
    args = (causal, window_left, window_right, scale)
    if cu_seqlens_q is None:
        return _dense(q, k, v, key_padding_mask, *args)
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    lse = torch.full_like(q[..., 0].T, -math.inf, dtype=accumulate(q[:0]).dtype).contiguous()
    if q.device.type == "meta":
        return out, lse
    for rows, keys in _segments(cu_seqlens_q, cu_seqlens_k):
        part, part_lse = _dense(q[None, rows], k[None, keys], v[None, keys], None, *args)
        out[rows] = part[0]
        lse[:, rows] = part_lse[0]
    return out, lse


def backward_reference(
    grad_out, grad_lse, q, k, v, out, lse, key_padding_mask, cu_seqlens_q, cu_seqlens_k,
    max_seqlen_q, max_seqlen_k, causal, window_left, window_right, scale,
):  # fmt: skip
    """(dq, dk, dv); recomputes what kernels rebuild from out and lse."""
    args = (causal, window_left, window_right, scale)
    if cu_seqlens_q is None:
        return _dense_backward(grad_out, grad_lse, q, k, v, key_padding_mask, *args)
    grads = tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    if q.device.type == "meta":
        return grads
    for rows, keys in _segments(cu_seqlens_q, cu_seqlens_k):
        part = _dense_backward(
            grad_out[None, rows], None if grad_lse is None else grad_lse[None, :, rows],
            q[None, rows], k[None, keys], v[None, keys], None, *args,
        )  # fmt: skip
        for grad, piece, where in zip(grads, part, (rows, keys, keys), strict=True):
            grad[where] = piece[0]
    return grads


_ARGS = (
    "Tensor? key_padding_mask, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, "
    "SymInt max_seqlen_k, bool causal, int window_left, int window_right, float scale"
)
_forward = library.define(
    f"attention(Tensor q, Tensor k, Tensor v, {_ARGS}) -> (Tensor, Tensor)", reference
)
_backward = library.define(
    "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
    f"Tensor out, Tensor lse, {_ARGS}) -> (Tensor, Tensor, Tensor)",
    backward_reference,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k, *args):
        masks = (key_padding_mask, cu_seqlens_q, cu_seqlens_k)
        out, lse = _forward(q, k, v, *masks, *args)
        ctx.save_for_backward(q, k, v, out, lse, *masks)
        ctx.args = args
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse, *masks = ctx.saved_tensors
        if grad_out is None:
            if grad_lse is None:
                return (None,) * 12
            grad_out = torch.zeros_like(out)
        grads = _backward(grad_out, grad_lse, q, k, v, out, lse, *masks, *ctx.args)
        return *given(ctx.needs_input_grad[:3], grads), *(None,) * 9


_op = library.Op(_forward, reference, _Attention)


def attention(
    q, k, v, *, causal=False, scale=None, window=None, key_padding_mask=None,
    cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, return_lse=False,
):  # fmt: skip
    """Scaled dot-product attention: ``softmax(q @ k^T * scale) @ v``.

    Args:
        q: (B, Sq, Hq, D), or packed (Tq, Hq, D) with cu_seqlens.
        k: (B, Sk, Hk, D) or (Tk, Hk, D). Hk divides Hq; query head h reads key head h // (Hq / Hk).
        v: (B, Sk, Hk, Dv) or (Tk, Hk, Dv).
        causal: query i sees the keys j <= i + Sk - Sq (bottom-right aligned).
        scale: multiplies the scores; None means 1 / sqrt(D).
        window: (left, right) or one int for both: query i sees the keys from i + Sk - Sq - left to
            i + Sk - Sq + right; -1 is unlimited. causal makes right 0.
        key_padding_mask: (B, Sk) bool, True where a key takes part. Batched form only.
        cu_seqlens_q, cu_seqlens_k: (n + 1,) int32, where each of n packed segments begins, and the
            total; segments attend within themselves. cu_seqlens_k None: as cu_seqlens_q.
        max_seqlen_q, max_seqlen_k: longest segment, an upper bound is enough; None: the total.
            Never read from the device, so passing them saves no synchronisation.
        return_lse: also return the log-sum-exp of the scaled scores.

    Returns:
        out, (B, Sq, Hq, Dv) or (Tq, Hq, Dv), in q's dtype; with return_lse, (out, lse) where lse is
        (B, Hq, Sq) or (Hq, Tq), natural logarithm, float32 (float64 for float64 inputs), and
        differentiable. A query that sees no key gives out 0 and lse -inf.

        Under torch.autocast, q, k, v are cast to its dtype, as scaled_dot_product_attention's.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device, or shape.
    """
    q, k, v = _check.autocast(q, k, v)
    packed = cu_seqlens_q is not None
    _validate(q, k, v, packed)
    if packed:
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        _validate_packing(q, k, cu_seqlens_q, cu_seqlens_k, key_padding_mask)
    elif cu_seqlens_k is not None:
        raise ValueError("mmkern.attention: cu_seqlens_k came without cu_seqlens_q; wanted both")
    elif key_padding_mask is not None:
        _validate_mask(key_padding_mask, k)
    left, right = (-1, -1) if window is None else _window(window)
    axis = 0 if packed else 1
    out, lse = _op(
        q, k, v, key_padding_mask, cu_seqlens_q, cu_seqlens_k,
        q.shape[axis] if max_seqlen_q is None else max_seqlen_q,
        k.shape[axis] if max_seqlen_k is None else max_seqlen_k,
        causal, left, right, q.shape[-1] ** -0.5 if scale is None else float(scale),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _validate(q, k, v, packed):
    _check.floating("attention", "q", q)
    _check.like("attention", "k", k, "q", q)
    _check.like("attention", "v", v, "q", q)
    layout = "(T, H, D) with cu_seqlens_q" if packed else "(B, S, H, D) without cu_seqlens_q"
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != (3 if packed else 4):
            raise ValueError(
                f"mmkern.attention: {name} has shape {tuple(t.shape)}; wanted {layout}"
            )
    qs, ks, vs = q.shape, k.shape, v.shape
    if ks[-1] != qs[-1] or qs[-1] == 0:
        raise ValueError(
            f"mmkern.attention: k has head_dim {ks[-1]}; wanted that of q, {qs[-1]}, and not 0"
        )
    if vs[:-1] != ks[:-1]:
        raise ValueError(
            f"mmkern.attention: v has shape {tuple(vs)}; wanted {tuple(ks[:-1])} + (Dv,), as k"
        )
    if not packed and ks[0] != qs[0]:
        raise ValueError(f"mmkern.attention: k has batch {ks[0]}; wanted that of q, {qs[0]}")
    if ks[-2] == 0 or qs[-2] % ks[-2]:
        raise ValueError(
            f"mmkern.attention: k has {ks[-2]} heads; wanted a divisor of the {qs[-2]} heads of q"
        )


def _validate_packing(q, k, cu_seqlens_q, cu_seqlens_k, key_padding_mask):
    if key_padding_mask is not None:
        raise ValueError(
            "mmkern.attention: key_padding_mask came with cu_seqlens_q; wanted one of them "
            "(packed segments need no padding)"
        )
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if not isinstance(cu, torch.Tensor) or cu.dtype != torch.int32:
            got = cu.dtype if isinstance(cu, torch.Tensor) else type(cu).__name__
            raise TypeError(f"mmkern.attention: {name} is {got}; wanted a torch.int32 tensor")
        if cu.dim() != 1 or cu.shape[0] < 1 or cu.shape != cu_seqlens_q.shape:
            raise ValueError(
                f"mmkern.attention: {name} has shape {tuple(cu.shape)}; wanted (segments + 1,), "
                "the same for q and k"
            )
        if cu.device != q.device:
            raise ValueError(f"mmkern.attention: {name} is on {cu.device}; wanted {q.device}")
    # reading the values would synchronise an accelerator, so they are checked where that is free
    if q.device.type == "cpu" and type(cu_seqlens_q) is torch.Tensor and not _compiling():
        for name, cu, total in (
            ("cu_seqlens_q", cu_seqlens_q, q.shape[0]), ("cu_seqlens_k", cu_seqlens_k, k.shape[0])
        ):  # fmt: skip
            values = cu.tolist()
            if values[0] != 0 or values[-1] != total or values != sorted(values):
                raise ValueError(
                    f"mmkern.attention: {name} is {values}; wanted values that rise from 0 to the "
                    f"{total} packed tokens"
                )


def _validate_mask(mask, k):
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(f"mmkern.attention: key_padding_mask is {got}; wanted a torch.bool tensor")
    _check.shape("attention", "key_padding_mask", mask, k.shape[:2], "B, Sk; True = takes part")
    if mask.device != k.device:
        raise ValueError(
            f"mmkern.attention: key_padding_mask is on {mask.device}; wanted {k.device}"
        )


def _window(window):
    pair = (window, window) if isinstance(window, int) else window
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or any(not isinstance(w, int) or w < -1 for w in pair)
    ):
        raise ValueError(
            f"mmkern.attention: window is {window!r}; wanted an int or (left, right), each >= -1"
        )
    return pair
