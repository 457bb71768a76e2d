"""Questions to frozen features: what k nearest neighbours or a linear classifier make of them.

Loaded name by name (PEP 562): `evaluation.names` is read by commands that load no torch.
"""

from importlib import import_module

_HOMES = {
    "Extracted": "features",
    "GreyHistogram": "baselines",
    "LinearHeads": "linear",
    "RawPixels": "baselines",
    "extract_features": "features",
    "knn_accuracy_over_ranks": "knn",
    "knn_metrics": "names",
    "learn_": "linear",
    "linear_metrics": "names",
    "unpack_batch": "features",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
