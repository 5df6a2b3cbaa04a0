"""Configuration files: nesting, order, places of mistakes, and the way back to YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from rlhf.config_files import config_dict, load_config, resolve_config, save_config
from rlhf.config_help import documented_yaml
from rlhf.errors import UserError


@dataclass(frozen=True)
class Model:
    """A network.

    Attributes:
        width: size of the residual stream.
        layers: number of blocks.
    """

    width: int = 8
    layers: int = 2

    def __post_init__(self):
        if self.width < 0:
            raise UserError("model: width is negative", fix="choose a positive one.")


@dataclass(frozen=True)
class Source:
    """Records.

    Attributes:
        path: one file or several.
        weight: how often they are drawn.
    """

    path: str | list[str]
    weight: float = 1.0


@dataclass(frozen=True)
class Config:
    """A stage.

    Attributes:
        output: folder.
        model: the network.
        teacher: another network, or none.
        sources: where records come from, by name.
        shares: numbers by name.
        kinds: names.
        sizes: numbers.
        mode: one of two.
        rate: a number.
        limit: a number or none.
        note: text or none.
        extra_data: a list of sections.
    """

    output: str
    model: Model = Model(layers=3)
    teacher: Model | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=lambda: {"en": 0.5})
    kinds: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = (1, 4)
    mode: Literal["fast", "exact"] = "fast"
    rate: float = 1e-3
    limit: int | None = 3
    note: str | None = None
    extra_data: list[Source] = field(default_factory=list)


@pytest.fixture
def write(tmp_path):
    """Write files below a temporary folder and return the path of the last."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def test_defaults_of_a_nested_instance_survive_a_partial_override():
    config = load_config(Config, overrides=["output=x", "model.width=5"])
    assert config.model == Model(width=5, layers=3)


def test_later_file_wins_and_overrides_win_over_files(write):
    first = write("a.yaml", "output: a\nrate: 1\nmodel: {width: 1, layers: 1}\n")
    second = write("b.yaml", "rate: 2\nmodel: {width: 2}\n")
    assert load_config(Config, [first, second]) == Config(output="a", rate=2.0, model=Model(2, 1))
    assert load_config(Config, [first, second], ["--rate=3"]).rate == 3.0
    assert load_config(Config, [second, first]).rate == 1.0


def test_section_file_is_found_beside_the_file_that_names_it_and_in_the_working_directory(write, monkeypatch):
    write("configs/models/tiny.yaml", "width: 4\n")
    beside = write("configs/a.yaml", "output: a\nmodel: models/tiny.yaml\n")
    from_root = write("configs/b.yaml", "output: a\nmodel: configs/models/tiny.yaml\nteacher: models/tiny.yaml\n")
    monkeypatch.chdir(beside.parents[1])
    assert load_config(Config, [beside]).model == Model(4, 3)
    config = load_config(Config, [from_root])
    assert (config.model, config.teacher) == (Model(4, 3), Model(4))
    assert load_config(
        Config, overrides=["output=a", "model=configs/models/tiny.yaml", "model.layers=9"]
    ).model == Model(4, 9)


def test_a_section_file_replaces_what_an_earlier_file_set(write):
    write("small.yaml", "layers: 1\n")
    first = write("a.yaml", "output: a\nmodel: {width: 100}\n")
    second = write("b.yaml", "model: small.yaml\n")
    assert load_config(Config, [first, second]).model == Model(layers=1)


def test_values_of_every_kind(write):
    path = write(
        "a.yaml",
        "output: a\nteacher: {}\nsources:\n  wiki: {path: [x, y]}\n  books: {path: z}\nkinds: [q]\nsizes: [2]\n"
        "rate: 1e-4\nlimit: null\nnote: 2025-01-31\nextra_data: [{path: w, weight: 2}]\n",
    )
    config = load_config(Config, [path], ["sources.wiki.weight=3", "mode=exact", "shares.zh=1"])
    assert config == Config(
        output="a",
        teacher=Model(),
        sources={"wiki": Source(["x", "y"], 3.0), "books": Source("z")},
        shares={"en": 0.5, "zh": 1.0},
        kinds=["q"],
        sizes=(2,),
        mode="exact",
        rate=1e-4,
        limit=None,
        note="2025-01-31",
        extra_data=[Source("w", 2.0)],
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("note=12", "12"),
        ("note=true", "true"),
        ("note=USER: hi AI:", "USER: hi AI:"),
        ("note=a #b", "a #b"),
        ("note=None", None),
        ("note=null", None),
        ("limit=None", None),
        ("rate=1e-5", 1e-5),
        ("rate=2", 2.0),
        ("kinds=[a, b]", ["a", "b"]),
        ("sizes=[7]", (7,)),
        ("teacher=null", None),
        ("teacher={width: 3}", Model(3)),
    ],
)
def test_overrides_are_read_as_yaml_unless_the_field_is_text(override, value):
    assert getattr(load_config(Config, overrides=["output=x", override]), override.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("output: a\nmodell: {}\n", [":2: unknown key modell", "did you mean model?"]),
        ("output: a\nmodel:\n  width: 1\n  layer: 1\n", [":4: unknown key model.layer", "did you mean model.layers?"]),
        ("output: a\nwidth: 1\n", [":2: unknown key width", "did you mean model.width?"]),
        ("sources:\n  wiki: {pth: x}\n", [":2: unknown key sources.wiki.pth", "did you mean sources.wiki.path?"]),
        ("output: a\nqqqqqqqq: 1\n", ["unknown key qqqqqqqq", "valid keys are: output, model"]),
        ("output: a\nrate: fast\n", [":2: rate should be float, found 'fast'"]),
        ("output: a\nmodel: {width: 1.5}\n", [":2: model.width should be int, found 1.5"]),
        ("output: a\nmode: slow\n", ["mode should be one of fast, exact, found 'slow'"]),
        ("output: a\nrate: null\n", ["rate should be float, found null"]),
        ("output: a\nmodel: 3\n", ["model should be a section, or a file that holds it, found 3"]),
        ("output: a\nmodel: none.yaml\n", [":2: model names a configuration file that does not exist", "none.yaml"]),
        ("output: a\nrate: 1\nrate: 2\n", ["rate stands twice"]),
        ("output: a\nsources: {wiki: {weight: 1}}\n", ["required keys are not set: sources.wiki.path"]),
        ("rate: 1\n", ["required keys are not set: output", "--output=VALUE"]),
        ("- 1\n", ["expected keys and values"]),
        ("a: [\n", ["is not YAML"]),
        ("output: a\nmodel: {width: -1}\n", ["width is negative"]),
    ],
)
def test_mistakes_are_refused_with_their_place(write, text, parts):
    path = write("a.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config(Config, [path])
    for part in parts:
        assert part in str(caught.value)


def test_a_mistake_in_a_named_file_is_placed_in_that_file(write):
    write("models/bad.yaml", "width: 1\nlayer: 2\n")
    path = write("a.yaml", "output: a\nmodel: models/bad.yaml\n")
    with pytest.raises(UserError, match=r"models/bad\.yaml:2: unknown key model\.layer"):
        load_config(Config, [path])


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_config(Config, ["nowhere.yaml"])


def test_saved_configuration_loads_back_equal(tmp_path):
    config = Config(
        output="x",
        model=Model(5),
        teacher=Model(layers=7),
        sources={"維基": Source(["a", "b"], 0.1)},
        sizes=(3, 2),
        rate=1e-9,
        limit=None,
        note="two\nlines: #",
        extra_data=[Source("q")],
    )
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_config(Config, [tmp_path / "run" / "config.yaml"]) == config
    assert config_dict(config)["sizes"] == [3, 2]


def test_documented_yaml_loads_back_and_carries_the_documentation(write):
    config = load_config(Config, overrides=["output=x", "note=one\ntwo", "teacher.width=3", "sources.a.path=[p]"])
    text = documented_yaml(Config, config_dict(config))
    assert load_config(Config, [write("a.yaml", text)]) == config
    assert "rate: 0.001  # a number." in text


def test_documented_yaml_leaves_required_keys_as_comments(write):
    text = documented_yaml(Config, resolve_config(Config))
    assert "# output:  # REQUIRED (str): folder." in text
    assert load_config(Config, [write("a.yaml", text)], ["output=x"]) == Config(output="x")
