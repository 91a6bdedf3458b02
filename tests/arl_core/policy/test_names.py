"""Which names REPLACE may use where."""

from __future__ import annotations

import pytest

from arl_core.policy.names import Names, names_at
from tests.arl_core.policy.conftest import SOURCE


def at(line: str, source: str = SOURCE) -> Names:
    number = source.splitlines().index(line)
    return names_at(source, number, number)


def owned(names: Names, owner: str) -> frozenset[str]:
    return dict(names.owned).get(owner, frozenset())


def test_a_function_sees_its_arguments_its_locals_and_the_module() -> None:
    names = at("    left = min(1.0, (1.0 - progress) / WARMDOWN)")
    assert {"progress", "left", "WARMDOWN", "Net", "other", "min"} <= names.plain
    assert "x" not in names.plain  # another function's


def test_modules_are_no_values_and_offer_what_makes_sense() -> None:
    names = at("            x = torch.relu(x)")
    assert not {"torch", "nn", "self"} & names.plain
    assert {"relu", "cat", "where"} <= owned(names, "torch")
    assert "load" not in owned(names, "torch")
    assert {"Linear", "Module"} <= owned(names, "nn")
    assert "zeros_" in owned(names, "nn.init")


def test_self_offers_what_the_file_gives_to_it_and_only_in_methods() -> None:
    assert {"up", "down", "training"} <= owned(at("        return self.down(x)"), "self")
    assert not owned(at("    return left"), "self")


def test_new_names_are_few() -> None:
    names = at("        return self.down(x)")
    assert "x" in names.new
    assert "h_BTD" in names.new
    assert "self" not in names.new
    assert len(names.new) < 30


def test_dangerous_builtins_are_never_names() -> None:
    assert not {"eval", "exec", "open", "compile", "__import__", "input", "exit"} & at("DEPTH = 4  # blocks").plain


def test_a_module_without_imports_still_has_names() -> None:
    names = names_at("a = 1\n", 0, 0)
    assert "a" in names.plain
    assert names.owned == ()


def test_a_source_that_does_not_parse_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        names_at("a = = 1\n", 0, 0)
