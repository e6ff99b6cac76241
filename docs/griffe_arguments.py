"""An extension of griffe: the `help` of an option declared by `argument(…)` is the docstring of its attribute."""

import ast
from typing import Any

import griffe


class ArgumentHelp(griffe.Extension):
    """Show options in the API reference with their help and default, as `--help` shows them."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Read `name: type = argument(default, help="…")`."""
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or getattr(call.func, "id", None) != "argument" or attr.docstring:
            return
        text = next((keyword.value for keyword in call.keywords if keyword.arg == "help"), None)
        if text is None:
            return
        attr.docstring = griffe.Docstring(_string(text, attr.module).replace("%%", "%"), parent=attr)
        attr.value = ast.unparse(call.args[0]) if call.args else None


def _string(node: ast.expr, module: griffe.Module) -> str:
    """Evaluate a string whose parts may be constants of its module."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_string(part, module) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _string(node.value, module)
    if isinstance(node, ast.Name):
        return str(ast.literal_eval(str(module[node.id].value)))
    return str(ast.literal_eval(node))
