"""Optional packages: what is missing is named, and an import changes no setting of torch."""

import re

import pytest
from torch.distributions import Distribution, Normal

from latentflows.core.errors import ConfigurationError
from latentflows.core.optional import import_optional


def test_a_missing_package_is_named_with_its_command():
    message = "`no_such_package` is needed here and is not installed. Run: pip install 'some[extra]'"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        import_optional("no_such_package.part", install="some[extra]")


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import surely_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_there"):
        import_optional("broken_package", install="broken")


@pytest.mark.parametrize("before", [True, False])
def test_an_import_leaves_the_checks_of_torch_as_they_were(tmp_path, monkeypatch, before):
    name = f"careless_package_{before}"
    (tmp_path / f"{name}.py").write_text(
        f"from torch.distributions import Distribution; Distribution._validate_args = {not before}; value = 3"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Distribution, "_validate_args", before)
    assert import_optional(name, install="careless").value == 3
    assert Distribution._validate_args is before
    if before:
        with pytest.raises(ValueError, match="Expected parameter scale"):
            Normal(0.0, -1.0)
