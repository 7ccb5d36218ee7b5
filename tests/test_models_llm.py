"""Language model: agreement with transformers, decoding, packing."""

import pytest
import torch
from accuracy import assert_accurate
from tiny_models import (
    TEXT,
    assert_close64,
    build,
    one_thread,  # noqa: F401
    reference_of,
)

from mmkern.models import LLM, KVCache


def hf_llm(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize(("kind", "tied"), [("Qwen3", False), ("Qwen3", True), ("Llama", False)])
def test_llm_agrees_with_transformers(kind, tied):
    theirs = hf_llm(kind, tie_word_embeddings=tied)
    model = LLM(**TEXT, rope_theta=1e4, qk_norm=kind == "Qwen3", tie_embeddings=tied)
    model.load_state_dict(theirs.state_dict())
    ids = torch.randint(1, 64, (2, 11))
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, :4] = False
    with torch.no_grad():
        eager, got = theirs(ids).logits, model(ids)
        oracle = reference_of(model, torch.float64)(ids)
        assert_accurate("logits", got, eager, oracle, 2)
        assert_accurate("logits", eager, reference_of(model)(ids), oracle, 3)
        eager = theirs(ids, attention_mask=mask.long()).logits[mask]
        got = model(ids, attention_mask=mask)[mask]
        oracle = reference_of(model, torch.float64)(ids, attention_mask=mask)[mask]
        assert_accurate("logits", got, eager, oracle, 2)
        assert_accurate(
            "logits", eager, reference_of(model)(ids, attention_mask=mask)[mask], oracle, 3
        )
        for padding in (None, mask):
            theirs_mask = torch.ones_like(ids) if padding is None else padding.long()
            tokens = theirs.generate(
                ids, attention_mask=theirs_mask, max_new_tokens=12, do_sample=False
            )
            ours = model.generate(ids, attention_mask=padding, max_new_tokens=12)
            assert torch.equal(ours, tokens[:, ids.shape[1] :])


def test_cached_decoding_equals_the_full_forward():
    model, (ids,) = build("llm")
    reference = reference_of(model)
    oracle = reference_of(model, torch.float64)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :3] = False

    def decode(model, mask, chunks):
        cache, logits, past = KVCache(model, 2, ids.shape[1]), [], 0
        for n in chunks:
            seen = None if mask is None else mask[:, : past + n]
            logits.append(model(ids[:, past : past + n], attention_mask=seen, cache=cache))
            past += n
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        for padding in (None, mask):
            real = torch.ones_like(mask) if padding is None else padding
            wanted = oracle(ids, attention_mask=padding)[real]
            eager = reference(ids, attention_mask=padding)[real]
            for chunks in ([5, *[1] * 6], [4, 3, 4]):
                assert_close64(decode(oracle, padding, chunks)[real], wanted)
                assert_accurate("logits", decode(model, padding, chunks)[real], eager, wanted, 2)
        cache = KVCache(model, 2, 4)
        with pytest.raises(ValueError, match="cache holds 0 of 4 positions; 11 more came"):
            model(ids, cache=cache)
    with pytest.raises(ValueError, match="gradients are enabled"):
        model(ids, cache=cache)


def test_cached_decoding_compiles_without_a_graph_per_token():
    torch._dynamo.reset()
    model, (ids,) = build("llm")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        cache = KVCache(model, 2, ids.shape[1])
        parts = [compiled(ids[:, :3], cache=cache)]
        parts += [compiled(ids[:, i : i + 1], cache=cache) for i in range(3, 11)]
        oracle = reference_of(model, torch.float64)(ids)
        assert_accurate("logits", torch.cat(parts, dim=1), reference_of(model)(ids), oracle, 2)
    assert len(graphs) == 2  # several tokens on an empty cache; one token at any cache length


def test_generate_is_the_same_on_both_backends_and_stops():
    model, (ids,) = build("llm")
    tokens = model.generate(ids, max_new_tokens=8)
    assert torch.equal(tokens, reference_of(model).generate(ids, max_new_tokens=8))
    full = ids
    for i in range(8):
        full = torch.cat((full, model(full)[:, -1].argmax(-1, keepdim=True)), dim=1)
        assert torch.equal(full[:, -1], tokens[:, i])
    eos = tokens[0, 2].item()
    stopped = model.generate(ids, max_new_tokens=8, eos_token_id=eos)
    first = (tokens == eos).int().argmax(1)
    for row, stop in enumerate(first):
        end = stop + 1 if (tokens[row] == eos).any() else stopped.shape[1]
        assert torch.equal(stopped[row, :end], tokens[row, :end])
        assert (stopped[row, end:] == eos).all()


def test_packed_sequences_equal_separate_ones():
    model, _ = build("llm")
    oracle = reference_of(model, torch.float64)
    lengths = [4, 0, 11, 1]
    packed = torch.randint(0, 64, (sum(lengths),))
    cu_seqlens = torch.tensor([0, 4, 4, 15, 16], dtype=torch.int32)
    with torch.no_grad():
        got = model(packed, cu_seqlens=cu_seqlens, max_seqlen=11)
        separate = [part[None] for part in packed.split(lengths) if len(part)]
        eager = torch.cat([reference_of(model)(part)[0] for part in separate])
        wanted = torch.cat([oracle(part)[0] for part in separate])
        assert_close64(oracle(packed, cu_seqlens=cu_seqlens), wanted)
    assert_accurate("logits", got, eager, wanted, 2)
