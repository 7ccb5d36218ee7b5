"""FLOPs of a call, and bytes that it must move: the work itself, whoever does it."""

import math

import torch


def nbytes(tensors):
    """Bytes of the elements of ``tensors``, each read or written once."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def moved(inputs, outputs, gradients, passes="forward"):
    """Bytes that must move: inputs and outputs once.

    A backward reads the inputs and the gradients of the outputs, and writes ``gradients``.
    """
    forward = nbytes(inputs) + nbytes(outputs)
    moved_by = {"forward": forward, "backward": forward + nbytes(gradients)}
    return sum(moved_by[one] for one in passes.split("+"))


def flops(function, args, passes="forward"):
    """Floating-point operations of the matrix products in a call, None where there are none.

    Attention counts the pairs that the mask lets through, at the true head dims. A backward of a
    product is two products; attention's computes the scores again.
    """
    if function == "attention":
        # of D: the scores; again, and the gradients of q and k. Of Dv: weights by v; its gradient,
        # and that of the weights
        dim, dim_v = args["q"].shape[-1], args["v"].shape[-1]
        work = {"forward": dim + dim_v, "backward": 3 * dim + 2 * dim_v}
        return 2 * _attended(args) * sum(work[one] for one in passes.split("+"))
    if function == "patch_embed":
        forward = _patch_embed(args["x"], args["weight"])
    elif function == "mlp":
        rows = args["x"].shape[:-1].numel() // args.get("merge", 1) ** 2
        forward = 2 * rows * (args["w1"].numel() + args["w2"].numel())
    else:
        return None
    factor = {"forward": 1, "backward": 2}
    return forward * sum(factor[one] for one in passes.split("+"))


def _patch_embed(x, weight):
    if x.dim() == weight.dim() and weight.dim() > 2:
        tokens = math.prod(n // k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
        return 2 * x.shape[0] * tokens * weight.numel()
    return 2 * x.shape[:-1].numel() * weight.numel()


def _attended(args):
    """Pairs of a query and a key that it sees, in all heads."""
    q, k = args["q"], args["k"]
    if args.get("cu_seqlens_q") is None:
        segments = [(q.shape[1], k.shape[1])] * q.shape[0]
    else:
        cu_q, cu_k = args["cu_seqlens_q"].tolist(), args["cu_seqlens_k"].tolist()
        segments = [(cu_q[i + 1] - cu_q[i], cu_k[i + 1] - cu_k[i]) for i in range(len(cu_q) - 1)]
    window = args.get("window") or (-1, -1)
    left, right = (window, window) if isinstance(window, int) else window
    right = 0 if args.get("causal", False) else right
    return q.shape[-2] * sum(_pairs(sq, sk, left, right) for sq, sk in segments)


def _pairs(sq, sk, left, right):
    """Pairs of a query and a key that it sees."""
    if left < 0 and right < 0:
        return sq * sk
    total = 0
    for position in range(sk - sq, sk):
        last = min(position + right, sk - 1) if right >= 0 else sk - 1
        first = max(position - left, 0) if left >= 0 else 0
        total += max(last - first + 1, 0)
    return total
