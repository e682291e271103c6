"""Regions of boolean pictures: smoothing, growing, shrinking, and the largest connected region without holes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def smoothed(pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over 3x3 neighbours of [F,H,W,...] float32 (edges repeated)."""
    for axis in (1, 2):
        edges = [(0, 0)] * pictures.ndim
        edges[axis] = (1, 1)
        padded = np.pad(pictures, edges, mode="edge")
        count = pictures.shape[axis]
        parts = [padded.take(range(shift, shift + count), axis) for shift in range(3)]
        pictures = (parts[0] + parts[1] + parts[2]) / np.float32(3)
    return pictures


def grown(masks: Mask, radius: int = 1) -> Mask:
    """Every pixel of [F,H,W] within `radius` (city blocks of 3x3) of a true one."""
    for _ in range(radius):
        wide = masks.copy()
        wide[:, 1:] |= masks[:, :-1]
        wide[:, :-1] |= masks[:, 1:]
        masks = wide.copy()
        masks[:, :, 1:] |= wide[:, :, :-1]
        masks[:, :, :-1] |= wide[:, :, 1:]
    return masks


def shrunk(masks: Mask, radius: int = 1) -> Mask:
    """What is left of [F,H,W] when `radius` pixels are taken off every edge (the picture's own edge is none)."""
    return ~grown(~masks, radius)


def components(mask: Mask) -> tuple[npt.NDArray[np.int64], int]:
    """Label the 4-connected regions of [H,W]: labels [H,W] from 1, zero outside, and their number.

    Runs of each row are joined to the runs they touch in the row above by union-find.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    first = np.searchsorted(rows, np.arange(len(mask) + 1))
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for row in range(1, len(mask)):
        above, run = int(first[row - 1]), int(first[row])
        while above < first[row] and run < first[row + 1]:
            if starts[above] < ends[run] and starts[run] < ends[above]:
                parent[root(run)] = root(above)
            if ends[above] < ends[run]:
                above += 1
            else:
                run += 1
    names: dict[int, int] = {}
    labels = np.zeros(mask.shape, np.int64)
    for index, (row, start, end) in enumerate(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        labels[row, start:end] = names.setdefault(root(index), len(names) + 1)
    return labels, len(names)


def largest(mask: Mask) -> Mask:
    """The largest connected region of [H,W]; empty where `mask` is."""
    region = np.zeros_like(mask)
    if mask.any():
        window = _extent(mask)
        labels, _ = components(mask[window])
        region[window] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return region


def filled(mask: Mask) -> Mask:
    """[H,W] with everything that its true pixels enclose."""
    enclosed = np.zeros_like(mask)
    if mask.any():
        window = _extent(mask)
        outside, _ = components(np.pad(~mask[window], 1, constant_values=True))
        enclosed[window] = (outside != outside[0, 0])[1:-1, 1:-1]
    return enclosed


def _extent(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns from the first to the last true pixel of [H,W]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
