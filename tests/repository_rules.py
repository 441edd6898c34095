"""The rules of the source tree, each a function from a parsed module to what breaks it; see `test_repository.py`.

A finding is one line: `path:line: what`. Nothing here imports the code that it judges.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = ROOT / "aiaas"

# Packages import only from groups further down; those of one group do not know each other. `__main__` starts `cli`;
# `aiaas` itself holds the version.
LAYERS: Final = (
    ("__main__",),
    ("cli",),
    ("smoke", "clients"),
    ("proxy", "manifests", "loadtest", "engines", "simulator"),
    ("httpclient",),
    ("plan",),
    ("config",),
    ("keys", "limits", "openai"),
    ("authorities",),
    ("errors", "interpreter", "units", "waiting", "yamltree"),
    ("",),
)
# Likewise inside `aiaas/proxy`. `root` are the modules beside these folders, but for those in PROXY_BASE.
WINGS: Final = ("workers", "root", "admin", "upstream", "request", "client", "tasks", "telemetry")
PROXY_BASE: Final = ("tasks",)
ONLY_IN_CLI: Final = ("typer", "rich")

MAX_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 60

# A clock, a socket, randomness, or another way out into the world.
IMPURE_MODULES: Final = frozenset(
    {
        "asyncio",
        "contextvars",
        "fcntl",
        "http",
        "io",
        "multiprocessing",
        "os",
        "random",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib.request",
        "uuid",
        "uvloop",
        "aiohttp",
        "httptools",
    }
)
IMPURE_CALLS: Final = frozenset(
    {
        "now",
        "utcnow",
        "today",
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "exists",
        "is_file",
        "is_dir",
        "iterdir",
        "glob",
        "rglob",
        "stat",
        "resolve",
        "cwd",
        "home",
        "expanduser",
        "mkdir",
        "unlink",
        "touch",
    }
)
IMPURE_BUILTINS: Final = frozenset({"open", "input", "print"})

MUTABLE_CALLS: Final = frozenset(
    {
        "list",
        "dict",
        "set",
        "bytearray",
        "deque",
        "defaultdict",
        "OrderedDict",
        "Counter",
        "WeakKeyDictionary",
        "WeakValueDictionary",
        "WeakSet",
        "ContextVar",
        "cycle",
        "count",
        "Lock",
        "Event",
        "Queue",
    }
)
MUTATORS: Final = frozenset(
    {
        "append",
        "extend",
        "insert",
        "remove",
        "pop",
        "popitem",
        "clear",
        "update",
        "setdefault",
        "add",
        "discard",
        "appendleft",
        "popleft",
        "sort",
        "reverse",
    }
)


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed source file. `path` is relative to the repository, with forward slashes."""

    path: str
    source: str
    tree: ast.Module

    @property
    def dotted(self) -> str:
        """`aiaas/keys/file.py` -> `aiaas.keys.file`."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """The part of the layers that it belongs to: `keys`, `errors`, or the empty word for `aiaas` itself."""
        return _package(self.dotted)


def module_of(path: str, source: str) -> Module:
    """Parse one file's text."""
    return Module(path, source, ast.parse(source, path))


def all_modules() -> list[Module]:
    """Every module under aiaas/, in order of path."""
    return [
        module_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    ]


def _package(dotted: str) -> str:
    return (dotted + ".").split(".")[1]


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, wherever it stands; `names` are those of `from dotted import names`."""

    line: int
    dotted: str
    names: tuple[str, ...]
    in_function: bool


def imports(module: Module) -> Iterator[Import]:
    """Every import of a module: also those under `if TYPE_CHECKING` (to know a name is to know a package)."""
    in_function = {
        id(node)
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, (), id(node) in in_function)
        elif isinstance(node, ast.ImportFrom):
            dotted = node.module or ""
            if node.level:  # relative: from the package that the module lies in
                parents = module.path.split("/")[: -node.level]
                dotted = ".".join([*parents, *([dotted] if dotted else [])])
            names = tuple(alias.name for alias in node.names)
            yield Import(node.lineno, dotted, names, id(node) in in_function)


def _imported_packages(found: Import) -> Iterator[str]:
    if found.dotted == "aiaas":  # `from aiaas import keys` as well as `from aiaas import __version__`
        known = {package for group in LAYERS for package in group}
        yield from (name if name in known else "" for name in found.names or ("",))
    elif found.dotted.startswith("aiaas."):
        yield _package(found.dotted)


def _wing(dotted: str) -> str:
    name = (dotted + "..").split(".")[2]
    return name if name in WINGS or name in PROXY_BASE else "root"


def wings(module: Module) -> Iterator[str]:
    """A wing of the proxy imports only from wings further down."""
    if module.package != "proxy":
        return
    rank, here = {wing: number for number, wing in enumerate(WINGS)}, _wing(module.dotted)
    for found in imports(module):
        if found.dotted.startswith("aiaas.proxy.") and rank[there := _wing(found.dotted)] < rank[here]:
            yield f"{module.path}:{found.line}: {here} does not import from {there}"


def layers(module: Module) -> Iterator[str]:
    """A package imports only from packages further down."""
    rank = {package: number for number, group in enumerate(LAYERS) for package in group}
    if module.package not in rank:
        yield f"{module.path}:1: the package {module.package!r} has no place in the layers"
        return
    for found in imports(module):
        for package in _imported_packages(found):
            if package == module.package:
                continue
            if package not in rank or rank[package] <= rank[module.package]:
                yield f"{module.path}:{found.line}: {module.package} does not import from {package}"
        if found.dotted.partition(".")[0] in ONLY_IN_CLI and module.package != "cli":
            yield f"{module.path}:{found.line}: {found.dotted} lives in cli and nowhere else"


def private_names(module: Module) -> Iterator[str]:
    """A name that begins with an underscore is known to its own module only."""
    for found in imports(module):
        if found.dotted.partition(".")[0] == "aiaas":
            for name in (*found.dotted.split("."), *found.names):
                if name.startswith("_") and not name.startswith("__"):
                    yield f"{module.path}:{found.line}: {name} is private to {found.dotted}"


def purity(module: Module) -> Iterator[str]:
    """No clock, no socket, no randomness, no files: neither by import nor by call."""
    for found in imports(module):
        if found.dotted in IMPURE_MODULES or found.dotted.partition(".")[0] in IMPURE_MODULES:
            yield f"{module.path}:{found.line}: imports {found.dotted}"
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_CALLS:
            yield f"{module.path}:{node.lineno}: calls .{node.func.attr}()"
        elif isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS:
            yield f"{module.path}:{node.lineno}: calls {node.func.id}()"


def module_state(module: Module) -> Iterator[str]:
    """A module-level value is constant: spelled so, and changed by nobody in the module."""
    containers: set[str] = set()
    for statement in module.tree.body:
        for name, value, final in _assignments(statement):
            if name.startswith("__") or not _is_mutable(value):
                continue
            containers.add(name)
            if not final and name != name.upper():
                yield f"{module.path}:{statement.lineno}: {name} is mutable, and not marked as a constant"
            if isinstance(value, ast.Call) and _called(value) in MUTABLE_CALLS - {"list", "dict", "set"}:
                yield f"{module.path}:{statement.lineno}: {name} is a {_called(value)}, made to be changed"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{module.path}:{node.lineno}: global {', '.join(node.names)}"
        for name, line in _mutated(node):
            if name in containers:
                yield f"{module.path}:{line}: {name} stands at module level and is changed"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _unbounded_caches(module, node)


def _assignments(statement: ast.stmt) -> Iterator[tuple[str, ast.expr, bool]]:
    """(name, value, marked as Final) of a statement at module level."""
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value, False
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        yield statement.target.id, statement.value, "Final" in ast.unparse(statement.annotation)


def _is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    return isinstance(value, ast.Call) and _called(value) in MUTABLE_CALLS


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _mutated(node: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a node changes in place, with the line."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        targets = [node.func]
    elif isinstance(node, ast.Assign | ast.Delete):
        targets = [target for target in node.targets if isinstance(target, ast.Subscript)]
    elif isinstance(node, ast.AugAssign):
        targets = [node.target]
    for target in targets:
        held = target.value if isinstance(target, ast.Subscript | ast.Attribute) else target
        if isinstance(held, ast.Name):
            yield held.id, held.lineno


def _unbounded_caches(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """A bounded memo of a pure function is not visible state; an unbounded one is a leak."""
    for decorator in function.decorator_list:
        text = ast.unparse(decorator)
        if text.split("(")[0].endswith("cache") and ("maxsize=" not in text or "maxsize=None" in text):
            yield f"{module.path}:{function.lineno}: {function.name} is cached without a bound"


def function_imports(module: Module) -> Iterator[str]:
    """Outside cli/, imports stand at the top."""
    if module.package != "cli":
        for found in imports(module):
            if found.in_function:
                yield f"{module.path}:{found.line}: imports {found.dotted} inside a function"


def blind_excepts(module: Module) -> Iterator[str]:
    """A handler that catches everything raises again."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and _catches_all(node.type):
            if not any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement)):
                yield f"{module.path}:{node.lineno}: catches {ast.unparse(node.type) if node.type else 'all'}"
        elif isinstance(node, ast.Call) and _called(node) == "suppress" and any(map(_catches_all, node.args)):
            yield f"{module.path}:{node.lineno}: suppresses everything"


def _catches_all(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(_catches_all(each) for each in kind.elts)
    return isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")


def sizes(module: Module) -> Iterator[str]:
    """A file or a function that outgrows its bound usually holds two ideas."""
    lines = module.source.count("\n")
    if lines >= MAX_LINES:
        yield f"{module.path}: {lines} lines; below {MAX_LINES} are allowed"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A command's parameters are its table of options, not logic.
            first = node.body[0].lineno if module.package == "cli" else node.lineno
            length = (node.end_lineno or first) - first + 1
            if length >= MAX_FUNCTION_LINES:
                what = f"{node.name} has {length} lines; below {MAX_FUNCTION_LINES} are allowed"
                yield f"{module.path}:{node.lineno}: {what}"


def docstrings(module: Module) -> Iterator[str]:
    """Each file says its one idea, each exception says when it is raised."""
    if not ast.get_docstring(module.tree):
        yield f"{module.path}:1: has no docstring"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
            bases = [ast.unparse(base) for base in node.bases]
            if any(base.endswith(("Error", "Exception")) for base in bases):
                yield f"{module.path}:{node.lineno}: the exception {node.name} has no docstring"


def public_names(module: Module) -> Iterator[str]:
    """The classes, functions and constants at the top of a module that other modules may import."""
    for statement in module.tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [statement.name]
        else:
            names = [name for name, _, _ in _assignments(statement)]
        yield from (name for name in names if not name.startswith("_"))


def has_behaviour(module: Module) -> bool:
    """Whether there is anything to test by itself: a function that does more than to declare itself in a Protocol."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if any(not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in body):
                return True
    return False


def tests_of(module: Module) -> str:
    """Where a module's tests are: `aiaas/keys/file.py` -> `tests/keys/test_file.py`."""
    folder, _, name = module.path.removeprefix("aiaas/").rpartition("/")
    return "/".join(part for part in ("tests", folder, f"test_{name}") if part)
