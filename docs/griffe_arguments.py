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
        try:
            words = str(ast.literal_eval(text))
        except ValueError:  # put together from constants of the module
            words = ast.unparse(text)
        attr.docstring = griffe.Docstring(words.replace("%%", "%"), parent=attr)
        attr.value = ast.unparse(call.args[0]) if call.args else None
