"""mmkern: fused operators for multimodal models, as functions on torch tensors."""

from types import SimpleNamespace as _Namespace

from mmkern import library as _library
from mmkern.library import empty_cache, info, use
from mmkern.ops.attention import attention
from mmkern.ops.glu import glu
from mmkern.ops.mlp import mlp
from mmkern.ops.modulate import gated_modulate, gated_residual, modulate
from mmkern.ops.patch_embed import patch_embed
from mmkern.ops.rms_norm import rms_norm
from mmkern.ops.rope import rope
from mmkern.patch import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "attention",
    "empty_cache",
    "gated_modulate",
    "gated_residual",
    "glu",
    "info",
    "mlp",
    "modulate",
    "patch",
    "patch_embed",
    "reference",
    "rms_norm",
    "rope",
    "unpatch",
    "use",
]

_functions = (
    attention,
    gated_modulate,
    gated_residual,
    glu,
    mlp,
    modulate,
    patch_embed,
    rms_norm,
    rope,
)
#: The same functions in plain eager PyTorch: ``mmkern.reference.attention(...)`` and so on.
reference = _Namespace(**{f.__name__: _library.plain(f) for f in _functions})
_library.load_native()
_library.load_ascendc()
_library.load_triton()
