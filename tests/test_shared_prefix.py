"""The cache against plain lists of rows: whatever is forked, selected, rewound or extended, and from however old a cache."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import Tensor
from transformers import DynamicCache

from latent_tts.attention import shared_prefix
from latent_tts.attention.shared_prefix import SharedPrefixCache
from latent_tts.engine.compaction import Batch

LAYERS, KEY_HEADS, QUERY_HEADS, TOKENS, MOST_ROWS = 2, 2, 4, 1000, 24

Slot = tuple[int, bool]  # a token, and whether it is a real position


@dataclass
class Rows:
    """A cache, and what it should hold: a prompt (tokens) per group, and the slots of every row."""

    cache: SharedPrefixCache
    prompts: list[list[int]]
    slots: list[list[Slot]]

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def group_size(self) -> int:
        return len(self.slots) // len(self.prompts)

    @property
    def keys(self) -> Tensor:
        return torch.arange(self.num_rows)

    @property
    def finished(self) -> Tensor:
        return torch.zeros(self.num_rows, dtype=torch.bool)

    def select(self, index: Tensor) -> Rows:
        prompts = [self.prompts[row // self.group_size] for row in index[:, 0].tolist()]
        return Rows(self.cache.select(index), prompts, [list(self.slots[row]) for row in index.flatten().tolist()])


class Vectors:
    """Keys and values of tokens: tables (layers, tokens, heads, hd)."""

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values = torch.randn(2, LAYERS, TOKENS, KEY_HEADS, width, generator=generator)
        self.queries = torch.randn(TOKENS, QUERY_HEADS, width, generator=generator)

    def of(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, Q, hd) of tokens (R, Q)."""
        return self.keys[layer, tokens].transpose(1, 2), self.values[layer, tokens].transpose(1, 2)


def expected_attention(vectors: Vectors, layer: int, prompt: list[int], slots: list[Slot], own: int) -> Tensor:
    """Output (heads, hd) at slot ``own`` of one row: a softmax over its prompt, its real slots so far, and itself."""
    seen = prompt + [token for place, (token, real) in enumerate(slots[: own + 1]) if real or place == own]
    query, outputs = vectors.queries[slots[own][0]], []
    for head in range(QUERY_HEADS):
        keys, values = (table[layer, seen, head // 2] for table in (vectors.keys, vectors.values))
        weights = (keys @ query[head] / keys.shape[1] ** 0.5).softmax(dim=0)
        outputs.append(weights @ values)
    return torch.stack(outputs)


class CacheMachine(RuleBasedStateMachine):
    """Random programs over all caches made so far; after every step each still holds its rows."""

    width: int
    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.next_token = Vectors(self.width), 0
        self.all: list[Rows] = []

    def tokens(self, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        drawn = (torch.arange(self.next_token, self.next_token + count) % TOKENS).view(shape)
        self.next_token += count
        return drawn

    def keep(self, rows: Rows) -> Rows:
        self.all.append(rows)
        return rows

    @initialize(
        target=made, lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3), limit=st.sampled_from([None, 3, 20])
    )
    def encode(self, lengths: list[int], limit: int | None) -> Rows:
        tokens, recorded = self.tokens(len(lengths), max(lengths)), DynamicCache()
        for layer in range(LAYERS):
            recorded.update(*self.vectors.of(layer, tokens), layer)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        cache = SharedPrefixCache.from_prompt(recorded, None if mask.all() else mask, limit)
        prompts = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        return self.keep(Rows(cache, prompts, [[] for _ in lengths]))

    @rule(target=made, rows=made, positions=st.integers(1, 3), data=st.data())
    def extend(self, rows: Rows, positions: int, data: st.DataObject) -> Rows:
        tokens, real = self.tokens(rows.num_rows, positions), None
        if data.draw(st.booleans(), label="some rows wait"):
            flags = st.lists(st.booleans(), min_size=tokens.numel(), max_size=tokens.numel())
            real = torch.tensor(data.draw(flags, label="real")).view(tokens.shape)
        cache = rows.cache.extended(positions, real)
        now = [
            [(token, True if real is None else bool(real[row, place])) for place, token in enumerate(of_row)]
            for row, of_row in enumerate(tokens.tolist())
        ]
        longer = Rows(cache, rows.prompts, [before + new for before, new in zip(rows.slots, now, strict=True)])
        for layer in range(LAYERS):
            self.attend(longer, layer, tokens)
        return self.keep(longer)

    def attend(self, rows: Rows, layer: int, tokens: Tensor) -> None:
        rows.cache.update(*self.vectors.of(layer, tokens), layer)
        query = self.vectors.queries[tokens].transpose(1, 2).contiguous()  # (R, heads, Q, hd)
        found = rows.cache.attend(layer, query, query.shape[-1] ** -0.5)  # (R, Q, heads, hd)
        for row, slots in enumerate(rows.slots):
            prompt = rows.prompts[row // rows.group_size]
            for place in range(tokens.shape[1]):
                own = len(slots) - tokens.shape[1] + place
                expected = expected_attention(self.vectors, layer, prompt, slots, own)
                torch.testing.assert_close(found[row, place], expected, rtol=1e-4, atol=1e-5)

    @rule(target=made, rows=made, times=st.integers(1, 3))
    def fork(self, rows: Rows, times: int) -> Rows:
        times = max(1, min(times, MOST_ROWS // rows.num_rows))
        slots = [list(row) for row in rows.slots for _ in range(times)]
        return self.keep(Rows(rows.cache.repeat(times), rows.prompts, slots))

    @rule(target=made, rows=made, data=st.data())
    def select(self, rows: Rows, data: st.DataObject) -> Rows:
        groups = data.draw(st.lists(st.integers(0, len(rows.prompts) - 1), min_size=1, max_size=3), label="groups")
        members = st.lists(st.integers(0, rows.group_size - 1), min_size=2, max_size=2)
        index = [[g * rows.group_size + m for m in data.draw(members, label="members")] for g in groups]
        return self.keep(rows.select(torch.tensor(index)))

    @rule(target=made, rows=made, data=st.data())
    def rewind(self, rows: Rows, data: st.DataObject) -> Rows:
        length = data.draw(st.integers(0, len(rows.slots[0])), label="length")
        return self.keep(Rows(rows.cache.rewind(length), rows.prompts, [row[:length] for row in rows.slots]))

    @rule(target=made, rows=made, data=st.data())
    def compact(self, rows: Rows, data: st.DataObject) -> Rows:
        flags = st.lists(st.booleans(), min_size=rows.num_rows, max_size=rows.num_rows).filter(any)
        mask = torch.tensor(data.draw(flags, label="wanted"))
        batch = Batch(rows).keep(mask)  # type: ignore[arg-type]
        assert sorted(batch.rows[batch.wanted].tolist()) == mask.nonzero().flatten().tolist()
        smaller = batch.state
        assert isinstance(smaller, Rows)
        assert smaller.slots == [rows.slots[row] for row in batch.rows.tolist()]
        return self.keep(smaller) if smaller is not rows else rows

    @invariant()
    def every_cache_holds_its_rows(self) -> None:
        for rows in self.all:
            length, size = rows.cache.length, rows.group_size
            assert (rows.cache.num_rows, size) == (rows.num_rows, rows.cache.group_size)
            tokens = torch.tensor([[token for token, _ in row] for row in rows.slots], dtype=torch.long)
            assert tokens.shape == (rows.num_rows, length)
            for layer in range(LAYERS):
                for wanted, buffer in zip(self.vectors.of(layer, tokens), rows.cache.suffix[layer], strict=True):
                    held = buffer[:, :, :, :length].transpose(1, 2).flatten(0, 1)  # (R, H, S, hd)
                    assert torch.equal(held, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("whole_buffers", [False, True])
@pytest.mark.parametrize("width", [6, 16])  # the kernels, where there are any, take widths of whole registers
def test_a_cache_holds_its_rows_whatever_goes_on_from_it(width, whole_buffers, monkeypatch):
    monkeypatch.setattr(shared_prefix, "prefers_whole_buffers", lambda keys: whole_buffers)
    machine = type("Machine", (CacheMachine,), {"width": width})
    options = settings(
        max_examples=30,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    with torch.no_grad():
        run_state_machine_as_test(machine, settings=options)


def test_rows_that_just_go_on_write_where_they_are():
    """No copy on the way that every rollout takes: the buffers stay the same objects until they are full."""
    prompt = torch.zeros(1, 1, 3, 4)
    recorded = DynamicCache()
    recorded.update(prompt, prompt, 0)
    cache = SharedPrefixCache.from_prompt(recorded, None, 16).repeat(4).extended(1)
    first = cache.suffix
    for _ in range(15):
        cache = cache.extended(1)
        assert cache.suffix is first
    assert cache.rewind(3).extended(1).suffix is not first
