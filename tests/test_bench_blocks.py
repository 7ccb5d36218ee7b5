"""Blocks of published models as workloads: built at true width, swapped whole, held to the rule."""

import functools

import pytest
import torch
from accuracy import assert_accurate
from bench_helpers import CPU
from tiny_models import one_thread  # noqa: F401

from mmkern import __main__ as command
from mmkern.bench import blocks
from mmkern.bench.blocks_workload import BlockWorkload
from mmkern.patch import diffusers, transformers

pytest.importorskip("transformers")
pytest.importorskip("diffusers")


def tiny(build):
    return BlockWorkload("tiny", "torch", "tiny", "2x3", "whole", build)


@functools.cache
def on_meta(workload):
    """The module of a block, without memory for its weights."""
    with torch.device("meta"):
        module, _ = workload.build()
    return module


@pytest.mark.parametrize("workload", blocks.BLOCKS, ids=lambda w: w.name)
def test_every_block_is_swapped_whole(workload):
    """patched() raises where patch leaves something."""
    module = on_meta(workload)
    swapped = blocks.patched(module.eval())
    assert list(swapped.state_dict()) == list(module.state_dict())
    assert all(a is b for a, b in zip(swapped.parameters(), module.parameters(), strict=True))


def test_every_model_of_the_rule_tables_has_a_block():
    tables = (transformers.BLOCKS, transformers.PROJECTORS, diffusers.BLOCKS, diffusers.PROCESSORS)
    ruled = {row[0].rpartition(".")[2] for table in tables for row in table}
    ruled |= {*transformers.TEXT_ATTENTION, *transformers.VISION_ATTENTION}
    modules = [m for workload in blocks.BLOCKS for m in on_meta(workload).modules()]
    built = {type(x).__name__ for m in modules for x in (m, getattr(m, "processor", None))}
    assert ruled <= built, f"without a block: {sorted(ruled - built)}"


def flux_block():
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    streams = {"hidden_states": (1, 6, 32), "encoder_hidden_states": (1, 3, 32), "temb": (1, 32)}
    angle = torch.randn(9, 8).repeat_interleave(2, -1)
    inputs = {name: torch.randn(shape) for name, shape in streams.items()}
    return FluxTransformerBlock(32, 2, 16), inputs | {
        "image_rotary_emb": (angle.cos(), angle.sin())
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_contestants_agree_by_the_accuracy_rule(dtype):
    contest = blocks.block_contest(tiny(flux_block), dtype, CPU, 0)
    eager, got = (contest.bind(contest.functions[name])() for name in ("eager", "mmkern"))
    outs = zip(got, eager, contest.oracle(), contest.factors, strict=True)
    assert contest.functions["eager"] is not contest.functions["mmkern"] and len(got) == 2
    for index, (out, plain, exact, factor) in enumerate(outs):
        assert out.dtype == dtype and exact.dtype == torch.float64
        assert_accurate(f"output {index}", out, plain, exact, factor)


def test_a_block_that_patch_leaves_raises():
    with pytest.raises(RuntimeError, match=r"mmkern\.patch did not swap all of a block"):
        blocks.block_contest(
            tiny(lambda: (torch.nn.Linear(3, 3), {"input": torch.randn(2, 3)})),
            torch.float32, CPU, 0,
        )  # fmt: skip


def test_the_command_line_takes_blocks_by_name():
    names = [block.name for block in blocks.BLOCKS]
    assert command._expanded(["blocks,vit"], blocks.BLOCKS) == [*names, "vit"]
    assert len(set(names)) == len(names)
