"""Heads of rows in a batch are those of every row alone through the model's own forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tools import ARCHITECTURES, COMMON, WORDS, relative, tiny_config, tiny_policy, tiny_scalar
from unified.layout import Kind, Row, lay_out
from unified.models import Artifact, scalar_head
from unified.roles import Roles, head_is_linear, packing_is_exact

LAYOUTS: list[Kind] = ["padded", "padded-left", "packed"]
POLICY = {"policy": frozenset({"logp", "entropy"})}
#: masked tokens, an empty prompt, an answer of one token, two rows of one length, and a row of 13 tokens
ROWS = [
    Row([5, 6, 7], [8, 9, 10, 11], [True, False, True, True]),
    Row([], [12, 13, 14, 15, 16], [False, True, True, True, False]),
    Row([17], [18], [True]),
    Row([20, 21], [22, 23, 24, 25, 26], [True] * 5),
    Row([30, 31, 32, 33, 34], [35, 36, 37, 38, 39, 40, 41, 42], [True] * 8),
]
#: attention that the model's own forward uses (Gemma 2 has eager only), and a bound; Gemma's norms round to float32
OWN = {kind: ("eager" if kind == "gemma2" else "sdpa", 1e-6 if "gemma" in kind else 1e-10) for kind in ARCHITECTURES}


def scaled_policy(kind: str, **config: Any) -> Artifact:
    """A policy of an architecture that tests/tools.py does not list."""
    torch.manual_seed(0)
    special = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = AutoConfig.for_model(kind, **{**special, **COMMON, "num_key_value_heads": 2, **config})
    model = AutoModelForCausalLM.from_config(made).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.15)
    return Artifact("policy", module=model)


def alone(artifact: Artifact, how: str, temperature: float = 1.0) -> tuple[Any, Tensor, Tensor]:
    """(model, logp, entropy) of ROWS, [batch, time], each row through the model's own logits."""
    model = copy.deepcopy(artifact.module).eval()  # GPT-2's own dropout is 0.1
    model.config._attn_implementation = how
    logp, entropy = (torch.zeros(len(ROWS), 8, dtype=torch.float64) for _ in range(2))
    for i, row in enumerate(ROWS):
        ids = torch.tensor([row.prompt + row.answer])
        log_p = (model(input_ids=ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
        for t, carries in enumerate(row.mask):
            before = len(row.prompt) + t - 1
            if carries:
                logp[i, t] = log_p[before, row.answer[t]]
                entropy[i, t] = -(log_p[before].exp() * log_p[before]).sum()
    return model, logp, entropy


def pulled(model: Any, logp: Tensor, entropy: Tensor) -> Tensor:
    """The gradient of Σ c · logp + d · entropy with other c, d for every token, as one vector."""
    generator = torch.Generator().manual_seed(3)
    c, d = torch.randn(2, *logp.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad((c * logp + d * entropy).sum(), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def check_against_own_forward(
    artifact: Artifact, layout: Kind, how: str, bound: float, *, temperature: float = 1.0
) -> Roles:
    model, logp, entropy = alone(artifact, how, temperature)
    wanted = pulled(model, logp, entropy)
    roles = Roles({"policy": artifact.load("policy").train()})
    heads = roles(lay_out(ROWS, layout), POLICY, temperature)["policy"]
    torch.testing.assert_close(heads["logp"], logp, atol=bound * 10, rtol=0)
    torch.testing.assert_close(heads["entropy"], entropy, atol=bound * 10, rtol=0)
    assert relative(pulled(roles.models["policy"], heads["logp"], heads["entropy"]), wanted) < bound
    return roles


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_entropies_and_gradients_are_those_of_each_row_alone(kind: str, layout: Kind) -> None:
    how, bound = OWN[kind]
    roles = check_against_own_forward(tiny_policy(kind, dtype=torch.float64), layout, how, bound)
    assert roles.plain_head == {"policy": kind != "gemma2"}


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [2, 7, 50])
def test_sliding_windows_shorter_and_longer_than_rows_stay_within_the_row(
    kind: str, layout: Kind, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, kind, {**ARCHITECTURES[kind], "sliding_window": window})
    check_against_own_forward(tiny_policy(kind, dtype=torch.float64), layout, *OWN[kind])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_with_and_without_a_window_may_alternate(layout: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    # Qwen 2 with windows of 4 tokens from its second layer on
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    monkeypatch.setitem(ARCHITECTURES, "qwen2", {**ARCHITECTURES["qwen2"], **window})
    assert tiny_config("qwen2").layer_types == ["full_attention", "sliding_attention"]
    check_against_own_forward(tiny_policy("qwen2", dtype=torch.float64), layout, "sdpa", 1e-10)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_temperature_divides_the_logits(kind: str) -> None:
    policy = tiny_policy(kind, dtype=torch.float64)
    check_against_own_forward(policy, "packed", *OWN[kind], temperature=0.7)


@pytest.mark.parametrize(("kind", "scale"), [("cohere", {"logit_scale": 0.5}), ("granite", {"logits_scaling": 4.0})])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_that_scale_their_logits_are_read_through_their_own_head(
    kind: str, scale: dict[str, float], layout: Kind
) -> None:
    roles = check_against_own_forward(scaled_policy(kind, **scale), layout, "sdpa", 1e-6)
    assert roles.plain_head == {"policy": False}


@pytest.mark.parametrize(("kind", "config"), [("gptj", {"rotary_dim": 4}), ("bloom", {"n_head": 4})])
def test_models_that_compute_their_own_attention_keep_it(kind: str, config: dict[str, Any]) -> None:
    # both add the mask to the scores themselves (a mask of true and false would shift them by 1), BLOOM also a slope
    check_against_own_forward(scaled_policy(kind, **config), "padded", "eager", 1e-6)


def test_a_model_whose_heads_have_a_sink_keeps_its_own_attention() -> None:
    config = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    policy = scaled_policy("gpt_oss", **config)
    policy.module.float()
    _, logp, _ = alone(policy, "eager")
    heads = Roles({"policy": policy.load("policy")})(lay_out(ROWS, "padded"), POLICY)["policy"]
    torch.testing.assert_close(heads["logp"].double(), logp, atol=1e-5, rtol=0)


def test_a_cap_on_the_logits_is_found_in_a_fresh_model_whose_logits_are_too_small_to_show_it() -> None:
    # fresh weights give |z| < 1, where 30 tanh(z / 30) and z differ by less than z³ / 2700 = 4e-4
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(tiny_config("gemma2"), attn_implementation="eager")
    assert float(fresh(input_ids=torch.arange(4)[None]).logits.detach().abs().max()) < 1
    assert not head_is_linear(fresh)
    fresh.config.final_logit_softcapping = None
    assert head_is_linear(fresh)


def test_looking_at_the_head_leaves_the_model_as_it_was() -> None:
    model = tiny_policy("gemma2").load("policy").train()
    ids = torch.arange(3, 9)[None]
    before = model(input_ids=ids).logits
    head_is_linear(model)
    packing_is_exact(model)
    assert model.training
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_packing_is_exact_for_the_tested_architectures(kind: str) -> None:
    assert packing_is_exact(tiny_policy(kind).load("policy"))


@pytest.mark.parametrize(("kind", "config"), [("mamba", {"state_size": 4}), ("bloom", {"n_head": 4})])
def test_packing_is_not_exact_where_rows_would_see_each_other(kind: str, config: dict[str, Any]) -> None:
    # a recurrent model carries its state on; BLOOM measures distances in the stream
    assert not packing_is_exact(scaled_policy(kind, **config).load("policy"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_does_not_change_when_its_neighbours_do(layout: Kind) -> None:
    roles = Roles({"policy": tiny_policy("qwen3", dtype=torch.float64).load("policy")})
    others = [Row([9], [8, 7], [True, True]) if i != 3 else r for i, r in enumerate(ROWS)]
    both = [roles(lay_out(rows, layout), POLICY)["policy"]["logp"][3, :5] for rows in (ROWS, others)]
    torch.testing.assert_close(both[0], both[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_tokens_padding_and_the_first_token_of_an_empty_prompt_have_no_head(layout: Kind) -> None:
    roles = Roles({"policy": tiny_policy().load("policy"), "critic": tiny_scalar().load("scalar")})
    heads = roles(lay_out(ROWS, layout), {**POLICY, "critic": frozenset({"value", "score"})})
    mask = torch.zeros(len(ROWS), 8, dtype=torch.bool)
    for i, row in enumerate(ROWS):
        mask[i, : len(row.mask)] = torch.tensor(row.mask)
    assert not mask[1, 0]  # the empty prompt
    for x in (*heads["policy"].values(), *heads["critic"].values()):
        assert (x[~mask] == 0).all()
        assert (x[mask] != 0).all()


# --- value and score ---


def own_hidden(model: Any, row: Row) -> Tensor:
    """[tokens, hidden] of one row alone."""
    return model.base_model(input_ids=torch.tensor([row.prompt + row.answer]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_value_is_read_before_token_t_and_score_after_it(kind: str, layout: Kind) -> None:
    artifact = tiny_scalar(kind, dtype=torch.float64)
    artifact.module.config._attn_implementation = "sdpa"
    model = copy.deepcopy(artifact.module).eval()
    heads = Roles({"critic": artifact.load("scalar")})(lay_out(ROWS, layout), {"critic": frozenset({"value", "score"})})
    for i, row in enumerate(ROWS):
        reading = scalar_head(model)(own_hidden(model, row))[:, 0]
        for t, carries in enumerate(row.mask):
            if carries:
                own = len(row.prompt) + t
                torch.testing.assert_close(heads["critic"]["value"][i, t], reading[own - 1], atol=1e-9, rtol=0)
                torch.testing.assert_close(heads["critic"]["score"][i, t], reading[own], atol=1e-9, rtol=0)


def test_value_at_t_does_not_depend_on_token_t_and_score_does() -> None:
    roles = Roles({"critic": tiny_scalar(dtype=torch.float64).load("scalar")})
    asks = {"critic": frozenset({"value", "score"})}
    t = 2
    rows = [Row([4, 5], [6, 7, token, 9, 10], [True] * 5) for token in (8, 11)]
    first, second = (roles(lay_out([row], "padded"), asks)["critic"] for row in rows)
    for head, unchanged in (("value", t + 1), ("score", t)):
        same = (first[head] == second[head])[0].tolist()
        assert same == [True] * unchanged + [False] * (5 - unchanged)


def test_score_at_the_last_token_is_what_the_models_own_forward_gives() -> None:
    artifact = tiny_scalar(dtype=torch.float64)
    artifact.module.config._attn_implementation = "sdpa"
    row = Row([4, 5], [6, 7, 8], [True] * 3)
    own = copy.deepcopy(artifact.module)(input_ids=torch.tensor([row.prompt + row.answer])).logits[0, 0]
    mine = Roles({"scorer": artifact.load("scalar")})(lay_out([row], "packed"), {"scorer": frozenset({"score"})})
    torch.testing.assert_close(mine["scorer"]["score"][0, 2], own, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_value_head_on_the_policys_trunk_reads_before_the_token_and_leaves_logp_as_it_is(kind: str) -> None:
    policy = tiny_policy(kind, dtype=torch.float64)
    torch.manual_seed(1)
    head = nn.Linear(32, 1).double()
    asked = {"policy": frozenset({"logp", "value"})}
    heads = Roles({"policy": policy.load("policy")}, value_head=head)(lay_out(ROWS, "packed"), asked)["policy"]
    row = ROWS[4]
    reading = head(own_hidden(policy.load("policy"), row))[:, 0]
    # the answer has 8 tokens behind a prompt of 5: V(s_t) is read at the slots 4 ... 11
    torch.testing.assert_close(heads["value"][4], reading[4:12], atol=1e-9, rtol=0)
    alone_ = Roles({"policy": policy.load("policy")})(lay_out(ROWS, "packed"), {"policy": frozenset({"logp"})})
    torch.testing.assert_close(heads["logp"], alone_["policy"]["logp"], atol=1e-12, rtol=0)


def test_several_roles_answer_in_one_forward_and_only_what_was_asked() -> None:
    models = {"policy": tiny_policy().load("policy"), "reference": tiny_policy(seed=1).load("policy"),
              "critic": tiny_scalar().load("scalar")}  # fmt: skip
    roles = Roles(models)
    asks = {"policy": frozenset({"logp"}), "reference": frozenset({"logp"}), "critic": frozenset({"value"})}
    heads = roles(lay_out(ROWS, "padded"), asks)
    assert {role: set(named) for role, named in heads.items()} == {role: set(named) for role, named in asks.items()}
    assert not torch.allclose(heads["policy"]["logp"], heads["reference"]["logp"])
    assert "critic" not in roles(lay_out(ROWS, "padded"), {**asks, "critic": frozenset()})
