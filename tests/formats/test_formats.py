"""How one row of a file becomes a prompt and its answers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from unified import Example, call_named, catalogue

STEPS, SCORED = ["1+1=2", "so 2"], [{"response": "a", "overall_score": 1}]
TREE = {"role": "prompter", "text": "?", "replies": []}

#: the columns of files that are recognised, and by which format; with what stands in them where that decides
KNOWN: dict[str, list[Any]] = {
    "prompt_completion": [{"prompt", "completion"}, {"prompt", "response", "id"}],
    "instruction": [{"instruction", "input", "output"}, {"instruction", "output", "text"},
                    {"instruction", "context", "response", "category"}, {"instruction", "output", "history", "system"}],
    "question_answer": [{"question", "answer"}, {"id", "system_prompt", "question", "response"}],
    "preference": [{"chosen", "rejected"}, {"prompt", "chosen", "rejected"}, {"conversations", "chosen", "rejected"},
                   {"prompt", "chosen", "rejected", "messages"}, {"instruction", "input", "chosen", "rejected"},
                   {"system", "question", "chosen", "rejected"}, {"prompt", "chosen", "rejected", "label"}],
    "unpaired": [{"prompt", "completion", "label"}, {"prompt", "response", "label", "id"},
                 {"messages": [], "label": True}, {"conversations": [], "label": False}],
    "ranked": [{"prompt", "responses", "ranks", "parent_id"}],
    "groups": [{"prompt", "answers"}, {"prompt", "answers", "rewards", "start"}],
    "text": [{"text"}, {"text", "source"}],
    "prompts": [{"prompt"}, {"key", "prompt", "instruction_id_list", "kwargs"}, {"prompt", "answer"},
                {"prompt", "solution", "target"}],
    "messages": [{"messages"}, {"conversations"}, {"prompt", "messages"}, {"messages": [], "label": "news"}],
    "transcript": [{"transcript"}],
    "steps": [{"prompt": "?", "completions": STEPS, "labels": [True, False]},
              {"task": "t", "input": "?", "steps": STEPS, "answer": "2", "target": "2", "mistake_index": None}],
    "scored": [{"source": "s", "instruction": "?", "models": ["m"], "completions": SCORED},
               {"prompt": "?", "responses": ["a"], "scores": [1]}],
    "trees": [{"message_tree_id": "1", "tree_state": "ready", "prompt": TREE}],
}  # fmt: skip


def convert(name: str, row: dict[str, Any], **settings: Any) -> Example:
    part = catalogue().get("format", name)
    out: Example = call_named(part.convert, row=row, settings=part.settings(**settings))
    return out


def user(*said: str) -> list[dict[str, str]]:
    """User and assistant in turns."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]


def recognised(columns: Any) -> list[str]:
    """The formats that fit a row, or a set of columns in each of which stands a text."""
    row = columns if isinstance(columns, dict) else dict.fromkeys(columns, "x")
    parts = [catalogue().get("format", name) for name in catalogue().names("format")]
    return [part.name for part in parts if call_named(part.recognises, columns=frozenset(row), row=row)]


@pytest.mark.parametrize(("name", "columns"), [(n, c) for n, many in KNOWN.items() for c in many])
def test_each_known_set_of_columns_is_recognised_by_exactly_one_format(name, columns):
    assert recognised(columns) == [name]


@pytest.mark.parametrize(
    "columns",
    [
        {"text", "code", "task_id"},  # a text that is a task, not a text to learn
        {"Body", "Question", "Answer"},
        {"task", "input", "steps", "answer", "target"},
        {"prompt", "label"},
        {"message_id", "parent_id", "text", "role"},  # the messages of a tree, one a row
        {"prompt": "?", "completions": ["a", "b"]},  # nobody says which is better
    ],
)
def test_columns_that_may_mean_anything_are_recognised_by_no_format(columns):
    assert not recognised(columns)


#: formats with tests of their own
ELSEWHERE = {"mbpp", "humaneval"}


def test_every_built_in_format_is_in_this_file():
    assert set(KNOWN) == set(catalogue().names("format")) - ELSEWHERE


def test_prompt_and_completion_stay_as_they_stand():
    row = {"prompt": "Once ", "completion": "upon", "id": 3}
    assert convert("prompt_completion", row) == Example("Once ", ["upon"], columns=row)
    assert convert("prompt_completion", {"prompt": "a", "response": "b"}).answers == ["b"]
    assert convert("prompt_completion", row, chat=True).prompt == user("Once ")


def test_a_label_becomes_the_reward_of_the_one_answer():
    for label, reward in ((True, 1.0), ("False", 0.0), (1, 1.0), (0.0, 0.0)):
        row = {"prompt": "a", "completion": "b", "label": label}
        assert convert("unpaired", row) == Example("a", ["b"], [reward], row)
    with pytest.raises(ValueError, match="'label' must be true or false, not 'good'"):
        convert("unpaired", {"prompt": "a", "completion": "b", "label": "good"})


def test_the_input_stands_below_the_instruction_where_there_is_one():
    assert convert("instruction", {"instruction": "Add.", "input": "1 2", "output": "3"}).prompt == user("Add.\n\n1 2")
    assert convert("instruction", {"instruction": "Hi.", "input": "", "output": "Yo"}) == Example(
        user("Hi."), ["Yo"], columns={"instruction": "Hi.", "input": "", "output": "Yo"}
    )
    assert convert("instruction", {"instruction": "Hi.", "output": "Yo"}, chat=False).prompt == "Hi.\n"


def test_a_question_is_asked_by_a_user_and_the_answer_also_stays_a_column():
    example = convert("question_answer", {"question": "1+1?", "answer": "It is\n#### 2"})
    assert example.prompt == user("1+1?")
    assert example.answers == ["It is\n#### 2"]
    assert example.columns["answer"] == "It is\n#### 2"


def test_history_stands_before_the_question_as_turns_and_a_system_message_before_all():
    row = {"instruction": "And 3?", "input": "", "output": "5", "history": [["1+1?", "2"]], "system": "Add."}
    example = convert("instruction", row)
    assert example.prompt == [{"role": "system", "content": "Add."}, *user("1+1?", "2", "And 3?")]
    assert convert("instruction", row, chat=False).prompt == "1+1?\n2\nAnd 3?\n"
    asked = {"question": "And 3?", "answer": "5", "history": [["1+1?", "2"]], "system_prompt": "Add."}
    assert convert("question_answer", asked).prompt == example.prompt
    assert convert("instruction", {**row, "history": None, "system": None}).prompt == user("And 3?")


@pytest.mark.parametrize("history", ["1+1?", [["1+1?"]], [["1+1?", 2]], {"a": "b"}])
def test_a_history_that_is_no_list_of_pairs_says_so(history):
    with pytest.raises(ValueError, match=r"'history' must be a list of \[question, answer\]"):
        convert("instruction", {"instruction": "?", "output": "!", "history": history})


def test_a_list_of_outputs_is_ranked_best_first_and_two_are_chosen_and_rejected():
    row = {"instruction": "Add.", "input": "", "output": ["5", "6", "x"]}
    assert (convert("instruction", row).answers, convert("instruction", row).rewards) == (["5", "6", "x"], [2, 1, 0])
    assert convert("instruction", {**row, "output": ["5", "6"]}).rewards == [1, 0]
    with pytest.raises(ValueError, match="has 1 answers, 2 or more are needed"):
        convert("instruction", {**row, "output": ["5"]})


EMPTY: list[tuple[str, dict[str, Any], Any]] = [
    ("instruction", {"instruction": "?", "output": "x"}, "output"),
    ("instruction", {"instruction": "?", "output": ["x", "y"]}, ("output", 1)),
    ("question_answer", {"question": "?", "answer": "x"}, "answer"),
    ("prompt_completion", {"prompt": "?", "completion": "x"}, "completion"),
    ("unpaired", {"prompt": "?", "completion": "x", "label": True}, "completion"),
    ("preference", {"prompt": "?", "chosen": "x", "rejected": "y"}, "rejected"),
    ("ranked", {"prompt": "?", "responses": ["x", "y"], "ranks": [0, 1]}, ("responses", 0)),
    ("scored", {"prompt": "?", "responses": ["x"], "scores": [0]}, ("responses", 0)),
    ("text", {"text": "x"}, "text"),
    ("prompts", {"prompt": "x"}, "prompt"),
    ("steps", {"prompt": "?", "steps": ["x"], "labels": [1]}, ("steps", 0)),
]


@pytest.mark.parametrize("nothing", ["", "  \n\t", None])
@pytest.mark.parametrize(("name", "row", "where"), EMPTY, ids=[f"{n}-{w}" for n, _, w in EMPTY])
def test_an_answer_that_says_nothing_is_no_answer(name, row, where, nothing):
    assert convert(name, row)
    if isinstance(where, str):
        broken = {**row, where: nothing}
    else:
        column, place = where
        broken = {**row, column: [nothing if i == place else x for i, x in enumerate(row[column])]}
    with pytest.raises(ValueError, match=r"is empty|must be a list of texts|column 'steps'"):
        convert(name, broken)


def test_a_conversation_with_a_label_is_one_answer_that_is_good_or_not():
    row = {"messages": user("2+3?", "6"), "label": False}
    assert convert("unpaired", row) == Example(user("2+3?"), ["6"], [0.0], row)
    shared = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "label": True}
    assert convert("unpaired", shared).answers == ["Yo"]


def test_a_whole_number_reads_without_a_fraction():
    assert convert("question_answer", {"question": "?", "answer": 51.0}).answers == ["51"]
    assert convert("question_answer", {"question": "?", "answer": 0.5}).answers == ["0.5"]


def test_the_chosen_answer_comes_first_with_reward_one():
    example = convert("preference", {"prompt": "a", "chosen": "good", "rejected": "bad"})
    assert (example.prompt, example.answers, example.rewards) == ("a", ["good", "bad"], [1.0, 0.0])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("Q: why? because", "Q: why? so", "Q: why?", [" because", " so"]),  # the space belongs to the answers
        ("Q\nyes sir", "Q\nyesterday", "Q\n", ["yes sir", "yesterday"]),  # no word is cut
        ("good", "gone", "", ["good", "gone"]),
        ("Q\nyes", "Q\nyes sir", "Q\n", ["yes", "yes sir"]),  # one begins like the other
    ],
)
def test_without_a_prompt_the_shared_words_are_the_prompt(chosen, rejected, prompt, answers):
    example = convert("preference", {"chosen": chosen, "rejected": rejected})
    assert (example.prompt, example.answers) == (prompt, answers)


def test_transcripts_become_messages_with_the_last_turn_as_answer():
    before = "\n\nHuman: Hi\nthere\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:"
    example = convert("preference", {"chosen": before + " Bye.", "rejected": before + " No."})
    assert example.prompt == user("Hi\nthere", "Hello.", "Bye")
    assert example.answers == ["Bye.", "No."]
    single = convert("transcript", {"transcript": before + " Bye."})
    assert (single.prompt, single.answers) == (example.prompt, ["Bye."])


def test_message_lists_share_all_but_their_last_turn():
    chosen, rejected = user("Hi", "Hello"), user("Hi", "What")
    assert convert("preference", {"prompt": "Hi", "chosen": chosen, "rejected": rejected}).prompt == user("Hi")
    sharegpt = {
        "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "What"},
    }
    example = convert("preference", sharegpt)
    assert example.prompt == [{"role": "system", "content": "S"}, *user("Hi")]
    assert example.answers == ["Hello", "What"]


def test_an_instruction_or_a_question_may_be_the_prompt_of_a_pair():
    pair = {"chosen": "5", "rejected": "6"}
    assert convert("preference", {"instruction": "Add.", "input": "2 3", **pair}).prompt == user("Add.\n\n2 3")
    asked = convert("preference", {"system": "Add.", "question": "2 3?", **pair})
    assert asked.prompt == [{"role": "system", "content": "Add."}, *user("2 3?")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "different prompts"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "column 'rejected' is empty"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "has no answer"),
        ({"chosen": [{"who": "me"}], "rejected": []}, "a message needs `role` and `content`"),
        ({"chosen": user("a", "b"), "rejected": user("c", "d")}, "differ before the assistant's turn"),
        ({"chosen": user("a", "b"), "rejected": user("a", "b")}, "are the same"),
        ({"chosen": user("a", "b"), "rejected": user("a", "b", "c", "d")}, "'chosen' ends where the other one goes on"),
    ],
)
def test_a_row_that_is_no_preference_says_why(row, said):
    with pytest.raises(ValueError, match=said):
        convert("preference", row)


@pytest.mark.parametrize(
    ("ranks", "rewards"),
    [
        ([0, 1, 2, 3], [3, 2, 1, 0]),
        ([2, 0, 1], [0, 2, 1]),
        ([0, 0, 1], [1, 1, 0]),  # each of the best beats one
        ([5, 5], [0, 0]),
    ],
)
def test_the_reward_of_a_rank_is_how_many_answers_it_beats(ranks, rewards):
    answers = [f"answer {i}" for i in range(len(ranks))]
    example = convert("ranked", {"prompt": user("Hi"), "responses": answers, "ranks": ranks})
    assert (example.answers, example.rewards) == (answers, rewards)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_reward_stays_with_its_answer_whatever_the_order(order):
    row = {"prompt": "p", "responses": [f"r{i}" for i in order], "ranks": list(order)}
    example = convert("ranked", row)
    assert dict(zip(example.answers, example.rewards or [], strict=True)) == {"r0": 2, "r1": 1, "r2": 0}


def test_ranks_and_answers_must_be_equally_many():
    with pytest.raises(ValueError, match="there are 2 responses but 1 ranks"):
        convert("ranked", {"prompt": "p", "responses": ["a", "b"], "ranks": [0]})


def test_plain_text_is_the_answer_to_nothing():
    assert convert("text", {"text": "Once."}) == Example("", ["Once."], columns={"text": "Once."})


def test_a_prompt_alone_has_no_answer():
    example = convert("prompts", {"prompt": "Say hi.", "key": 7})
    assert (example.prompt, example.answers, example.columns["key"]) == ("Say hi.", [], 7)
    assert convert("prompts", {"prompt": "Say hi."}, chat=True).prompt == user("Say hi.")


def test_the_last_turn_of_the_assistant_is_the_answer_to_the_turns_before():
    example = convert("messages", {"messages": user("a", "b", "c", "d")}, train_on="last")
    assert (example.prompt, example.answers) == (user("a", "b", "c"), ["d"])
    assert convert("messages", {"messages": user("a", "b", "c")}).answers == []


def test_a_row_keeps_all_its_columns_and_they_can_be_written_as_json():
    row = {"prompt": user("Hi"), "responses": ["a", "b"], "ranks": [1, 0], "parent_id": "x"}
    assert json.loads(json.dumps(convert("ranked", row).columns)) == row
