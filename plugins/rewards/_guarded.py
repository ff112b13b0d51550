"""Tests as they are run: written anew so that a program's own classes cannot answer for them.

In `assert f(2) == 4` the call of f is checked, and each side of the comparison: a value of a class of the program that
answers comparisons, arithmetic or truth by itself fails the test. `set(f(x)) == {1}` calls the real `set`, whatever the
program has by that name; only where a test calls nothing but such a name (`sum(10, 15)`) is it the program's.
"""

from __future__ import annotations

import ast
import builtins

#: names under which the process under test offers what checks values
PLAIN, CALLING = "unified_plain", "unified_calling"


class _Guard(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        """f(x): the result is checked."""
        self.generic_visit(node)
        node.func = _wrapped(CALLING, node.func)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """a == b: both are checked."""
        self.generic_visit(node)
        node.left = _wrapped(PLAIN, node.left)
        node.comparators = [_wrapped(PLAIN, one) for one in node.comparators]
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """assert a: it is checked."""
        self.generic_visit(node)
        node.test = _wrapped(PLAIN, node.test)
        return node


def _wrapped(name: str, value: ast.expr) -> ast.expr:
    return value if isinstance(value, ast.Constant) else ast.Call(ast.Name(name, ast.Load()), [value], [])


def guarded(test: str, *, entry: str | None = None) -> tuple[str, bool]:
    """A test as it is run, and whether the built-in names in it are Python's own.

    entry: the name that the test calls through another (HumanEval's `check(entry)`).
    Raises ValueError for a test that is no Python.
    """
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a test is no Python: {error}") from error
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    own = any(not hasattr(builtins, name) for name in ({entry} if entry else called))
    return ast.unparse(ast.fix_missing_locations(_Guard().visit(tree))), own
