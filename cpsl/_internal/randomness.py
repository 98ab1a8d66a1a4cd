"""Seeds derived from their purpose, so that a resumed run needs no random state."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Hashes numbers and words, such as run seed, stage and iteration, into a seed in 0...2^63 - 1.

    Example:
        >>> derive_seed(0, "warmup", 17) == derive_seed(0, "warmup", 17)
        True
        >>> derive_seed(0, "warmup", 17) == derive_seed(0, "warmup", 18)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
