"""Modules that are loaded at first use, and that the agent's start does leave those for later."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.late import load_late

_TOP = Path(__file__).parents[3]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `slowly` with modules that say when they are loaded, and take their time."""
    (tmp_path / "slowly").mkdir()
    (tmp_path / "slowly" / "__init__.py").write_text("")
    for name in ("one", "two"):
        (tmp_path / "slowly" / f"{name}.py").write_text(
            f"import builtins, time\nbuiltins.loaded.append({name!r})\nhalf = 1\ntime.sleep(0.05)\nwhole = 2\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.loaded", [], raising=False)
    return tmp_path


def loaded() -> list[str]:
    import builtins

    found: list[str] = builtins.loaded  # type: ignore[attr-defined]
    return found


def test_a_module_is_loaded_when_it_is_used(package: Path) -> None:
    load_late("slowly.one", "slowly.two", "slowly.missing")
    import slowly.one
    from slowly import two

    assert loaded() == []
    assert two.whole == 2 and loaded() == ["two"]
    from slowly.one import half

    assert half == slowly.one.half == 1 and loaded() == ["two", "one"]
    with pytest.raises(AttributeError):
        _ = two.nothing
    with pytest.raises(ImportError):
        import slowly.missing
    for name in [name for name in sys.modules if name.startswith("slowly")]:
        del sys.modules[name]


def test_threads_that_come_at_once_see_all_of_it(package: Path) -> None:
    load_late("slowly.one")
    from slowly import one

    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(one.whole)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [2] * 8 and loaded() == ["one"]
    for name in [name for name in sys.modules if name.startswith("slowly")]:
        del sys.modules[name]


def test_what_could_not_be_loaded_is_loaded_at_the_next_use(package: Path) -> None:
    file = package / "slowly" / "one.py"
    text = file.read_text()
    file.write_text("raise OSError(24, 'too many open files')")
    load_late("slowly.one")
    from slowly import one

    for _ in range(2):
        with pytest.raises(OSError, match="too many"):
            _ = one.whole
    file.write_text(text)
    assert one.whole == 2
    for name in [name for name in sys.modules if name.startswith("slowly")]:
        del sys.modules[name]


def test_an_agent_loads_no_http_before_it_serves_readers() -> None:
    code = """
import sys
from agent import main
sys.argv[1:] = ["not a configuration", "lazy"]
try:
    main.main()
except Exception:
    print(sorted(name for name in sys.modules if name.startswith("aiohttp.") or name == "agent.images"))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=_TOP, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "['agent.images']", ran.stdout + ran.stderr
