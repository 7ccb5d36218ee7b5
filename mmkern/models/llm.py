"""Decoder language model in the manner of Llama (arXiv:2302.13971) and Qwen3 (arXiv:2505.09388).

RMSNorm, rotary positions with optional QK-norm, grouped-query attention, SwiGLU. The state_dict
names are those of transformers, whose Llama and Qwen3 checkpoints load. A layer hands on its last
branch unadded: the residual add happens inside the next RMSNorm, in one pass.
"""

import torch
from torch import nn

from mmkern.nn import GatedMlp, Linear, OpsModule, RMSNorm, rope_table, run_block, segments

_QWEN3 = {"vocab_size": 151936, "num_kv_heads": 8, "head_dim": 128, "qk_norm": True}
_QWEN3_0_6B = {"dim": 1024, "mlp_dim": 3072, "depth": 28, "num_heads": 16, "tie_embeddings": True}
_LLAMA3 = {"vocab_size": 128256, "num_kv_heads": 8, "head_dim": 128, "rope_theta": 5e5, "eps": 1e-5}
CONFIGS = {
    "qwen3_0_6b": {**_QWEN3, **_QWEN3_0_6B},
    "qwen3_8b": {**_QWEN3, "dim": 4096, "mlp_dim": 12288, "depth": 36, "num_heads": 32},
    "llama3_8b": {**_LLAMA3, "dim": 4096, "mlp_dim": 14336, "depth": 32, "num_heads": 32},
}


class KVCache:
    """Keys and values of all layers, allocated once: two tensors (depth, B, max_seqlen, Hk, D).

    ``length`` is how many positions hold tokens; :meth:`LLM.forward` advances it.
    """

    def __init__(self, llm, batch, max_seqlen):
        attention = llm.model.layers[0].self_attn
        shape = (len(llm.model.layers), batch, max_seqlen, attention.num_kv_heads)
        self.k = attention.k_proj.weight.new_zeros(*shape, attention.head_dim)
        self.v = torch.zeros_like(self.k)
        self.length = 0

    def update(self, layer, k, v):
        """Store (B, S, Hk, D) behind the held tokens; returns views of all keys and values."""
        end = self.length + k.shape[1]
        if end > self.k.shape[2]:
            raise ValueError(
                f"cache holds {self.length} of {self.k.shape[2]} positions; {k.shape[1]} more came"
            )
        self.k[layer, :, self.length : end] = k
        self.v[layer, :, self.length : end] = v
        return self.k[layer, :, :end], self.v[layer, :, :end]


class SelfAttention(OpsModule):
    def __init__(self, dim, num_heads, num_kv_heads, head_dim, qk_norm, bias, eps, ops):
        super().__init__(ops)
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.eps = eps
        self.q_proj = Linear(dim, num_heads * head_dim, bias=bias, ops=ops)
        self.k_proj = Linear(dim, num_kv_heads * head_dim, bias=bias, ops=ops)
        self.v_proj = Linear(dim, num_kv_heads * head_dim, bias=bias, ops=ops)
        self.o_proj = Linear(num_heads * head_dim, dim, bias=bias, ops=ops)
        self.q_norm = RMSNorm(head_dim, eps=eps, ops=ops) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps=eps, ops=ops) if qk_norm else None

    def forward(self, x, rope, store, options):
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        norms = {}
        if self.q_norm is not None:
            norms = {"q_weight": self.q_norm.weight, "k_weight": self.k_norm.weight}
        q, k = self.f.rope(q, k, *rope, eps=self.eps, **norms)
        if store is not None:
            k, v = store(k, v)
        return self.o_proj(self.f.attention(q, k, v, causal=True, **options).flatten(-2))


class DecoderLayer(nn.Module):
    def __init__(self, dim, mlp_dim, eps, ops, **attention):
        super().__init__()
        self.input_layernorm = RMSNorm(dim, eps=eps, ops=ops)
        self.self_attn = SelfAttention(dim, eps=eps, ops=ops, **attention)
        self.post_attention_layernorm = RMSNorm(dim, eps=eps, ops=ops)
        self.mlp = GatedMlp(dim, mlp_dim, ops=ops)

    def forward(self, h, branch, rope, store, options):
        h, y = self.input_layernorm.add(h, branch)
        h, y = self.post_attention_layernorm.add(h, self.self_attn(y, rope, store, options))
        return h, self.mlp(y)


class Decoder(nn.Module):
    def __init__(self, vocab_size, dim, depth, eps, ops, **layer):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, eps=eps, ops=ops, **layer) for _ in range(depth)
        )
        self.norm = RMSNorm(dim, eps=eps, ops=ops)


class LLM(OpsModule):
    """Causal language model.

    Args:
        vocab_size, dim, mlp_dim, depth: of the decoder.
        num_heads, num_kv_heads, head_dim: query heads, key/value heads (a divisor), their size.
        rope_theta, eps: base of the rotary frequencies; epsilon of every RMSNorm.
        qk_norm: RMSNorm on each head of q and k before the rotation, as in Qwen3.
        attention_bias: biases on the four attention projections.
        tie_embeddings: the output projection is the embedding.
        checkpointing: recompute layers in the backward (also an attribute).
        ops: "mmkern" or "reference".

    ``CONFIGS`` has published sizes: ``LLM(**CONFIGS["qwen3_8b"])``.
    """

    def __init__(
        self,
        *,
        vocab_size,
        dim,
        mlp_dim,
        depth,
        num_heads,
        num_kv_heads,
        head_dim,
        rope_theta=1e6,
        eps=1e-6,
        qk_norm=False,
        attention_bias=False,
        tie_embeddings=False,
        checkpointing=False,
        ops="mmkern",
    ):
        super().__init__(ops)
        self.head_dim = head_dim
        self.rope_theta = rope_theta
        self.checkpointing = checkpointing
        self.model = Decoder(
            vocab_size,
            dim,
            depth,
            eps,
            ops,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            qk_norm=qk_norm,
            bias=attention_bias,
        )
        self.lm_head = Linear(dim, vocab_size, bias=False, ops=ops)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids=None,
        *,
        inputs_embeds=None,
        attention_mask=None,
        positions=None,
        cache=None,
        cu_seqlens=None,
        max_seqlen=None,
        last_only=False,
    ):
        """Logits of the next token at every position.

        Args:
            input_ids: (B, S), or (T,) packed with ``cu_seqlens``.
            inputs_embeds: (B, S, dim) or (T, dim), instead of ``input_ids``.
            attention_mask: (B, L) bool, True for real tokens; L counts the cache's tokens too.
            positions: rotary positions (S,), (B, S) or (T,); default: counted from the first real
                token of each row or packed sequence.
            cache: KVCache to read and extend, under torch.no_grad.
            cu_seqlens, max_seqlen: int32 (n + 1,) borders of packed sequences, and the longest.
            last_only: logits of the last position alone, (B, vocab).

        Returns:
            (B, S, vocab) or (T, vocab).

        Raises:
            ValueError: a cache came while gradients are enabled, or is full.
        """
        if cache is not None and torch.is_grad_enabled():
            raise ValueError("cache came while gradients are enabled; wanted torch.no_grad()")
        h = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if cache is None else cache.length
        if positions is None:
            positions = default_positions(h, past, attention_mask, cu_seqlens)
        rope = rope_table(positions, self.head_dim, self.rope_theta)
        options = {"key_padding_mask": attention_mask, **segments(cu_seqlens, max_seqlen)}
        branch = None
        for i, layer in enumerate(self.model.layers):
            store = None if cache is None else (lambda k, v, i=i: cache.update(i, k, v))
            h, branch = run_block(
                layer, h, branch, rope, store, options, checkpointing=self.checkpointing
            )
        if cache is not None:
            cache.length += h.shape[1]
        if last_only:
            h, branch = h[:, -1], branch[:, -1]
        return self.lm_head(self.model.norm.add(h, branch)[1])

    @torch.no_grad()
    def generate(
        self,
        input_ids=None,
        *,
        inputs_embeds=None,
        attention_mask=None,
        max_new_tokens=32,
        eos_token_id=None,
    ):
        """Greedy decoding; returns only the new tokens, (B, at most max_new_tokens).

        ``attention_mask`` (B, S) bool: padding belongs on the left. A row that has produced
        ``eos_token_id`` repeats it until all rows have.
        """
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, seqlen = x.shape[:2]
        cache = KVCache(self, batch, seqlen + max_new_tokens)
        mask = attention_mask
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(batch, max_new_tokens)), dim=1)
        tokens = []
        for _ in range(max_new_tokens):
            seen = None if mask is None else mask[:, : cache.length + x.shape[1]]
            logits = self(inputs_embeds=x, attention_mask=seen, cache=cache, last_only=True)
            token = logits.argmax(-1)
            if eos_token_id is not None and tokens:
                token = torch.where(tokens[-1] == eos_token_id, eos_token_id, token)
            tokens.append(token)
            if eos_token_id is not None and (token == eos_token_id).all():
                break
            x = self.model.embed_tokens(token)[:, None]
        return torch.stack(tokens, dim=1)


def default_positions(x, past, attention_mask, cu_seqlens):
    """Positions counted from the first real token of each row, or of each packed sequence."""
    if cu_seqlens is not None:
        index = torch.arange(len(x), device=x.device)
        segment = torch.bucketize(index, cu_seqlens[1:], right=True)
        return index - cu_seqlens[segment]
    if attention_mask is not None:
        return (attention_mask.cumsum(-1) - 1).clamp_min(0)[:, past:]
    return torch.arange(past, past + x.shape[1], device=x.device)
