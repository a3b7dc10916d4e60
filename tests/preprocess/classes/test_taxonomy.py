from __future__ import annotations

import csv
import logging
import random
import re
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.preprocess.classes.taxonomy import CycleError, Taxonomy
from in21k.preprocess.classes.wordnet import WordNet
from in21k.shards import SemanticTree

FALL11P = [302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26, 1]
WINTER21P = [302, 1067, 1823, 2486, 2165, 1353, 710, 289, 146, 82, 26, 1]
SWAN, BIRD, ANIMAL, SUN = "n01858441", "n01503061", "n00015388", "n09450163"


@pytest.fixture(scope="module")
def packaged() -> Taxonomy:
    return Taxonomy.packaged()


@pytest.fixture(scope="module")
def fall11p(packaged: Taxonomy) -> SemanticTree:
    return build_tree(read_classes("fall11p"), packaged)


def toy(*rows: tuple[int, list[int]]) -> WordNet:
    """WordNet of a few synsets: (offset, hypernyms)."""
    offsets, hypernyms = zip(*rows, strict=True)
    names = [f"synset {offset}" for offset in offsets]
    columns = {
        "offset": pa.array(offsets, pa.int32()),
        "name": names,
        "definition": names,
        "hypernyms": pa.array(hypernyms, pa.list_(pa.int32())),
    }
    return WordNet(pa.table(columns), "toy")


def names_up(tree: SemanticTree, wnid: str) -> list[str]:
    return [tree.names[index] for index in tree.paths[tree.find(wnid)]]


def test_fall11p_has_the_references_classes_on_each_level(fall11p: SemanticTree) -> None:
    assert len(fall11p) == 11_221
    assert [len(classes) for classes in fall11p.classes_by_level] == FALL11P


def test_winter21p_has_the_references_classes_on_each_level(packaged: Taxonomy) -> None:
    tree = build_tree(read_classes("winter21p"), packaged)
    assert len(tree) == 10_450
    assert [len(classes) for classes in tree.classes_by_level] == WINTER21P


def test_no_class_of_imagenet_needs_a_guess(caplog: pytest.LogCaptureFixture) -> None:
    build_tree(read_classes("fall11p"))
    assert caplog.records == []


def test_paths_are_those_of_the_reference(fall11p: SemanticTree) -> None:
    assert fall11p.paths[10] == (10, 9, 66, 65, 144)
    assert names_up(fall11p, SWAN) == ["swan", "aquatic bird", "bird", "vertebrate", "animal"]
    assert fall11p.parents[fall11p.find(SUN)] == -1
    assert fall11p.names[fall11p.find(SUN)] == "sun"


def test_the_walk_goes_on_through_ancestors_that_are_no_classes(packaged: Taxonomy) -> None:
    tree = build_tree([ANIMAL, SWAN, SUN], packaged)
    assert tree.names == ("animal", "swan", "sun")
    assert tree.parents == (-1, 0, -1)


def test_class_indices_follow_the_order_given() -> None:
    tree = build_tree(iter([SWAN, BIRD]))
    assert (tree.wnids, tree.parents) == ((SWAN, BIRD), (1, -1))


def test_classes_that_are_no_synset_are_top_classes_and_the_log_names_them(
    packaged: Taxonomy, caplog: pytest.LogCaptureFixture
) -> None:
    tree = build_tree(["cat", "n00000001", BIRD, "n015030610"], packaged)
    assert tree.names == ("cat", "n00000001", "bird", "n015030610")
    assert tree.parents == (-1, -1, -1, -1)
    (record,) = caplog.records
    assert record.getMessage() == (
        "3 classes are not WordNet synsets and become roots of the tree: cat, n00000001, n015030610 "
        "(a --parents file would place them)"
    )
    caplog.clear()
    build_tree([f"class-{number}" for number in range(7)], packaged)
    assert "7 classes" in caplog.text
    assert "class-4, ... (a --parents file" in caplog.text


def test_a_set_without_classes_has_an_empty_tree(packaged: Taxonomy) -> None:
    assert len(build_tree([], packaged)) == 0


def test_a_tree_may_be_one_class(packaged: Taxonomy) -> None:
    assert build_tree([SWAN], packaged).paths == ((0,),)


def test_own_parents_win_over_wordnet_and_strangers_are_known_by_them(packaged: Taxonomy) -> None:
    taxonomy = Taxonomy(
        WordNet.packaged(),
        {"my-swan": SWAN, SWAN: "floating-things", "pedalo": "floating-things", BIRD: None},
        {"my-swan": "my own swan", SUN: "our sun"},
    )
    assert [taxonomy.parent(node) for node in ("my-swan", SWAN, "floating-things", BIRD, "stranger")] == [
        *(SWAN, "floating-things", None, None, None)
    ]
    assert (packaged.parent(SWAN), packaged.parent(BIRD)) == ("n01844917", "n01471682")
    assert [taxonomy.name(node) for node in ("my-swan", SUN, SWAN, "pedalo")] == [
        *("my own swan", "our sun", "swan", "pedalo")
    ]
    assert (taxonomy.definition(SUN), taxonomy.definition("pedalo")) == (packaged.definition(SUN), "")
    assert [node in taxonomy for node in ("my-swan", "floating-things", SWAN, SUN, "stranger", "")] == [
        *(True, True, True, True, False, False)
    ]
    assert taxonomy.is_below("my-swan", "floating-things")
    assert taxonomy.is_below("stranger", "stranger")
    assert not taxonomy.is_below(SWAN, BIRD)
    assert not taxonomy.is_below("stranger", BIRD)
    tree = build_tree(["floating-things", "my-swan", "pedalo", BIRD, ANIMAL], taxonomy)
    assert tree.parents == (-1, 0, 0, -1, -1)


def test_a_users_class_hangs_below_a_synset_through_nodes_that_are_no_classes() -> None:
    taxonomy = Taxonomy(WordNet.packaged(), {"bewick": "wild-swans", "wild-swans": SWAN})
    assert build_tree([ANIMAL, "bewick"], taxonomy).parents == (-1, 0)


def read(tmp_path: Path, content: str | bytes) -> Taxonomy:
    path = tmp_path / "parents.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Taxonomy.read(None, path)


PLAIN = "child,parent,name\na,b,an A\nb,,\n"


@pytest.mark.parametrize(
    "same",
    [
        "b,\na,b,an A\n",
        "b\r\n\r\na,b,an A\r\n".replace("b\r\n", "b,\r\n", 1),
        "\ufeffChild, Parent ,name\n\n a , b , an A \nb,,\n,,\n",
        'a,b,"an A"\nb,\na,b,an A',
        "child,parent\rb,\ra,b,an A\r",
    ],
)
def test_the_csv_means_the_same_however_it_was_saved(tmp_path: Path, same: str) -> None:
    plain, other = read(tmp_path, PLAIN), read(tmp_path, same)
    assert other.version == plain.version
    for taxonomy in (plain, other):
        assert [taxonomy.parent(node) for node in "ab"] == ["b", None]
        assert [taxonomy.name(node) for node in "ab"] == ["an A", "b"]
        assert "child" not in taxonomy


def test_the_version_tells_taxonomies_apart(tmp_path: Path) -> None:
    assert Taxonomy.packaged().version == {"wordnet": "3.0", "parents": None}
    versions = [read(tmp_path, content).version for content in (PLAIN, "a,b,an A\n", "a,b\nb,\n", "a,c,an A\nb,\n")]
    assert all(re.fullmatch(r"[0-9a-f]{16}", version["parents"] or "") for version in versions)
    assert len({version["parents"] for version in versions}) == 4
    assert Taxonomy(toy((1, []))).version == {"wordnet": "toy", "parents": None}


def test_a_name_may_hold_a_comma(tmp_path: Path) -> None:
    assert read(tmp_path, 'a,b,"lion, king of beasts"\n').name("a") == "lion, king of beasts"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("a,b\nb,c\n\nc,a\n", "line 1: a cycle of parents: a -> b -> c -> a"),
        ("x,a\na,b\nb,a\n", "line 2: a cycle of parents: a -> b -> a"),
        ("a,a\n", "line 1: a cycle of parents: a -> a"),
        (f"{BIRD},x\nx,{SWAN}\n", f"line 1: a cycle of parents: {BIRD} -> x -> {SWAN} -> n01844917 -> "),
        ("child,parent\na,b\nb,\na,c\n", "line 4: a has the parent c, and on line 2 b; wanted one row for each child"),
        ("a,b,x\na,b,y\n", "line 2: a has the parent b and the name 'y', and on line 1 b and the name 'x'"),
        ("a,b\na,\n", "line 2: a has the parent (none), and on line 1 b"),
        ("a,b\nc\n", "line 2: 'c' has 1 columns; wanted child,parent[,name]"),
        ("a,b,c,d\n", "line 1: 'a,b,c,d' has 4 columns; wanted child,parent[,name] (put a name with a comma"),
        ("a;b;c\n", "line 1: 'a;b;c' has 1 columns"),
        ("Class,Parent,Name\n", "is empty"),
        ("child;parent\n", "line 1: 'child;parent' has 1 columns"),
        ("parent,child\nb,a\n", "line 1: the columns are parent,child; wanted child,parent[,name], in this order"),
        ("\nClass,Name,Parent\na,x,b\n", "line 2: the columns are Class,Name,Parent; wanted child,parent[,name]"),
        (",b\n", "line 1: ',b' has no child; wanted child,parent[,name]"),
        ('a,b,"open\nc,d\n', "unexpected end of data; wanted child,parent[,name]"),
        ("", "is empty; wanted child,parent[,name]"),
        ("child,parent\n\n", "is empty"),
        (b"a,b,\xff\xfe\n", "not UTF-8 text"),
    ],
)
def test_mistakes_in_the_csv_are_one_line_with_file_and_place(
    tmp_path: Path, content: str | bytes, wanted: str
) -> None:
    with pytest.raises(ValueError, match=r"parents\.csv.*" + re.escape(wanted)) as error:
        read(tmp_path, content)
    assert len(str(error.value).splitlines()) == 1


def test_a_cycle_is_refused_without_a_file_too() -> None:
    with pytest.raises(CycleError, match="a -> b -> a") as error:
        Taxonomy(toy((1, [])), {"a": "b", "b": "a"})
    assert error.value.nodes == ["a", "b", "a"]


def test_parents_that_nothing_is_known_of_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(tmp_path, f"a,anmial\nb,{SWAN}\nc,b\nd,e\ne,\n")
    (record,) = caplog.records
    assert record.getMessage().endswith("1 parents have no row and are not WordNet synsets; they become roots: anmial")


def test_what_read_is_given_is_what_it_reads(tmp_path: Path) -> None:
    assert Taxonomy.read(None, None).version == Taxonomy.packaged().version
    with pytest.raises(ValueError, match=r"data\.noun: missing"):
        Taxonomy.read(tmp_path, None)
    with pytest.raises(FileNotFoundError):
        Taxonomy.read(None, tmp_path / "parents.csv")


@st.composite
def taxonomies(draw: st.DrawFn) -> tuple[dict[int, list[int]], dict[str, str | None]]:
    """Hypernyms of some synsets, and own parents, some of them of synsets; a parent is always a smaller number."""
    synsets = {
        n: draw(st.lists(st.integers(1, n - 1), max_size=2, unique=True).map(sorted)) if n > 1 else []
        for n in range(1, 9)
    }

    def node(number: int) -> str:
        return f"n{number:08d}" if number <= 8 else f"own-{number}"

    own = {
        node(n): draw(st.none() | st.integers(1, n - 1).map(node))
        for n in draw(st.lists(st.integers(2, 16), unique=True, max_size=10))
    }
    return synsets, own


@given(taxonomies(), st.lists(st.integers(1, 16), unique=True))
def test_the_nearest_class_above_is_that_of_a_plain_climb(
    drawn: tuple[dict[int, list[int]], dict[str, str | None]], chosen: list[int]
) -> None:
    synsets, own = drawn
    wnids = [f"n{number:08d}" if number <= 8 else f"own-{number}" for number in chosen]

    def above(node: str) -> str | None:
        if node in own:
            return own[node]
        hypernyms = synsets.get(int(node[1:])) if node.startswith("n") else None
        return f"n{min(hypernyms):08d}" if hypernyms else None

    def nearest(wnid: str) -> int:
        node = above(wnid)
        return -1 if node is None else wnids.index(node) if node in wnids else nearest(node)

    taxonomy = Taxonomy(toy(*synsets.items()), own)
    assert list(build_tree(wnids, taxonomy).parents) == [nearest(wnid) for wnid in wnids]


def test_large_taxonomies_are_quick(tmp_path: Path) -> None:
    """20,000 rows below WordNet, 100,000 classes side by side, and a thousand levels: moments, not minutes."""
    draw = random.Random(0)
    path = tmp_path / "parents.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["child", "parent", "name"])
        rows.writerows([f"c{i}", f"c{draw.randrange(i)}" if i > 100 else SWAN, f"my {i}"] for i in range(20_000))
    started = time.perf_counter()
    below = Taxonomy.read(None, path)
    tree = build_tree([SWAN, *(f"c{i}" for i in range(20_000))], below)
    assert len(tree.children[0]) == 101
    assert tree.levels[1] == 1
    wide = Taxonomy(below._wordnet, {f"w{i}": SWAN for i in range(100_000)})
    assert build_tree([SWAN, *(f"w{i}" for i in range(100_000))], wide).levels.count(1) == 100_000
    deep = Taxonomy(below._wordnet, {f"d{i}": f"d{i - 1}" if i else SWAN for i in range(1_000)})
    assert max(build_tree([f"d{i}" for i in range(1_000)], deep).levels) == 999
    assert time.perf_counter() - started < 20  # measured: about 1 s
