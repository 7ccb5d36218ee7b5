"""``mmkern tune``: better tile tables for the Triton kernels, by measurement on the device at hand.

Each case is run with the tables that there are, which tells the entries that it uses; of each entry
the neighbours (one number doubled or halved, one flag turned) are timed against it in paired
rounds, until none is faster. A neighbour that does not compile, or whose results differ by more
than roundings, is passed over.
"""

import json

import torch

from mmkern.bench import timing
from mmkern.cases import Case, T
from mmkern.kernels import triton as kernels

PLAN = timing.Plan(sample_s=0.02, min_rounds=5, max_rounds=15, budget_s=2.0)
#: A neighbour must be faster by this, with 95 % confidence: a table should not follow noise.
GAIN = 0.98


def _modulated(name, x, m, function="gated_modulate", **kwargs):
    args = {"x": T(x), "branch": T(x), "gate": T(m), "shift": T(m), "scale": T(m), **kwargs}
    return Case(function, name, args)


def _rotated(name, q, heads_k, **kwargs):
    table = {part: T((q[1], q[-1]), kind=f"angle_{part}") for part in ("cos", "sin")}
    return Case("rope", name, {"q": T(q), "k": T((*q[:2], heads_k, q[-1])), **table, **kwargs})


def _attended(name, batch, seqlen, heads, heads_k, dim, **kwargs):
    q, k = T((batch, seqlen, heads, dim)), T((batch, seqlen, heads_k, dim))
    return Case("attention", name, {"q": q, "k": k, "v": k, **kwargs})


def _projected(name, rows, cin, hidden, out, **kwargs):
    weights = {"w1": T((hidden, cin), scale=cin**-0.5), "b1": T((hidden,))}
    weights |= {"w2": T((out, hidden), scale=hidden**-0.5), "b2": T((out,))}
    return Case("mlp", name, {"x": T((rows, cin)), **weights, **kwargs})


#: Real models' shapes at their full size; nearly all are larger than a GPU's cache.
CASES = [
    _modulated("dit_xl2", (64, 256, 1152), (64, 1152)),
    _modulated("sd35", (4, 4250, 2432), (4, 2432)),
    _modulated("flux", (4, 4608, 3072), (4, 3072)),
    _modulated("wan_14b", (1, 16384, 5120), (1, 5120)),
    Case("rms_norm", "qk_norm", {"x": T((262144, 128)), "weight": T((128,))}),
    Case("rms_norm", "qwen_2b", {"x": T((32768, 2048)), "weight": T((2048,))}),
    Case(
        "rms_norm",
        "llama_8b",
        {"x": T((16384, 4096)), "weight": T((4096,)), "residual": T((16384, 4096))},
    ),
    Case("rms_norm", "qwen_72b", {"x": T((8192, 8192)), "weight": T((8192,))}),
    _rotated("llama_8b", (4, 4096, 32, 128), 8),
    _rotated("so400m", (16, 1024, 16, 72), 16),
    _rotated("flux", (2, 4608, 24, 128), 24, interleaved=True,
             q_weight=T((128,)), k_weight=T((128,))),
    Case("glu", "llama_8b", {"gate": T((8192, 2 * 14336))}),
    Case("glu", "small", {"gate": T((262144, 2 * 192))}),
    _attended("so400m", 16, 729, 16, 16, 72),
    _attended("flux", 1, 4608, 24, 24, 128),
    _attended("llama_8b", 1, 4096, 32, 8, 128, causal=True),
    _projected("llava", 9216, 1024, 4096, 4096),
    Case("patch_embed", "vit_l16", {
        "x": T((64, 3, 224, 224)), "weight": T((1024, 3, 16, 16), scale=1 / 28),
        "bias": T((1024,)),
    }),
]  # fmt: skip


def _runs(case, kwargs):
    """{"forward": call, "backward": call with gradients} of a case; a call returns tensors."""
    import mmkern

    function = getattr(mmkern, case.function)
    names = case.differentiable()
    leaves = {n: v.detach().requires_grad_() if n in names else v for n, v in kwargs.items()}

    def outputs(arguments):
        result = function(**arguments)
        return result if isinstance(result, tuple) else (result,)

    def forward():
        with torch.no_grad():
            return outputs(kwargs)

    def backward():
        outs = outputs(leaves)
        grads = torch.autograd.grad(outs, [leaves[n] for n in names], [o.detach() for o in outs])
        return *(o.detach() for o in outs), *grads

    return {"forward": forward, "backward": backward}


def _used(run):
    """{(kernel, index of the entry)} that a run picks."""
    from mmkern.kernels.triton import tuning

    found, pick = set(), tuning.pick

    def noting(kernel, device, **shape):
        tile = pick(kernel, device, **shape)
        entries = tuning.table(tuning.target(device))[kernel]
        found.update((kernel, i) for i, (_, other) in enumerate(entries) if other is tile)
        return tile

    tuning.pick = noting
    try:
        run()
    finally:
        tuning.pick = pick
    return found


def neighbours(tile):
    """The tiles that differ from this one in one number, doubled or halved, or one flag."""
    for name, value in tile.items():
        if isinstance(value, bool):
            yield {**tile, name: not value}
        elif name == "num_stages":
            yield from ({**tile, name: n} for n in (value - 1, value + 1) if n > 0)
        elif isinstance(value, int):
            limit = 32 if name == "num_warps" else 65536
            yield from ({**tile, name: n} for n in (value // 2, value * 2) if 0 < n <= limit)


def _same(results, wanted):
    for a, b in zip(results, wanted, strict=True):
        most = float(b.abs().max()) if b.numel() else 0.0
        if not bool(((a - b).abs() <= 8 * torch.finfo(b.dtype).eps * most).all()):
            return False
    return True


def _improve(run, kernel, index, target, plan, synchronize):
    """Climb from entry ``index`` to faster neighbours; returns (tile, speed-up over the first)."""
    from mmkern.kernels.triton import tuning

    _, best = tuning.table(target)[kernel][index]
    wanted, gained, tried = run(), 1.0, [best]

    def with_tile(tile):
        def call():
            tuning.replace(target, kernel, index, tile)
            return run()

        return call

    better = True
    while better:
        better = False
        for tile in neighbours(best):
            if tile in tried:
                continue
            tried.append(tile)
            try:
                if not _same(with_tile(tile)(), wanted):
                    continue
            except Exception:  # what a compiler makes of an unfit tile has no common type
                continue
            calls = {"new": with_tile(tile), "best": with_tile(best)}
            samples = timing.measure(calls, plan, synchronize=synchronize)
            found = timing.ratio(samples["new"], samples["best"])
            if found.high < GAIN:
                best, gained, better = tile, gained / found.value, True
                break
    tuning.replace(target, kernel, index, best)
    return best, gained


def tune(device, say, *, ops=(), dtype=torch.bfloat16, cases=None, plan=PLAN, synchronize=None):
    """Improve the tables for ``device``; returns {kernel: entries} of the kernels that got better.

    say: called with a line on each entry. ops: these alone, or all with kernels.
    """
    from mmkern.kernels.triton import tuning

    target = tuning.target(device)
    synchronize = synchronize or torch.accelerator.synchronize
    changed, done = set(), set()
    for case in CASES if cases is None else cases:
        if case.op not in (ops or kernels.OPS):
            continue
        for part, run in _runs(case, case.make(dtype, device)).items():
            for kernel, index in sorted(_used(run) - done):
                done.add((kernel, index))
                tile, gained = _improve(run, kernel, index, target, plan, synchronize)
                say(f"{case.id} {part}: {kernel} {tile}, {gained:.2f}x")
                if gained > 1.0:
                    changed.add(kernel)
    return {kernel: tuning.table(target)[kernel] for kernel in sorted(changed)}


def write(path, target, kernels):
    """Put the entries of ``kernels`` into the JSON file of tuned tables."""
    tables = json.loads(path.read_text()) if path.exists() else {}
    tables.setdefault(target, {}).update(kernels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables, indent=1) + "\n")
