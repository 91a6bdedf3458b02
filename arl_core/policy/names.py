"""Which names REPLACE may use at a place of a source: what is visible there, and what its modules offer.

A small model invents names. Most crashed candidates would be NameErrors and AttributeErrors, which the grammar can rule out:
after `F.` only functions of torch.nn.functional that make sense in a model, after `self.` what the file gives to self, and
as a plain name what the enclosing function or the module defines.
"""

from __future__ import annotations

import ast
import builtins
import functools
import keyword
from dataclasses import dataclass

# Names that REPLACE may introduce and read again in the same block; others become known to the next block.
NEW_LOCALS = {"a", "b", "h", "i", "n", "z", "gain", "gate", "index", "layer", "ramp", "scale", "share"}
NEW_LOCALS |= {"h_BTD", "x0_BTD", "y_BTD", "gate_BTD", "logits_BTV"}
BUILTINS = {
    "abs",
    "all",
    "any",
    "bool",
    "dict",
    "enumerate",
    "float",
    "getattr",
    "hasattr",
    "int",
    "isinstance",
    "len",
    "list",
}
BUILTINS |= {"max", "min", "print", "range", "reversed", "round", "set", "sorted", "sum", "super", "tuple", "zip"}

_FUNCTIONAL = """celu cross_entropy dropout elu gelu glu hardsigmoid hardswish hardtanh layer_norm leaky_relu linear log_softmax
logsigmoid mish normalize pad relu relu6 rms_norm scaled_dot_product_attention selu sigmoid silu softmax softplus softsign tanh"""
_MODULES = """Dropout Embedding GELU Identity LayerNorm Linear Module ModuleList Parameter RMSNorm ReLU Sequential SiLU Tanh init
functional utils"""
_INITS = """constant_ eye_ kaiming_normal_ kaiming_uniform_ normal_ ones_ orthogonal_ trunc_normal_ uniform_ xavier_normal_
xavier_uniform_ zeros_"""
_TORCH = """Tensor abs add arange autocast bfloat16 cat clamp compile cos cumsum einsum empty exp eye float32 full linspace log
lerp matmul maximum mean minimum mul no_grad nn ones ones_like optim outer pi pow rand randn relu rsqrt sigmoid sign sin
softmax sqrt square stack tanh tensor tril triu where zeros zeros_like set_float32_matmul_precision inference_mode"""
_OPTIM = "Adam AdamW SGD Optimizer RMSprop"
_METHODS = """abs add_ amax any bfloat16 chunk clamp clamp_min clone contiguous copy_ cos cumsum detach div_ dtype exp expand
flatten float grad is_cuda item lerp lerp_ log log_softmax logsumexp mT masked_fill mean mul_ ndim norm numel parameters permute
pow relu repeat reshape roll rsqrt shape sigmoid sin size softmax split sqrt square squeeze std sub_ sum tanh to transpose
unbind unflatten unsqueeze var view weight zero_ append modules named_parameters"""
_KEYWORDS = """alpha approximate betas bias chunks device dim dtype enabled eps fused is_causal keepdim label_smoothing lr
max mean min negative_slope p scale start std training value weight_decay"""
OFFERS = {
    "torch": set(_TORCH.split()),
    "torch.nn": set(_MODULES.split()),
    "torch.nn.init": set(_INITS.split()),
    "torch.nn.functional": set(_FUNCTIONAL.split()),
    "torch.optim": set(_OPTIM.split()),
    "math": {"ceil", "cos", "e", "exp", "floor", "inf", "log", "log2", "pi", "pow", "sin", "sqrt", "tanh"},
}


@dataclass(frozen=True)
class Names:
    """What may be written at one place: `plain` names to read, what follows each `owner.`, other attributes, keywords."""

    plain: frozenset[str]
    owned: tuple[tuple[str, frozenset[str]], ...]
    attributes: frozenset[str]
    keywords: frozenset[str]
    new: frozenset[str]


def names_at(source: str, first: int, last: int) -> Names:
    """Return the names for replacing lines first..last (from 0) of a source. Raises SyntaxError when it does not parse."""
    module = _parse(source)
    modules = _modules(module)
    inside = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        and node.lineno - 1 <= last
        and (node.end_lineno or node.lineno) - 1 >= first
    ]
    local = {name for function in inside for name in _bound(function)}
    plain = (_module_names(module) | local | BUILTINS | NEW_LOCALS) - set(modules) - {"self"}
    seen = [node for node in ast.walk(module) if isinstance(node, ast.Attribute)]
    owned: dict[str, set[str]] = {}
    for alias, full in modules.items():
        owned[alias] = set(OFFERS.get(full, ())) | {node.attr for node in seen if ast.unparse(node.value) == alias}
    if "nn" in owned:
        owned["nn.init"] = set(OFFERS["torch.nn.init"])
    mine = {node.attr for node in seen if isinstance(node.value, ast.Name) and node.value.id == "self"}
    methods = {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
    if any(_first_argument(function) == "self" for function in inside):
        owned["self"] = mine | {"training"}
    of_modules = set().union(*owned.values()) - mine
    attributes = (set(_METHODS.split()) | mine | {node.attr for node in seen} - of_modules) - methods | {"step"}
    called = {word.arg for node in ast.walk(module) if isinstance(node, ast.Call) for word in node.keywords if word.arg}
    return Names(
        plain=_words(plain),
        owned=tuple((owner, _words(names)) for owner, names in sorted(owned.items()) if _words(names)),
        attributes=_words(attributes),
        keywords=_words(called | set(_KEYWORDS.split())),
        new=_words((local | NEW_LOCALS) - {"self"}),
    )


@functools.lru_cache(maxsize=8)
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _modules(module: ast.Module) -> dict[str, str]:
    """Return {alias: full name} of imported modules."""
    found: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {
                (a.asname or a.name).split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found |= {a.asname or a.name: f"torch.{a.name}" for a in node.names}
    return found


def _module_names(module: ast.Module) -> set[str]:
    """Return what the top level defines: functions, classes, constants, names imported from modules."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= _stored(node)
    return names


def _bound(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Return a function's arguments and everything assigned in it."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {a.arg for a in arguments if a is not None} | _stored(function)


def _stored(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _first_argument(function: ast.FunctionDef | ast.Lambda) -> str:
    return function.args.args[0].arg if function.args.args else ""


def _words(names: set[str]) -> frozenset[str]:
    """Keep what is an ASCII identifier and no keyword."""
    return frozenset(n for n in names if n.isascii() and n.isidentifier() and not keyword.iskeyword(n))


assert set(dir(builtins)) >= BUILTINS
