"""Functions that each have one way for a rewrite to go wrong, and a main graph that calls them."""

from __future__ import annotations

FUNCTIONS: dict[str, tuple[str, str, str]] = {
    # id: (parameters, body, calls in the graph)
    "a function with an inner constant": (
        "",
        "k = Constant<value_floats=[1.0, 2.0]>() e = Exp(k) b = Add(a, e)",
        "t = f.F(x) y = f.F(t)",
    ),
    "a parameter that is a shape": (
        "<s>",
        "k = Constant<value_ints: ints = @s>() i = Identity(k) b = Reshape(a, i)",
        "t = f.F<s=[1, 2]>(x) y = f.F<s=[2]>(t)",
    ),
    "parameters of what has no effect by default": (
        "<t, p>",
        "c = Cast<to: int = @t>(a) d = Cast<to=1>(c) e = Transpose<perm: ints = @p>(d) "
        "b = Transpose<perm: ints = @p>(e)",
        "u = f.F<t=6, p=[0]>(x) y = f.F<t=1, p=[0]>(u)",
    ),
    "names inside that are used outside": (
        "",
        "x = Exp(a) y = Identity(x) b = Neg(y)",
        "a = Neg(x) y = f.F(a)",
    ),
    "an identity from input to output": ("", "b = Identity(a)", "t = f.F(x) y = Neg(t)"),
    "a branch inside of a function": (
        "",
        "z = Constant<value_float=0.0>() s = ReduceSum<keepdims=0>(a) c = Less(s, z) b = If(c) <"
        "then_branch = t () => (u) {u = Exp(a)}, else_branch = e () => (v) {v = Neg(a)}>",
        "y = f.F(x)",
    ),
    "equal calls": ("", "b = Exp(a)", "p = f.F(x) q = f.F(x) y = Add(p, q)"),
    "random inside of a function": (
        "",
        "r = RandomNormalLike(a) z = Sub(r, r) b = Add(a, z)",
        "p = f.F(x) q = f.F(x) y = Add(p, q)",
    ),
}
