"""Shapes, strides, segments and flags that no list foresaw, held to the same accuracy rule."""

import os

import torch
from accuracy import check_forward, check_gradients
from cases import Case, Ints, T
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

settings.register_profile(
    "mmkern",
    max_examples=int(os.environ.get("MMKERN_FUZZ_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("mmkern")

dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
layouts = st.sampled_from(["contiguous", "chunk", "offset", "rows"])
seeds = st.integers(0, 1000)
F32 = torch.float32


def check(case, dtype, seed):
    kwargs = case.make(dtype, seed=seed)
    check_forward(case, kwargs)
    check_gradients(case, kwargs)


@st.composite
def attention_cases(draw):
    batch, heads_k, group = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
    )
    # the largest of a handful of errors is luck, so eager's is no measure for fewer elements;
    # cases.py holds the smallest shapes
    sq, sk = draw(st.integers(1, 90)), draw(st.integers(8, 150))
    dim, dim_v = draw(st.integers(8, 130)), draw(st.integers(8, 130))
    layout = draw(st.sampled_from(["contiguous", "chunk", "offset", "qkv", "heads_first"]))
    side = st.sampled_from([-1, 1, 2, 7, 16, 33])
    args = {
        "q": T((batch, sq, heads_k * group, dim), layout),
        "k": T((batch, sk, heads_k, dim), layout),
        "v": T((batch, sk, heads_k, dim_v), layout),
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.tuples(side, side)),
        "return_lse": draw(st.booleans()),
    }
    if draw(st.booleans()):
        args["key_padding_mask"] = T((batch, sk), kind="mask")
    return Case("attention", "fuzz", args)


@given(attention_cases(), dtypes, seeds)
def test_attention(case, dtype, seed):
    check(case, dtype, seed)


@st.composite
def packed_cases(draw):
    pairs = draw(
        st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), min_size=1, max_size=6)
    )
    heads_k, group, dim = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(8, 96))
    cu_q, cu_k = ([sum(p[i] for p in pairs[:n]) for n in range(len(pairs) + 1)] for i in (0, 1))
    args = {
        "q": T((cu_q[-1], heads_k * group, dim)),
        "k": T((cu_k[-1], heads_k, dim)),
        "v": T((cu_k[-1], heads_k, dim)),
        "cu_seqlens_q": Ints(tuple(cu_q)),
        "cu_seqlens_k": Ints(tuple(cu_k)),
        "causal": draw(st.booleans()),
    }
    return Case("attention", "fuzz_packed", args)


@given(packed_cases(), dtypes, seeds)
def test_packed_attention(case, dtype, seed):
    check(case, dtype, seed)


@st.composite
def modulate_cases(draw):
    function = draw(st.sampled_from(["modulate", "gated_residual", "gated_modulate"]))
    batch, frames, each = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    channels = draw(st.integers(1, 200))
    # LayerNorm of so few channels may divide by a variance near zero, where eager is just as lost
    assume(channels > 4)
    layout, mdtype = draw(layouts), draw(st.sampled_from([None, F32]))
    shapes = [
        (channels,),
        (batch, channels),
        (1, channels),
        (batch, frames, channels),
        (batch, frames, 1, channels),
        (batch, frames * each, channels),
    ]
    x = (batch, frames * each, channels)
    args = {"x": T(x, layout)}
    parts = ["shift", "scale"] if function != "gated_residual" else []
    if function != "modulate":
        args["branch"] = T(x, draw(layouts))
        parts.append("gate")
    for part in parts:
        if draw(st.booleans()):
            args[part] = T(draw(st.sampled_from(shapes)), dtype=mdtype)
    if function != "gated_residual":
        args["norm"] = draw(st.sampled_from(["layer", "rms"]))
        for part in ("weight", "bias"):
            if draw(st.booleans()):
                args[part] = T((channels,), dtype=mdtype)
    return Case(function, "fuzz", args)


@given(modulate_cases(), dtypes, seeds)
def test_modulate(case, dtype, seed):
    check(case, dtype, seed)


@st.composite
def patch_cases(draw):
    space = draw(st.integers(2, 3))
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(space))
    size = tuple(k * draw(st.integers(1, 4)) + draw(st.integers(0, k - 1)) for k in kernel)
    batch, cin, cout = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    args = {
        "x": T((batch, cin, *size), draw(st.sampled_from(["contiguous", "rows", "channels_last"]))),
        "weight": T((cout, cin, *kernel), scale=0.3),
    }
    if draw(st.booleans()):
        args["bias"] = T((cout,))
    if draw(st.booleans()):
        tokens = 1
        for s, k in zip(size, kernel, strict=True):
            tokens *= s // k
        args["pos_embed"] = T((draw(st.sampled_from([1, batch])), tokens, cout))
    return Case("patch_embed", "fuzz", args)


@given(patch_cases(), dtypes, seeds)
def test_patch_embed(case, dtype, seed):
    check(case, dtype, seed)


@st.composite
def mlp_cases(draw):
    merge = draw(st.integers(1, 3))
    grids = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
    grids = [(h * merge, w * merge) for h, w in grids]
    rows = sum(h * w for h, w in grids)
    cin, hidden, out = draw(st.integers(2, 48)), draw(st.integers(1, 80)), draw(st.integers(1, 48))
    k = cin * merge * merge
    args = {
        "x": T((rows, cin), draw(layouts)),
        "w1": T((hidden, k), scale=k**-0.5),
        "b1": T((hidden,)) if draw(st.booleans()) else None,
        "w2": T((out, hidden), scale=hidden**-0.5),
        "b2": T((out,)) if draw(st.booleans()) else None,
        "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "silu"])),
        "merge": merge,
        "grid_hw": grids if draw(st.booleans()) else None,
    }
    norm = draw(st.sampled_from([None, "rms", "layer"] if cin > 4 else [None, "rms"]))
    if norm:
        args |= {"norm": norm, "norm_weight": T((cin,))}
    return Case("mlp", "fuzz", args)


@given(mlp_cases(), dtypes, seeds)
def test_mlp(case, dtype, seed):
    check(case, dtype, seed)


@st.composite
def rope_cases(draw):
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    heads_q, heads_k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dim = draw(st.integers(2, 80))
    width = 2 * draw(st.integers(1, dim // 2))
    dtype = draw(st.sampled_from([None, F32]))
    table = draw(st.sampled_from([(tokens, width), (batch, tokens, width)]))
    layout = draw(st.sampled_from(["contiguous", "chunk", "heads_first", "qkv"]))
    args = {
        "q": T((batch, tokens, heads_q, dim), layout),
        "k": T((batch, tokens, heads_k, dim), layout),
        "cos": T(table, kind="angle_cos", dtype=dtype),
        "sin": T(table, kind="angle_sin", dtype=dtype),
        "interleaved": draw(st.booleans()),
    }
    if draw(st.booleans()):
        args |= {"q_weight": T((dim,)), "k_weight": T((dim,))}
    return Case("rope", "fuzz", args)


@given(rope_cases(), dtypes, seeds)
def test_rope(case, dtype, seed):
    check(case, dtype, seed)


@st.composite
def row_cases(draw):
    rows, channels = draw(st.integers(1, 40)), draw(st.integers(1, 300))
    if draw(st.booleans()):
        args = {
            "x": T((rows, channels), draw(layouts)),
            "cast": draw(st.sampled_from(["after", "before"])),
        }
        if draw(st.booleans()):
            args["weight"] = T((channels,), dtype=draw(st.sampled_from([None, F32])))
        if draw(st.booleans()):
            args["residual"] = T((rows, channels), draw(layouts))
        return Case("rms_norm", "fuzz", args)
    args = {"gate": T((rows, 2 * channels), draw(layouts)), "gate_first": draw(st.booleans())}
    if draw(st.booleans()):
        args["up"] = T((rows, 2 * channels), draw(layouts))
    names = ["silu", "gelu", "gelu_tanh", "quick_gelu", "sigmoid"]
    args["activation"] = draw(st.sampled_from(names))
    return Case("glu", "fuzz", args)


@given(row_cases(), dtypes, seeds)
def test_rms_norm_and_glu(case, dtype, seed):
    check(case, dtype, seed)
