"""Which rows a stage gets: the three-stage split by the prompt's hash, and the blend of sources by weight.

All of it is arithmetic on the 64-bit hashes of prompts, so every rank and every rerun agrees, and a row that is added
moves no other row to another stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf.errors import DataError

STAGE_SALT, HELD_OUT_SALT, ORDER_SALT = 1, 2, 3


def mix(keys: np.ndarray, *, seed: int, salt: int) -> np.ndarray:
    """Another 64 bits for each key: the finaliser of SplitMix64 (Steele et al. 2014), a bijection, keyed by the
    seed."""
    with np.errstate(over="ignore"):
        start = np.uint64((seed * 8 + salt) * 0x9E3779B97F4A7C15 % 2**64)
        z = keys.astype(np.uint64) + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def unit(keys: np.ndarray, *, seed: int, salt: int) -> np.ndarray:
    """A number in [0, 1) for each key."""
    return (mix(keys, seed=seed, salt=salt) >> np.uint64(11)).astype(np.float64) / 2.0**53


def stage_of(prompt_keys: np.ndarray, shares: Sequence[float], *, seed: int) -> np.ndarray:
    """The stage (1, 2 or 3) of each prompt; `shares` need not sum to one."""
    edges = np.cumsum(np.asarray(shares, dtype=np.float64)) / sum(shares)
    return 1 + np.searchsorted(edges[:2], unit(prompt_keys, seed=seed, salt=STAGE_SALT), side="right")


def is_held_out(prompt_keys: np.ndarray, ratio: float, *, seed: int) -> np.ndarray:
    """True where a prompt is held out; independent of its stage."""
    return unit(prompt_keys, seed=seed, salt=HELD_OUT_SALT) < ratio


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """True at the first occurrence of each key: `[7, 3, 7] → [True, True, False]`."""
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def blend(
    rows: Sequence[np.ndarray],
    keys: Sequence[np.ndarray],
    weights: Sequence[float] | None,
    *,
    seed: int,
    limit: int | None = None,
) -> np.ndarray:
    """The order in which a stage reads its sources: an array of shape (rows, 2) of (source, row).

    `rows[s]` are the row numbers that source s offers and `keys[s]` their hashes. Without weights every row is used
    once. With weights the sources' shares are the weights', no row is used twice, and the blend ends where the first
    source runs out. Sources are interleaved evenly, so any beginning of the blend (`limit`) has the same
    shares.
    """
    counts = np.array([len(r) for r in rows], dtype=np.int64)
    taken = counts.copy()
    if weights is not None:
        check_weights(weights)
        share = np.asarray(weights, dtype=np.float64) / sum(weights)
        used = (share > 1e-9) & (counts > 0)
        share = np.where(used, share, 0.0) / max(share[used].sum(), 1e-300)
        total = min((c / s for c, s in zip(counts[used], share[used], strict=True)), default=0.0)
        # Rounding must not ask a source for more than it has; a source with a weight gets at least one row.
        taken = np.where(used, np.clip(np.rint(share * total), 1, counts), 0).astype(np.int64)
    sources, chosen, places = [], [], []
    for source, (numbers, hashes, count) in enumerate(zip(rows, keys, taken, strict=True)):
        # In the order of their hashes: a random order that does not depend on where a row stands in its file.
        order = np.argsort(mix(hashes, seed=seed, salt=ORDER_SALT), kind="stable")[:count]
        sources.append(np.full(count, source, dtype=np.int64))
        chosen.append(np.asarray(numbers, dtype=np.int64)[order])
        places.append((np.arange(count) + 0.5) / max(count, 1))
    if not sources:
        return np.zeros((0, 2), dtype=np.int64)
    order = np.argsort(np.concatenate(places), kind="stable")
    table = np.stack([np.concatenate(sources), np.concatenate(chosen)], axis=1)
    return table[order[:limit]]


def check_weights(weights: Sequence[float]) -> None:
    if any(not 0 <= w < float("inf") for w in weights) or sum(weights) <= 0:
        shown = ", ".join(f"{w:g}" for w in weights)
        raise DataError(f"the weights of the sources are {shown}: none may be negative and one must be above 0")
