"""The run on an Ascend NPU: correctness of every op, and times against torch_npu's fused ops.

    python benchmarks/npu_check.py [--output FILE] [--op OP ...] [--match TEXT]

Writes one JSON, again after each row: environment, correctness (failures by the accuracy rule,
against float64) and rows of times, with the shapes of gpu_check.py. A time is the median over
launches with NPU events, 512 MiB written before each so that nothing lies in L2; contestants take
turns. A contestant that raises is a line of its row's errors. Exits with 1 if anything is wrong, or
if there is no NPU.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import gpu_check  # noqa: E402
import gpu_shapes  # noqa: E402
import gpu_times  # noqa: E402

from mmkern import library  # noqa: E402
from mmkern.bench import eager  # noqa: E402


def _attention(q, k, v, causal=False, cu_seqlens_q=None, cu_seqlens_k=None, **_):
    import torch_npu

    kwargs = {"scale": q.shape[-1] ** -0.5}
    if causal and q.shape[-3] > 1:
        # mode 3, the lower right corner as here, takes this one mask for every size
        mask = torch.ones(2048, 2048, dtype=torch.bool, device=q.device).triu(1)
        kwargs |= {"atten_mask": mask, "sparse_mode": 3}
    layout = "BSND"
    if cu_seqlens_q is not None:
        layout = "TND"
        kwargs["actual_seq_qlen"] = cu_seqlens_q[1:].tolist()
        kwargs["actual_seq_kvlen"] = cu_seqlens_k[1:].tolist()
    return torch_npu.npu_fusion_attention(q, k, v, q.shape[-2], layout, **kwargs)[0]


def _rms_norm(x, weight, residual=None):
    import torch_npu

    if residual is None:
        return torch_npu.npu_rms_norm(x, weight, 1e-6)[0]
    y, _, h = torch_npu.npu_add_rms_norm(x, residual, weight, 1e-6)
    return h, y


def _rope(q, k, cos, sin, interleaved=False, q_weight=None, k_weight=None):
    import torch_npu

    if q_weight is not None:
        q, k = _rms_norm(q, q_weight), _rms_norm(k, k_weight)
    cos, sin = (t[None, :, None].to(q.dtype) for t in (cos, sin))
    mode = "interleave" if interleaved else "half"
    return tuple(torch_npu.npu_rotary_mul(t, cos, sin, mode) for t in (q, k))


def _glu(gate, up, activation="silu"):
    import torch_npu

    return torch_npu.npu_swiglu(torch.cat((gate, up), -1))


def _gated_modulate(x, branch, gate, shift, scale):
    import torch_npu

    gate, shift, scale = (m if m.dim() == 3 else m[:, None] for m in (gate, shift, scale))
    h = (x + gate * branch).to(x.dtype)
    c = [x.shape[-1]]
    if scale.shape[:2] == (1, 1):
        # one vector for all tokens: the norm's own weight and bias
        weight, bias = (1 + scale).flatten().to(x.dtype), shift.flatten().to(x.dtype)
        return h, torch_npu.npu_layer_norm_eval(h, c, weight, bias, 1e-6)
    normed = torch_npu.npu_layer_norm_eval(h, c, None, None, 1e-6)
    return h, (normed * (1 + scale) + shift).to(x.dtype)


FUSED = {
    "attention": ("npu_fusion_attention", _attention),
    "rms_norm": ("npu_rms_norm", _rms_norm),
    "rope": ("npu_rotary_mul", _rope),
    "glu": ("cat + npu_swiglu", _glu),
    "gated_modulate": ("npu_layer_norm_eval", _gated_modulate),
}


def peers(case, backward=False):
    """{name: function with the arguments of the case}: eager, and torch_npu's fused op."""
    found = {"eager": getattr(eager, case.function)}
    if case.function in FUSED:
        name, function = FUSED[case.function]
        found[name] = function
    return found


def environment():
    """What the numbers depend on."""
    import torch_npu

    return gpu_check.of_any_device() | {
        "torch_npu": torch_npu.__version__,
        "cann": os.environ.get("ASCEND_HOME_PATH"),
        "device": torch.npu.get_device_name(0),
        "backends": {n: b.missing or "yes" for n, b in library.BACKENDS.items()},
    }


def main():
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/npu.json")
    parser.add_argument("--op", action="append", choices=sorted(library.OPS), help="default: all")
    parser.add_argument("--match", default="", help="time the cases whose id contains this")
    args = parser.parse_args()
    if getattr(torch, "npu", None) is None or torch.npu.device_count() == 0:
        print(
            "npu_check: torch sees no NPU here (torch_npu and CANN bring one), and this is for one."
        )
        return 1
    ops = args.op or sorted(library.OPS)
    result = {"schema": "mmkern-npu/1", "environment": environment()}
    result["correctness"] = gpu_check.correctness(ops, "npu")
    gpu_check.write(args.output, result)
    chosen = [c for c in gpu_shapes.CASES if c.op in ops and args.match in c.id]

    def keep(rows):
        gpu_check.write(args.output, result | {"rows": rows})

    result["rows"] = gpu_times.times(chosen, gpu_times.on_npu(), keep, peers)
    gpu_check.write(args.output, result)
    return int(gpu_check.is_wrong(result))


if __name__ == "__main__":
    sys.exit(main())
