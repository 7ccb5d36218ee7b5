"""The scripts in examples/ run, in small, as their first lines say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command, cwd):
    env = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_caption(tmp_path):
    pytest.importorskip("transformers")
    out = run(EXAMPLES / "caption.py", "--tokens", 4, cwd=tmp_path)
    assert "swapped  vision_attention  Qwen3VLVisionAttention" in out
    assert out.splitlines()[-1].startswith("[") and "left" not in out


def test_sample_dit(tmp_path):
    pytest.importorskip("diffusers")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import sample_dit

        sample_dit.tiny().save_pretrained(tmp_path / "dit")
    finally:
        sys.path.remove(str(EXAMPLES))
    options = ("--model", "dit", "--steps", 2, "--labels", 1, 2)
    out = run(EXAMPLES / "sample_dit.py", *options, cwd=tmp_path)
    assert "swapped  adaln_block   BasicTransformerBlock" in out
    assert out.splitlines()[-2:] == ["sample-0.png: 16 x 16", "sample-1.png: 16 x 16"]
    assert (tmp_path / "sample-1.png").stat().st_size > 0


def test_finetune_under_fsdp2_on_two_ranks(tmp_path):
    pytest.importorskip("diffusers")
    script = EXAMPLES / "finetune_fsdp.py"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    out = run(*launcher, script, cwd=tmp_path)
    losses = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("step")]
    assert len(losses) == 10 and losses[-1] < 0.9 * losses[0]
