"""Configuration: precedence, and one clear line for each mistake."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from imgdist import config
from imgdist.config import AgentConfig, SupernodeConfig
from imgdist.errors import ConfigError


def test_flag_beats_setting_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('root = "/file"\nrun = "/file-run"\n[fill]\nquiet_s = 1.5\n')
    loaded = config.load(AgentConfig, str(file), ("run=/set-run", "fill.patience_s=3"), {"root": "/flag"})
    assert (loaded.root, loaded.run, loaded.fill.quiet_s, loaded.fill.patience_s) == ("/flag", "/set-run", 1.5, 3.0)
    assert loaded.read.deadline_s == AgentConfig().read.deadline_s


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('rooot = "/x"', ["rooot", "known", "root"]),
        ("[fill]\nquiet = 1", ["[fill]", "quiet", "fill.quiet_s"]),
        ("stop_timeout_s = -1", ["stop_timeout_s", "-1", ">= 0"]),
        ('log_format = "xml"', ["log_format", "xml"]),
        ("root = 3", ["root", "3", "str"]),
        ("root = ", ["TOML"]),
        ('[registry]\nproxy = "http://u:p@x"', ["registry.proxy", "HTTPS_PROXY"]),
        ('[registry.hosts."r:1"]\nplain = true', ['[registry.hosts."r:1"]', "plain", "plain_http"]),
        ('[registry.hosts."r:1"]\nca = 1', ['[registry.hosts."r:1"]', "ca", "str"]),
        ('[registry.hosts."r:1"]\nmirrors = ["ftp://x"]', ['[registry.hosts."r:1"]', "ftp://x"]),
        ('[access]\nshared = ["a b"]', ["access.shared", "a b"]),
    ],
)
def test_mistakes_in_a_file_name_file_key_and_value(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(AgentConfig, str(file))
    for word in [str(file), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["fill", "fil.quiet_s=1", "fill=1", "fill.quiet_s=abc"])
def test_mistakes_in_a_setting(setting: str) -> None:
    with pytest.raises(ConfigError):
        config.load(AgentConfig, None, (setting,))


@pytest.mark.parametrize("kind", [AgentConfig, SupernodeConfig])
def test_printed_defaults_load_as_the_defaults(kind: type[AgentConfig] | type[SupernodeConfig], tmp_path: Path) -> None:
    text = config.toml(kind)
    tomllib.loads(text)
    file = tmp_path / "defaults.toml"
    file.write_text(text)
    assert config.load(kind, str(file)) == kind()


@pytest.mark.parametrize("kind", [AgentConfig, SupernodeConfig])
def test_the_low_watermark_is_below_the_high_one(kind: type[AgentConfig | SupernodeConfig]) -> None:
    assert config.load(kind, None, ("space.high=0.6", "space.low=0.5")).space.high == 0.6
    with pytest.raises(ConfigError, match=r"space\.low = 0\.9: expected less than space\.high, which is 0\.8"):
        config.load(kind, None, ("space.low=0.9",))


def test_rules_of_tags_are_read_or_named() -> None:
    made = config.load(SupernodeConfig, settings=('tags.rules=["docker.io/*:latest=10", "a=b:1=0.5"]',))
    assert made.tags.ttls == (("docker.io/*:latest", 10.0), ("a=b:1", 0.5))
    with pytest.raises(ConfigError, match="rule 'x': expected PATTERN=SECONDS"):
        config.load(SupernodeConfig, settings=('tags.rules=["x"]',))
