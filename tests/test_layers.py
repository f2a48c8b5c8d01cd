"""What may import what: each file from its left only, and nothing heavy before it is needed."""

import ast
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import dal_native as dn

#: A file imports only from files that stand before it.
ORDER = {
    "dal_native": (
        ("_dlpack",),
        ("_validate",),
        ("_dispatch",),
        ("_linalg", "_kernels"),
        ("_files",),
        ("pool",),
        ("_pairs",),
        ("_backends", "_backends.reference", "_backends.cpu"),
        ("information",),
        ("_reuse",),
        ("nuisance",),
        ("selection",),
        ("operations",),
        ("testing",),
    ),
    "dal_learn": (
        ("_files", "_philox", "_rows", "_teacher_blocks"),
        ("_links", "_covariance", "_reward_file", "_ledger"),
        ("_answers",),
        ("_fit", "_labels"),
        ("conversations",),
        ("teachers",),
        ("encoders",),
        ("sources",),
        ("reward",),
        ("flags",),
        ("reward_cv",),
        ("design",),
        ("batches",),
        ("radius",),
        ("pessimistic_reward",),
        ("_policy_problem",),
        ("_policy_soft",),
        ("_policy_hard",),
        ("policy",),
        ("best_of",),
        ("choices",),
        ("integrations",),
        ("integrations.scorer",),
        ("integrations.trl_reward", "integrations.openrlhf_reward", "integrations.verl_reward"),
        ("integrations.server",),
        ("integrations.torch_head",),
        ("integrations.reward_directory",),
        ("campaign",),
        ("comparison",),
        ("demo",),
        ("report",),
        ("doctor",),
        ("cli",),
    ),
}
#: Optional or slow packages: imported inside the function that needs them, never when a file is imported.
HEAVY = {
    "torch",
    "transformers",
    "matplotlib",
    "jinja2",
    "pyarrow",
    "sklearn",
    "numba",
    "pandas",
    "ml_dtypes",
    "ray",
    "trl",
    "datasets",
    "accelerate",
    "uvicorn",
    "h11",
}
#: Files that are a heavy package's own classes: they may import it, and nothing else imports them at once.
ON_DEMAND = {"integrations.torch_head": {"torch"}}
#: All that dal_native may import besides the standard library.
NATIVE_NEEDS = {"numpy", "scipy", "threadpoolctl", "safetensors", "dal_native"}


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def folder(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} cannot be imported"
    return Path(spec.submodule_search_locations[0])


def files(package):
    """Name within the package -> path of every Python and Cython file."""
    root = folder(package)
    found = {}
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.pyx")]):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[re.sub(r"\.?__init__$", "", name)] = path
    return found


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path, package, name, top_level_only=False):
    """Absolute dotted names that a file imports, type-checking blocks left out."""
    if path.suffix == ".pyx":
        for line in path.read_text().splitlines():
            match = re.match(r"\s*(?:from\s+([\w.]+)\s+c?import\s+(\w+)|c?import\s+([\w.]+))", line)
            if match:
                yield f"{match[1]}.{match[2]}" if match[1] else match[3]
        return
    inside = [package, *name.split(".")]
    inside = inside if path.name == "__init__.py" else inside[:-1]
    waiting = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if is_type_checking(node) or (top_level_only and isinstance(node, FUNCTIONS)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = [part for part in inside if part][: len([p for p in inside if p]) - node.level + 1]
            base = ".".join([*(start if node.level else []), *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def own_module(dotted, package, known):
    """The file of the package that a dotted import names, if it is one."""
    if not dotted.startswith(f"{package}."):
        return None
    parts = dotted.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or None


@pytest.mark.parametrize("package", ORDER)
def test_each_file_imports_from_its_left_only(package):
    rank = {name: k for k, names in enumerate(ORDER[package]) for name in names}
    for name, path in files(package).items():
        if name in ("", "__main__"):
            continue
        assert name in rank, f"{package}.{name} has no place in the order: add it to ORDER"
        for dotted in imports(path, package, name):
            other = own_module(dotted, package, rank)
            if other not in (None, name):
                assert rank[other] < rank[name], f"{package}.{name} imports {other}, which is not on its left"


def test_dal_native_needs_little():
    """Never dal_learn, torch or anything beyond its few dependencies; not even in a function."""
    allowed = NATIVE_NEEDS | set(sys.stdlib_module_names) | {"libc", "cpython"}
    for name, path in files("dal_native").items():
        roots = {dotted.split(".")[0] for dotted in imports(path, "dal_native", name)}
        assert roots <= allowed, f"dal_native.{name} imports {sorted(roots - allowed)}"


def test_dal_learn_imports_nothing_heavy_with_the_file():
    for name, path in files("dal_learn").items():
        roots = {dotted.split(".")[0] for dotted in imports(path, "dal_learn", name, top_level_only=True)}
        heavy = roots & HEAVY - ON_DEMAND.get(name, set())
        assert not heavy, f"dal_learn.{name} imports {sorted(heavy)} when it is imported"


def test_files_on_demand_are_imported_on_demand():
    known = files("dal_learn")
    assert set(ON_DEMAND) <= set(known)
    for name, path in known.items():
        used = {
            own_module(dotted, "dal_learn", known)
            for dotted in imports(path, "dal_learn", name, top_level_only=True)
        }
        wanted = used & set(ON_DEMAND)
        assert not wanted, f"dal_learn.{name} imports {sorted(wanted)} when it is imported"


def test_backends_are_reached_through_dispatch_only():
    """operations, information, selection and pool ask `_dispatch`; dal_learn never sees a backend."""
    for package in ORDER:
        for name, path in files(package).items():
            if name.startswith("_backends"):
                continue
            used = [k for k in imports(path, package, name) if "_backends" in k or k.endswith("_kernels")]
            assert used == [], f"{package}.{name} imports {used}"


def test_the_reader_of_imports_sees_every_form(tmp_path):
    """The checks above rest on this reader: it must see what it is meant to see."""
    path = tmp_path / "b.py"
    path.write_text(
        "import torch\nfrom .a import x\nfrom . import c\nfrom dal_learn.d import y\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\n"
        "def f():\n    import sklearn.base\n"
    )
    seen = set(imports(path, "dal_learn", "b"))
    assert {"torch", "dal_learn.a.x", "dal_learn.c", "dal_learn.d.y", "sklearn.base"} <= seen
    assert "pandas" not in seen
    assert "sklearn.base" not in set(imports(path, "dal_learn", "b", top_level_only=True))
    assert own_module("dal_learn.a.x", "dal_learn", {"a", "c"}) == "a"
    assert own_module("dal_learn.c", "dal_learn", {"a", "c"}) == "c"
    assert own_module("dal_native.c", "dal_learn", {"a", "c"}) is None


def test_version_is_that_of_the_distribution():
    try:
        installed = importlib.metadata.version("dal-native")
    except importlib.metadata.PackageNotFoundError:
        text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
        installed = re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1]
    assert dn.__version__ == installed
