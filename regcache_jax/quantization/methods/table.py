"""Every method by its name."""

from __future__ import annotations

from regcache_jax.core.errors import UserError
from regcache_jax.core.registry import enter
from regcache_jax.quantization.methods import (
    awq,
    bias_correction,
    clipping,
    erq,
    fima_q,
    gptq,
    noisyquant,
    ptq4vit,
    repq_vit,
    rotation,
    smoothquant,
)
from regcache_jax.quantization.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        smoothquant.METHOD,
        smoothquant.AT_NORMS,
        awq.METHOD,
        repq_vit.METHOD,
        rotation.METHOD,
        clipping.METHOD,
        gptq.METHOD,
        erq.METHOD,
        ptq4vit.METHOD,
        fima_q.METHOD,
        noisyquant.METHOD,
        bias_correction.METHOD,
    )
}


def register(method: Method) -> None:
    """Adds a method, by its name. Raises UserError for a name that is taken."""
    if method.name == "rtn":
        raise UserError("rtn is rounding to the nearest, without a method")
    enter(METHODS, method.name, method, "method")


def methods_of(names: str) -> list[Method]:
    """The methods of a scheme, in their order; `rtn` is none. Raises UserError for unknown names, a name that comes twice,
    and two methods that both say how kernels are rounded."""
    wanted = [name for name in names.split("+") if name != "rtn"]
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise UserError(
            f"unknown method {', '.join(unknown)}; methods are rtn, {', '.join(METHODS)} (join them with +)"
        )
    if len(set(wanted)) < len(wanted):
        raise UserError(f"method {names} names one method twice")
    methods = [METHODS[name] for name in wanted]
    rounding = [method.name for method in methods if method.round or method.rounds_again]
    late = [
        method.name
        for number, method in enumerate(methods)
        if method.rounds_again and any(m.finish for m in methods[:number])
    ]
    if late:
        raise UserError(f"method {late[0]} rounds kernels again and must come before those that correct biases")
    if len(rounding) > 1:
        raise UserError(f"only one method can round the kernels, got {' and '.join(rounding)}")
    return methods
