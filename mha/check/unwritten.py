"""Code that is still to be written: a starter of an exercise is no mistake, and is not called one."""

import ast
import inspect
import textwrap

from mha.check.report import Finding, Report


def your_turn(subject: str, title: str, evidence: str, explanation: str, hint: str = "") -> Report:
    """The report on something that waits for the learner. It is not ``ok``, and blames nobody."""
    found = Finding("unwritten", "mistake", title, evidence, explanation, hint=hint)
    return Report(subject, (found,), said="your turn")


def or_your_turn(report: Report, subject) -> Report:
    """The same report; where it failed because the code is a starter, one that says so instead."""
    left = [] if report.ok else unfinished(subject)
    if not left:
        return report
    return your_turn(
        report.subject,
        "Nothing is written here yet" if len(left) == 1 else "Something is left to be written",
        "\n".join(left),
        "Put your code where that stands, and run the cell again. The check then says what is right "
        "and what is not.",
    )


def unfinished(subject) -> list[str]:
    """Where a function or the methods of a class hold a gap: "line 3: ...", one for each.

    A gap is a ``...`` in the place of a value or at the end of a block, a NotImplementedError that is
    raised, or a body with nothing in it but its docstring. One in a constructor counts only beside
    others: who has written the rest has written what was to be there above it. What has no source
    has no gaps.
    """
    kind = subject if inspect.isclass(subject) else type(subject)
    if inspect.isroutine(subject):
        methods = [subject]
    else:
        methods = (
            [] if kind.__module__.partition(".")[0] in ("torch", "numpy") else vars(kind).values()
        )
    functions = [f for f in map(inspect.unwrap, methods) if inspect.isfunction(f)]
    found = {function.__name__: _gaps(function) for function in functions}
    if set(name for name, gaps in found.items() if gaps) <= {"__init__"}:
        return []
    return [gap for gaps in found.values() for gap in gaps]


def _gaps(function) -> list[str]:
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return []
    if not tree.body or not isinstance(tree.body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    body = tree.body[0].body
    documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    documented = documented and isinstance(body[0].value.value, str)
    rest = body[1:] if documented else body
    if all(isinstance(node, ast.Pass) for node in rest):
        return [f"line {first + body[-1].end_lineno - 1}: `{function.__name__}` has an empty body"]
    gaps = {node.lineno for node in _places(tree)}
    return [f"line {first + at - 1}: {lines[at - 1].strip()}" for at in sorted(gaps)]


def _places(tree: ast.AST):
    """The nodes that are gaps. An Ellipsis in an index or a list means something to PyTorch."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.AST) and _is_dots(value) and not isinstance(node, ast.Expr):
                if not isinstance(node, ast.Subscript):
                    yield value
            elif isinstance(value, list) and isinstance(node, ast.Call):
                yield from filter(_is_dots, value)
            elif field in ("body", "orelse", "finalbody") and isinstance(value, list) and value:
                returns = any(isinstance(statement, ast.Return) for statement in value)
                last = value[-1]
                if isinstance(last, ast.Expr) and _is_dots(last.value) and not returns:
                    yield last
        if isinstance(node, ast.Raise):
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(error, ast.Name) and error.id == "NotImplementedError":
                yield node


def _is_dots(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis
