"""The two attentions of the Vision Longformer (Zhang et al., arXiv 2103.15358): sliding chunks, and all tokens.

A stage's tokens are g globals, followed by the n locals of a map, row by row. In sliding attention the map is cut into
chunks. A local sees the globals, and the locals of its own and the neighbouring chunks; the globals see everything.
No matrix of n x n is made: every chunk gets a copy of the keys that it sees.
"""

# b images | m heads | g globals | h, w rows and columns of a map | n = h * w locals | s side of a chunk | c channels
# p, q rows and columns of chunks | k keys that a chunk sees, globals first | d = c / m

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.backbones.constants import cached_constant
from esvit_pl.backbones.interface import Attention

Grid = tuple[int, int]
Offsets = tuple[tuple[int, int], ...]

OWN: Offsets = ((0, 0),)
AROUND: Offsets = tuple(product((-1, 0, 1), (-1, 0, 1)))
"""A chunk and the 8 around it, as (row, column) relative to it, row by row."""
NEIGHBOURS: Offsets = tuple(offset for offset in AROUND if offset not in OWN)


def chunk_offsets(mode: int, training: bool) -> Offsets:
    """Which chunks a local sees in this pass.

    Args:
        mode: 0: its own chunk and the 8 around it. -1: only its own. 1: in training its own and one of the 8, which is
            drawn from torch's generator for the whole batch; since each step seeds that generator, a resumed run draws
            the same. (The release draws from Python's generator, which it does not seed.)
        training: without it, mode 1 is mode 0.
    """
    if mode < 0:
        return OWN
    if mode > 0 and training:
        return (*OWN, NEIGHBOURS[int(torch.randint(len(NEIGHBOURS), (), device="cpu"))])
    return AROUND


def sliding_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: Grid,
    side: int,
    offsets: Offsets = AROUND,
    table: Tensor | None = None,
    global_bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention of the locals, scaled by d^-0.5, to the globals and to the chunks around their own.

    It equals dense attention with a mask: a query sees a key if the key's chunk lies at one of `offsets` from its own.
    Chunks are cut from the top left, and the last ones may be partial. Nothing outside the map is seen.

    Args:
        query: (b m n d), of the locals.
        key, value: (b m g+n d), of all tokens, globals first.
        grid: (h, w) of the map.
        side: s, side of a chunk.
        offsets: (row, column) of the chunks that are seen, relative to the own one, which is (0, 0) and among them.
        table: ((4s-1)^2 m) relative position bias, by the offset between two tokens.
        global_bias: (m g) bias towards each global; comes with `table`.

    Returns:
        (b m n d)
    """
    num_globals, offsets = key.shape[2] - query.shape[2], existing(offsets, grid, side)
    queries = chunks(query, grid, side)  # (b m p q s2 d)
    keys, values = (seen(tokens, num_globals, grid, side, offsets) for tokens in (key, value))  # (b m p q k d)
    bias = chunk_bias(query, num_globals, grid=grid, side=side, offsets=offsets, table=table, global_bias=global_bias)
    # Heads and chunks are joined in one axis, so that one bias broadcasts over all images.
    bias = None if bias is None else bias.flatten(0, 1)
    mixed = attend(queries.flatten(1, 3), keys.flatten(1, 3), values.flatten(1, 3), bias)
    return unchunked(torch.unflatten(mixed, 1, (-1, *queries.shape[2:4])), grid, side)


def existing(offsets: Offsets, grid: Grid, side: int) -> Offsets:
    """Leave out offsets that no chunk of the map has: a map with one row of chunks has none above and below."""
    p, q = (-(-length // side) for length in grid)
    return tuple((row, column) for row, column in offsets if abs(row) < p and abs(column) < q)


def chunk_bias(
    query: Tensor,
    num_globals: int,
    *,
    grid: Grid,
    side: int,
    offsets: Offsets,
    table: Tensor | None,
    global_bias: Tensor | None,
) -> Tensor | None:
    """(m p*q s2 k), -inf for keys outside the map, or None where nothing is added; arguments as `sliding_attention`."""
    bias: Tensor | None = None
    if table is not None:
        bias = relative_bias(table, global_bias, side, offsets)[:, None]
    mask = absent(grid, side, offsets, num_globals, query.device, query.dtype)
    if mask is None:
        return None if bias is None else bias.expand(-1, -(-grid[0] // side) * -(-grid[1] // side), -1, -1)
    return mask.expand(query.shape[1], -1, -1, -1) if bias is None else bias + mask


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(d^-0.5 query key^T + bias) value, for (b m n d) and a bias that broadcasts to (m n k).

    On a CPU torch's fused kernel does not take a bias with gradient, and its fallback is slower than the formula.
    """
    if bias is None or bias.is_cuda or not bias.requires_grad:
        mask = None if bias is None else bias[None].to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention_weights(query, key, bias) @ value


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(d^-0.5 query key^T + bias)"""
    logits = query * query.shape[-1] ** -0.5 @ key.mT
    weights: Tensor = (logits if bias is None else logits + bias).softmax(-1)
    return weights


def chunks(x: Tensor, grid: Grid, side: int) -> Tensor:
    """(b m n d) -> (b m p q s2 d), padded with zeros at the right and the bottom."""
    h, w = grid
    x = F.pad(torch.unflatten(x, 2, grid), (0, 0, 0, -w % side, 0, -h % side))
    x = torch.unflatten(torch.unflatten(x, 3, (-1, side)), 2, (-1, side))  # (b m p s q s d)
    return x.transpose(3, 4).flatten(4, 5)


def unchunked(x: Tensor, grid: Grid, side: int) -> Tensor:
    """(b m p q s2 d) -> (b m n d): undoes `chunks`, without the padding."""
    x = torch.unflatten(x, 4, (side, side)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return x[:, :, : grid[0], : grid[1]].flatten(2, 3)


def seen(x: Tensor, num_globals: int, grid: Grid, side: int, offsets: Offsets) -> Tensor:
    """(b m g+n d) -> (b m p q k d): for every chunk the globals, then the chunks at `offsets` from it."""
    tiles = chunks(x[:, :, num_globals:], grid, side)
    p, q = tiles.shape[2:4]
    tiles = F.pad(tiles, (0, 0, 0, 0, 1, 1, 1, 1))  # chunks of zeros around the map
    parts = [tiles[:, :, 1 + row : 1 + row + p, 1 + column : 1 + column + q] for row, column in offsets]
    everywhere = x[:, :, None, None, :num_globals].expand(-1, -1, p, q, -1, -1)
    return torch.cat([everywhere, *parts], dim=4)


@cached_constant
def absent(
    grid: Grid, side: int, offsets: Offsets, num_globals: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """(p*q 1 k): -inf for keys outside the map, 0 for the others; None if all keys are inside."""
    with torch.inference_mode(False):
        tokens = torch.ones(1, 1, num_globals + grid[0] * grid[1], 1, device="cpu")
        real = seen(tokens, num_globals, grid, side, offsets).flatten(0, 3).mT
        return None if real.all() else real.log().to(device, dtype)


def relative_bias(table: Tensor, global_bias: Tensor | None, side: int, offsets: Offsets) -> Tensor:
    """((4s-1)^2 m), (m g) -> (m s2 k): the same for every chunk."""
    bias = table[relative_index(side, offsets, 2 * side - 1, table.device)].permute(2, 0, 1)
    if global_bias is None:
        return bias
    return torch.cat([global_bias[:, None].expand(-1, side * side, -1), bias], dim=2)


@cached_constant
def relative_index(side: int, offsets: Offsets, reach: int, device: torch.device) -> Tensor:
    """(s2 len(offsets)*s2): row of the bias table for every query of a chunk and key of the chunks at `offsets`.

    The table has a row for each difference between query and key: ordered by the difference in map rows from -reach to
    reach, then by that in columns. (Computed outside inference mode, so that training can use it even if an evaluation
    asks first.)
    """
    with torch.inference_mode(False):
        inside = torch.tensor(list(product(range(side), range(side))), device="cpu")  # (s2 2)
        keys = torch.cat([inside + side * torch.tensor(offset, device="cpu") for offset in offsets])
        row, column = (inside[:, None] - keys + reach).unbind(-1)
        return (row * (2 * reach + 1) + column).to(device)


@cached_constant
def cubic_weights(length: int, native: int, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(length native): the matrix of bicubic interpolation along one axis, as torch's ``interpolate`` does it.

    Output i lies at (i + 0.5) / scale - 0.5 of the input; beyond its borders the input repeats its first and last
    value. No antialiasing. Length and scale of a matrix can be chosen separately, and its backward is deterministic.
    """
    a = -0.75
    with torch.inference_mode(False):
        source = (torch.arange(length, dtype=torch.float64, device="cpu") + 0.5) / scale - 0.5
        taps = source.floor()[:, None] + torch.arange(-1, 3, device="cpu")  # (length 4)
        t = (source[:, None] - taps).abs()
        weights = torch.where(t <= 1, ((a + 2) * t - (a + 3)) * t * t + 1, (((t - 5) * t + 8) * t - 4) * a)
        matrix = torch.zeros(length, native, dtype=torch.float64, device="cpu")
        return matrix.scatter_add_(1, taps.long().clamp(0, native - 1), weights).to(device, dtype)


class BiasedAttention(nn.Module):
    """What both attentions have: heads, globals, and the tables of the relative position bias.

    Args:
        dim: channels.
        num_heads: m.
        num_globals: g.
        reach: largest difference in rows or columns for which the table has a local bias; None: no bias at all.
    """

    def __init__(self, dim: int, num_heads: int, num_globals: int, reach: int | None) -> None:
        super().__init__()
        self.num_heads, self.num_globals = num_heads, num_globals
        self.local_relative_position_bias_table: nn.Parameter | None = None
        self.g2l_relative_position_bias: nn.Parameter | None = None
        self.g2g_relative_position_bias: nn.Parameter | None = None
        if reach is not None:
            self.local_relative_position_bias_table = _table((2 * reach + 1) ** 2, num_heads)
            if num_globals:
                self.g2l_relative_position_bias = _table(2, num_heads, num_globals)
                self.g2g_relative_position_bias = _table(num_heads, num_globals, num_globals)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(b n parts*c) -> `parts` of (b m n d)"""
        return torch.unflatten(x, -1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def from_globals(self, n: int) -> Tensor | None:
        """(m g g+n) bias of the globals towards all tokens, or None."""
        g2g, g2l = self.g2g_relative_position_bias, self.g2l_relative_position_bias
        if g2g is None or g2l is None:
            return None
        return torch.cat([g2g, g2l[0, ..., None].expand(-1, -1, n)], dim=2)

    def towards_globals(self) -> Tensor | None:
        """(m g) bias of a local towards the globals, or None."""
        g2l = self.g2l_relative_position_bias
        return None if g2l is None else g2l[1]


class SlidingAttention(BiasedAttention):
    """Locals attend to the globals and the chunks around; globals attend to all tokens.

    Args:
        dim: channels.
        num_heads: m.
        num_globals: g.
        side: s, side of a chunk.
        mode: which chunks a local sees (`chunk_offsets`).
        relative: whether there is a relative position bias.
        shared: whether the globals use the projections of the locals: the same parameters under two names, as released.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_globals: int = 1,
        side: int = 7,
        mode: int = 0,
        relative: bool = True,
        shared: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, num_globals, 2 * side - 1 if relative else None)
        self.side, self.mode = side, mode
        self.query, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if num_globals:
            self.query_global = self.query if shared else nn.Linear(dim, dim)
            self.kv_global = self.kv if shared else nn.Linear(dim, 2 * dim)
            self.proj_global = self.proj if shared else nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(b g+n c) -> (b g+n c)"""
        key, value = self.split(self.kv(x), 2)
        (query,) = self.split(self.query(x[:, self.num_globals :]), 1)
        mixed = sliding_attention(query, key, value, **self.chunks_of(grid, training=self.training))
        local: Tensor = self.proj(_merge(mixed))
        if not self.num_globals:
            return local
        if self.kv_global is not self.kv:
            key, value = self.split(self.kv_global(x), 2)
        (query,) = self.split(self.query_global(x[:, : self.num_globals]), 1)
        mixed = attend(query, key, value, self.from_globals(grid[0] * grid[1]))
        return torch.cat([self.proj_global(_merge(mixed)), local], dim=1)

    def weights(self, x: Tensor, grid: Grid) -> Attention:
        """(b g+n c) -> attention weights, where mode 1 is mode 0."""
        g, how = self.num_globals, self.chunks_of(grid, training=False)
        offsets = existing(how.pop("offsets"), grid, self.side)
        key, _ = self.split(self.kv(x), 2)
        (query,) = self.split(self.query(x[:, g:]), 1)
        queries = chunks(query, grid, self.side).flatten(2, 3)
        keys = seen(key, g, grid, self.side, offsets).flatten(2, 3)
        weights = attention_weights(queries, keys, chunk_bias(query, g, offsets=offsets, **how))  # (b m p*q s2 k)
        # The same cutting tells which token lies where: counted from 1, because zeros stand for padding.
        number = torch.arange(1 - g, x.shape[1] + 1 - g, device=x.device).clamp(min=0)[None, None, :, None]
        asks = chunks(number[:, :, g:], grid, self.side).flatten(0, 3)[..., 0] - 1
        sees = seen(number, g, grid, self.side, offsets).flatten(0, 3)[..., 0] - 1
        prefix: Tensor | None = None
        if g:
            key, _ = self.split(self.kv_global(x), 2)
            (query,) = self.split(self.query_global(x[:, :g]), 1)
            prefix = attention_weights(query, key, self.from_globals(grid[0] * grid[1]))
        return Attention(weights.transpose(1, 2), asks, sees, grid, prefix)

    def chunks_of(self, grid: Grid, *, training: bool) -> dict[str, Any]:
        """What `sliding_attention` has to know of a map."""
        return {
            "grid": grid,
            "side": self.side,
            "offsets": chunk_offsets(self.mode, training),
            "table": self.local_relative_position_bias_table,
            "global_bias": self.towards_globals(),
        }


class FullAttention(BiasedAttention):
    """All tokens attend to all tokens, globals and locals alike.

    Args:
        dim: channels.
        num_heads: m.
        num_globals: g.
        native: side of the map at the nominal image size, for which the relative position bias is made; None: no bias.
    """

    def __init__(self, dim: int, num_heads: int, *, num_globals: int = 1, native: int | None = 14) -> None:
        super().__init__(dim, num_heads, num_globals, None if native is None else native - 1)
        self.native = native
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(b g+n c) -> (b g+n c)"""
        query, key, value = self.split(self.qkv(x), 3)
        out: Tensor = self.proj(_merge(attend(query, key, value, self.bias(grid[0] * grid[1]))))
        return out

    def weights(self, x: Tensor, grid: Grid) -> Attention:
        """(b g+n c) -> attention weights."""
        query, key, _ = self.split(self.qkv(x), 3)
        return Attention.of_all(attention_weights(query, key, self.bias(grid[0] * grid[1])), grid)

    def bias(self, n: int) -> Tensor | None:
        """(m g+n g+n), or None.

        As released, for maps of another size the matrix of local biases (native^2 native^2) is resized like a picture
        to (n n). So only the number of tokens matters, not the shape of the map.
        """
        table = self.local_relative_position_bias_table
        if table is None or self.native is None:
            return None
        bias = table[relative_index(self.native, OWN, self.native - 1, table.device)].permute(2, 0, 1)
        if n != self.native**2:
            resize = cubic_weights(n, self.native**2, n / self.native**2, bias.device, bias.dtype)
            bias = resize @ bias @ resize.T
        top, left = self.from_globals(n), self.towards_globals()
        if top is None or left is None:
            return bias
        return torch.cat([top, torch.cat([left[:, None].expand(-1, n, -1), bias], dim=2)], dim=1)


def _merge(x: Tensor) -> Tensor:
    """(b m n d) -> (b n c)"""
    return x.transpose(1, 2).flatten(2)


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
