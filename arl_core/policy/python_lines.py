"""A grammar of Python statements for REPLACE, so that an edit compiles by construction.

llguidance decodes under a context-free grammar at a few hundredths of a millisecond per token, so REPLACE need not be
free characters: it is a run of whole statements at the indentation of the lines that it replaces. One statement per
line, no brackets left open, known names where a value is read (names.py). Syntax of the Lark dialect: llguidance docs/syntax.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

from arl_core.policy.names import Names

INDENT = 4
NESTED_LINES = 4  # statements in a block that REPLACE itself opens
HEADER_LINES = 2  # statements that REPLACE may put before the header that must end it
DEEPEST = 2  # how many blocks inside one another REPLACE may open

# Precedence from loose to tight, as in the language reference, chapter "Expressions"; whitespace as PEP 8 has it, which
# keeps one spelling for one meaning. Calls put positional arguments first.
EXPRESSIONS = r"""
exprs: expr (", " expr)* ","?
expr: disjunction (" if " disjunction " else " expr)? | "lambda " names ": " expr
disjunction: negation (BOOL negation)*
negation: "not "? comparison
comparison: sum (COMPARE sum)*
sum: factor (BINARY factor)*
factor: SIGN? power
power: primary (POWER factor)?
primary: atom trailer*
atom: OWNED | LOAD | NUMBER | STRING | FSTRING | CONSTANT | "(" group? ")" | "[" inside? "]" | "{" pairs? "}"
group: expr (", " expr)* ","? | expr comprehension
inside: item (", " item)* ","? | expr comprehension
item: expr | "*" sum
pairs: pair (", " pair)* ","? | pair comprehension
pair: expr ": " expr
trailer: "." ATTRIBUTE | "(" arguments? ")" | "[" index (", " index)* ","? "]"
arguments: positional (", " keyword)* | keyword (", " keyword)* | expr comprehension
positional: item (", " item)*
keyword: KEYWORD "=" expr | "**" primary
comprehension: " for " names " in " disjunction (" if " disjunction)?
index: expr | expr? SLICE expr? (SLICE expr?)?
names: NEW (", " NEW)*
params: param (", " param)* (", " param "=" expr)* | param "=" expr (", " param "=" expr)*
param: NEW (": " primary)?
target: place (", " place)*
place: NEW | OWNED | (OWNED | LOAD) trailer* ("." ATTRIBUTE | "[" index (", " index)* "]")
BOOL: " and " | " or "
COMPARE: " < " | " > " | " <= " | " >= " | " == " | " != " | " is not " | " is " | " not in " | " in "
BINARY: / ?(\+|-|\*|\/|\/\/|%|@) ?/
POWER: / ?\*\* ?/
SIGN: "-" | "~"
SLICE: ":" | " :" | " : "
AUGMENT: " += " | " -= " | " *= " | " /= "
CONSTANT: "True" | "False" | "None"
NUMBER: /(0|[1-9][0-9]{0,8}(_[0-9]{3}){0,3})(\.[0-9]{1,8})?(e-?[1-9][0-9]?)?/
STRING: /"[ !#-\[\]-~]{0,80}"/ | /'[ -&(-\[\]-~]{0,80}'/
FSTRING: "f\"" (PLAIN "{" LOAD ("." ATTRIBUTE)? (/:[.,0-9a-z]{1,5}/)? "}"){1,3} PLAIN "\""
PLAIN: /[ !#-\[\]-z|~]{0,40}/
"""

# What a constant may be: literals, tuples, arithmetic on them and on other constants. Calls and conditions are for code.
VALUES = r"""
value: term (BINARY term)*
term: SIGN? plain (POWER SIGN? plain)?
plain: NUMBER | STRING | CONSTANT | "(" value (", " value)* ","? ")"
"""

# A whole number stays one: what counts blocks or steps is no fraction.
WHOLES = r"""
whole: count (COUNTING count)*
count: WHOLE (POWER WHOLE)?
COUNTING: / ?(\+|-|\*|\/\/) ?/
WHOLE: /(0|[1-9][0-9]{0,8}(_[0-9]{3}){0,3})/
"""

SIMPLE = r"""
simple: target (" = " target)? (" = " exprs) | place AUGMENT expr | NEW ": " primary " = " expr | primary
      | "assert " expr | "pass"
"""

HEADERS = {
    "if": '"if " expr',
    "for": '"for " target " in " exprs',
    "while": '"while " expr',
    "with": '"with " expr (" as " NEW)?',
    "def": '"def " NEW "(" params? ")" (" -> " primary)?',
}


def _alternatives(names: Iterable[str]) -> str:
    return " | ".join(json.dumps(n) for n in sorted(names))


def replace_grammar(
    names: Names,
    depth: int,
    unit: str,
    header: str,
    *,
    comments: Sequence[str] = (),
    constants: Sequence[str] = (),
    wholes: Collection[str] = (),
    in_function: bool,
    in_loop: bool,
    empty: bool,
    lines: int,
) -> str:
    """Return the Lark grammar of REPLACE and its closing marker, from the newline after `=======` on.

    depth is the indentation in levels of `unit` each; header is the keyword of the block header that must end the text, or
    "" when the text must be whole statements; comments are those that a line may end in (those of the lines replaced). Where
    the lines replaced do nothing but give constants their values, these are named in `constants`: the text then gives each of
    them a plain value again, since others read them, and a whole number to those in `wholes`. empty allows a deletion; lines
    bounds the statements at the outer level.
    """
    flow = ['"return" (" " exprs)?'] if in_function else []
    flow += ['"break"', '"continue"'] if in_loop else []
    simple = SIMPLE + "".join(f"      | {rule}\n" for rule in flow)
    depths = range(depth, depth + DEEPEST + 1)
    rules = [f"IND{k}: {json.dumps(unit * k)}" for k in depths if k]
    for k in depths:
        indent = f"IND{k} " if k else ""
        options = [f"{indent}simple END"]
        if k < depth + DEEPEST:
            block = f':" END stmt{k + 1}{{1,{NESTED_LINES}}}'
            for word in ("if", "for", "while", "with", "def"):
                tail = f' ({indent}"else{block})?' if word == "if" else ""
                options.append(f'{indent}{HEADERS[word]} "{block}{tail}')
        rules.append(f"stmt{k}: " + "\n      | ".join(options))
    most = min(lines, HEADER_LINES) if header else lines
    outer = f"stmt{depth}{{{0 if empty or header else 1},{most}}}"
    last = f'{f"IND{depth} " if depth else ""}{HEADERS[header]} ":" END' if header else ""
    values = " ".join(f'"{name} = " {"whole" if name in wholes else "value"} END' for name in constants)
    read = sorted(name for name in names.plain if name.isupper() and name not in constants)
    # A new name is a short list: a small model would invent others, and could not read them again. Capitals may be new.
    new = f"NEW: {_alternatives(names.new)}" + ("" if in_function else " | /[A-Z][A-Z_]{2,20}/")
    owned = [f"{json.dumps(owner + '.')} ({_alternatives(offers)})" for owner, offers in names.owned]
    return "\n".join(
        [
            f'start: "\\n" {values or f"{outer} {last}"} ">>>>>>> REPLACE"',
            *rules,
            simple,
            EXPRESSIONS,
            *([VALUES + (f"      | {_alternatives(read)}" if read else "")] if set(constants) - set(wholes) else []),
            *([WHOLES] if set(constants) & set(wholes) else []),
            new,
            f"OWNED: {' | '.join(owned) or json.dumps('self')}",
            f"KEYWORD: {_alternatives(names.keywords)}",
            f"LOAD: {_alternatives(names.plain)}",
            f"ATTRIBUTE: {_alternatives(names.attributes)}",
            f'END: ({_alternatives(f"  {comment}" for comment in comments)})? "\\n"' if comments else 'END: "\\n"',
        ]
    )
