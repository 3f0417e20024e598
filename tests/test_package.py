"""Importing the package is free and changes nothing; a name loads what it needs and no more."""

import subprocess
import sys

import pytest

import latentflows
from latentflows import _HOMES

HEAVY = ("matplotlib", "PIL", "rich", "typer", "pydantic", "yaml", "jinja2", "sklearn", "tensorboard")


def loaded_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after running `code`."""
    script = f"import sys; {code}; print(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_alone_loads_not_even_torch():
    assert "torch" not in loaded_after("import latentflows")


def test_the_model_and_its_objectives_load_torch_and_nothing_heavier():
    code = "from latentflows import VAE, Flow, ELBO, Chain; import latentflows.models.presets"
    modules = loaded_after(code)
    assert "torch" in modules
    assert not modules & set(HEAVY)


def test_import_changes_no_global_state_of_torch():
    code = (
        "import torch; before = (torch.get_default_dtype(), torch.get_rng_state(), torch.is_grad_enabled(), "
        "torch.get_num_threads(), torch.distributions.Distribution._validate_args); "
        "from latentflows import VAE, Flow, ELBO; "
        "after = (torch.get_default_dtype(), torch.get_rng_state(), torch.is_grad_enabled(), "
        "torch.get_num_threads(), torch.distributions.Distribution._validate_args); "
        "assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after))"
    )
    loaded_after(code)


def test_public_names_and_their_homes_agree():
    named = {name for names in _HOMES.values() for name in names}
    assert set(latentflows.__all__) == named | {"__version__"}
    assert set(latentflows.__all__) <= set(dir(latentflows))


@pytest.mark.parametrize("name", ["VAE", "Flow", "ELBO", "Chain", "bijections", "objectives"])
def test_names_resolve_on_first_use(name):
    assert getattr(latentflows, name).__name__.endswith(name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'latentflows' has no attribute 'vae'"):
        _ = latentflows.vae
