"""The clocks: the loop calls what it should, and equal programs are recognised."""

import jax
import jax.numpy as jnp
from benchmarking import SMALL

from benchmarks import clocks
from benchmarks.problems import make_inputs
from benchmarks.rivals import FAIR, NAIVE


def test_the_loop_of_dependent_calls_runs_and_counts():
    inputs = make_inputs(SMALL)
    programs = {
        name: clocks.Program(lambda x, v=v: v.route(SMALL, x, None), (inputs.logits,))
        for name, v in {"fair": FAIR, "naive": NAIVE}.items()
    }
    loop, calls = clocks.looped(programs["fair"])
    text = jax.jit(loop).lower(jnp.int32(1), inputs.logits).as_text()
    # a barrier before each call, and one before the outputs are read
    assert text.count("optimization_barrier") == 8 + 1
    assert clocks.looped(clocks.Program(lambda x: jnp.zeros(2**26) + x, (jnp.ones(()),)))[1] == 16
    assert calls == 64
    timers = clocks.compile_timers(programs, device=True)
    seconds = clocks.device_seconds(timers, target=0.002)
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"fair": 5, "naive": 5}


def test_equal_programs_are_recognised():
    x = jnp.ones(3)
    programs = {
        "a": clocks.Program(lambda x: x + 1, (x,)),
        "b": clocks.Program(lambda x: 1 + x, (x,)),
        "c": clocks.Program(lambda x: x + 2, (x,)),
    }
    texts = {n: t.text for n, t in clocks.compile_timers(programs, device=False).items()}
    assert texts["a"] == texts["b"] != texts["c"]
