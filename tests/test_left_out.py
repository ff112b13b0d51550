"""How rows that do not fit are named."""

from __future__ import annotations

import pytest

from tests.test_render import characters
from unified import Example, UserError
from unified.render import Renderer, render_rows


def test_a_row_is_named_once_where_what_is_wrong_names_it_too() -> None:
    wrong = Example("a", ["b"], [1.0, 0.0], {"file": "x.jsonl", "row": 4})
    with pytest.raises(UserError) as raised:
        render_rows(Renderer(characters(), 9), [Example("a", ["b"]), wrong], needs_answers=1)
    assert str(raised.value) == "x.jsonl:4: row 1 has 2 rewards but 1 answers"
