"""What `unified plan --hardware` says of many devices: state that is shared out, sending, servers, and long rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.docs import scaling
from unified import UserError
from unified.accelerating import make_accelerator
from unified.cli import app
from unified.cost import Cost, cost_of
from unified.devices import DISK, Device, Hardware, hardware
from unified.long_rows import refuse_split_rows
from unified.memory import kept_per_token, longest_row, memory_of
from unified.pace import Balance, Servers, balance, pushes
from unified.sizes import Size
from unified.spread import WAYS, Spread, spread_of
from unified.work import Job, Work

# one layer of width 8, keys and queries of 8, gated unit of 16, 10 words: body 4·64 + 3·128 = 640, head 80
MATRICES = (
    *((name, 8, 8) for name in ("q", "k", "v", "o")), ("gate", 8, 16), ("up", 8, 16), ("down", 16, 8),
)  # fmt: skip
SIZE = Size(parameters=800, layers=1, width=8, key_width=8, matrices=MATRICES, vocabulary=10)
#: 100 FLOP/s, all of it reached; 1000 bytes, read at 100 bytes/s; 10 bytes/s between devices, 5 between machines of 2
SLOW = Device("slow", 100.0, 100.0, 1000.0, 100.0, 10.0, 5.0, 20.0, 2, 1.0, 1.0)
TRAIN = Job("policy", "base", "train", 60.0, read_out=40.0)
WORK = Work(1, 1, [TRAIN], micro_tokens=10.0, step_tokens=60.0)
SIZES = {("policy", "base"): SIZE}


def made(work: Work, on: Hardware, spread: Spread, servers: Servers | None = None) -> Cost:
    found = cost_of(work, lambda reference, scalar: SIZE, on, spread, servers)
    assert found is not None
    return found


# --- memory ---


def test_ways_share_what_their_names_say() -> None:
    def held(way: str) -> list[float]:
        m = memory_of(WORK, SIZES, spread_of(way, 4))
        return [m.weights, m.gradients, m.optimiser]

    # of 800 numbers: 4 bytes of weights, 4 of gradients, 8 of moments; DDP has gradients twice, DeepSpeed keeps a copy
    # of what it moves (4 bytes a number) with the optimiser's state
    assert held("gpus") == [3200, 6400, 6400]
    assert held("zero2") == [3200, 800, 1600 + 800]
    assert held("zero3") == [800, 800, 1600 + 800]
    assert held("fsdp2") == [800, 800, 1600]


def test_several_micro_batches_add_nothing_but_a_share_of_the_gradient_that_waits() -> None:
    several = memory_of(WORK, SIZES, spread_of("fsdp2", 2))  # 30 tokens of each process, 10 at a time
    one = memory_of(Work(1, 1, [TRAIN], micro_tokens=30.0, step_tokens=60.0), SIZES, spread_of("fsdp2", 2))
    chunk = 12 * 10 * (30 - 10)  # of logits: 12 bytes for each of 10 words and of 20 tokens more
    assert one.working - several.working == chunk
    assert several.fixed == several.weights + several.optimiser + 4 * 400 + several.working
    assert one.fixed == one.weights + one.optimiser + max(one.working, 4 * 400)  # DDP and DeepSpeed keep room for it
    zero = memory_of(Work(1, 1, [TRAIN], micro_tokens=30.0, step_tokens=60.0), SIZES, spread_of("zero3", 2))
    assert zero.fixed == zero.weights + zero.optimiser + 4 * 400 + zero.working


@pytest.mark.parametrize(("way", "held"), [("zero3", 2 * (2 * 640 + 80) + 4 * (2 * 640 + 80)), ("fsdp2", 2 * 1360)])
def test_fsdp2_gathers_weights_in_bfloat16_where_zero_casts_those_of_all_layers_beside_float32(
    way: str, held: int
) -> None:
    # two layers of 640 and a head of 80, whose gradient takes 4·80; 10 bytes for each of 10 words and 10 tokens
    two = Size(1600, 2, 8, 8, MATRICES * 2, 10)
    work = Work(1, 1, [TRAIN], micro_tokens=10.0, step_tokens=20.0, bf16=True)
    assert memory_of(work, {("policy", "base"): two}, spread_of(way, 2)).working == held + 4 * 80 + 10 * 10 * 10


def test_what_a_layer_keeps_of_a_token_is_the_sum_of_its_parts() -> None:
    # norms 2·4·8 = 64; inputs of 7 products 2·(6·8 + 16) = 128; queries and keys 4·16, values and result 2·16 = 96;
    # three tensors of the unit 3·2·16 = 96
    assert kept_per_token(SIZE, bf16=True) == 64 + 128 + 96 + 96
    # float32: inputs once each (after both norms, of the result and of the unit) 4·(8 + 8 + 8 + 16) = 160; 8·16 = 128;
    # 3·4·16 = 192
    assert kept_per_token(SIZE, bf16=False) == 64 + 160 + 128 + 192


def test_weights_in_bfloat16_are_kept_for_all_layers_unless_they_are_recomputed() -> None:
    two = Size(1600, 2, 8, 8, MATRICES * 2, 10)

    def working(checkpointing: bool) -> float:
        work = Work(1, 1, [TRAIN], micro_tokens=10.0, step_tokens=10.0, bf16=True, checkpointing=checkpointing)
        return memory_of(work, {("policy", "base"): two}, Spread()).working

    assert working(checkpointing=False) - working(checkpointing=True) == 2 * 640  # of the layer beside the one at work


def test_the_longest_row_fits_and_one_token_more_does_not() -> None:
    spread = spread_of("zero3", 2)
    alone = Work(1, 1, [TRAIN], micro_tokens=1.0, step_tokens=1.0)
    room = 40_000.0
    longest = longest_row(alone, SIZES, spread, room)
    assert longest > 0

    def total(tokens: int) -> float:
        fixed = memory_of(alone, SIZES, spread).fixed
        return fixed + tokens * kept_per_token(SIZE, bf16=False)

    assert total(longest) <= room < total(longest + 1)
    assert longest_row(alone, SIZES, spread, 100.0) == 0


def test_a_row_longer_than_the_budget_is_computed_alone_and_counts_whole() -> None:
    short, long = (Work(1, 1, [TRAIN], micro_tokens=10, step_tokens=60, longest_row=n) for n in (5.0, 25.0))
    found = [memory_of(work, SIZES, Spread()).activations for work in (short, long)]
    assert found == [10 * kept_per_token(SIZE, bf16=False), 25 * kept_per_token(SIZE, bf16=False)]


def test_a_policy_that_is_shared_out_answers_from_a_whole_copy_unless_servers_do() -> None:
    sampling = Job("policy", "base", "generate", 20.0, 10.0, length=20.0)
    work = Work(
        1, 1, [TRAIN, sampling], micro_tokens=60, step_tokens=60, at_once=1, longest=20, collected=2, collects=1
    )
    spread = spread_of("fsdp2", 2)
    here, there = (memory_of(w, SIZES, spread) for w in (work, Work(**{**vars(work), "remote": True})))
    assert here.weights - there.weights == 3200
    assert (there.kv_cache, here.kv_cache) == (0, 2 * 8 * 4 * 1 * 20)


# --- sending ---


def test_what_a_ring_sends_in_a_step() -> None:
    # 3/4 of: the gradient twice; under zero2 the gradient with each of 5 micro-batches, then the weights; under zero3
    # weights twice and the gradient with each; under fsdp2 the same
    def sent(way: str) -> float:
        return spread_of(way, 4).sent(100.0, 40.0, forwards=0.0, micros=5, steps=1)

    assert [sent(way) for way in ("gpus", "zero2", "zero3", "fsdp2")] == [60, 180, 900, 900]
    assert [spread_of(way, 4).gathered(bf16=True) for way in ("zero3", "fsdp2")] == [4, 2]
    assert spread_of("fsdp2", 4).gathered(bf16=False) == 4
    assert spread_of("zero3", 1).sent(100.0, 40.0, forwards=8.0, micros=5, steps=1) == 0


def test_beyond_one_machine_the_network_decides() -> None:
    assert (Hardware(2, SLOW).rate, Hardware(3, SLOW).rate) == (10, 5)


def test_a_step_waits_for_what_computing_does_not_hide() -> None:
    on, spread = Hardware(2, SLOW), spread_of("gpus", 2)
    pace = made(WORK, on, spread).pace
    assert pace is not None
    # forward 60·2·640 + 40·2·80 = 83,200; backward twice that; on 2 · 100 FLOP/s
    assert (pace.forward, pace.backward) == (416, 832)
    # half of 2 · 3200 bytes at 10 bytes/s are 320 s: hidden
    assert pace.waiting == 0
    # 10 passes of 4 bytes over 800 numbers at 100 bytes/s
    assert pace.update == 320
    small = Work(1, 1, [Job("policy", "base", "train", 6.0, read_out=4.0)], micro_tokens=10.0, step_tokens=6.0)
    waits = made(small, on, spread).pace
    assert waits is not None
    assert waits.waiting == pytest.approx(320 - 41.6 - 83.2)


# --- servers ---

ASKED = Job("policy", "base", "generate", 40.0, 20.0, read_out=20.0, length=10.0)
REMOTE = Work(
    2, 4, [TRAIN, ASKED], micro_tokens=60.0, step_tokens=30.0, at_once=4, longest=10, collected=2, collects=2,
    remote=True,
)  # fmt: skip


def test_a_server_is_as_many_devices_as_hold_the_weights_twice_over() -> None:
    # 2 · 2 bytes · 800 = 3200 of 900 usable bytes a device: 3.6, hence 4
    assert Servers(Hardware(8, SLOW)).tensor_parallel(SIZE) == 4
    assert Servers(Hardware(8, SLOW)).number(SIZE) == 2
    assert Servers(hardware("8xH100")).tensor_parallel(SIZE) == 1


def test_a_server_reads_its_weights_and_what_it_keeps_of_all_answers_for_every_token() -> None:
    fast = Device("fast", 1e9, 1e9, 1000.0, 100.0, bandwidth_used=1.0)
    # 4 devices: 3600 usable bytes, 1600 of weights; an answer keeps 10 tokens of 32 bytes: 6 fit, 2 are asked for.
    # 20 tokens, 2 at once: 10 passes over 1600 + 2 · (10 - 5/2) · 32 bytes, a quarter on each device, at 100 bytes/s
    assert Servers(Hardware(4, fast)).seconds(ASKED, SIZE, 2) == pytest.approx(10 * (1600 + 2 * 7.5 * 32) / 4 / 100)


def test_max_staleness_puts_sampling_beside_learning() -> None:
    both = Balance(sampling=100.0, training=30.0, devices=1)
    assert both.servers == 4  # 100 / 4 = 25 <= 30, 100 / 3 is not
    assert both.batch_seconds(4, 0) == 55
    assert both.batch_seconds(4, 1) == 30
    assert both.batch_seconds(2, 1) == 50


def test_a_stage_that_may_sample_ahead_does_not_add_its_sampling() -> None:
    on, spread, servers = Hardware(1, SLOW), Spread(), Servers(Hardware(4, SLOW))
    after = made(REMOTE, on, spread, servers).pace
    ahead = made(Work(**{**vars(REMOTE), "max_staleness": 1}), on, spread, servers).pace
    assert after is not None
    assert ahead is not None
    assert ahead.ahead == after.sampling > 0
    assert ahead.total == pytest.approx(max(after.total - after.sampling, after.sampling))


def test_the_balance_counts_one_batch() -> None:
    on = Hardware(1, SLOW)
    found = balance(REMOTE, SIZES, on, Spread(), Servers(Hardware(4, SLOW)))
    assert found is not None
    pace = made(REMOTE, on, Spread(), Servers(Hardware(4, SLOW))).pace
    assert pace is not None
    assert found.sampling == pytest.approx(pace.sampling / 2)  # one server, two batches
    assert found.training == pytest.approx((pace.total - pace.sampling) / 2)
    assert balance(WORK, SIZES, on, Spread(), None) is None


def test_a_push_by_folder_is_written_once_and_read_by_every_server() -> None:
    found = pushes(REMOTE, SIZES, Hardware(1, SLOW), Servers(Hardware(8, SLOW)))
    assert found["folder"].sent == 3200 * 3  # two servers
    assert found["folder"].seconds == 3200 * 3 / 20
    assert (found["network"].sent, found["network"].seconds) == (1600, 320)
    assert "adapter" not in found


# --- what a person asks for ---


def test_every_shipped_launch_configuration_has_a_spread() -> None:
    from unified.launch import CONFIGS, shipped

    assert set(shipped()) == set(WAYS) != set()
    for name in shipped():  # the name of the file says what the file does
        by_name, by_file = spread_of(name, 4), spread_of(str(CONFIGS / f"{name}.yaml"), 4)
        assert by_name == by_file


def test_an_unknown_way_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"(?s)--launch fdsp2: .*did you mean 'fsdp2'"):
        spread_of("fdsp2", 8)
    with pytest.raises(UserError, match=r"--launch .*no\.yaml: cannot be read"):
        spread_of("no.yaml", 8)


def test_unknown_hardware_is_refused_with_the_nearest_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"(?s)did you mean 'H100'.*YAML file"):
        hardware("8xH10")


OWN = "fp32: 1e12\nbf16: 4e12\nmemory: 8e9\nbandwidth: 1e11\nutilisation: 0.25\n"


def test_hardware_of_ones_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    found = hardware(f"4x{tmp_path}/mine.yaml")
    assert (found.count, found.device.name, found.device.disk) == (4, "mine", DISK)
    assert found.seconds(4e12) == 4e12 / (4 * 4e12 * 0.25)
    assert found.seconds(4e12, bf16=False) == 4e12 / (4 * 1e12 * 0.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace("memory", "memroy"), r"mine\.yaml:3: .*'memroy'(?s:.*)did you mean 'memory'"),
        (OWN.replace("0.25", "2"), r"mine\.yaml:5: "),
        (OWN + "fp32: 3\n", r"mine\.yaml:6: .*fp32"),
        ("- 1\n", r"mine\.yaml:1: a file of hardware is a mapping"),
    ],
)
def test_mistakes_in_such_a_file_are_told_with_their_lines(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        hardware(f"{tmp_path}/mine.yaml")


def test_the_command_prints_where_the_time_of_a_step_goes_and_servers_for_a_stage_that_samples(tmp_path: Path) -> None:
    recipe = str(scaling.ROOT / "recipes" / "quickstart.yaml")
    asked = ["plan", recipe, "--output", str(tmp_path / "out"), "--hardware", "8xH100"]
    found = CliRunner().invoke(app, [*asked, "--launch", "fsdp2", "--servers", "h100x2"])
    assert found.exit_code == 0, found.output
    titles = ("Memory of one device, by role", "Where the time of a step goes", "time of a collected batch", "one push")
    assert [t for t in titles if t not in found.output] == []
    assert "each of 8 processes holds 1/8 of weights, gradients, optimiser state" in found.output
    for wrong in (["--launch", "fsdp2"], ["--servers", "H100"]):
        alone = CliRunner().invoke(app, ["plan", recipe, *wrong])
        assert alone.exit_code == 2
        assert f"{wrong[0]} means something only with --hardware" in alone.output


@pytest.mark.parametrize(
    ("memory", "said"), [("1e3", "whatever the length of rows"), ("5e6", r"\d+ tokens fit .*gradient_checkpointing")]
)
def test_a_stage_that_does_not_fit_is_said_with_the_longest_row(tmp_path: Path, memory: str, said: str) -> None:
    (tmp_path / "tiny.yaml").write_text(OWN.replace("8e9", memory))
    recipe = str(scaling.ROOT / "recipes" / "quickstart.yaml")
    asked = ["plan", recipe, "--output", str(tmp_path / "out"), "--hardware", str(tmp_path / "tiny.yaml")]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert re.search(rf"^rm: .*{said}", found.output, re.M), found.output


# --- rows that are split ---


@pytest.mark.parametrize("name", ["CP", "SP", "TP"])
def test_accelerates_ways_to_split_rows_are_refused_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "4")
    with pytest.raises(UserError, match=rf"(?s){name.lower()}_size\) of 4, which is not supported.*unified plan"):
        make_accelerator()


def test_sharing_alone_is_not_refused() -> None:
    sizes = {f"PARALLELISM_CONFIG_{name}_SIZE": "1" for name in ("CP", "SP", "TP")}
    refuse_split_rows({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "8", **sizes})
    refuse_split_rows({"PARALLELISM_CONFIG_CP_SIZE": "4"})  # nobody reads it


def test_a_configuration_file_that_splits_rows_is_refused_by_the_plan_as_well(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text("distributed_type: FSDP\nparallelism_config:\n  parallelism_config_cp_size: 2\n")
    with pytest.raises(UserError, match=r"long\.yaml: accelerate is told to use context parallelism \(cp_size\) of 2"):
        spread_of(str(file), 8)


# --- the page ---


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    text = scaling.PAGE.read_text(encoding="utf-8")
    assert {m["name"] for m in scaling.FIGURES.finditer(text)} == set(scaling.TABLES) != set()
    assert scaling.renewed(text) == text, "run `python -m tests.docs.scaling`"


def test_what_the_page_says_of_70_and_400_billion_follows_from_the_code() -> None:
    _, large, largest = scaling.SHAPES
    assert [scaling.memory(large, s, "zero3") <= 80e9 for s in ("SFT", "GRPO", "PPO")] == [True, True, False]
    assert scaling.memory(large, "PPO", "zero3") <= 141e9
    assert scaling.memory(largest, "GRPO", "zero3", tokens_per_micro_batch=2048) == pytest.approx(91e9, rel=0.01)
    adapted = scaling.memory(largest, "GRPO", "fsdp2", tokens_per_micro_batch=2048, **scaling.LORA)
    assert adapted == pytest.approx(39.5e9, rel=0.01)
    assert scaling.memory(largest, "GRPO", "fsdp2", tokens_per_micro_batch=2048) == pytest.approx(60.5e9, rel=0.01)
    assert [scaling.memory(large, s, "fsdp2") <= 80e9 for s in ("SFT", "GRPO", "PPO")] == [True, True, False]


def test_the_page_states_the_error_of_its_predictions() -> None:
    rows = [line.split("|") for line in scaling.here().splitlines() if re.match(r"\| (sft|dpo|grpo)", line)]
    assert len(rows) == 6
    time = {row[1].strip(): float(row[4]) for row in rows}
    memory = [float(row[8]) for row in rows]
    offline = [ratio for case, ratio in time.items() if not case.startswith("grpo")]
    assert all(0.7 < ratio < 1.15 for ratio in offline)
    assert all(1 < ratio < 1.5 for case, ratio in time.items() if case.startswith("grpo"))  # up to half as long again
    assert all(0.95 < ratio < 1.05 for ratio in memory)
