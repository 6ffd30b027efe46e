"""The kernels against float64 and loops, and the promise they are there for: a row's result is its own, to the bit."""

from __future__ import annotations

import copy
import subprocess

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from latent_tts.acceleration.kernels import attention, elementwise, library, products
from latent_tts.acceleration.kernels.library import Kernels, kernels

DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")


@pytest.fixture(params=["native", "haswell"])
def instructions(request, monkeypatch) -> str:
    """The kernels as this processor takes them, and as one with AVX2 and nothing newer does."""
    if request.param != "native":
        flags = tuple(flag.replace("native", request.param) for flag in library.FLAGS)
        older = Kernels.load(library.build("g++", flags=flags))
        monkeypatch.setattr(library, "kernels", lambda: older)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unit(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding, with some for sums."""
    return 2.0**-8 if dtype == torch.bfloat16 else 1e-6


# Products -----------------------------------------------------------------------------------------------------------------

SHAPES = [
    (32, 16),
    (32, 48),
    (96, 112),
    (288, 64),
    (1056, 80),
    (96, 1),
    (288, 67),
]  # inputs, outputs: narrow last panels, several depths, parts of vectors


def needs(dtype: torch.dtype, num_inputs: int = 32) -> None:
    if not products.suits(torch.zeros(1, num_inputs, dtype=dtype), num_inputs):
        pytest.skip("these products have no kernel on this processor")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_those_in_float64_for_every_number_of_rows(dtype, shape, instructions):
    needs(dtype)
    matrix, bias = random(*shape, dtype=dtype, seed=1), random(shape[1], dtype=dtype, seed=2)
    panels = products.pack(matrix)
    assert torch.equal(products.unpack(panels, *shape), matrix)
    for rows in (*range(1, 18), 31, 32, 33, 48, 100):
        x = random(rows, shape[0], dtype=dtype, seed=rows)
        for added in (bias, None):
            exact = x.double() @ matrix.double() + (0.0 if added is None else added.double())
            error = (products.product(x, panels, added, shape[1]) - exact).abs()
            assert (error <= unit(dtype) * (exact.abs() + 2 * shape[0] ** 0.5)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [112, 1])
def test_a_rows_product_depends_on_neither_the_other_rows_nor_the_threads(dtype, outputs, instructions, threads):
    needs(dtype)
    x, bias = random(70, 288, dtype=dtype, seed=3), random(outputs, dtype=dtype, seed=4)
    panels = products.pack(random(288, outputs, dtype=dtype, seed=5))
    whole = products.product(x, panels, bias, outputs)
    for count in (1, 2, 3):
        threads(count)
        for first, last in ((0, 1), (0, 70), (3, 4), (7, 30), (11, 69), (69, 70)):
            assert torch.equal(products.product(x[first:last], panels, bias, outputs), whole[first:last])


def test_what_the_kernels_cannot_multiply_is_left_to_torch():
    assert products.suits(torch.zeros(2, 8), 8)
    assert not products.suits(torch.zeros(0, 8), 8)
    assert not products.suits(torch.zeros(2, 8, dtype=torch.float64), 8)
    assert not products.suits(torch.zeros(2, 8, dtype=torch.bfloat16), 8)  # tiles take 32 inputs at a time
    assert not products.suits(torch.zeros(2, 8, device="meta"), 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.suits(torch.zeros(2, 8), 8)
    with torch.inference_mode(False), torch.enable_grad():
        assert not products.suits(torch.zeros(2, 8), 8)


# Activations ---------------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "tanh": (elementwise.GELU(approximate="tanh"), lambda x: nn.functional.gelu(x, approximate="tanh")),
    "erf": (elementwise.GELU(), nn.functional.gelu),
    "silu": (elementwise.SiLU(), nn.functional.silu),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_those_in_float64(name, dtype, instructions):
    fast, plain = ACTIVATIONS[name]
    x = torch.cat([torch.linspace(-12, 12, 10007), torch.tensor([0.0, -0.0, 1e-30, -90.0, 200.0])]).to(dtype)
    exact = plain(x.double())
    assert ((fast(x) - exact).abs() <= unit(dtype) * (exact.abs() + (1 if dtype == torch.float32 else 1e-3))).all()
    assert torch.isnan(fast(torch.tensor([float("nan")], dtype=dtype))).all()
    assert fast(torch.tensor([float("inf")], dtype=dtype)) == float("inf")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_does_not_depend_on_where_the_value_lies(name, dtype, instructions, threads):
    fast, _ = ACTIVATIONS[name]
    x = random(9001, dtype=dtype, seed=6)
    whole = fast(x)
    threads(3)
    for first, last in ((0, 9001), (1, 9000), (4090, 4120), (9000, 9001)):
        assert torch.equal(fast(x[first:last].clone()), whole[first:last])


def rms_norm(width: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Llama's norm as transformers has it, and by the kernels, with the same weights."""
    plain = LlamaRMSNorm(width, eps=1e-5).to(dtype).requires_grad_(False)
    plain.weight.copy_(1 + random(width, dtype=dtype, seed=16))
    fast = copy.deepcopy(plain)
    fast.__class__ = elementwise.RMSNorm  # type: ignore[assignment]
    return plain, fast


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 576, 20])  # the last is left to torch
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_the_norm_of_rows_equals_that_of_transformers_and_is_a_rows_own(width, dtype, scale, instructions, threads):
    plain, fast = rms_norm(width, dtype)
    x = scale * random(70, width, dtype=dtype, seed=17)
    found = fast(x)
    torch.testing.assert_close(found, plain(x), rtol=2 * unit(dtype), atol=1e-6)
    if width != 20:
        threads(3)
        for first, last in ((0, 1), (3, 30), (69, 70)):
            assert torch.equal(fast(x[first:last].clone()), found[first:last])


def test_the_norm_of_rows_has_transformers_gradients():
    with torch.inference_mode(False), torch.enable_grad():
        gradients = []
        for norm in rms_norm(32, torch.float32):
            x = random(5, 32, seed=18).requires_grad_()
            norm.requires_grad_(True)
            norm(x).pow(3).sum().backward()
            gradients.append((x.grad, norm.weight.grad))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


# Attention -----------------------------------------------------------------------------------------------------------------

CASES = [  # groups, key heads, members, longest prefix, query heads per key head, positions, width, slots before
    (3, 2, 5, 21, 1, 1, 16, 4),
    (2, 2, 7, 33, 3, 2, 32, 0),
    (1, 3, 40, 16, 1, 1, 64, 7),
    (2, 1, 9, 50, 2, 3, 80, 17),
]


def attention_inputs(case, dtype, waiting):
    """Arguments of the kernel; rows differ in their prefixes' lengths and, where some wait, in the slots they may see."""
    groups, heads, members, length, per_key, positions, width, before = case
    used = before + positions
    keys, values = (random(groups, heads, length, width, dtype=dtype, seed=s) for s in (7, 8))
    suffix = [random(groups, heads, members, used + 3, width, dtype=dtype, seed=s) for s in (9, 10)]
    query = random(groups * members, positions, heads * per_key, width, dtype=dtype, seed=11).transpose(1, 2)
    lengths = torch.tensor([length - 5 * group % length for group in range(groups)])
    valid = random(groups, members, used, seed=12) > -0.5 if waiting else None
    return query, keys, values, lengths, *suffix, used, valid


def attention_by_loop(query, keys, values, lengths, suffix_keys, suffix_values, used, valid, scaling):
    """One query after the other in float64: softmax over the keys it may see, mean of their values."""
    rows, heads, positions, width = query.shape
    groups, key_heads, members = suffix_keys.shape[:3]
    out = torch.zeros(rows, positions, heads, width, dtype=torch.float64)
    for r in range(rows):
        group, member = divmod(r, members)
        for h in range(heads):
            k = h // (heads // key_heads)
            for i in range(positions):
                own = used - positions + i
                slots = [s for s in range(own + 1) if s == own or valid is None or valid[group, member, s]]
                seen = torch.cat([keys[group, k, : lengths[group]], suffix_keys[group, k, member, slots]]).double()
                read = torch.cat([values[group, k, : lengths[group]], suffix_values[group, k, member, slots]]).double()
                out[r, i, h] = (scaling * (seen @ query[r, h, i].double())).softmax(dim=0) @ read
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("waiting", [False, True])
def test_attention_to_a_shared_prefix_equals_a_loop_over_the_queries(case, dtype, waiting, instructions):
    query, keys, *rest = attention_inputs(case, dtype, waiting)
    found = attention.attend(query, attention.in_columns(keys), *rest, 0.3)  # type: ignore[call-arg]
    expected = attention_by_loop(query, keys, *rest, 0.3)  # type: ignore[call-arg]
    assert ((found - expected).abs() <= 2 * unit(dtype) * (1 + expected.abs())).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_depends_on_neither_the_other_rows_nor_the_padding(dtype, instructions, threads):
    query, keys, values, lengths, suffix_keys, suffix_values, used, valid = attention_inputs(CASES[0], dtype, True)
    whole = attention.attend(
        query, attention.in_columns(keys), values, lengths, suffix_keys, suffix_values, used, valid, 0.3
    )
    threads(2)
    for group, members in ((0, [0, 1, 2]), (2, [4]), (1, [3, 0])):
        rows = torch.tensor(members) + 5 * group
        length = int(lengths[group])  # no padding this time
        alone = attention.attend(
            query[rows],
            attention.in_columns(keys[group : group + 1, :, :length]),
            values[group : group + 1, :, :length].contiguous(),
            lengths[group : group + 1],
            suffix_keys[group : group + 1][:, :, members],
            suffix_values[group : group + 1][:, :, members],
            used,
            valid[group : group + 1, members],
            0.3,
        )
        assert torch.equal(alone, whole[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_key", [1, 3])
@pytest.mark.parametrize("length", [1, 16, 77])
def test_causal_attention_equals_softmax_in_float64_and_ignores_what_comes_later(dtype, per_key, length, instructions):
    query = random(2, length, 2 * per_key, 32, dtype=dtype, seed=13).transpose(1, 2)
    keys, values = (random(2, 2, length, 32, dtype=dtype, seed=s) for s in (14, 15))
    found = attention.attend_causally(query, keys, values, 0.3)
    repeated = [x.double().repeat_interleave(per_key, dim=1) for x in (keys, values)]
    scores = (0.3 * query.double() @ repeated[0].transpose(-1, -2)).masked_fill(
        torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf")
    )
    expected = (scores.softmax(dim=-1) @ repeated[1]).transpose(1, 2)
    assert ((found - expected).abs() <= 2 * unit(dtype) * (1 + expected.abs())).all()
    shorter = -(-length // 2)
    cut = attention.attend_causally(query[1:, :, :shorter], keys[1:, :, :shorter], values[1:, :, :shorter], 0.3)
    assert torch.equal(cut, found[1:, :shorter])


# The library ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Kernels that were not asked for yet, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.kernels.cache_clear()
    yield tmp_path / "latent_tts"
    library.kernels.cache_clear()


@pytest.mark.slow
def test_the_library_is_built_once_and_left_alone_after(fresh):
    assert library.kernels() is not None
    (built,) = fresh.iterdir()
    written = built.stat().st_mtime_ns
    library.kernels.cache_clear()
    assert library.kernels() is not None
    assert [file.stat().st_mtime_ns for file in fresh.iterdir()] == [written]


@pytest.mark.slow
def test_without_a_home_the_library_lies_among_the_temporary_files(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing/can/be/made/here")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (folder,) = {library.build("g++").parent}
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o77 == 0
    monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
    (tmp_path / f"latent_tts-{folder.stat().st_uid + 1}").mkdir()  # somebody else was here first
    with pytest.raises(PermissionError, match="belongs to another user"):
        library.build("g++")
    assert library.kernels() is None


def test_a_machine_without_a_working_compiler_computes_by_torch_and_says_so_once(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.kernels() is None and library.kernels() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no-such-compiler" in caplog.text
    assert not products.suits(torch.zeros(2, 8), 8)
    assert not attention.suits(torch.zeros(1, 1, 2, 16))
    x = random(5)
    assert torch.equal(elementwise.SiLU()(x), nn.functional.silu(x))


def test_what_the_compiler_says_against_the_sources_is_passed_on(fresh, monkeypatch, tmp_path, caplog):
    (tmp_path / "broken.cpp").write_text("this is no program;\n")
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    assert library.kernels() is None
    assert "broken.cpp" in caplog.text
    with pytest.raises(subprocess.CalledProcessError):
        library.build("g++")


def test_the_kernels_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "off")
    assert library.kernels() is None
    assert not fresh.exists()
