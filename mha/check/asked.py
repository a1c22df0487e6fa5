"""What an exercise asks for beyond right numbers: a check takes code in any usual form, and an
exercise says which form the next one builds on.
"""

from mha.check.binding import Malformed
from mha.check.catalogue import finding
from mha.check.guard import Stopped

FORMS = ("B1TS", "BTS", "BHTS", "(BH)TS")  # of masks that differ by example and by query
ASKED = {
    "axes": "it must take tensors of four axes, (B, H, T, D)",
    "memory": "forward must take query, key and value, each of its own",
    "mask": "it must take a mask that broadcasts to (B, H, T, S), such as (B, 1, T, S)",
    "weights": "it must return two things, the output and then the weights",
    "zeros": "a query that may see nothing must get zeros, in the output and in the weights",
    "biases": "each of the four maps must have a bias",
    "defaults": "forward(x) must be forward(x, x, x), and forward(x, m) be forward(x, m, m)",
}
"""What an exercise may ask for -> what the checker says of code without it."""


def check_asked(asked) -> None:
    """Refuse what no exercise can ask for. Errors: ValueError."""
    unknown = [name for name in asked if name not in ASKED]
    if unknown:
        raise ValueError(f"asked must be names of {', '.join(ASKED)}, got {unknown[0]!r}")


def lacking(exam, asked) -> None:
    """A finding for what is asked for and missing, if nothing worse was found."""
    if not asked or exam.mistakes() or exam.match is None:
        return
    missing = []
    for name in asked:
        try:
            if not TESTS[name](exam):
                missing.append(ASKED[name])
        except (Stopped, Malformed):
            missing.append(ASKED[name])
    exam.line("it has the form that the exercise asks for", not missing)
    if missing:
        exam.add(_not_as_asked(exam, missing))


def _not_as_asked(exam, missing: list[str]):
    """The finding; with the error that ended the first call, if only other axes were taken."""
    failed = getattr(exam, "first_failed", None)
    if ASKED["axes"] not in missing or not isinstance(failed, Stopped):
        return finding("not-as-asked", "\n".join(missing))
    told = failed.finding()
    said = ["called with four axes, it ends in an error:", *told.evidence.splitlines()]
    words = {"explanation": told.explanation} if failed.cause else {}
    hint = "Which axes does the line take for granted? Count them from the end: -1, -2."
    text = "\n".join([*missing, said[0], *(f"  {line}" for line in said[1:])])
    return finding("not-as-asked", text, hint=hint, **words)


def _weights(exam) -> bool:
    probe = exam.lab.probe("qkv", dtype=exam.dtype, **exam.safe_lengths())
    if exam.call(probe)[1] is None:
        return False
    if exam.kind != "qkv" or getattr(exam, "axes", 4) != len(probe.query.shape):
        return True
    result = exam.guard.call(exam.module, probe.query, probe.key, probe.value)
    return not isinstance(result, tuple) or result[0].shape == exam.right_shape(probe)


def _zeros(exam) -> bool:
    return not any(found.slug.startswith("dead-row") for found in exam.findings)


def _biases(exam) -> bool:
    read = exam.match.maps
    return all(m is not None and m.bias is not None for m in (read.q, read.k, read.v, read.o))


def _defaults(exam) -> bool:
    """Called as the learner's forward is, with one input and with two."""
    probe = exam.lab.probe("memory", dtype=exam.dtype)
    x, memory = probe.query, probe.key
    call = exam.guard.call
    given = [(x,), (x, x, x)], [(x, memory), (x, memory, memory)]

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    return all(
        bool(
            (first(call(exam.module, *short)) - first(call(exam.module, *long))).abs().max() < 1e-5
        )
        for short, long in given
    )


TESTS = {
    "axes": lambda exam: exam.axes == 4,
    "memory": lambda exam: exam.kind == "qkv",
    "mask": lambda exam: exam.mask_form is not None and exam.mask_form.shape in FORMS,
    "weights": _weights,
    "zeros": _zeros,
    "biases": _biases,
    "defaults": _defaults,
}
