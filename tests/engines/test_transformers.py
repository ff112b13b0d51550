"""The rollout engine: what it draws, and the log-probability it reports for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.engines.tiny import END, KINDS, PROMPTS, VOCAB, flat, logits_of, sample, tiny


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "decode"), [(1.0, "fast"), (0.7, "fast"), (2.0, "fast"), (0.7, "generate")])
def test_the_reported_log_probability_is_that_of_a_plain_forward_at_the_temperature(kind, temperature, decode):
    model = tiny(kind)
    answers = sample(model, PROMPTS, 3, temperature=temperature, max_tokens=9, max_batch=5, decode=decode)
    assert [len(own) for own in answers] == [3, 3, 3, 3]
    for prompt, answer in flat(answers):
        logp = (logits_of(model, prompt, answer.ids) / temperature).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.sampling_logp), expected, atol=1e-5, rtol=1e-5)


def test_with_top_k_and_top_p_the_log_probability_is_of_what_was_kept():
    model = tiny()
    answers = sample(model, PROMPTS, 8, temperature=0.9, top_k=5, top_p=0.8, max_tokens=6)
    for prompt, answer in flat(answers):
        for row, token, logp in zip(
            logits_of(model, prompt, answer.ids), answer.ids, answer.sampling_logp, strict=True
        ):
            kept = (row / 0.9).topk(5)  # first the five likeliest, then of these the fewest that hold 0.8
            mass = kept.values.softmax(-1)
            number = int((mass.cumsum(-1) < 0.8).sum()) + 1
            assert token in kept.indices[:number].tolist()
            place = kept.indices.tolist().index(token)
            assert logp == pytest.approx(math.log(mass[place] / mass[:number].sum()), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_weights_give_the_log_probabilities_of_a_plain_forward_to_a_millionth(kind):
    model = tiny(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(4.0)  # as the model was made: logits near 0
    for prompt, answer in flat(sample(model, PROMPTS, 2, max_tokens=12, max_batch=3, decode="fast")):
        logp = logits_of(model, prompt, answer.ids).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.sampling_logp), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_greedy_answers_are_the_argmax_of_each_step_alone_and_together(kind):
    model = tiny(kind, seed=1)
    together = sample(model, PROMPTS, 1, temperature=0, max_tokens=7)
    for prompt, (answer,) in zip(PROMPTS, together, strict=True):
        ids: list[int] = []
        while len(ids) < 7 and END not in ids:
            ids.append(int(logits_of(model, prompt, [*ids, 0])[-1].argmax()))
        assert answer.ids == ids
        assert sample(model, [prompt], 1, temperature=0, max_tokens=7)[0][0].ids == ids
        assert answer.sampling_logp == [0.0] * len(ids)  # a certain token has probability 1


def test_every_end_that_the_generation_configuration_lists_ends_an_answer_and_so_does_the_tokenizers():
    model = tiny()
    model.generation_config.eos_token_id = [5, 7]
    answers = flat(sample(model, PROMPTS, 40, max_tokens=6))
    ends = {a.ids[-1] for _, a in answers if a.finish == "stop"}
    assert ends == {5, 7, END}
    for _, answer in answers:
        assert not {5, 7, END} & set(answer.ids[:-1])  # nothing behind the first end
        assert (answer.finish == "stop") == (answer.ids[-1] in {5, 7, END})
        assert answer.finish == "stop" or len(answer.ids) == 6


def test_the_text_leaves_out_the_end():
    for _, answer in flat(sample(tiny(), PROMPTS, 4, max_tokens=5)):
        assert answer.text == " ".join(f"t{i}" for i in answer.ids if i != END)


def test_frequencies_of_a_single_token_are_those_of_the_distribution():
    model, n = tiny(), 4000
    probability = logits_of(model, [5, 6, 7], [0])[0].softmax(-1)
    (answers,) = sample(model, [[5, 6, 7]], n, max_tokens=1, max_batch=1000)
    counts = torch.bincount(torch.tensor([a.ids[0] for a in answers]), minlength=VOCAB)
    error = (probability * (1 - probability) / n).sqrt()
    assert ((counts / n - probability).abs() <= 4 * error + 1e-9).all()
    assert probability.max() < 0.99  # else this shows nothing


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others():
    model = tiny()
    one, same, other = (
        [a.ids for _, a in flat(sample(model, PROMPTS, 4, seed=seed, max_tokens=8))] for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other


def test_the_models_own_generation_settings_change_nothing():
    model = tiny()
    expected = [a.ids for _, a in flat(sample(model, PROMPTS, 2, max_tokens=8))]
    own = model.generation_config
    own.top_k, own.temperature, own.repetition_penalty, own.min_new_tokens = 1, 0.1, 5.0, 8
    own.suppress_tokens, own.num_beams, own.min_p = [3, 4, 5], 4, 0.9
    assert [a.ids for _, a in flat(sample(model, PROMPTS, 2, max_tokens=8))] == expected
    assert model.generation_config is own
    assert own.num_beams == 4


def test_training_mode_and_checkpointing_are_off_while_sampling_and_put_back():
    model = tiny()
    model.gradient_checkpointing_enable()
    model.train()
    model.model.layers[0].eval()
    seen: list[tuple[bool, bool, bool]] = []

    def look(module: Any, _: Any) -> None:
        seen.append((module.training, getattr(module, "gradient_checkpointing", False), torch.is_grad_enabled()))

    before = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]
    for layer in [model.model, *model.model.layers]:
        layer.register_forward_pre_hook(look)
    sample(model, PROMPTS, 1, max_tokens=3)
    assert set(seen) == {(False, False, False)}
    assert before == [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]
    assert any(gc for _, gc in before)


def test_no_more_rows_are_sampled_at_once_than_allowed():
    model, sizes = tiny(), []
    model.register_forward_pre_hook(lambda m, args, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    answers = sample(model, PROMPTS, 3, max_tokens=9, max_batch=5)
    assert max(sizes) == 5
    assert sum(len(own) for own in answers) == 12


def test_a_prompt_without_tokens_is_refused():
    from unified import UserError

    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        sample(tiny(), [[5], []], 1)
