import subprocess
import sys

import pytest

import qskd


def test_public_names_are_sorted_and_complete():
    assert list(qskd.__all__) == sorted(qskd.__all__)
    assert set(qskd.__all__) == {
        "DistillationConfig",
        "DistillationTrainer",
        "QskdError",
        "cache_teacher",
        "compare",
        "distill",
        "evaluate",
        "inspect",
        "load_model",
        "predict",
        "train",
    }


@pytest.mark.parametrize("name", qskd.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    found = getattr(qskd, name)
    assert found.__name__ == name
    assert found.__doc__


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'qskd' has no attribute 'distil'"):
        qskd.distil  # noqa: B018


def test_importing_qskd_imports_nothing_heavy():
    script = "import sys, qskd; print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    heavy = ["torch", "transformers", "numpy", "PIL", "yaml", "scipy", "matplotlib", "accelerate"]
    done = subprocess.run(
        [sys.executable, "-c", script, *heavy], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
