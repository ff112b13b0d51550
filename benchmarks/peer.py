"""The peer's side: TRL's trainers as its documentation has them, stepped by a callback that waits between blocks.

Rows are drawn in order, so that all sides see the same ones. The environment is its own; `unified` is not imported.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import LEARNING_RATE, PACK, Case, reward
from benchmarks.material import end_ids, read_rows
from benchmarks.worker import Serve, loop

#: option of a block: activations made again in the backward pass
CHECKPOINTING = "checkpointing"
#: ways of the peer to imitate rows; the fastest one is compared with
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "packed, a pack at a time": {"packing": True, "accumulate": True},
        "packed": {"packing": True},
        "padded": {"packing": False},
    }
}


def run(serve: Serve, case: Case, asked: Mapping[str, Any]) -> None:
    """Load, say ready, and step when told to."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if case.kind == "rollout":
        return loop(serve, _rollout(case, asked))
    if case.kind == "logprob":
        return loop(serve, _logprob(case, asked))
    trainer = _trainer(case, asked, dict(VARIANTS.get(case.kind, {}).get(asked.get("variant", ""), {})))
    counted = _count(trainer, serve, sampled=case.kind == "grpo")
    serve.choose = lambda option: _checkpointing(trainer, option == CHECKPOINTING)
    trainer.add_callback(_waiting(serve, counted))
    trainer.train()
    return None


def _trainer(case: Case, asked: Mapping[str, Any], variant: dict[str, Any]) -> Any:
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    disable_progress_bars()
    models, rows = Path(asked["models"]), read_rows(Path(asked["folder"]))
    kind = "scalar" if case.kind == "rm" else "policy"
    auto = AutoModelForSequenceClassification if case.kind == "rm" else AutoModelForCausalLM
    model = auto.from_pretrained(models / kind, attn_implementation="sdpa")
    for parameter in model.parameters():  # loaded ones may be mapped from the file
        parameter.data = parameter.data.float().clone()
    accumulate = variant.pop("accumulate", False)
    packs = max(1, round(case.rows * sum(_lengths(rows)) / len(rows) / PACK))
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "max_steps": 1_000_000, "report_to": [], "save_strategy": "no",
        "bf16": asked["precision"] == "bf16", "use_cpu": True, "disable_tqdm": True, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_strategy": "no",
        "gradient_checkpointing": False, "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 1 if accumulate else packs if variant.get("packing") else case.rows,
        "gradient_accumulation_steps": packs if accumulate else 1,
    }  # fmt: skip
    more: dict[str, Any] = {}
    if case.kind == "sft":
        trainer, config = trl.SFTTrainer, trl.SFTConfig
        settings |= {"max_length": PACK, **variant}
    elif case.kind == "rm":
        trainer, config = trl.RewardTrainer, trl.RewardConfig
        settings["max_length"] = None
    elif case.kind == "dpo":
        trainer, config = trl.DPOTrainer, trl.DPOConfig
        settings |= {"max_length": None, "beta": 0.1, "precompute_ref_log_probs": False}
    else:
        trainer, config = trl.GRPOTrainer, trl.GRPOConfig
        settings |= {
            "per_device_train_batch_size": case.rows * case.answers, "num_generations": case.answers,
            "train_sampling_strategy": "random", "max_completion_length": case.answer,
            "beta": 0.0, "loss_type": "grpo", "shuffle_dataset": False,
        }  # fmt: skip
        more["reward_funcs"] = reward
    tokens = AutoTokenizer.from_pretrained(models / kind)
    return trainer(
        model=model, args=config(**settings), train_dataset=Dataset.from_list(rows), processing_class=tokens, **more
    )


def _lengths(rows: list[dict[str, Any]]) -> list[int]:
    """Tokens of the texts, each with its end."""
    return [len(row.get("text", "").split()) + 1 for row in rows]


def _count(trainer: Any, serve: Serve, *, sampled: bool) -> list[int]:
    """A list that grows by the tokens of each pass that computes a loss, padding not counted."""
    counted: list[int] = []
    original = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs["completion_mask"] if sampled else inputs.get("attention_mask")
        counted.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
        out = original(model, inputs, *args, **kwargs)
        before = 0.0 if len(counted) == 1 or serve.loss is None else serve.loss  # passes of a step share its count
        serve.loss = before + float((out[0] if isinstance(out, tuple) else out).detach())
        return out

    trainer.compute_loss = compute_loss
    return counted


def _checkpointing(trainer: Any, wanted: bool) -> None:
    trainer.args.gradient_checkpointing = wanted
    if wanted:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        trainer.model.gradient_checkpointing_disable()


def _waiting(serve: Serve, counted: list[int]) -> Any:
    """A callback that waits for commands before the first step and after every one."""
    from transformers import TrainerCallback

    class Waiting(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            serve.say(ready=True)
            control.should_training_stop = not serve.more()
            return control

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            serve.done(sum(counted))
            counted.clear()
            control.should_training_stop = not serve.more()
            return control

    return Waiting()


def _rollout(case: Case, asked: Mapping[str, Any]) -> Callable[[], int]:
    """`generate` of transformers as the peer's trainer calls it: float32 weights under autocast, prompts repeated."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = Path(asked["models"]) / "policy"
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    for parameter in model.parameters():  # loaded ones may be mapped from the file
        parameter.data = parameter.data.float().clone()
    rows = [row["prompt"] for row in read_rows(Path(asked["folder"]))]
    ends = end_ids(case)
    config = GenerationConfig(
        max_new_tokens=case.answer, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, pad_token_id=0,
        bos_token_id=1, eos_token_id=ends,
    )  # fmt: skip
    bf16, place = asked["precision"] == "bf16", 0
    forward = model.forward

    def autocasting(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return forward(*args, **kwargs)

    model.forward = autocasting

    @torch.no_grad()
    def step() -> int:
        nonlocal place
        prompts = [rows[i % len(rows)] for i in range(place, place + case.rows) for _ in range(case.answers)]
        place += case.rows
        inputs = tokens(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        out = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(out, torch.tensor(ends))
        return int(torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1]).sum())

    return step


def _logprob(case: Case, asked: Mapping[str, Any]) -> Callable[[], int]:
    """The peer's own function for log-probs by chunks (private)."""
    import torch
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    from benchmarks.limit_parts import logprob_step

    dtype = torch.bfloat16 if asked["precision"] == "bf16" else torch.float32

    def objective(h: Any, w: Any, t: Any, push: Any) -> Any:
        rest = (t, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",))
        return (_ChunkedLogProbFunction.apply(h.to(dtype), w.to(dtype), None, *rest)[0] * push).sum()

    return logprob_step(case, objective)
