"""Draw the package from its imports: docs/architecture.svg.

    python docs/draw_architecture.py            # write the picture
    python docs/draw_architecture.py --check    # exit code 1 if the picture is not the code's any more

A box is a folder, or a module of the top folder; it stands one layer above the highest box it imports. An arrow is an
import, thicker for more of them.
"""

import ast
import sys
from collections import Counter
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hfbert_scratch"
PICTURE = Path(__file__).parent / "architecture.svg"
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 150, 46, 182, 112


def folder_of(module: tuple[str, ...]) -> str:
    """Return the folder a module lies in, or the module itself in the top folder."""
    return module[0] if module else "__init__"


def imported_modules(path: Path) -> list[tuple[str, ...]]:
    """Return the package's modules a file imports, as paths below the package; imports in functions count too."""
    place = path.relative_to(PACKAGE).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = (*place[: len(place) - node.level], *(node.module or "").split("."))
        elif (node.module or "").split(".")[0] == PACKAGE.name:
            base = tuple((node.module or "").split(".")[1:])
        else:
            continue
        base = tuple(part for part in base if part)
        found += [base] if node.module else [(*base, alias.name) for alias in node.names]
    return found


def imports_between_folders() -> Counter[tuple[str, str]]:
    """Count the import statements from one folder or top module to another."""
    arrows: Counter[tuple[str, str]] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        own = folder_of(path.relative_to(PACKAGE).with_suffix("").parts)
        for module in imported_modules(path):
            if folder_of(module) != own:
                arrows[own, folder_of(module)] += 1
    return arrows


def layers(arrows: Counter[tuple[str, str]]) -> dict[str, int]:
    """Return each folder's layer: 0 for one that imports no other. Raises ValueError for a circle."""
    below: dict[str, set[str]] = {}
    for own, other in arrows:
        below.setdefault(own, set()).add(other)
        below.setdefault(other, set())
    found: dict[str, int] = {}
    while len(found) < len(below):
        ready = [folder for folder, others in below.items() if folder not in found and others <= found.keys()]
        if not ready:
            raise ValueError(f"these import each other: {', '.join(sorted(below.keys() - found.keys()))}")
        found |= {folder: 1 + max((found[other] for other in below[folder]), default=-1) for folder in ready}
    return found


def modules_in(folder: str) -> int:
    """Return how many modules a folder has, or 1 for a top module."""
    directory = PACKAGE / folder
    return len([path for path in directory.rglob("*.py") if path.name != "__init__.py"]) if directory.is_dir() else 1


def draw() -> str:
    """Return the picture as SVG."""
    arrows = imports_between_folders()
    layer_of = layers(arrows)
    rows = [
        sorted(name for name in layer_of if layer_of[name] == layer) for layer in range(max(layer_of.values()) + 1)
    ]
    width = COLUMN * max(map(len, rows)) + 30
    height = ROW * len(rows) + 20
    middle = {}
    for layer, folders in enumerate(rows):
        left = (width - COLUMN * len(folders)) / 2
        for column, folder in enumerate(folders):
            middle[folder] = (left + COLUMN * (column + 0.5), height - ROW * (layer + 0.5) - 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto" markerUnits="userSpaceOnUse"><path d="M0 0 8 4 0 8z" fill="#789"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for (own, other), count in sorted(arrows.items()):
        (x1, y1), (x2, y2) = middle[own], middle[other]
        y1, y2 = y1 + BOX_HEIGHT / 2, y2 - BOX_HEIGHT / 2
        bend = (y2 - y1) / 2
        parts.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}" '
            f'fill="none" stroke="#789" stroke-opacity="0.55" stroke-width="{min(4.0, 0.8 + count / 8):.1f}" '
            'marker-end="url(#tip)"/>'
        )
    for folder, (x, y) in sorted(middle.items()):
        is_folder = (PACKAGE / folder).is_dir()
        count = modules_in(folder)
        name = f"{folder}/" if is_folder else f"{folder}.py"
        note = f"{count} modules" if is_folder else ""
        parts.append(
            f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}" '
            f'height="{BOX_HEIGHT}" rx="6" fill="{"#e8f0fa" if is_folder else "#fdf3e1"}" stroke="#456"/>'
            f'<text x="{x:.0f}" y="{y + (-2 if note else 5):.0f}" text-anchor="middle" font-size="15">{name}</text>'
            f'<text x="{x:.0f}" y="{y + 15:.0f}" text-anchor="middle" font-size="11" fill="#567">{note}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Write the picture, or compare it with the code."""
    picture = draw()
    if "--check" in sys.argv[1:]:
        if not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture:
            sys.exit(f"{PICTURE.relative_to(ROOT)} is not the code's any more; run python docs/draw_architecture.py")
        return
    PICTURE.write_text(picture, encoding="utf-8")
    arrows = imports_between_folders()
    print(f"{len(layers(arrows))} folders, {len(arrows)} arrows, {1 + max(layers(arrows).values())} layers")


if __name__ == "__main__":
    main()
