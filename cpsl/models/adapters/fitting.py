"""Entries of a file matched to the tensors of a network, whatever wrappers were around it."""

import logging
import re
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

_logger = logging.getLogger("cpsl")

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of keys that torch.compile, parallel and sharded modules add, anywhere in a key."""

PREFERRED = ("encoder_q", "base_encoder")
"""Parts of keys of the network to use, as are moving averages, if a file has several."""

AVERAGE_WORDS = frozenset(("ema", "teacher", "averaged", "average", "avg", "swa"))
"""Words in names of moving averages, such as G_ema beside G."""

SECONDARY = ("student", "encoder_k", "momentum_encoder", "target_encoder", "target_network", "imnet_model")
"""Parts of keys of networks that are used only if a file has no other."""


NORMALIZATION = ("mean", "std")
"""Entries of the color normalization; 0 and 1 as whole numbers are right there."""


def find_entries(
    weights: Mapping[str, Tensor], required: Mapping[str, torch.Size | None], source: object, root: str = ""
) -> tuple[dict[str, Tensor], str]:
    """Renames entries so that most of the required ones are present.

    Args:
        weights: Entries of a file.
        required: Shapes by key; None fits any shape.
        source: The file, which is named in errors.
        root: Prefix of the required keys that the file may lack.

    Returns:
        All entries of the network inside the file, and the prefix that its keys had.

    Raises:
        ValueError: Several different networks of the file have all required entries.

    Example:
        >>> weights = {"module.encoder_q.fc.bias": torch.ones(2), "module.encoder_k.fc.bias": torch.zeros(2)}
        >>> find_entries(weights, {"fc.bias": torch.Size([2])}, "moco.pth")
        ({'fc.bias': tensor([1., 1.])}, 'module.encoder_q.')
    """

    def count(entries: Mapping[str, Tensor]) -> int:
        found = (entries.get(key) for key in required)
        shapes = zip(found, required.values(), strict=True)
        return sum(value is not None and shape in (None, value.shape) for value, shape in shapes)

    candidates = list(_candidates(weights, list(required), root))
    counts = [count(entries) for entries, _ in candidates]
    best = max(counts)
    tied = [candidate for candidate, found in zip(candidates, counts, strict=True) if found == best]
    tied.sort(key=lambda candidate: _rank(candidate[1]))  # stable: without wrappers before others
    chosen, prefix = tied[0]
    rivals = (
        [
            other
            for entries, other in tied[1:]
            if _rank(other) == _rank(prefix) and any(entries[key] is not chosen[key] for key in required)
        ]
        if best == len(required)
        else []
    )
    if rivals:
        raise ValueError(
            f"{source} has several networks with all entries that are needed, their prefixes are "
            f"{', '.join(map(repr, [prefix, *rivals[:3]]))}: save one of them to a file of its own"
        )
    return chosen, prefix


def _candidates(
    weights: Mapping[str, Tensor], required: Collection[str], root: str
) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Yields the entries below each prefix that a network could have in a file."""
    plain = {".".join(part for part in key.split(".") if part not in WRAPPERS): key for key in weights}
    variants = [dict(weights)]
    if len(plain) == len(weights) and any(name != key for name, key in plain.items()):
        variants.append({name: weights[key] for name, key in plain.items()})
    keys = sorted(required)
    anchors = {keys[index * (len(keys) - 1) // 3] for index in range(4)} if keys else set()
    for entries in variants:
        yield entries, ""
        for new in dict.fromkeys(["", root]):
            ends = [anchor.removeprefix(new) for anchor in anchors]
            prefixes = {
                key.removesuffix(end) for key in entries for end in ends if f".{key}".endswith(f".{end}")
            }
            for prefix in sorted(prefixes):
                if prefix or new:
                    inside = entries.items()
                    yield {new + k[len(prefix) :]: v for k, v in inside if k.startswith(prefix)}, prefix


def without_wrappers(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes that all keys have and that are known to be wrappers or parts of a training program.

    Of several networks, such as student and teacher, the one to use is kept.

    Example:
        >>> entries = dict.fromkeys(["module.teacher.model.fc.bias", "module.student.fc.bias"], torch.ones(1))
        >>> list(without_wrappers(entries))
        ['fc.bias']
    """
    entries = dict(entries)
    while entries:
        first = dict.fromkeys(key.partition(".")[0] for key in entries)
        preferred = [name for name in first if is_preferred(name)]
        several = any(name in SECONDARY for name in first) or _are_copies(entries, list(first))
        known = preferred if several else []
        if len(first) == 1:
            known = [name for name in first if name in (*WRAPPERS, "model", *SECONDARY)] + preferred
        if not known:
            break
        chosen = known[0]
        prefix = f"{chosen}."
        entries = {key.removeprefix(prefix): v for key, v in entries.items() if key.startswith(prefix)}
    return entries


def _are_copies(entries: Mapping[str, Tensor], names: list[str]) -> bool:
    """Returns whether all keys have one of several prefixes, and the same rest below each."""
    below = [{key.partition(".")[2] for key in entries if key.startswith(f"{name}.")} for name in names]
    return len(names) > 1 and all(part == below[0] for part in below)


def is_average(name: str) -> bool:
    """Returns whether a name is that of a moving average.

    Example:
        >>> is_average("G_ema"), is_average("emanet")
        (True, False)
    """
    return not AVERAGE_WORDS.isdisjoint(re.split(r"[\W_]+", name.lower()))


def is_preferred(name: str) -> bool:
    """Returns whether a part of a key is that of the network to use, if a file has several."""
    return name in PREFERRED or is_average(name)


def _rank(prefix: str) -> int:
    parts = prefix.split(".")
    if any(part in SECONDARY for part in parts):
        return 2
    return 0 if any(map(is_preferred, parts)) else 1


def refuse_integers(entries: Mapping[str, Tensor], target: Mapping[str, Tensor], path: object) -> None:
    """Raises ValueError if entries are whole or complex numbers, where a network has floating-point numbers.

    They would be converted without an error; in quantized networks they mean other numbers.
    """
    wrong = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in entries.items()
        if key in target
        and target[key].is_floating_point()
        and not value.is_floating_point()
        and key not in NORMALIZATION
    ]
    if wrong:
        raise ValueError(
            f"{path} has other numbers in place of floating-point weights, such as {', '.join(wrong[:3])}: "
            "it is quantized, damaged or of another network; use the file with floating-point weights"
        )


def fit_weights(
    module: nn.Module, weights: Mapping[str, Tensor], path: object, encoder: str = "", optional: str = "?"
) -> None:
    """Loads entries of a file into a module or its encoder, and logs how many tensors they fill.

    Layers outside of the encoder are loaded if the file contains all of them, except those of another shape,
    such as a classifier of other classes. The color normalization (`mean`, `std`) is loaded if it is present.

    Args:
        module: The network.
        weights: Entries of the file; prefixes of their keys, such as "module.", are recognized.
        path: The file, which is named in errors.
        encoder: Name of the submodule that the weights must have; "" for the whole module.
        optional: Prefix of entries that may be absent.

    Raises:
        ValueError: The encoder's entries are absent, have other shapes or are whole numbers, or the file has
            several encoders.
    """
    target = module.state_dict()
    root = f"{encoder}." if encoder else ""
    counted = [key for key in target if not key.endswith("num_batches_tracked")]  # older files lack the rest
    required = {
        key: target[key].shape for key in counted if key.startswith(root) and not key.startswith(optional)
    }
    entries, prefix = find_entries(weights, required, path, root)
    fits = {key for key in target if key in entries and entries[key].shape == target[key].shape}
    if missing := [key for key in required if key not in fits]:
        expected = ", ".join(f"{key} {tuple(target[key].shape)}" for key in missing[:3])
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(weights.items())[:3])
        raise ValueError(
            f"{path} does not fit {type(module).__name__}{root and f' with its {encoder}'}: "
            f"{len(missing)} of {len(required)} entries are absent or have another shape, such as "
            f"{expected}; the file has {len(weights)} entries, such as {found}"
        )
    complete = all(key in entries for key in counted)
    kept = [key for key in fits if complete or key.startswith(root) or key in NORMALIZATION]
    chosen = {key: entries[key] for key in kept}
    refuse_integers(chosen, target, path)
    module.load_state_dict(chosen, strict=False)
    learned = [key for key in counted if key not in NORMALIZATION]
    log_filled(path, type(module).__name__, learned, kept, prefix)


def log_filled(
    path: object, network: str, tensors: Collection[str], filled: Collection[str], prefix: str
) -> None:
    """Logs how many tensors of a network are from a file, and examples of the others."""
    found = set(filled)
    new = [key for key in tensors if key not in found]
    rest = f"; not in the file: {', '.join(new[:3])}{', ...' if len(new) > 3 else ''}" if new else ""
    below = f", from its entries {prefix}*" if prefix else ""
    _logger.info(f"{path}: {len(tensors) - len(new)} of {len(tensors)} tensors of {network}{below}{rest}")
