"""What fuzzing found worth keeping, run again without it: nothing but our own errors, and no hang."""

from __future__ import annotations

import time

import pytest
from fuzz_corpus import inputs
from fuzz_targets import HANG_S, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_breaks_its_decoder(target: str) -> None:
    run = TARGETS[target].run
    for number, data in enumerate(inputs(target)):
        if len(data) < 2:
            continue
        began = time.thread_time()
        try:
            run(data)
        except Exception as error:
            raise AssertionError(f"{target}, input {number}: {data[:200]!r}") from error
        seconds = time.thread_time() - began
        assert seconds <= HANG_S, f"{target}, input {number} takes {seconds:.2f} s of CPU: {data[:200]!r}"
