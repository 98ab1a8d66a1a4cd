"""Seeds as a function of what they are for, so that a resumed run needs no hidden state."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Mixes numbers and words into one seed.

    Args:
        parts: For example run seed, stage, iteration, sample. The same parts give the same seed on every
            machine; any other parts an unrelated one.

    Returns:
        Integer in 0...2^63 - 1.

    Example:
        >>> derive_seed(0, "warmup", 17) == derive_seed(0, "warmup", 17)
        True
        >>> derive_seed(0, "warmup", 17) == derive_seed(0, "warmup", 18)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
