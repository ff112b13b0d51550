"""Rows that come and go: an answer is the same in any company, and models that cannot be decoded so are told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engines.tiny import KINDS, PROMPTS, VOCAB, Tokenizer, flat, logits_of, sample, seeds_of, tiny
from unified import Sampling, call_named, catalogue
from unified_plugins.engines._decode import without_history

# --- one answer, whatever stands beside it ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_answer_depends_on_its_seed_alone_not_on_batch_process_or_the_way_of_decoding(kind, dtype):
    model, n = tiny(kind).to(dtype), 4
    seeds, how = seeds_of(len(PROMPTS), n), {"max_tokens": 10, "temperature": 0.9, "min_p": 0.01}
    whole = sample(model, PROMPTS, n, seeds=seeds, **how)
    assert len({tuple(a.ids) for own in whole for a in own}) > 8  # else this shows little
    others: list[Any] = [sample(model, PROMPTS, n, seeds=seeds, max_batch=3, **how)]
    first, second = (sample(model, PROMPTS[rank::2], n, seeds=seeds[rank::2], **how) for rank in (0, 1))
    others.append([first[0], second[0], first[1], second[1]])  # two processes, each with every second prompt
    others.append([sample(model, [p], n, seeds=[s], **how)[0] for p, s in zip(PROMPTS, seeds, strict=True)])
    if dtype == torch.float32:  # `generate` reads logits in float32
        others.append(sample(model, PROMPTS, n, seeds=seeds, decode="generate", **how))
    for other in others:
        assert [[a.ids for a in own] for own in other] == [[a.ids for a in own] for own in whole]
        assert [[a.finish for a in own] for own in other] == [[a.finish for a in own] for own in whole]
        for one, same in zip([a for o in whole for a in o], [a for o in other for a in o], strict=True):
            close = 1e-6 if dtype == torch.float64 else 1e-4  # norms are in float32 in both
            assert one.sampling_logp == pytest.approx(same.sampling_logp, abs=close)


def test_torch_is_not_asked_for_noise():
    model = tiny()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample(model, PROMPTS, 2, max_tokens=5)
    assert (torch.get_rng_state() == state).all()
    torch.manual_seed(2)
    assert sample(model, PROMPTS, 2, max_tokens=5) == first


# --- rows that come and go ---


def watched(model: Any) -> list[tuple[int, int]]:
    """Fills with the shape of the tokens of every forward."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda m, a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    return shapes


def test_a_prompt_is_computed_once_for_all_of_its_answers_also_when_they_do_not_fit_at_once():
    model = tiny()
    sample(model, [[5]], 1, max_tokens=1)  # the trial
    shapes = watched(model)
    sample(model, PROMPTS, 7, max_tokens=6, max_batch=4)
    assert sum(tokens for rows, tokens in shapes if tokens > 1 or rows == 1 == tokens) >= sum(map(len, PROMPTS))
    prompts = [tokens for rows, tokens in shapes if tokens > 1]
    assert sum(prompts) <= sum(map(len, PROMPTS))
    assert max(rows for rows, _ in shapes) <= 4


def test_rows_that_have_ended_are_not_computed_and_others_take_their_place():
    # every token after the prompt but the last of an answer is put through the model, once
    model = tiny()
    sample(model, [[5]], 1, max_tokens=1)
    shapes = watched(model)
    answers = flat(sample(model, [[5, 6, 7], [8, 9], [3, 4, 5, 6, 7, 8], [9, 10]], 9, max_tokens=20, max_batch=6))
    lengths = [len(a.ids) for _, a in answers]
    assert len(set(lengths)) > 4
    assert sum(rows for rows, tokens in shapes if tokens == 1) == sum(lengths) - len(lengths)
    steps = [rows for rows, tokens in shapes if tokens == 1]
    assert sum(rows >= 5 for rows in steps) > len(steps) / 2  # freed places are filled while there are answers left


def test_answers_may_grow_far_beyond_the_room_that_was_made_at_first():
    model = tiny(max_position_embeddings=512)
    model.generation_config.eos_token_id = None
    tokenizer, part = Tokenizer(), catalogue().get("engine", "transformers")
    tokenizer.eos_token_id = None
    (own,) = call_named(
        part.generate, model=model, tokenizer=tokenizer, prompts=[[5, 6]], n=2, sampling=Sampling(max_tokens=200),
        settings=part.settings(decode="fast"), seeds=[[1, 2]],
    )  # fmt: skip
    for answer in own:
        assert (len(answer.ids), answer.finish) == (200, "length")
        logp = logits_of(model, [5, 6], answer.ids).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.sampling_logp), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen2"])
@pytest.mark.parametrize("n", [1, 3])
def test_prompts_and_answers_of_very_different_length_are_read_where_they_are(monkeypatch, kind, n):
    # 20 prompts of 1 to 172 tokens, 24 rows at a time: several lengths are multiplied apart, and rows leave and come
    from unified_plugins.engines import _places

    monkeypatch.setattr(_places, "TOGETHER", 3)
    monkeypatch.setattr(_places, "SIMILAR", 4)
    monkeypatch.setattr(_places, "ROUND", 2)
    model = tiny(kind, max_position_embeddings=512)
    prompts = [[3 + (7 * i + 5 * j) % (VOCAB - 3) for j in range(1 + 9 * i)] for i in range(20)]
    found = sample(model, prompts, n, max_tokens=60, max_batch=24, decode="fast")
    lengths = [len(a.ids) for own in found for a in own]
    assert len(lengths) == 20 * n
    assert max(lengths) >= min(lengths) + 12
    for prompt, own in zip(prompts, found, strict=True):
        for answer in own:
            logp = logits_of(model, prompt, answer.ids).log_softmax(-1)
            expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(answer.sampling_logp), expected, atol=2e-4, rtol=1e-3)


def test_a_prompt_is_held_once_for_all_of_its_answers_until_the_last_of_them_has_ended():
    from unified_plugins.engines._cache import RowsCache
    from unified_plugins.engines._places import KeyValue

    def layer(length: int, mark: float) -> dict[int, KeyValue]:
        return {0: KeyValue(torch.full((2, length, 4), mark), torch.full((2, length, 4), -mark))}

    cache = RowsCache(6, 40, 10, shared=True)
    for length, mark, rows in ((40, 1.0, 3), (20, 2.0, 1), (5, 3.0, 2)):
        cache.admit(layer(length, mark), rows)
    assert (cache.owner, cache.lengths, cache.rows.live) == ([0, 0, 0, 1, 2, 2], [40, 20, 5], 6)
    held = [layer.key for layer in (cache.prompts.layers[0], cache.rows.layers[0])]
    assert [k.shape[-2] for k in held] == [40, 10]  # the prompts' own lengths, and that of answers
    cache.keep([0], [3], 3)  # rows 0, 4 and 5 have ended: row 3 takes the first place, the third prompt leaves
    assert (cache.owner, cache.lengths, cache.prompts.live) == ([1, 0, 0], [40, 20], 2)
    cache.keep([1], [2], 2)
    cache.keep([], [], 1)  # the first prompt leaves, the second takes its place
    assert (cache.owner, cache.lengths, cache.prompts.live) == ([0], [20], 1)
    key = cache.prompts.layers[0].key
    assert (key[0, :, :20] == 2.0).all()
    alone = RowsCache(6, 40, 10, shared=False)
    alone.admit(layer(40, 1.0), 1)
    assert alone.prompts.layers == {}
    assert (alone.rows.layers[0].value[0, :, :40] == -1.0).all()


# --- what ends an answer ---


@pytest.mark.parametrize("decode", ["fast", "generate"])
def test_a_stop_string_ends_the_answer_that_keeps_it_also_across_tokens(decode):
    model = tiny()
    free = flat(sample(model, PROMPTS, 10, max_tokens=12, decode=decode))
    held = flat(sample(model, PROMPTS, 10, max_tokens=12, decode=decode, stop=("t7", "5 t1")))
    stopped = 0
    for (_, before), (_, answer) in zip(free, held, strict=True):
        reads = [" ".join(f"t{i}" for i in before.ids[: k + 1]) for k in range(len(before.ids))]
        ends = [k + 1 for k, text in enumerate(reads) if "t7" in text or "5 t1" in text]
        assert answer.ids == before.ids[: ends[0] if ends else None]
        assert answer.sampling_logp == pytest.approx(before.sampling_logp[: len(answer.ids)], abs=1e-5)
        assert answer.finish == ("stop" if ends else before.finish)
        stopped += bool(ends)
    assert 0 < stopped < len(free)


def test_a_stop_string_is_found_where_characters_come_in_bytes_and_spaces_depend_on_what_stands_before():
    from unified_plugins.engines._rows import Watch

    class Bytes:
        """A token is a byte; a text does not begin with a space."""

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode("utf-8", errors="replace").removeprefix(" ")

    text = "a — b. ß"
    ids = list(text.encode())
    for stop in ("—", " — ", ". ß", "b", "ß", "a"):
        watch, expected = Watch(Bytes(), [stop, "never there"]), len(text[: text.index(stop) + len(stop)].encode())
        assert next(k for k in range(1, len(ids) + 1) if watch.met(ids[:k])) == expected
    watch = Watch(Bytes(), ["—b", "aß"])
    assert not any(watch.met(ids[:k]) for k in range(1, len(ids) + 1))


# --- models that are not decoded here ---


def test_a_model_that_takes_no_attention_function_is_sampled_by_generate_and_that_is_said_once(capsys):
    model = tiny("mamba")
    first = sample(model, PROMPTS, 2, max_tokens=5)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "samples MambaForCausalLM by `generate`, which is slower: its code takes no attention function" in said
    assert sample(model, PROMPTS, 2, max_tokens=5) == first
    assert capsys.readouterr().err == ""
    for prompt, answer in flat(first):
        logp = logits_of(model, prompt, answer.ids).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.sampling_logp), expected, atol=1e-4, rtol=1e-4)


def test_who_asks_for_fast_decoding_of_such_a_model_is_told_why_not_and_who_asks_for_generate_hears_nothing(capsys):
    from unified import UserError

    model = tiny("mamba")
    with pytest.raises(UserError, match="`decode: fast`: MambaForCausalLM cannot be decoded so: its code takes no"):
        sample(model, PROMPTS, 1, decode="fast")
    sample(model, PROMPTS, 1, max_tokens=2, decode="generate")
    assert capsys.readouterr().err == ""


def test_a_model_that_looks_at_the_tokens_before_by_other_ways_than_attention_fails_the_trial():
    from unified_plugins.engines._decode import why_not

    model = tiny()
    assert why_not(model) is None

    def mix(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output + 0.05 * output.roll(1, 1)  # a convolution over time

    other = tiny()
    other.model.layers[0].mlp.register_forward_hook(mix)
    assert "differ from a plain forward" in str(why_not(other))


def test_the_attention_of_the_model_is_what_it_was_afterwards_also_when_sampling_fails():
    model = tiny()
    before = model.config._attn_implementation
    sample(model, PROMPTS, 1, max_tokens=2)
    assert model.config._attn_implementation == before
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(model, PROMPTS, 1, max_tokens=2)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("decode", ["auto", "generate"])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_model_that_has_diverged_is_named_as_such(decode, temperature):
    from unified import UserError

    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="logits are no numbers"):
        sample(model, PROMPTS, 2, decode=decode, temperature=temperature, max_tokens=3)


# --- precision ---


@pytest.mark.parametrize("frozen", [False, True])
def test_in_bfloat16_log_probs_are_those_of_a_forward_in_bfloat16_and_weights_stay_as_they_are(frozen):
    model = tiny().requires_grad_(not frozen)
    before = {name: p.clone() for name, p in model.named_parameters()}
    part = catalogue().get("engine", "transformers")
    found = call_named(
        part.generate, model=model, tokenizer=Tokenizer(), prompts=PROMPTS, n=2, sampling=Sampling(max_tokens=6),
        settings=part.settings(decode="fast", precision="bfloat16"), seeds=seeds_of(4, 2),
    )  # fmt: skip
    apart = []
    for prompt, answer in flat(found):
        ids = torch.tensor(answer.ids)[:, None]
        exact = logits_of(model, prompt, answer.ids).log_softmax(-1).gather(1, ids)[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logits_of(model, prompt, answer.ids).log_softmax(-1).gather(1, ids)[:, 0]
        own = torch.tensor(answer.sampling_logp)
        apart.append([float((own - x).abs().max()) for x in (rounded, exact)])
    assert max(a for a, _ in apart) < 0.15
    assert max(b for _, b in apart) > 1e-4  # it was not float32
    assert all((p == before[name]).all() and p.requires_grad is not frozen for name, p in model.named_parameters())


class _Remembers(nn.Module):
    """Keeps what it computes while it is called, as a rotary embedding does whose frequencies grow with the length."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))
        self.longest = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale * 1.0
        self.longest = self.longest + 1
        return x


def test_what_a_model_keeps_while_it_is_sampled_from_can_be_learned_with() -> None:
    model = _Remembers()
    weight = torch.ones(1, requires_grad=True)
    with without_history(model):
        model(torch.ones(1))
        assert model.scale.is_inference()
        assert model.longest.is_inference()
    (weight * model.scale * model.longest).backward()  # of an inference tensor torch refuses to keep anything
    assert weight.grad is not None
    assert weight.grad.item() == 2.0
