from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from esvit_pl.backbones.vil_attention import (
    AROUND,
    NEIGHBOURS,
    OWN,
    FullAttention,
    SlidingAttention,
    absent,
    chunk_offsets,
    cubic_weights,
    relative_index,
    sliding_attention,
)

GRIDS = [(5, 8), (7, 3), (2, 8), (3, 3), (1, 1)]  # with chunks of 3: partial, one row of chunks, one chunk, one token
SEEN = [AROUND, OWN, *((*OWN, neighbour) for neighbour in NEIGHBOURS)]  # mode 0, mode -1, all draws of mode 1


def tokens_of(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def dense_attention(query, key, value, grid, side, offsets, table=None, global_bias=None):
    """The same as one matrix over all tokens, with a mask of who sees whom, written pair by pair."""
    places = list(product(range(grid[0]), range(grid[1])))
    num_globals = key.shape[2] - query.shape[2]
    logits = query @ key.mT / query.shape[-1] ** 0.5
    bias = []
    for row, column in places:
        line = [query.new_zeros(query.shape[1]) if table is None else global_bias[:, k] for k in range(num_globals)]
        for other_row, other_column in places:
            offset = (other_row // side - row // side, other_column // side - column // side)
            if offset not in offsets:
                line.append(query.new_full((query.shape[1],), -torch.inf))
            elif table is None:
                line.append(query.new_zeros(query.shape[1]))
            else:
                place = (row - other_row + 2 * side - 1) * (4 * side - 1) + column - other_column + 2 * side - 1
                line.append(table[place])
        bias.append(torch.stack(line, -1))
    return (logits + torch.stack(bias, 1)).softmax(-1) @ value


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "plain"])
@pytest.mark.parametrize("num_globals", [0, 1, 2])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_sliding_attention_is_dense_attention_under_a_mask(grid, num_globals, relative):
    torch.manual_seed(0)
    n, side, heads = grid[0] * grid[1], 3, 2
    query = tokens_of(2, heads, n, 4)
    key, value = tokens_of(2, heads, num_globals + n, 4), tokens_of(2, heads, num_globals + n, 4)
    inputs = [query, key, value]
    tables = {}
    if relative:
        tables["table"] = tokens_of((4 * side - 1) ** 2, heads)
        if num_globals:
            tables["global_bias"] = tokens_of(heads, num_globals)
        inputs += tables.values()
    weight = torch.randn(2, heads, n, 4, dtype=torch.float64)
    for offsets in SEEN if grid == GRIDS[0] and num_globals == 2 else SEEN[:4]:
        mine = sliding_attention(query, key, value, grid=grid, side=side, offsets=offsets, **tables)
        reference = dense_attention(query, key, value, grid, side, offsets, **tables)
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12)
        gradients = torch.autograd.grad((mine * weight).sum(), inputs)
        references = torch.autograd.grad((reference * weight).sum(), inputs)
        for gradient, expected in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_locals_and_globals_use_their_own_projections(shared):
    """The whole module by hand: the released values, made with shared projections, cannot tell these apart."""
    torch.manual_seed(0)
    grid, n, g, heads, side = (4, 7), 28, 2, 2, 3
    attention = SlidingAttention(8, heads, num_globals=g, side=side, shared=shared).double().eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, g + n, 8, dtype=torch.float64)

    def heads_of(y):
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    key, value = (heads_of(part) for part in attention.kv(x).chunk(2, -1))
    query = heads_of(attention.query(x[:, g:]))
    g2l, g2g = attention.g2l_relative_position_bias, attention.g2g_relative_position_bias
    table = attention.local_relative_position_bias_table
    local = dense_attention(query, key, value, grid, side, AROUND, table, g2l[1])
    key, value = (heads_of(part) for part in attention.kv_global(x).chunk(2, -1))
    logits = heads_of(attention.query_global(x[:, :g])) @ key.mT / 4**0.5
    bias = torch.cat([g2g, g2l[0, :, :, None].expand(-1, -1, n)], -1)
    mixed = (logits + bias).softmax(-1) @ value
    expected = [
        attention.proj_global(mixed.transpose(1, 2).flatten(2)),
        attention.proj(local.transpose(1, 2).flatten(2)),
    ]
    torch.testing.assert_close(attention(x, grid), torch.cat(expected, 1), rtol=0, atol=1e-12)
    assert (attention.kv_global is attention.kv) == shared
    assert len(list(attention.parameters())) == (9 if shared else 15)


def test_no_tensor_is_as_large_as_the_dense_logits():
    attention = SlidingAttention(4, 1, side=4, mode=0)
    largest = 0

    def measure(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    n = 32 * 32
    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        attention(torch.randn(1, 1 + n, 4), (32, 32))
    assert n * (1 + 9 * 4 * 4) == largest  # every local with the global and nine chunks
    assert largest < n * n / 7


def test_which_chunks_each_mode_sees():
    assert chunk_offsets(0, True) == chunk_offsets(0, False) == chunk_offsets(1, False) == AROUND
    assert chunk_offsets(-1, True) == chunk_offsets(-1, False) == OWN
    assert len(AROUND) == 9
    assert NEIGHBOURS == ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
    torch.manual_seed(0)
    draws = [chunk_offsets(1, True) for _ in range(800)]
    assert {own for own, _ in draws} == {(0, 0)}
    counts = [sum(neighbour == drawn for _, drawn in draws) for neighbour in NEIGHBOURS]
    assert min(counts) > 70  # of 100 expected


def test_a_drawn_neighbour_beyond_the_border_leaves_the_own_chunk_and_the_globals():
    torch.manual_seed(0)
    grid, side = (5, 5), 3  # 2 x 2 chunks
    query, key, value = torch.randn(1, 1, 25, 4), torch.randn(1, 1, 26, 4), torch.randn(1, 1, 26, 4)
    drawn, own = (
        sliding_attention(query, key, value, grid=grid, side=side, offsets=offsets).unflatten(2, grid)
        for offsets in ((*OWN, (-1, -1)), OWN)
    )
    different = (drawn - own).abs().amax((0, 1, 4)) > 1e-4
    assert different[3:, 3:].all()  # the chunk at the bottom right sees the one at the top left
    assert not different[:3].any()
    assert not different[:, :3].any()


def test_mode_1_draws_from_torch_and_is_mode_0_in_evaluation():
    torch.manual_seed(0)
    attention = SlidingAttention(8, 2, side=2, mode=1)
    x, grid = torch.randn(2, 1 + 36, 8), (6, 6)

    def seeded(seed):
        torch.manual_seed(seed)
        return attention(x, grid)

    assert torch.equal(seeded(3), seeded(3))
    assert len({seeded(seed).double().sum().item() for seed in range(40)}) == 8
    attention.eval()
    random_state = torch.get_rng_state()
    evaluated = attention(x, grid)
    assert torch.equal(random_state, torch.get_rng_state())
    attention.mode = 0
    assert torch.equal(evaluated, attention(x, grid))
    assert torch.equal(evaluated, attention.train()(x, grid))
    attention.mode = -1
    assert not torch.allclose(evaluated, attention(x, grid))


def test_relative_index_by_hand():
    # chunks of one token: the neighbour above (row -1) is at a difference of +1 row, the last row of the 3 x 3 table
    assert relative_index(1, AROUND, 1, torch.device("cpu")).tolist() == [[8, 7, 6, 5, 4, 3, 2, 1, 0]]
    # two by two tokens of a full attention
    index = relative_index(2, OWN, 1, torch.device("cpu"))
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_absent_keys_by_hand():
    device = torch.device("cpu")
    # 1 x 3 tokens in chunks of 2: two chunks, the second is a quarter full, the first half full; one global
    mask = absent((1, 3), 2, ((0, 0), (0, 1)), 1, device, torch.float32)
    assert mask.shape == (2, 1, 9)
    seen = [line == [0.0] for line in mask.mT[0].tolist()], [line == [0.0] for line in mask.mT[1].tolist()]
    assert seen[0] == [True, True, True, False, False, True, False, False, False]
    assert seen[1] == [True, True, False, False, False, False, False, False, False]
    assert absent((4, 2), 2, OWN, 1, device, torch.float32) is None


@pytest.mark.parametrize(("native", "scale"), [(14, (37 / 196) ** 0.5), (7, (50 / 49) ** 0.5), (5, 3.3), (4, 1.0)])
def test_cubic_weights_are_those_of_torch(native, scale):
    picture = torch.randn(1, 2, native, native, dtype=torch.float64)
    reference = F.interpolate(picture, scale_factor=scale, mode="bicubic")
    weights = cubic_weights(reference.shape[-1], native, scale, picture.device, picture.dtype)
    torch.testing.assert_close(weights @ picture @ weights.T, reference, rtol=0, atol=1e-12)
    assert torch.equal(weights, torch.eye(4, dtype=torch.float64)) == (scale == 1)


@pytest.mark.parametrize("num_globals", [0, 2])
@pytest.mark.parametrize("grid", [(4, 4), (2, 2), (3, 7)], ids=str)
def test_full_attention_by_hand(grid, num_globals):
    """At the native size (4 x 4) offsets are looked up, elsewhere that matrix is resized like a picture."""
    torch.manual_seed(0)
    n, heads, native = grid[0] * grid[1], 2, 4
    attention = FullAttention(8, heads, num_globals=num_globals, native=native).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    table = attention.local_relative_position_bias_table
    places = list(product(range(native), repeat=2))
    lookup = [[(a - c + 3) * 7 + b - d + 3 for c, d in places] for a, b in places]
    bias = table[torch.tensor(lookup)].permute(2, 0, 1)
    if n != 16:
        bias = F.interpolate(bias[None], size=(n, n), mode="bicubic")[0]
    whole = torch.zeros(heads, num_globals + n, num_globals + n, dtype=torch.float64)
    whole[:, num_globals:, num_globals:] = bias
    if num_globals:
        g2l, g2g = attention.g2l_relative_position_bias, attention.g2g_relative_position_bias
        whole[:, :num_globals, :num_globals] = g2g
        whole[:, :num_globals, num_globals:] = g2l[0, :, :, None]
        whole[:, num_globals:, :num_globals] = g2l[1, :, None, :]
    x = torch.randn(2, num_globals + n, 8, dtype=torch.float64)
    query, key, value = attention.qkv(x).unflatten(-1, (3, heads, 4)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / 2 + whole).softmax(-1)
    shown = attention.weights(x, grid)
    torch.testing.assert_close(shown.weights[:, 0], weights[:, :, num_globals:], rtol=0, atol=1e-12)
    if num_globals:
        torch.testing.assert_close(shown.prefix, weights[:, :, :num_globals], rtol=0, atol=1e-12)
    expected = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, grid), expected, rtol=0, atol=1e-12)
    with torch.no_grad():  # the teacher's way, torch's fused kernel
        torch.testing.assert_close(attention(x, grid), expected, rtol=0, atol=1e-12)


def test_training_can_use_what_evaluation_made_first():
    """Tables are made once for each size; made in inference mode they could not be used with gradients."""
    for function in (absent, relative_index, cubic_weights):
        function.cache_clear()
    sliding, full = SlidingAttention(4, 1, side=3), FullAttention(4, 1, native=2)
    x = torch.randn(1, 1 + 20, 4)
    with torch.inference_mode():
        sliding(x, (4, 5))
        full(x, (4, 5))
    (sliding(x, (4, 5)) + full(x, (4, 5))).sum().backward()
    assert sliding.local_relative_position_bias_table.grad.abs().sum() > 0
    assert full.local_relative_position_bias_table.grad.abs().sum() > 0


def test_tables_start_small():
    torch.manual_seed(0)
    attention = SlidingAttention(8, 4, side=7)
    assert attention.local_relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.1)
    assert attention.g2l_relative_position_bias.shape == (2, 4, 1)
    assert attention.g2g_relative_position_bias.shape == (4, 1, 1)
